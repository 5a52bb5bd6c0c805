"""Catalogs as people write them: every row is accounted for, every mistake is one line."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.errors import UsageError
from mmva.media.formats import modality_of
from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.catalog.roots import AllowedRoots, catalog_root
from mmva_platform.annotation.catalog.rows import listed_rows, table_rows
from mmva_platform.annotation.media import Fetcher
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.settings import StorageSettings

from ....helpers.planned import read_all

S = StorageSettings()


def rows(uri: Path | str, settings: StorageSettings = S) -> list[dict[str, Any]]:
    return read_all(uri, settings).to_pylist()


def uris(uri: Path | str, settings: StorageSettings = S) -> list[str]:
    return [row["uri"] for row in rows(uri, settings)]


def test_folder_is_read_recursively_and_what_is_no_media_is_counted(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a/deep/song.m4a",
        "words.txt",
        ".hidden.png",
        ".git/x.png",
        "notes.pdf",
        "old.pdf",
        "README",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    catalog = open_catalog(str(tmp_path), S)
    items = pa.concat_tables(catalog.batches())
    assert [(row["id"], row["modality"], row["bytes"]) for row in items.to_pylist()] == [
        ("a/deep/song.m4a", "music", 3),
        ("b.JPG", "image", 3),
        ("words.txt", "caption", 3),
    ]
    assert items.column("uri")[0].as_py() == str(tmp_path / "a/deep/song.m4a")
    assert items.column("caption").null_count == 3  # a .txt file's text is fetched with the other media
    assert catalog.skipped == {".pdf": 2, "hidden": 2, "without extension": 1}


def test_folder_file_whose_name_is_not_utf8_is_counted(tmp_path: Path) -> None:
    (tmp_path / "fine.png").write_bytes(b"1")
    (tmp_path / "bad-\udcff.png").write_bytes(b"1")
    catalog = open_catalog(str(tmp_path), S)
    assert sum(table.num_rows for table in catalog.batches()) == 1
    assert catalog.skipped == {"its name is not UTF-8": 1}


def test_links_are_followed_or_counted(tmp_path: Path) -> None:
    media, elsewhere = tmp_path / "media", tmp_path / "elsewhere"
    (media / "real").mkdir(parents=True)
    elsewhere.mkdir()
    (media / "real" / "a.png").write_bytes(b"1")
    (elsewhere / "b.png").write_bytes(b"1")
    (media / "linked").symlink_to(media / "real")
    (media / "gone.png").symlink_to(media / "nothing.png")
    (media / "outside").symlink_to(elsewhere)
    catalog = open_catalog(str(media), S)
    items = pa.concat_tables(catalog.batches())
    assert items["id"].to_pylist() == ["linked/a.png", "real/a.png"]
    assert catalog.skipped == {"a dangling link": 1, "a link that leaves the root": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_table_fills_in_what_a_row_leaves_out(tmp_path: Path, kind: str) -> None:
    table = [
        {"id": "007", "uri": "pictures/a.png", "modality": None, "caption": None},
        {"id": None, "uri": "./b.mp3", "modality": None, "caption": "its own caption, not annotated"},
        {"id": None, "uri": "/elsewhere/c.bin", "modality": "Image", "caption": None},
        {"id": None, "uri": None, "modality": None, "caption": "a calm piano"},
        {"id": "cap", "uri": "s3://bucket/d.txt", "modality": None, "caption": None},
    ]
    file = tmp_path / f"catalog.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in table) + "\n\n")
    else:
        lines = [",".join(f'"{value}"' if value else "" for value in row.values()) for row in table]
        file.write_text("\ufeff" + "\n".join(["id,uri,modality,caption", *lines]), encoding="utf-8")
    found = rows(file)
    assert [(row["id"], row["uri"], row["modality"], row["caption"]) for row in found] == [
        ("007", str(tmp_path / "pictures/a.png"), "image", None),
        ("./b.mp3", str(tmp_path / "b.mp3"), "music", None),
        ("/elsewhere/c.bin", "/elsewhere/c.bin", "image", None),
        (found[3]["id"], None, "caption", "a calm piano"),
        ("cap", "s3://bucket/d.txt", "caption", None),
    ]
    assert str(found[3]["id"]).startswith("caption-")


def test_only_one_usable_column_is_enough(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("caption,comment\nsad strings,x\nhappy brass,y\n")
    assert [row["caption"] for row in rows(tmp_path / "words.csv")] == ["sad strings", "happy brass"]


def test_rows_that_cannot_be_annotated_stay_to_be_quarantined(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri,modality\nmovie.xyz,\nx.png,smell\n,image\n")
    assert [(row["id"], row["modality"]) for row in rows(tmp_path / "c.csv")] == [
        ("movie.xyz", None),
        ("x.png", "smell"),
        ("row-2", "image"),
    ]


def test_duplicate_ids_are_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,uri\n1,a.png\n2,b.png\n1,c.mp3\n1,d.png\n")
    with spooled(open_catalog(str(tmp_path / "c.csv"), S)) as spool:
        kept = [row["uri"] for group in spool.groups for chunk in spool.chunks(group) for row in chunk.to_pylist()]
    assert [Path(uri).name for uri in kept] == ["a.png", "b.png"]
    assert (spool.catalog.duplicates, spool.catalog.duplicate_ids, spool.catalog.by_modality) == (
        2,
        ("1", "1"),
        {"image": 2},
    )


def test_null_ids_are_named_by_their_uri_and_not_nan(tmp_path: Path) -> None:
    ids = pa.array([1.0, None, float("nan"), float("nan")], pa.float64())  # as pandas writes missing ids
    pq.write_table(pa.table({"id": ids, "uri": ["a.png", "b.png", "c.png", "d.png"]}), tmp_path / "c.parquet")
    assert [row["id"] for row in rows(tmp_path / "c.parquet")] == ["1", "b.png", "c.png", "d.png"]
    (tmp_path / "c.jsonl").write_text('{"id": NaN, "uri": "a.png"}\n{"id": NaN, "uri": "b.png"}\n')
    assert [row["id"] for row in rows(tmp_path / "c.jsonl")] == ["a.png", "b.png"]


def test_blanks_around_a_uri_are_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri\n /m/a.png\n\ts3://b/a.png \n")
    assert uris(tmp_path / "c.csv") == ["/m/a.png", "s3://b/a.png"]


def test_relative_uri_is_relative_to_the_tables_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/c.csv").write_text("uri\n../media/a.png\n")
    assert rows(tmp_path / "lists/c.csv")[0]["uri"] == str(tmp_path / "media/a.png")


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"caption": "odd \\ud800 text"}\n')
    assert rows(tmp_path / "c.jsonl")[0]["caption"] == "odd ? text"


def test_ids_may_be_numbers_and_text_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"uri": "/m/a.png", "id": 1}\n{"id": "2", "uri": "/m/b.png", "extra": 5}\n')
    assert [row["id"] for row in rows(tmp_path / "b.jsonl")] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.csv", b"name,label\nx,y\n", "needs a column 'uri' or 'caption'; found name, label"),
        ("c.jsonl", b'{"name": 1}\n', "needs a column 'uri' or 'caption'"),
        ("c.jsonl", b'{"uri": "a.png"}\n{oops\n', "line 2: not JSON"),
        ("c.jsonl", b"[1]\n", "line 1: must be an object"),
        ("c.csv", b"uri\n\xff\xfe.png\n", "not a UTF-8 CSV file"),
        ("c.csv", b"uri\n", "no items to annotate"),
        ("c.csv", b"", "needs a column"),
        ("c.csv", b"uri,id\na.png,1\nb.png,2,3\n", "Row #3: Expected 2 columns, got 3"),
        ("c.parquet", b"PAR1 not really", "not a Parquet file"),
        ("c.parquet", None, "cannot be read"),
        ("nothing/here", None, "no such folder"),
    ],
)
def test_mistakes_are_one_line_that_names_the_catalog(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_all(file)
    message = str(caught.value)
    assert says in message
    assert str(file) in message
    assert "\n" not in message


def test_folder_listing_gives_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    os.utime(tmp_path / "a.png", ns=(1, 987_654_321))
    (row,) = rows(tmp_path)
    assert (row["bytes"], row["etag"]) == (5, "987654321")


def test_table_gives_sizes_and_etags_and_local_files_their_own(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"123")
    os.utime(tmp_path / "here.png", ns=(1, 42))
    (tmp_path / "folder.png").mkdir()
    lines = [
        "here.png,99,old",
        f"file://{tmp_path}/here.png,,",
        "gone.png,99,tag",
        "folder.png,,",
        "s3://b/a.png,7,tag",
        "s3://b/b.png,8.0,",
        "s3://b/c.png,many,",
        "s3://b/d.png,-1,",
        "s3://b/e.png,1e30,",
        "s3://b/f.png,nan,",
        "http://169.254.169.254/x.png,,",
    ]
    (tmp_path / "c.csv").write_text("\n".join(["uri,bytes,etag", *lines]))
    assert [(row["bytes"], row["etag"]) for row in rows(tmp_path / "c.csv")] == [
        (3, "42"),
        (3, "42"),
        (99, "tag"),
        (None, None),
        (7, "tag"),
        (8, None),
        *[(None, None)] * 5,
    ]


def bucket_of(endpoint: str, keys: list[str]) -> StorageSettings:
    """Objects in the test's bucket, put past HTTP: a thousand requests take seconds."""
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends["123456789012"]["aws"].put_object("media", key, b"1234")
    return StorageSettings(s3_endpoint=endpoint, s3_region="us-east-1")


def test_sizes_and_etags_from_a_bucket(s3_endpoint: str) -> None:
    settings = bucket_of(s3_endpoint, ["m/x/a.png", "m2/b.png"])
    assert rows("s3://media/m/", settings) == [
        {
            "id": "x/a.png", "uri": "s3://media/m/x/a.png", "modality": "image", "caption": None, "bytes": 4,
            "etag": "81dc9bdb52d04dc20036dbd8313ed055",
        }
    ]  # fmt: skip


ODD_KEYS = [
    "odd/2024//x.jpg", "odd/./x.jpg", "odd/a\\\\b.png", "odd/https%3A%2F%2Fexample.com%2Fa.jpg",
    "odd/%2F%2F.png", "odd/a b .png", "odd/end ends.png ", "odd/+ü.png",
]  # fmt: skip


def test_odd_keys_cost_nobody_anything(s3_endpoint: str) -> None:
    settings = bucket_of(s3_endpoint, ODD_KEYS)
    catalog = open_catalog("s3://media/odd", settings)
    found = pa.concat_tables(catalog.batches())
    assert found["uri"].to_pylist() == [f"s3://media/{key}" for key in sorted(ODD_KEYS) if not key.endswith(" ")]
    assert catalog.skipped == {".png ": 1}
    fetch = Fetcher(settings, [catalog_root(catalog.uri)])
    assert [fetch(uri, 4, 100) for uri in found["uri"].to_pylist()] == [b"1234"] * (len(ODD_KEYS) - 1)


def test_more_keys_than_one_page_lists(s3_endpoint: str) -> None:
    keys = [f"many/{number:04d}.png" for number in range(1_203)]
    settings = bucket_of(s3_endpoint, keys)
    assert uris("s3://media/many", settings) == [f"s3://media/{key}" for key in keys]


def test_a_folder_of_tables_in_a_bucket(s3_endpoint: str) -> None:
    settings = bucket_of(s3_endpoint, ["lists/c.parquet/_SUCCESS"])
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    for name in ("b", "a"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"uri": [f"{name}.png"]}), sink)
        client.put_object(Bucket="media", Key=f"lists/c.parquet/{name}.parquet", Body=bytes(sink.getvalue()))
    client.close()
    assert uris("s3://media/lists/c.parquet", settings) == ["s3://media/lists/a.png", "s3://media/lists/b.png"]
    with pytest.raises(UsageError, match=r"s3://media/lists/none\.parquet: cannot be read"):
        rows("s3://media/lists/none.parquet", settings)


def test_relative_uris_of_a_table_in_a_bucket_are_not_normalized() -> None:
    written = pa.array(["../other/a.png", "./a.png", "x//b.png", "s3://c/d.png"])
    assert table_rows({"uri": written}, 0, "s3://b/x")["uri"].to_pylist() == [
        *["s3://b/x/../other/a.png", "s3://b/x/a.png", "s3://b/x/x//b.png", "s3://c/d.png"]
    ]
    assert not AllowedRoots(["s3://b/x"]).allow("s3://b/x/../other/a.png")


# --- folders of table files


def spark_folder(folder: Path, suffix: str = ".parquet") -> Path:
    """What Spark writes: part files, a marker, checksums and a file in the making."""
    folder.mkdir(parents=True)
    for number in range(3):
        ids = [f"{number}-{row}" for row in range(4)]
        table = pa.table({"id": ids, "uri": [f"s3://b/{name}.png" for name in ids], "other": [1.5] * 4})
        name = f"part-0000{number}-c000"
        if suffix == ".parquet":
            pq.write_table(table, folder / f"{name}.snappy.parquet")
        elif suffix == ".jsonl":
            (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
        else:
            lines = ["id,uri,other", *(f"{row['id']},{row['uri']},1.5" for row in table.to_pylist())]
            (folder / f"{name}.csv").write_text("\n".join(lines))
        (folder / f".{name}{suffix}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / f"part-00009{suffix}").write_bytes(b"in the making")
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("name", ["catalog.parquet", "catalog"])
def test_a_folder_of_tables_is_read_part_by_part(tmp_path: Path, suffix: str, name: str) -> None:
    folder = spark_folder(tmp_path / name, suffix)
    expected = [f"{number}-{row}" for number in range(3) for row in range(4)]
    for written in (str(folder), f"{folder}/", f"file://{folder}"):
        catalog = open_catalog(written, S)
        items = pa.concat_tables(catalog.batches())
        assert items["id"].to_pylist() == expected
        assert catalog.uri == str(folder)
        assert catalog.skipped == {}


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder = spark_folder(tmp_path / "catalog")
    (folder / "part-00001-c000.snappy.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(UsageError, match=r"part-00001-c000\.snappy\.parquet: not a Parquet file"):
        rows(folder)


def test_tables_beside_media_are_skipped(tmp_path: Path) -> None:
    folder = spark_folder(tmp_path / "photos")
    (folder / "z.png").write_bytes(b"1")
    catalog = open_catalog(str(folder), S)
    assert [row["id"] for table in catalog.batches() for row in table.to_pylist()] == ["z.png"]
    assert catalog.skipped[".parquet"] == 4


@pytest.mark.parametrize("style", ["lower", "title"])
def test_an_s3_inventory_is_a_listing(tmp_path: Path, style: str) -> None:
    names = ["bucket", "key", "size", "e_tag", "is_latest", "is_delete_marker"]
    if style == "title":
        names = ["Bucket", "Key", "Size", "ETag", "IsLatest", "IsDeleteMarker"]
    columns = [
        ["media"] * 6,
        ["a//x.jpg", "b.mp3", "notes.pdf", "old.png", "gone.png", "folder/"],
        [5, 6, 7, 8, 9, 0],
        ["e1", "e2", "e3", "e4", None, None],
        [True, True, True, False, True, True],
        [False, False, False, False, True, False],
    ]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), tmp_path / "data" / "1.parquet")
    catalog = open_catalog(str(tmp_path / "data"), S)
    found = pa.concat_tables(catalog.batches())
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("a//x.jpg", "s3://media/a//x.jpg", "image", None, 5, "e1"),
        ("b.mp3", "s3://media/b.mp3", "music", None, 6, "e2"),
    ]
    assert catalog.skipped == {".pdf": 1, "not a current object": 3}


# --- properties


@given(st.lists(st.text(st.sampled_from("aA./\\jpgmPG\n ü"), max_size=12), min_size=1))
def test_extensions_mean_what_they_mean_everywhere(names: list[str]) -> None:
    sizes, skipped = pa.nulls(len(names), pa.int64()), Counter[str]()
    found = listed_rows(pa.array(names), sizes, pa.nulls(len(names), pa.large_string()), "/m", skipped)
    hidden = [
        name for name in names if any(part.startswith(".") and part not in {".", ".."} for part in name.split("/"))
    ]
    media = [name for name in names if name not in hidden and modality_of(name) is not None]
    assert found["id"].to_pylist() == media
    assert found["modality"].to_pylist() == [modality_of(name) for name in media]
    assert skipped.total() == len(names) - len(media)
    assert skipped["hidden"] == len(hidden)


def test_every_batch_has_columns_that_hold_more_than_2_gib(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "c.csv").write_text("uri\na.png\n")
    for uri in (tmp_path, tmp_path / "c.csv"):
        with spooled(open_catalog(str(uri), S)) as spool:
            chunks = [chunk for group in spool.groups for chunk in spool.chunks(group)]
        types = {chunk.schema.field(name).type for chunk in chunks for name in ("id", "uri", "caption", "etag")}
        assert types == {pa.large_string()}


def test_a_sample_is_random_and_of_all_batches() -> None:
    def read(_skipped: Counter[str]) -> list[pa.Table]:
        nothing = dict.fromkeys(CATALOG_SCHEMA.names)
        return [
            pa.Table.from_pylist([nothing | {"id": str(10 * part + row)} for row in range(10)], CATALOG_SCHEMA)
            for part in range(30)
        ]

    catalog = Catalog("/m", read)
    drawn, total = catalog.sample(50, 1)
    found = [int(name) for name in drawn["id"].to_pylist()]
    assert total == 300
    assert len(set(found)) == 50
    assert found == sorted(found)
    assert np.histogram(found, 3, (0, 300))[0].min() >= 8
    assert catalog.sample(50, 1)[0].equals(drawn)
    assert not catalog.sample(50, 2)[0].equals(drawn)
    assert catalog.sample(1000, 1)[0].num_rows == 300


def test_folder_without_media_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"1")
    with pytest.raises(UsageError, match=r"no items to annotate; skipped 1 \.pdf"):
        read_all(tmp_path)
