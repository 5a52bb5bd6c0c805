"""What a crash or an outage leaves behind: a record whose files are there, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmva.inference.config import Preprocessing
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.commit import ShardResult, commit_shard, committed_shards, read_commit
from mmva_platform.annotation.plan import ModelInfo, Plan, make_plan, settle_plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, CATALOG_SCHEMA, QUARANTINE_SCHEMA, sha256_hex
from mmva_platform.storage.local import LocalStorage

MODEL = ModelInfo(name="mmva", version="3", digest="d" * 64)
PREPROCESSING = Preprocessing(fingerprints={"image": "f" * 64}, window_s=3.0, hop_s=1.5, short_side=224)


class Crash(BaseException):
    """The process is gone."""


class CrashingStorage(LocalStorage):
    """Crashes before or after its nth put, counted from 1."""

    def __init__(self, root: Path, nth: int, *, after: bool) -> None:
        super().__init__(root)
        self._left, self._after = nth, after

    def write(self, path: str, data: bytes) -> None:
        self._step(lambda: super(CrashingStorage, self).write(path, data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return bool(self._step(lambda: super(CrashingStorage, self).put_if_absent(path, data)))

    def _step(self, put: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Crash
        done = put()
        if self._left == 0:
            raise Crash
        return done


def one_shard(folder: Path) -> tuple[Plan, ShardResult]:
    """A plan of two items in one shard; the first annotated, the second not."""
    rows: list[dict[str, Any]] = [
        {"id": name, "uri": f"/m/{name}.png", "modality": "image", "caption": None, "bytes": 9, "etag": None}
        for name in ("a", "b")
    ]
    catalog = Catalog("/m", pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA), {}, 0, ())
    plan = settle_plan(LocalStorage(folder), *make_plan(catalog, MODEL, PREPROCESSING, 16))
    ok = dict.fromkeys(ANNOTATION_SCHEMA.names) | {"id": "a", "modality": "image", "run_id": plan.run_id}
    bad = dict.fromkeys(QUARANTINE_SCHEMA.names) | {"id": "b", "error": "corrupt-image", "run_id": plan.run_id}
    tables = (_table(ok, ANNOTATION_SCHEMA), _table(bad, QUARANTINE_SCHEMA))
    return plan, ShardResult(*tables)


def _table(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return pa.Table.from_pylist([row], nullable)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_record_never_stands_before_its_files(tmp_path: Path, nth: int, after: bool) -> None:
    plan, result = one_shard(tmp_path)
    with pytest.raises(Crash):
        commit_shard(CrashingStorage(tmp_path, nth, after=after), plan, "000000", result)
    storage = LocalStorage(tmp_path)
    assert committed_shards(storage) == ({"000000"} if (nth, after) == (3, True) else set())
    commit_shard(storage, plan, "000000", result)
    record = read_commit(storage, "000000")
    for file in (record.data, record.quarantine):
        assert file is not None
        assert sha256_hex(storage.read(file.path)) == file.sha256
