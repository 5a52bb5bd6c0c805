"""Source files: what they may say, and that each mistake is one line that names the file and the key."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from mmva.errors import UsageError
from mmva_platform.datasets.importing.run import ImportConfig
from mmva_platform.datasets.sources.config import LAYOUTS, TableSource, load_source
from mmva_platform.settings import validate

GOOD = {
    "name": "Ours", "modality": "image", "table": "t.csv", "columns": {"file": "file"}, "scale": [1, 9],
}  # fmt: skip


def write(folder: Path, values: object) -> Path:
    path = folder / "source.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modalitty": "image"}, "unknown key 'modalitty'; did you mean 'modality'?"),
        ({"columns": {"file": "f", "valance": "v"}}, "unknown key 'columns.valance'; did you mean 'valence'?"),
        ({"scale": {"valence": [1, 9], "arousl": [1, 9]}}, "unknown key 'scale.arousl'; did you mean 'arousal'?"),
        ({"scale": None}, "scale: "),
        ({"scale": {"valence": [1, 9]}}, "scale.arousal: Field required$"),
        ({"scale": [9, 1]}, "scale.valence: .*give the lowest rating, then the highest"),
        ({"scale": [1, 5, 9]}, "scale.valence: "),
        ({"layout": "oassis"}, "layout: 'oassis' is unknown; did you mean 'oasis'?"),
        ({"layout": ["table"]}, "layout: .* is unknown"),
        ({"modality": "sound"}, "modality: "),
        ({"name": "a/b"}, "name: "),
        ({"columns": {}}, "columns.file"),
        ({"modality": "caption"}, "columns.text"),
        ({"columns": {"file": "f", "text": "t"}}, "pictures have no columns.text"),
        ({"columns": {"file": "f", "start_s": "s", "end_s": "e"}}, "are for music"),
        ({"modality": "music", "columns": {"file": "f", "start_s": "s"}}, "go together"),
        ({"root": "${NOWHERE_AT_ALL}/x"}, "root: the variable NOWHERE_AT_ALL is not set"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = write(tmp_path, {**GOOD, **changes})
    with pytest.raises(UsageError, match=said) as error:
        load_source(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- a list", "name: [", None])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "source.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"source\.yaml: "):
        load_source(path)


def test_the_root_is_beside_the_source_file_or_where_the_caller_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATINGS", "/data/ratings")
    roots = {
        "ours": tmp_path / "ours",
        "/data": "/data",
        "s3://bucket/x": "s3://bucket/x",
        "${RATINGS}/a": "/data/ratings/a",
    }
    for given, expected in roots.items():
        assert load_source(write(tmp_path, {**GOOD, "root": given})).root == str(expected)
    assert load_source(write(tmp_path, GOOD)).root == str(tmp_path)
    assert load_source(write(tmp_path, {**GOOD, "root": "${NOWHERE}"}), "here").root == "here"


def test_one_scale_stands_for_both_axes(tmp_path: Path) -> None:
    source = load_source(write(tmp_path, GOOD))
    assert isinstance(source, TableSource)
    assert source.scale.valence == source.scale.arousal == (1, 9)


def test_a_job_gives_sources_inline_and_they_survive_json() -> None:
    inline = [{"layout": "table", **GOOD}, {"layout": "deam", "annotations": "dynamic"}, {"layout": "imemnet-c"}]
    config = validate(ImportConfig, {"sources": inline}, "job.yaml")
    assert [source.name for source in config.sources] == ["Ours", "DEAM", "IMEMNet-C"]
    assert ImportConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(UsageError, match=r"job\.yaml: unknown key 'sources\.0\.deam\.anotations' \(and"):
        validate(ImportConfig, {"sources": [{"layout": "deam", "anotations": "static"}]}, "job.yaml")
    with pytest.raises(UsageError, match="two sources are called 'DEAM'"):
        validate(ImportConfig, {"sources": [{"layout": "deam"}, {"layout": "deam"}]}, "job.yaml")


def test_the_examples_of_the_documentation_load(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "source.yaml").write_text(block, encoding="utf-8")
        assert load_source(tmp_path / "source.yaml").license


@pytest.mark.parametrize("name", ["oasis", "vgmidi", "emobank"])
def test_the_source_files_in_the_repository_load(repository: Path, name: str) -> None:
    source = load_source(repository / "jobs/recipes/sources" / f"{name}.yaml", "/data")
    assert source.root == "/data"
    assert source.layout in LAYOUTS
