"""A table that names what it must not: no such request is made, and the rest is annotated."""

from __future__ import annotations

import json

import pytest
from world import BUCKET, World

pytestmark = pytest.mark.system


def test_what_lies_outside_the_roots_is_never_asked_for(world: World) -> None:
    picture = world.client.get_object(Bucket=BUCKET, Key="catalog/picture-002.jpg")["Body"].read()
    world.client.put_object(Bucket=BUCKET, Key="tables/own.jpg", Body=picture)
    outside = {
        "passwd": "file:///etc/passwd",
        "path": "/etc/passwd",
        "climbing": f"s3://{BUCKET}/tables/../catalog/picture-003.jpg",
        "relative": "../catalog/picture-003.jpg",
        "sibling": f"s3://{BUCKET}/catalog/picture-003.jpg",
        "prefix": f"s3://{BUCKET}/tables-too/own.jpg",
        "bucket": "s3://foreign/tables/own.jpg",
        "metadata": "http://169.254.169.254/latest/meta-data/a.jpg",
        "web": f"{world.store.endpoint}/{BUCKET}/catalog/picture-004.jpg",
    }
    rows = [{"id": name, "uri": uri, "modality": "image"} for name, uri in outside.items()]
    # A key like any other below the table's folder: S3 decodes no keys.
    encoded = f"{BUCKET}/tables/%2e%2e/catalog/picture-003.jpg"
    rows += [{"id": "encoded", "uri": f"s3://{encoded}", "modality": "image"}]
    rows += [{"id": "own", "uri": "own.jpg", "modality": "image"}, {"id": "words", "caption": "A quiet song."}]
    table = "\n".join(json.dumps(row) for row in rows).encode()
    world.client.put_object(Bucket=BUCKET, Key="tables/table.jsonl", Body=table)
    world.without_ray("annotate", f"s3://{BUCKET}/tables/table.jsonl", str(world.bundle), engine="torch")
    own = (f"{BUCKET}/{world.prefix}/", f"{BUCKET}/tables/own.jpg", f"{BUCKET}/tables/table.jsonl", encoded)
    strangers = {seen.path for seen in world.store.seen if not seen.path.startswith(own) and seen.path != BUCKET}
    assert not strangers
    world.verify()
    assert {row["id"]: row["error"] for row in world.rows("quarantined")} == {
        **dict.fromkeys(outside, "outside-roots"), "encoded": "not-found",
    }  # fmt: skip
    assert [row["id"] for row in world.rows()] == ["own", "words"]
