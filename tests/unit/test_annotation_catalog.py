"""Catalogs as people write them: every row is accounted for, every mistake is one line."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import UsageError
from mmva_platform.annotation.catalog import read_catalog
from mmva_platform.settings import StorageSettings

S = StorageSettings()


def rows(uri: Path) -> list[dict[str, object]]:
    return read_catalog(str(uri), S).items.to_pylist()


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
    catalog = read_catalog(str(tmp_path), S)
    assert [(row["id"], row["modality"], row["bytes"]) for row in catalog.items.to_pylist()] == [
        ("a/deep/song.m4a", "music", 3),
        ("b.JPG", "image", 3),
        ("words.txt", "caption", 3),
    ]
    assert catalog.items.column("uri")[0].as_py() == str(tmp_path / "a/deep/song.m4a")
    assert catalog.items.column("caption").null_count == 3  # a .txt file's text is fetched with the other media
    assert catalog.skipped == {".pdf": 2, "hidden": 2, "without extension": 1}


def test_folder_file_whose_name_is_not_utf8_is_counted(tmp_path: Path) -> None:
    (tmp_path / "fine.png").write_bytes(b"1")
    (tmp_path / "bad-\udcff.png").write_bytes(b"1")
    assert read_catalog(str(tmp_path), S).skipped == {"name is not UTF-8": 1}


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
    (tmp_path / "c.csv").write_text("uri,modality\nmovie.mpg,\nx.png,smell\n,image\n")
    assert [(row["id"], row["modality"]) for row in rows(tmp_path / "c.csv")] == [
        ("movie.mpg", None),
        ("x.png", "smell"),
        ("row-2", "image"),
    ]


def test_duplicate_ids_are_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,uri\n1,a.png\n2,b.png\n1,c.png\n1,d.png\n")
    catalog = read_catalog(str(tmp_path / "c.csv"), S)
    assert [Path(uri).name for uri in catalog.items.column("uri").to_pylist()] == ["a.png", "b.png"]
    assert (catalog.duplicates, catalog.duplicate_ids) == (2, ("1", "1"))


def test_relative_uri_is_relative_to_the_tables_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/c.csv").write_text("uri\n../media/a.png\n")
    assert rows(tmp_path / "lists/c.csv")[0]["uri"] == str(tmp_path / "media/a.png")


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"caption": "odd \\ud800 text"}\n')
    assert rows(tmp_path / "c.jsonl")[0]["caption"] == "odd ? text"


def test_digest_follows_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,uri\n1,/m/a.png\n2,/m/b.png\n")
    (tmp_path / "b.jsonl").write_text('{"uri": "/m/a.png", "id": 1}\n{"id": "2", "uri": "/m/b.png", "extra": 5}\n')
    (tmp_path / "c.csv").write_text("id,uri\n1,/m/a.png\n2,/m/c.png\n")
    a, b, c = (read_catalog(str(tmp_path / name), S).digest for name in ("a.csv", "b.jsonl", "c.csv"))
    assert a == b != c


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
        read_catalog(str(file), S)
    message = str(caught.value)
    assert says in message
    assert str(file) in message
    assert "\n" not in message


def test_folder_listing_gives_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    os.utime(tmp_path / "a.png", ns=(1, 987_654_321))
    (row,) = rows(tmp_path)
    assert (row["bytes"], row["etag"]) == (5, "987654321")
    before = read_catalog(str(tmp_path), S).digest
    os.utime(tmp_path / "a.png", ns=(1, 987_654_322))
    assert read_catalog(str(tmp_path), S).digest != before  # replaced by a file of the same size


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


def test_sizes_and_etags_from_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        put = client.put_object(Bucket="bucket", Key="m/x/a.png", Body=b"1234")
        client.put_object(Bucket="bucket", Key="m2/b.png", Body=b"1")
        found = read_catalog(
            "s3://bucket/m", StorageSettings(s3_endpoint=endpoint, s3_region="us-east-1")
        ).items.to_pylist()
    finally:
        server.stop()
    assert [(row["id"], row["uri"], row["bytes"], row["etag"]) for row in found] == [
        ("x/a.png", "s3://bucket/m/x/a.png", 4, put["ETag"].strip('"'))
    ]


def test_way_out_of_a_bucket_prefix_stays_visible(tmp_path: Path) -> None:
    from mmva_platform.annotation.catalog import _absolute

    assert _absolute("../other/a.png", "s3://b/x") == "s3://b/x/../other/a.png"
    assert _absolute("./a.png", "s3://b/x") == "s3://b/x/a.png"


def test_folder_without_media_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"1")
    with pytest.raises(UsageError, match=r"no items to annotate; skipped 1 \.pdf"):
        read_catalog(str(tmp_path), S)
