"""`mmva annotate` and `mmva annotations ...`: what each verb says, with which exit code, over versions of a table."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inline_pass import install_annotation

from mmva.backbones import BackboneSpec
from mmva_platform.annotation.plan.plan import read_plan
from mmva_platform.annotation.run.prepare import choose_towers
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.cli.main import run
from mmva_platform.storage import StorageUnavailable, open_storage

from ...helpers.damaged import damage
from ...helpers.planned import iter_items
from ...helpers.published import lively_bundle, publish_points, update_points
from ..annotation.run.test_convert import OLD_ROWS, OldRun


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models over the same backbones."""
    folder = tmp_path_factory.mktemp("models")
    return [str(lively_bundle(folder / str(seed), seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model over another encoder of captions."""
    other = BackboneSpec("caption", "tiny-caption", "random:1")
    return str(lively_bundle(tmp_path_factory.mktemp("other") / "bundle", 0, specs={"caption": other}))


class Bench:
    """The command line over a folder of media; passes run in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.media, self.out = folder / "media", str(folder / "va")
        self._home, self._capsys = str(folder / "home"), capsys
        self.media.mkdir()

    def write(self, **texts: str) -> None:
        """Captions by name."""
        for name, text in texts.items():
            (self.media / f"{name}.txt").write_text(text)

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What a command prints: its result, or its one line of complaint."""
        assert run(["--home", self._home, *map(str, arguments)]) == code
        said = self._capsys.readouterr()
        if code == 0:
            return said.out
        (complaint,) = [line for line in said.err.splitlines() if line.startswith("mmva: ")]
        return said.out + complaint

    def of(self, verb: str, *arguments: object, code: int = 0) -> str:
        """A verb of `mmva annotations` on the output."""
        return self("annotations", verb, self.out, *arguments, code=code)

    def json(self, verb: str, *arguments: object) -> Any:
        """The same, as a machine reads it."""
        return json.loads(self.of(verb, *arguments, "--json"))

    def annotate(self, model: str, *options: object) -> str:
        return self("annotate", self.media, "--model", model, "--out", self.out, "--engine", "torch", *options)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    install_annotation(monkeypatch)
    # An update with another backbone would measure engines on a cluster.
    module = import_module("mmva_platform.annotation.run.update")  # the package has a function of this name
    monkeypatch.setattr(module, "choose_towers", partial(choose_towers, wanted="torch"))
    return Bench(tmp_path, capsys)


def test_versions_from_the_first_to_the_cleaned(bench: Bench, bundles: list[str], tmp_path: Path) -> None:
    bench.write(a="calm piano", b="wild drums", c="a song", d=" ")
    assert "4 items: 3 annotated (3 caption), 1 quarantined" in bench.annotate(bundles[0])
    assert f"{bench.out} version 0" in bench.annotate(bundles[0]), "the same call again changes nothing"
    bench.write(b="wild drums and trumpets", d="now it says something", e="a new one")
    (bench.media / "c.txt").unlink()

    assert bench.json("update", "--plan")["changes"] == {"unchanged": 1, "new": 1, "changed": 2, "removed": 1}
    summary = bench.json("update")
    assert (summary["version"], summary["ok"], summary["quarantined"]) == (1, 4, 0)
    assert (summary["work"]["carried"], summary["work"]["media"]) == (1, 3)
    assert summary["changes"] == {"unchanged": 1, "new": 1, "changed": 2, "removed": 1}
    assert bench.json("update")["version"] == 1, "nothing has changed since"
    said = bench.of("update", "--model", bundles[1])
    assert "4 unchanged, 0 new, 0 changed, 0 removed" in said
    assert "4 from stored embeddings" in said
    assert f"{bench.out} version 2" in said

    assert [version["kind"] for version in bench.json("history")] == ["annotate", "update", "update"]
    lines = bench.of("history").splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "1 unchanged, 1 new, 2 changed, 1 removed" in lines[1]
    assert bench.json("status")["version"] == 2
    for version, items in ((0, "3 annotated + 1 quarantined"), (1, "4 annotated + 0"), (2, "4 annotated + 0")):
        assert f"version {version}: verified, 4 items = {items}" in bench.of("verify", "--version", version)
    assert bench.json("verify")["version"] == 2

    assert bench.json("clean", "--keep", 3) == {
        "out": bench.out, "kept": [0, 1, 2], "lost": [], "files": 0, "size": 0, "deleted": False,
    }  # fmt: skip
    found = bench.json("clean")
    assert (found["kept"], found["lost"], found["deleted"]) == ([2], [0, 1], False)
    assert found["files"] > 0
    assert bench.json("verify", "--version", 0)["ok"], "showing deletes nothing"
    assert bench.json("clean", "--delete") == found | {"deleted": True}
    assert "version 0 was cleaned" in bench.of("verify", "--version", 0, code=2)
    assert bench.json("verify")["ok"]
    assert len(bench.json("history")) == 3
    assert bench.json("clean")["files"] == 0


def test_retry_is_a_version_of_its_own(bench: Bench, bundles: list[str]) -> None:
    bench.write(a="calm piano", b=" ", c=" ")
    bench.annotate(bundles[0])
    bench.write(b="wild drums")
    said = bench.of("retry")
    assert "2 items: 1 annotated (1 caption), 1 quarantined" in said
    assert f"{bench.out} version 1" in said
    status = bench.json("status")
    assert (status["kind"], status["annotated"], status["quarantined"]) == ("retry", 2, 1)
    assert "1 empty-caption" in bench.of("status")
    bench.write(c="a song")
    assert bench.json("retry")["version"] == 2
    assert bench.json("retry")["version"] == 2, "nothing is left to try"


def test_an_update_to_another_catalog_or_backbone_has_to_be_meant(
    bench: Bench, bundles: list[str], other_backbone: str
) -> None:
    bench.write(a="calm piano", b="wild drums")
    bench.annotate(bundles[0])
    other = bench.media.parent / "other"
    other.mkdir()
    (other / "z.txt").write_text("calm piano")
    assert f"no item of {other} is in it" in bench.of("update", "--catalog", other, code=2)
    complaint = bench.of("update", "--model", other_backbone, code=2)
    assert "another backbone for caption, so that 2 items must be read again" in complaint
    assert "--reread does it" in complaint
    assert bench.json("status")["version"] == 0
    assert bench.json("update", "--model", other_backbone, "--reread")["work"]["media"] == 2


def test_an_update_that_was_cut_short_is_finished_by_resume(
    bench: Bench, bundles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a="calm piano", b="wild drums")
    bench.annotate(bundles[0])
    bench.write(c="a song")
    with monkeypatch.context() as patch:
        patch.setattr("mmva_platform.annotation.table.publish.commit_version", _away)
        assert "storage is away" in bench.of("update", code=1)
    assert "version 1 (update), not published yet" in bench.of("status")
    assert "readers see 2 annotated items" in bench.of("status")
    other = bench.media.parent / "other"
    shutil.copytree(bench.media, other)
    assert "version 1 is under way: update of" in bench.of("update", "--catalog", other, code=3)
    assert f"{bench.out} version 1" in bench.of("resume")
    assert bench.json("status")["annotated"] == 3
    assert bench.json("resume")["version"] == 1


def _away(*_arguments: object) -> None:
    raise StorageUnavailable("storage is away")


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of three items."""
    rows = [("a", "image", 0.1, 0.1), ("b", "image", 0.9, 0.9), ("c", "music", 0.2, 0.2)]
    out = publish_points(tmp_path_factory.mktemp("versions") / "va", rows)
    return update_points(out, [*rows[:2], ("d", "image", 0.3, 0.3)])


@pytest.fixture
def updated(two_versions: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_versions, tmp_path / "va")


def test_export_and_report_of_a_version(updated: Path, bench: Bench, tmp_path: Path) -> None:
    for version, ids in ((None, ["a", "b", "d"]), (1, ["a", "b", "d"]), (0, ["a", "b", "c"])):
        options = [] if version is None else ["--version", version]
        file = tmp_path / f"{version}.csv"
        assert bench.of("export", "--to", "csv", "--file", file, *options) == f"{file}: 3 rows\n"
        assert [row["id"] for row in csv.DictReader(file.read_text().splitlines())] == ids
        page = tmp_path / f"{version}.html"
        assert bench.of("report", "--file", page, *options) == f"{page}\n"
        assert json.loads(page.with_suffix(".json").read_text())["version"]["number"] == (0 if version == 0 else 1)
    file = tmp_path / "points.csv"
    bench.of("export", "--to", "csv", "--file", file, "--columns", "id, valence", "--modality", "music", "--version", 0)
    assert file.read_text().splitlines() == ['"id","valence"', '"c",0.2']


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["verify", "--version", "2"], "there is no version 2; versions are 0 to 1"),
        (["report", "--version", "2"], "there is no version 2"),
        (["export", "--to", "csv", "--file", "FILE", "--version", "2"], "there is no version 2"),
        (["export", "--to", "csv", "--file", "media"], "export writes a new file"),
        (["export", "--to", "xml", "--file", "FILE"], "csv, parquet, lance"),
        (["export", "--to", "csv", "--file", "FILE", "--columns", "id,windows"], "cannot hold windows"),
        (["export", "--to", "csv", "--file", "FILE", "--columns", "id,smell"], "no column 'smell'"),
        (["export", "--to", "csv", "--file", "FILE", "--modality", "video"], "no annotated item of modality video"),
        (["convert", "new"], "no published annotation of the earlier format"),
    ],
)
def test_mistakes_are_one_line(
    updated: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    monkeypatch.chdir(bench.media.parent)
    before = {path for path in Path().rglob("*") if path.is_file()}
    assert named in bench.of(*arguments, code=2)
    assert {path for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["update"], ["retry"], ["resume"], ["status"], ["history"], ["verify"], ["clean"], ["report"],
        ["export", "--to", "csv", "--file", "FILE"], ["convert", "new"],
    ],
)  # fmt: skip
def test_a_place_without_an_annotation_is_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(bench.media.parent)
    assert bench.out in bench.of(*arguments, code=2)
    assert not list(Path().rglob("*.*"))


def test_an_annotation_of_the_earlier_format_becomes_a_table(updated: Path, bench: Bench, tmp_path: Path) -> None:
    storage, old, new = open_storage(updated), tmp_path / "old", tmp_path / "new"
    plan = read_plan(storage)
    (old / "plan").mkdir(parents=True)
    items = pa.concat_tables(iter_items(storage, plan)).select(CATALOG_SCHEMA.names)
    pq.write_table(items, old / "plan" / "items-000000-aa.parquet")
    described = json.loads(plan.model_dump_json(exclude={"version", "kind", "parts"}))
    (old / "plan.json").write_text(json.dumps(described | {"annotation_version": 2}))
    first = OldRun(old, plan.run_id)
    first.commit(data=open_annotation(storage, version=0).table(OLD_ROWS.names).to_pylist())
    first.publish()

    said = bench("annotations", "convert", old, new)
    assert "3 items: 3 annotated (2 image, 1 music), 0 quarantined" in said
    assert f"{new} version 0" in said
    assert bench("annotations", "convert", old, new).splitlines()[-1] == f"{new} version 0", "again, and no harm done"
    assert "verified, 3 items = 3 annotated" in bench("annotations", "verify", new)
    assert json.loads(bench("annotations", "history", new, "--json"))[0]["kind"] == "convert"


def test_an_annotation_of_the_earlier_format_is_told_how_to_go_on(bench: Bench) -> None:
    Path(bench.out).mkdir()
    (Path(bench.out) / "plan.json").write_text("{}")
    assert "`mmva annotations convert` makes a table of them" in bench.of("status", code=2)


def test_damage_is_a_check_that_failed(updated: Path, bench: Bench, tmp_path: Path) -> None:
    (kept,) = (file.path for file in open_annotation(str(updated)).files() if "/000001-" in file.path)
    damage(updated / kept, "valence")
    said = bench.of("verify", code=3)
    assert f"{kept}: " in said
    assert "mmva: " in said
    assert "2 problems, see above" in said, "the file, and its item that is missing"
    assert bench.json("verify", "--version", 0)["ok"]
    file = tmp_path / "points.csv"
    assert f"{kept}: damaged" in bench.of("export", "--to", "csv", "--file", file, code=3)
    assert not file.exists()
    assert "damaged" in bench.of("report", "--file", tmp_path / "report.html", code=3)
    assert not (tmp_path / "report.html").exists()
