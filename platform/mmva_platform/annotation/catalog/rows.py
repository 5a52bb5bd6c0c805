"""Converts a table's columns to catalog rows (CATALOG_SCHEMA): pure functions on Arrow arrays."""

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.files import sha256_hex
from mmva.media.formats import modality_of
from mmva_platform.annotation.catalog.roots import local_path_of
from mmva_platform.annotation.schema import CATALOG_SCHEMA

_SUFFIX: Final = r"(?s)^(?:.*[/\\])?[^/\\]+(?P<suffix>\.[^./\\]*)$"
_HIDDEN: Final = r"(?:^|/)\.(?:[^./]|\.[^/])"  # "." and ".." are parts of keys, not names of hidden files
_NUMBER: Final = r"^\s*\d+(?:\.\d*)?\s*$"
_MOST_BYTES: Final = 2.0**63
_EMPTY: Final = pa.scalar("", pa.large_string())
_SLASH: Final = pa.scalar("/", pa.large_string())


def listed_rows(
    paths: pa.Array, sizes: pa.Array, etags: pa.Array, root: str | pa.Array, skipped: Counter[str]
) -> pa.Table:
    """Rows of N listed files. Hidden files and files that are not media are left out.

    `paths` are relative to `root` (one URI, or one per file, without a trailing slash), `sizes` in bytes. `skipped`
    counts files that are left out by extension, or as "hidden" for names with a leading dot.
    """
    paths = paths.cast(pa.large_string())
    suffixes, kinds = _by_suffix(paths)
    hidden = pc.match_substring_regex(paths, _HIDDEN)
    skipped["hidden"] += pc.sum(hidden).as_py() or 0
    others = pc.and_(pc.is_null(kinds), pc.invert(hidden))
    for entry in suffixes.filter(others).value_counts().to_pylist():
        skipped[entry["values"] or "without extension"] += entry["counts"]
    prefix = pa.scalar(root, pa.large_string()) if isinstance(root, str) else root
    uris = pc.binary_join_element_wise(prefix, paths, _SLASH)
    columns = [paths, uris, kinds, pa.nulls(len(paths), pa.large_string()), sizes, etags]
    return pa.Table.from_arrays(columns, schema=CATALOG_SCHEMA).filter(pc.and_(pc.is_valid(kinds), pc.invert(hidden)))


def table_rows(columns: Mapping[str, pa.Array], first: int, base: str) -> pa.Table:
    """Rows of a table, with missing values filled in: the URI's folder, modality, id, and a local file's size and time.

    `columns` are some of id, uri, modality, caption, bytes and etag, N rows each. `first` is the number of the first
    row in the catalog, for the ids of rows without id, URI and caption. Relative URIs start from the folder `base`.
    """
    count = len(next(iter(columns.values())))
    nothing = pa.nulls(count, pa.large_string())
    text = {name: _text(columns[name]) if name in columns else nothing for name in ("id", "uri", "caption", "etag")}
    uris = pc.utf8_trim_whitespace(text["uri"])
    modalities = _modalities(columns.get("modality", nothing), uris, text["caption"])
    ids = pc.coalesce(text["id"], uris)
    if ids.null_count:
        ids = pc.coalesce(ids, _made_up_ids(ids, text["caption"], first))
    locations = _absolute(uris, base)
    sizes, etags = _states(locations, _sizes(columns.get("bytes", nothing)), text["etag"])
    # A row of music may also have a caption; its modality decides which of the two is annotated.
    is_caption = pc.fill_null(pc.equal(modalities, "caption"), fill_value=False)
    captions = pc.if_else(is_caption, text["caption"], nothing)
    return pa.Table.from_arrays([ids, locations, modalities, captions, sizes, etags], schema=CATALOG_SCHEMA)


def inventory_rows(columns: Mapping[str, pa.Array], skipped: Counter[str]) -> pa.Table:
    """Rows of an S3 Inventory: the current version of every object, as in a listing of its bucket."""
    count = len(columns["key"])
    current = pa.array(np.ones(count, dtype=bool))
    for name, current_value in (("islatest", "true"), ("isdeletemarker", "false")):
        if name in columns:
            values = pc.fill_null(pc.utf8_lower(_text(columns[name])), current_value)
            current = pc.and_(current, pc.equal(values, current_value))
    keys = _text(columns["key"])
    current = pc.and_(current, pc.and_(pc.is_valid(keys), pc.invert(pc.fill_null(pc.ends_with(keys, "/"), True))))  # noqa: FBT003
    skipped["not a current object"] += count - (pc.sum(current).as_py() or 0)
    nothing = pa.nulls(count, pa.large_string())
    parts = [keys, _sizes(columns.get("size", nothing)), _text(columns.get("etag", nothing)), _text(columns["bucket"])]
    keys, sizes, etags, buckets = (part.filter(current) for part in parts)
    prefix = pc.binary_join_element_wise(pa.scalar("s3://", pa.large_string()), buckets, _EMPTY)
    return listed_rows(keys, sizes, etags, prefix, skipped)


def _by_suffix(uris: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The extension of each name in lower case ("" without one), and its modality, or null."""
    found = pc.struct_field(pc.extract_regex(uris, _SUFFIX), "suffix")
    suffixes = pc.fill_null(pc.utf8_lower(found), "").dictionary_encode()
    known = pa.array([modality_of(f"x{suffix}") for suffix in suffixes.dictionary.to_pylist()], pa.large_string())
    names = [PurePosixPath(f"x{suffix}").suffix for suffix in suffixes.dictionary.to_pylist()]
    return pa.array(names, pa.large_string()).take(suffixes.indices), known.take(suffixes.indices)


def _text(values: pa.Array) -> pa.Array:
    """A column as text; blank is null."""
    texts = values.cast(pa.large_string())
    blank = pc.equal(pc.utf8_trim_whitespace(texts), _EMPTY)
    return pc.if_else(pc.fill_null(blank, fill_value=True), pa.scalar(None, pa.large_string()), texts)


def _modalities(written: pa.Array, uris: pa.Array, captions: pa.Array) -> pa.Array:
    """The given modality, else that of the URI's extension, else "caption" for a row with a caption and no URI."""
    given = pc.utf8_lower(pc.utf8_trim_whitespace(_text(written)))
    alone = pc.and_(pc.is_null(uris), pc.is_valid(captions))
    named = pc.if_else(alone, pa.scalar("caption", pa.large_string()), pa.scalar(None, pa.large_string()))
    return pc.coalesce(given, _by_suffix(uris)[1], named)


def _made_up_ids(ids: pa.Array, captions: pa.Array, first: int) -> pa.Array:
    """Ids for rows without one: from the caption's digest, else from the row's number."""
    made: list[str | None] = [None] * len(ids)
    for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
        caption = captions[int(row)].as_py()
        made[row] = f"caption-{sha256_hex(caption.encode())[:16]}" if caption else f"row-{first + row}"
    return pa.array(made, pa.large_string())


def _absolute(uris: pa.Array, base: str) -> pa.Array:
    """Full URIs. S3 keys are not normalized: "a//b" is a key of its own, and ".." does not leave the prefix."""
    whole = pc.or_(pc.starts_with(uris, "/"), pc.match_substring(uris, "://"))
    if pc.all(pc.fill_null(whole, fill_value=True)).as_py() is not False:
        return uris
    if "://" in base:
        relative = pc.replace_substring_regex(uris, r"^(?:\./+)+", "")
        full = pc.binary_join_element_wise(pa.scalar(base, pa.large_string()), relative, _SLASH)
    else:
        full = pa.array([uri and posixpath.normpath(f"{base}/{uri}") for uri in uris.to_pylist()], pa.large_string())
    return pc.if_else(whole, uris, full)


def _sizes(values: pa.Array) -> pa.Array:
    """Sizes as int64, from numbers or from text such as "123" or "123.0"; null for anything else."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        texts = _text(values)
        is_number = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), fill_value=False)
        values = pc.if_else(is_number, pc.utf8_trim_whitespace(texts), pa.scalar(None, pa.large_string()))
    sizes_N = values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    known_N = (sizes_N >= 0) & (sizes_N < _MOST_BYTES)
    return pa.array(np.where(known_N, sizes_N, 0).astype(np.int64), mask=~known_N)


def _states(uris: pa.Array, sizes: pa.Array, etags: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Sizes and etags: of the local file if there is one, else of the row."""
    local = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "file://"))
    if not pc.any(local).as_py():
        return sizes, etags
    of_files = [_state(uri) for uri in pc.if_else(local, uris, pa.scalar(None, pa.large_string())).to_pylist()]
    own_sizes = pa.array([None if state is None else state.st_size for state in of_files], pa.int64())
    own_etags = pa.array([None if state is None else str(state.st_mtime_ns) for state in of_files], pa.large_string())
    found = own_sizes.is_valid()
    return pc.if_else(found, own_sizes, sizes), pc.if_else(found, own_etags, etags)


def _state(uri: str | None) -> os.stat_result | None:
    path = None if uri is None else local_path_of(uri)
    try:
        state = None if path is None else os.stat(path)  # noqa: PTH116 - a Path for each row costs more than the call
    except (OSError, ValueError):
        return None
    return state if state is not None and stat.S_ISREG(state.st_mode) else None
