"""An annotation as other programs see it: through deltalake, polars and pyarrow, with nothing of this project."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from seaweed import ACCESS, SECRET

# What differs between two runs over the same items, without any fault.
_CHANGING = {
    "run_id", "annotated_at", "failed_at", "attempts", "item_digest", "shard", "embedding_file", "embedding_row",
}  # fmt: skip


def s3_options(endpoint: str) -> dict[str, str]:
    """Options of deltalake and polars for the tests' S3 server."""
    return {
        "aws_endpoint": endpoint, "aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1", "allow_http": "true", "aws_virtual_hosted_style_request": "false",
    }  # fmt: skip


def version_of(uri: str, options: Mapping[str, str] | None = None) -> int | None:
    """The newest version of the table; None if there is no table."""
    from deltalake import DeltaTable

    table_options = dict(options or {})
    if not DeltaTable.is_deltatable(uri, table_options):
        return None
    return int(DeltaTable(uri, storage_options=table_options).version())


def read_table(
    uri: str, read: Callable[[str], bytes], options: Mapping[str, str] | None = None, version: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Rows of a version by status, each list by id, with the embeddings that they refer to.

    Columns that differ from run to run are left out. Fails if an item is there more than once.

    Args:
        uri: The annotation.
        read: Gives the bytes of a file of it.
        options: See s3_options.
        version: The newest by default.
    """
    import polars as pl
    import pyarrow.parquet as pq

    frame = pl.scan_delta(uri, version=version, storage_options=dict(options or {})).collect()
    assert frame["id"].is_unique().all(), "an item is there more than once"
    assert set(frame["status"]) <= {"ok", "quarantined"}
    files = {
        name: pq.read_table(io.BytesIO(read(name)), columns=["id", "embedding"]).to_pylist()
        for name in frame["embedding_file"].drop_nulls().unique()
    }
    found: dict[str, list[dict[str, Any]]] = {"ok": [], "quarantined": []}
    for row in frame.sort("id").to_dicts():
        if row["status"] == "ok":
            stored = files[row["embedding_file"]][row["embedding_row"]]
            assert stored["id"] == row["id"], "a row refers to another item's embedding"
            row["embedding"] = stored["embedding"]
        found[row["status"]].append({name: value for name, value in row.items() if name not in _CHANGING})
    return found
