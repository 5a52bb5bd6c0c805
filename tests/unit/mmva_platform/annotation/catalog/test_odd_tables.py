"""Tables as real programs write them: read with the right values, or refused with the line; never read wrongly."""

from __future__ import annotations

import gzip
import json
import os
import socket
import tracemalloc
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmva.errors import UsageError
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.options import TableOptions
from mmva_platform.settings import StorageSettings

S = StorageSettings()
Row = tuple[str, str | None, str | None]


def read(uri: Path | str, **options: Any) -> tuple[list[Row], dict[str, int]]:
    """Id, URI and caption of the rows, and what was left out."""
    catalog = open_catalog(str(uri), S, TableOptions(**options))
    rows = [row for table in catalog.batches() for row in table.to_pylist()]
    return [(row["id"], row["uri"], row["caption"]) for row in rows], dict(catalog.skipped)


def refused(uri: Path, **options: Any) -> str:
    """The message of the refusal, after the catalog's name."""
    with pytest.raises(UsageError) as caught:
        read(uri, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"catalog {uri}")
    return message.removeprefix(f"catalog {uri}")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "c.parquet")
    return folder / "c.parquet"


# --- CSV

MALFORMED = {
    "unclosed to the end": ('1,"calm\n2,sad\n', 2, "an unclosed quote", ["2"]),
    "unclosed to the next quote": ('1,"calm\n2,"sad"\n3,c\n', 2, "text after a closing quote", ["2", "3"]),
    "unclosed, swallowed fields": ('1,"calm\n2,",sad\n3,c\n', 2, "wrong number of fields", ["3"]),
    "an unquoted comma": ("1,a slow, sad piano\n2,b\n", 2, "wrong number of fields", ["2"]),
    "a field too few": ("1,a\n2\n3,c\n", 3, "wrong number of fields", ["1", "3"]),
    "after lines in quotes": ('1,"a\nb\n\nc"\n2\n3,c\n', 6, "wrong number of fields", ["1", "3"]),
    "quotes escaped by backslashes": ('1,"he said \\"hi\\" "\n2,b\n', 2, "text after a closing quote", ["2"]),
    "a blank before a quote": ('1, "calm"\n2,b\n', 2, "a blank before a quote", ["2"]),
    "not UTF-8": (b"1,caf\xe9\n2,b\n", 2, "bytes that are not UTF-8", ["2"]),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_named_by_its_line_or_counted_and_costs_only_itself(
    tmp_path: Path, case: str, ends: str
) -> None:
    rows, line, reason, left = MALFORMED[case]
    content = b"id,caption\n" + (rows if isinstance(rows, bytes) else rows.encode())
    file = written(tmp_path, "c.csv", content.replace(b"\n", ends.encode()))
    assert refused(file).startswith(f", line {line}: not a UTF-8 CSV file (")
    found, skipped = read(file, lenient=True)
    assert [row[0] for row in found] == left
    assert skipped[f"malformed row: {reason}"] >= 1
    assert len(found) + sum(skipped.values()) == (3 if case == "after lines in quotes" else len(rows.splitlines()))


def test_what_a_careful_writer_quotes_is_read_as_it_was(tmp_path: Path) -> None:
    captions = ['5" disc', ' "in quotes"', "a,b", "two\nlines", "", "tab\there", "'single'", "ü", '""']
    lines = [f'{number},"{text.replace(chr(34), chr(34) * 2)}"' for number, text in enumerate(captions)]
    found, _ = read(written(tmp_path, "c.csv", "id,caption\n" + "\n".join(lines)))
    assert [row[2] for row in found] == [text or None for text in captions]
    assert read(written(tmp_path, "c.csv", 'id,caption\n1,5" disc\n'))[0] == [("1", None, '5" disc')]


@given(st.lists(st.text(st.sampled_from('a ",\n\t\\'), max_size=6), min_size=1, max_size=5), st.data())
def test_every_row_is_read_or_counted(tmp_path_factory: pytest.TempPathFactory, rows: list[str], data: Any) -> None:
    text = "\n".join(rows)
    file = written(tmp_path_factory.mktemp("t"), "c.csv", f"id,caption\n{text}\nlast,row\n")
    try:
        strict = read(file)[0]
    except UsageError:
        strict = None
    found, skipped = read(file, lenient=True)
    assert (strict is None) == bool(skipped)
    if strict is not None:
        assert found == strict
    if text.count('"') == 0:
        assert len(found) + sum(skipped.values()) == len([row for row in text.split("\n") if row]) + 1


def test_a_header_that_is_malformed_is_an_error_also_when_lenient(tmp_path: Path) -> None:
    file = written(tmp_path, "c.csv", 'id,"caption\n1,a\n')
    assert refused(file, lenient=True) == ", line 1: not a UTF-8 CSV file (an unclosed quote)"


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmva.data.csv_rows.LONGEST_LINE", 1000)
    file = written(tmp_path, "c.csv", 'id,caption\n1,"' + "a\n" * 5000)
    assert "a field of more than 1000 characters, or an unclosed quote" in refused(file)
    file = written(tmp_path, "c.csv", "caption\na\n" + "b" * 5001 + "\nc\n")
    assert ", line 3: not a UTF-8 CSV file (a field of more" in refused(file)
    found, skipped = read(file, lenient=True)
    assert [row[2] for row in found] == ["a", "c"]
    assert skipped == {"malformed row: a field that is too long": 1}
    file = written(tmp_path, "c.csv", 'caption\n"a\n' + "b" * 5001 + "\nc\n")  # twice: in the quote, and by itself
    assert read(file, lenient=True) == ([(ANY, N, "c")], {"malformed row: a field that is too long": 2})
    file = written(tmp_path, "c.csv", b"caption\n" + b"ab," * 10**6)
    tracemalloc.start()
    refused(file)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    monkeypatch.setattr("mmva_platform.annotation.catalog.tables.LONGEST_LINE", 1000)
    assert refused(written(tmp_path, "c.jsonl", '{"caption": "' + "a" * 5000)).startswith(", line 1: longer than 1000")


@pytest.mark.parametrize(
    ("name", "delimiter", "mark"),
    [("c.tsv", None, "\t"), ("c.tsv.gz", None, "\t"), ("c.csv.gz", None, ","), ("c.csv", ";", ";"),
     ("c.csv", "\\t", "\t"), ("c.tsv", "|", "|"), ("C.TSV", None, "\t")],
)  # fmt: skip
def test_other_delimiters_and_compressed_tables(tmp_path: Path, name: str, delimiter: str | None, mark: str) -> None:
    text = mark.join(["id", "uri"]) + "\n" + mark.join(["007", "/m/a.png"]) + "\n"
    content = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    assert read(written(tmp_path, name, content), delimiter=delimiter)[0] == [("007", "/m/a.png", None)]


def test_what_is_compressed_is_seen_from_its_bytes(tmp_path: Path) -> None:
    text = b'{"uri": "/m/a.png"}\n'
    for name, content in (("c.jsonl", gzip.compress(text)), ("d.jsonl.gz", text), ("e.ndjson.gz", gzip.compress(text))):
        assert read(written(tmp_path, name, content))[0] == [("/m/a.png", "/m/a.png", None)]


def test_a_folder_of_compressed_parts(tmp_path: Path) -> None:
    (tmp_path / "c.csv.gz").mkdir()
    for name in "ab":
        part = written(tmp_path / "c.csv.gz", f"part-{name}.csv.gz", gzip.compress(f"uri\n/m/{name}.png\n".encode()))
    assert [row[1] for row in read(tmp_path / "c.csv.gz")[0]] == ["/m/a.png", "/m/b.png"]
    part.write_bytes(part.read_bytes()[:-6])
    assert "part-b.csv.gz: damaged, or cannot be read" in refused(tmp_path / "c.csv.gz")


def test_a_wrong_delimiter_is_guessed_for_the_message_only(tmp_path: Path) -> None:
    file = written(tmp_path, "c.csv", "id;uri\n1;a.png\n")
    assert refused(file).endswith("found id;uri; its delimiter seems to be ';' (--delimiter)")
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(ValidationError, match="must be one character"):
            TableOptions(delimiter=delimiter)


# --- names of columns


@pytest.mark.parametrize(
    "names", [("ID", "Uri", "CAPTION"), (" id", "uri ", "\tcaption"), ("\ufeffid", " URI ", "Caption")]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_of_columns_are_read_in_any_case_and_with_blanks(
    tmp_path: Path, names: tuple[str, str, str], kind: str
) -> None:
    file, cells = tmp_path / f"c.{kind}", ("007", "/m/a.mp3", "calm")
    if kind == "csv":
        file.write_text(f"{','.join(names)}\n{','.join(cells)}\n", encoding="utf-8")
    else:
        row = {name.lstrip("\ufeff"): cell for name, cell in zip(names, cells, strict=True)}
        if kind == "jsonl":
            file.write_text(json.dumps(row), encoding="utf-8-sig")
        else:
            pq.write_table(pa.Table.from_pylist([row]), file)
    assert read(file)[0] == [("007", "/m/a.mp3", None)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"c.{kind}"
    if kind == "csv":
        file.write_text("uri,caption,URI\na.png,x,b.png\n")
    elif kind == "jsonl":
        file.write_text('{"uri": "a.png"}\n{"URI": "b.png"}\n')
    else:
        pq.write_table(pa.table({"uri": ["a.png"], "URI": ["b.png"]}), file)
    assert refused(file) == ": has the columns 'uri' and 'URI', which mmva cannot distinguish; rename one"
    assert "a key occurs twice" in refused(written(tmp_path, "d.jsonl", '{"uri": "a", "uri": "b"}\n'))


# --- types of cells

U, N = "/m/a.png", None
READ = {
    "binary": (pa.array([b"001", "ü".encode(), None]), ["001", "ü", N]),
    "large_binary": (pa.array([b"001", b"b", None], pa.large_binary()), ["001", "b", N]),
    "binary_view": (pa.array([b"001", b"b", None], pa.binary_view()), ["001", "b", N]),
    "fixed_size_binary": (pa.array([b"001", b"002", None], pa.binary(3)), ["001", "002", N]),
    "string_view": (pa.array(["001", "b", None], pa.string_view()), ["001", "b", N]),
    "dictionary": (pa.array(["001", "b", None]).dictionary_encode(), ["001", "b", N]),
    "uint64": (pa.array([2**63, 1, None], pa.uint64()), [str(2**63), "1", N]),
    "pandas' integers, some missing": (pa.array([1.0, float(2**53), float("nan")]), ["1", str(2**53), N]),
    "decimal": (pa.array([Decimal(10**20), Decimal(1), None], pa.decimal128(38, 0)), [str(10**20), "1", N]),
    "nothing": (pa.nulls(3), [N, N, N]),
}


@pytest.mark.parametrize("kind", READ)
def test_columns_of_text_and_integers_are_read(tmp_path: Path, kind: str) -> None:
    column, expected = READ[kind]
    file = parquet(tmp_path, id=column, uri=[U] * 3)
    assert [row[0] for row in read(file)[0]] == [name or U for name in expected]
    file = parquet(tmp_path, uri=pa.nulls(3, pa.string()), id=["a", "b", "c"], caption=column)
    assert [row[2] for row in read(file)[0]] == expected


REFUSED = {
    "struct": pa.array([{"a": 1}]),
    "list": pa.array([["a"]]),
    "bool": pa.array([True]),
    "double": pa.array([0.5]),
    "float": pa.array([2.0**25], pa.float32()),
    "timestamp": pa.array([0], pa.timestamp("us")),
    "decimal128": pa.array([Decimal("1.5")]),
    "arrow.uuid": pa.array([uuid.UUID(int=1).bytes], pa.uuid()),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["id", "uri", "caption", "modality", "etag"])
def test_columns_of_other_types_are_refused_by_name_and_type(tmp_path: Path, name: str, kind: str) -> None:
    file = parquet(tmp_path, **({"uri": [U], "caption": ["calm"]} | {name: REFUSED[kind]}))
    for lenient in (False, True):
        said = refused(file, lenient=lenient)
        assert said.startswith(f": column {name!r} is of type ")
        assert kind in said
        assert said.endswith("must be text or integers")


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
def test_a_json_value_that_is_not_text_is_named_by_its_line(tmp_path: Path, value: Any) -> None:
    rows = [{"id": "1", "caption": "a"}, {"id": value, "caption": "b"}, {"id": 3.0, "caption": float("nan")}]
    file = written(tmp_path, "c.jsonl", "\n".join(map(json.dumps, rows)))
    assert refused(file).startswith(", line 2: column 'id' has a")
    assert read(file, lenient=True) == ([("1", N, "a"), ("3", N, N)], {"malformed row: a value that is not text": 1})


def test_lines_that_are_not_json_are_counted_when_lenient(tmp_path: Path) -> None:
    file = written(tmp_path, "c.jsonl", b'{"uri": "/m/a.png"}\n{oops\n[1]\n{"uri": "\xff"}\n' + b"[" * 100_000 + b"\n")
    assert refused(file).startswith(", line 2: not JSON")
    found, skipped = read(file, lenient=True)
    assert [row[1] for row in found] == ["/m/a.png"]
    assert skipped == {"malformed row: not JSON": 3, "malformed row: not an object": 1}


def test_bytes_that_are_no_utf8_are_named_by_their_row(tmp_path: Path) -> None:
    raw = pa.array([b"/m/a.png", b"/m/\xff.png", None, b"/m/b.png"])
    for column in (raw, raw.view(pa.string())):  # the second as a damaged file gives it
        file = parquet(tmp_path, uri=column, id=["1", "2", "3", "4"])
        assert refused(file) == ", row 2: column 'uri' has bytes that are not UTF-8"
        found, skipped = read(file, lenient=True)
        assert [row[0] for row in found] == ["1", "3", "4"]
        assert skipped == {"malformed row: bytes that are not UTF-8": 1}


def test_a_parquet_file_with_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    table = pa.table({"uri": [f"/m/{number}.png" for number in range(5000)]})
    file = tmp_path / "c.parquet"
    pq.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    place = data.index(b"/m/2500.png")
    data[place + 3 : place + 7] = b"9999"  # text all the same: only the page's checksum tells
    file.write_bytes(data)
    assert refused(file).startswith(": damaged, or cannot be read (")
    for position in range(4, len(data) - 8, len(data) // 40):
        broken = bytearray(data)
        broken[position : position + 50] = b"\xee" * 50
        file.write_bytes(broken)
        refused(file)


# --- listings


def test_what_is_no_file_is_counted_and_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = tmp_path / "m"
    (media / "locked").mkdir(parents=True)
    (media / "deep").mkdir()
    for name in ("a.png", "deep/new\nline.png", "deep/%2F%3A.png", "locked/x.png"):
        (media / name).write_bytes(b"1")
    os.mkfifo(media / "pipe.png")
    monkeypatch.chdir(media)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    (media / "annexed.png").symlink_to(".git/annex/objects/xx")
    (media / "loop").symlink_to("loop")
    (media / "up").symlink_to("..")
    true = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", scandir)
    expected = {
        "not a regular file": 2, "a dangling link": 1, "permission denied": 1, "too many levels of symbolic links": 1,
        "a link that leaves the root": 1,
    }  # fmt: skip
    found, skipped = read(media)
    assert [row[0] for row in found] == ["a.png", "deep/%2F%3A.png", "deep/new\nline.png"]
    assert skipped == expected
    for name in ("a.png", "deep/new\nline.png", "deep/%2F%3A.png"):
        (media / name).unlink()
    written(media, "part-0.csv", "uri\n/m/a.png\n")
    assert read(media) == ([("/m/a.png", "/m/a.png", None)], expected)  # also of a catalog that is a folder of tables
    media.rename(tmp_path / "m.csv")
    assert read(tmp_path / "m.csv") == ([("/m/a.png", "/m/a.png", None)], expected)


@pytest.mark.parametrize("key", ["a\x01b.png", "a\x7f.png", "a\nb.png", "a%00.png", "%ff.png", "\U0001f600.png"])
def test_keys_with_control_characters_are_listed_as_they_are(s3_endpoint: str, key: str) -> None:
    from moto.s3.models import s3_backends

    prefix = f"s3://media/{uuid.uuid4()}"
    for name in (key, "z.png"):
        s3_backends["123456789012"]["aws"].put_object("media", f"{prefix[11:]}/{name}", b"1234")
    catalog = open_catalog(prefix, StorageSettings(s3_endpoint=s3_endpoint, s3_region="us-east-1"))
    found = [row["id"] for table in catalog.batches() for row in table.to_pylist()]
    assert sorted(found) == sorted([key, "z.png"])
