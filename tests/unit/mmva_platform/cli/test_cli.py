"""Bad input at the command line: one line that says what and where, the right exit code, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.cli import job
from mmva_platform.cli import main as module
from mmva_platform.cli.context import exit_code_of, set_up_logging
from mmva_platform.cli.main import run
from mmva_platform.settings import Config


def _fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    assert run(arguments) == code
    complaint = capsys.readouterr().err.strip()
    assert "Traceback" not in complaint
    return complaint


def _one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 2) -> str:
    complaint = _fails(capsys, arguments, code)
    assert complaint.startswith("mmva: ")
    assert "\n" not in complaint
    return complaint


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2), (CheckFailed("x"), 3), (OperationFailed("x"), 1), (KeyboardInterrupt(), 130),
        (SystemExit("x"), 1),
    ],
)  # fmt: skip
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    assert exit_code_of(fail) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_keeps_its_traceback() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(fail)


def test_help_names_every_door(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("quickstart", "data", "embed", "train", "evaluate", "models", "annotate", "annotations", "jobs"):
        assert verb in text


def test_unknown_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "annnotate" in _fails(capsys, ["annnotate"], 2)


def test_recipe_key_with_a_typo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: x\nepoch: 3\n")
    assert "did you mean 'epochs'?" in _one_line(capsys, ["train", "--config", str(recipe)])


def test_unknown_preset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = _one_line(capsys, ["quickstart", "--preset", "compct", "--workdir", str(tmp_path / "w")])
    assert "compact" in said
    assert not (tmp_path / "w").exists()


def test_a_missing_column_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images, music = tmp_path / "image_va.csv", tmp_path / "music_va.csv"
    images.write_text(",img,valence\n0,1000,0.5\n")
    music.write_text(",Clip ID,Valence,Arousal,Caption\n0,2-9,0.5,0.5,calm\n")
    arguments = ["data", "import", "--images-csv", str(images), "--music-csv", str(music)]
    said = _one_line(capsys, [*arguments, "--media", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "image_va.csv" in said
    assert "arousal" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --source; or --images-csv, --music-csv or both, and --media"),
        (["--images-csv", "i.csv"], "give --source; or --images-csv, --music-csv or both, and --media"),
        (["--source", "SOURCE", "--media", "m"], "give --source; or --images-csv, --music-csv or both, and --media"),
        (["--source", "SOURCE", "--root", "a", "--root", "b"], "2 --root for 1 --source; give one for each"),
        (["--source", "SOURCE", "--sizes", "0.5,half,0.1"], "fractions.1: "),
        (["--source", "SOURCE"], "unknown key 'scales'; did you mean 'scale'?"),
    ],
)
def test_a_mistake_with_sources(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    source = tmp_path / "source.yaml"
    source.write_text("layout: oasis\n" if "--sizes" in arguments else "scales: [1, 9]\n")
    arguments = [str(source) if argument == "SOURCE" else argument for argument in arguments]
    assert said in _one_line(capsys, ["data", "import", *arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_unreadable_media_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images, music = tmp_path / "image_va.csv", tmp_path / "music_va.csv"
    images.write_text(",img,valence,arousal\n0,1000,0.5,0.5\n")
    music.write_text(",Clip ID,Valence,Arousal,Caption\n0,2-9,0.5,0.5,calm\n")
    arguments = ["data", "import", "--images-csv", str(images), "--music-csv", str(music)]
    said = _one_line(capsys, [*arguments, "--media", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert "none" in said


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_or_missing_catalog(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path, content: str | None
) -> None:
    catalog = tmp_path / "catalog"
    if content is not None:
        catalog.mkdir()
    out = tmp_path / "out"
    said = _one_line(capsys, ["annotate", str(catalog), "--model", str(tiny_bundle), "--out", str(out)])
    assert "catalog" in said
    assert not out.exists()


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "a.txt").write_text("calm piano")
    arguments = ["--home", str(tmp_path / "home"), "annotate", str(tmp_path / "catalog")]
    _one_line(capsys, [*arguments, "--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])


def test_a_dataset_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "none" in _one_line(capsys, ["embed", str(tmp_path / "none")])
    assert "none" in _one_line(capsys, ["data", "check", str(tmp_path / "none")])


def test_the_process_ends_with_the_code_and_all_that_was_said() -> None:
    code = "import sys; from mmva_platform.cli.context import leave; sys.stdout.write('said'); leave(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "said")


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mmva {version('mmva-platform')}\n"


def test_a_shell_completes_verbs() -> None:
    asked = {"_MMVA_COMPLETE": "complete_bash", "COMP_WORDS": "mmva annotations re", "COMP_CWORD": "2"}
    command = [Path(sys.executable).with_name("mmva")]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["resume", "retry", "restore", "report"], done.stderr


def test_a_silent_verb_says_that_it_starts_and_how_to_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "FIRST_LINE_S", 0.05)
    monkeypatch.setattr("mmva_platform.workflows.choose_model", lambda *_: time.sleep(1))
    monkeypatch.setattr("mmva_platform.annotation.run.runner.annotate", lambda *_, **__: sys.exit())
    monkeypatch.setattr(sys, "argv", ["mmva", "--home", str(tmp_path), "annotate", "media", "--out", "out"])
    monkeypatch.setattr(module, "leave", lambda _: None)
    set_up_logging(verbose=False)  # the line may come before the command does this
    module.main()
    said = capsys.readouterr().err
    assert said.startswith("mmva annotate: starts")
    assert said.endswith("the same command resumes\n")


class _Job(Config):
    """A job that has nothing to say."""


def test_a_silent_job_script_says_that_it_starts_and_how_to_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "leave", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["jobs/ingest.py"])
    line = (
        "ingest.py: starts, loads libraries and looks up what it needs. Ctrl-C stops it; the same command begins again"
    )
    for delay_s, says in ((0.0, True), (time.process_time() + 60, False)):
        monkeypatch.setattr(job, "FIRST_LINE_S", delay_s)
        job.run_job(_Job, lambda *_: time.sleep(0.3), ["--home", str(tmp_path)])
        assert capsys.readouterr().err.startswith(line) == says


def test_settings_are_shown_with_their_source_and_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    key = f"{{name: me, sha256: {'a1' * 32}}}"
    endpoint = "http://u:hidden@s3:1"  # pragma: allowlist secret
    file.write_text(f"storage: {{s3_endpoint: '{endpoint}'}}\nserving: {{keys: [{key}], port: 8000}}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:hidden@host:5000")  # pragma: allowlist secret
    monkeypatch.setenv("MMVA_HOME", str(tmp_path))
    assert run(["--settings", str(file), "config", "show", "--json"]) == 0
    said = capsys.readouterr().out
    assert "hidden" not in said
    assert "a1a1" not in said
    shown = {name: (one["value"], one["source"]) for name, one in json.loads(said).items()}
    assert shown["storage.s3_endpoint"] == ("http://u:...@s3:1", str(file))
    assert shown["serving.port"] == (8000, str(file))  # given, though it is the default
    assert shown["serving.host"] == ("127.0.0.1", "default")
    assert shown["serving.keys"][0][0]["name"] == "me"
    assert shown["tracking.uri"] == ("http://mlflow:...@host:5000", "MLFLOW_TRACKING_URI")
    assert shown["home"] == (str(tmp_path), "MMVA_HOME")
    assert shown["runs"] == (f"{tmp_path}/runs", "default")
    assert run(["--home", str(tmp_path / "mine"), "config", "show"]) == 0
    assert f'home = "{tmp_path}/mine"  (--home)' in capsys.readouterr().out
