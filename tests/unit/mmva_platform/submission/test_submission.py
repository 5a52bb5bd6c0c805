"""What a submission is before it is sent: files, environment, secrets by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.cli.main import run
from mmva_platform.settings import validate
from mmva_platform.submission import JobRequest, Jobs, Submission, choose_files, make_submission, write_package
from mmva_platform.submission.client import JobState
from mmva_platform.submission.lock import locked_requirements


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with what should travel and what should not."""
    contents = {
        "jobs/train.yaml": "epochs: 3",
        "platform/mmva_platform/__init__.py": "",
        "run.sh": "true",
        ".env": "TOKEN=abc",
        "keys/server.pem": "secret",
        ".git/HEAD": "ref",
        "src/__pycache__/a.pyc": "x",
        "big/picture.bin": "x" * 5_000,
        "notes/draft.txt": "x",
        "notes/final.txt": "x",
        "notes/.gitignore": "draft.txt\n",
        ".gitignore": "*.log\n!.env\n",
        "old.log": "x",
    }
    for name, text in contents.items():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "project" / "run.sh").chmod(0o755)
    (tmp_path / "project" / "link").symlink_to(tmp_path)
    return tmp_path / "project"


def submission(project: Path, *arguments: str, **options: object) -> Submission:
    values = {"arguments": arguments or ("annotate", "s3://c"), "working_dir": project, **options}
    return make_submission(validate(JobRequest, values, "jobs submit"))


class TestPackage:
    def test_what_is_ignored_secret_or_excluded_stays(self, project: Path) -> None:
        package = choose_files(project, ["big/"])
        assert package.files == (
            ".gitignore", "jobs/train.yaml", "notes/.gitignore", "notes/final.txt",
            "platform/mmva_platform/__init__.py", "run.sh",
        )  # fmt: skip
        assert package.size == sum((project / name).stat().st_size for name in package.files)

    def test_too_large_is_refused_before_anything_is_sent_and_names_the_largest(self, project: Path) -> None:
        with pytest.raises(UsageError, match=r"limit is 0\.004 MB \(largest: big/picture\.bin \(0\.0 MB\)"):
            choose_files(project, max_mb=0.004)

    def test_the_same_files_make_the_same_bytes_and_stay_executable(self, project: Path, tmp_path: Path) -> None:
        package = choose_files(project)
        write_package(package, tmp_path / "a.zip")
        (project / "run.sh").touch()
        write_package(choose_files(project), tmp_path / "b.zip")
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert tuple(archive.namelist()) == package.files
            assert archive.getinfo("run.sh").external_attr >> 16 & 0o111
            assert archive.read("jobs/train.yaml") == b"epochs: 3"

    def test_a_directory_without_files_or_none_is_refused(self, tmp_path: Path) -> None:
        for directory in (tmp_path, tmp_path / "none"):
            with pytest.raises(UsageError, match="working directory"):
                choose_files(directory)


class TestSubmission:
    def test_secrets_go_by_name(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
        sent = submission(project, secrets=("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD=TEAM_PASSWORD"))
        variables = sent.runtime_env["env_vars"]
        assert variables["HF_TOKEN"] == "${HF_TOKEN}"
        assert variables["MLFLOW_TRACKING_PASSWORD"] == "${TEAM_PASSWORD}"
        assert variables["MMVA_REQUIRED_SECRETS"] == "HF_TOKEN,MLFLOW_TRACKING_PASSWORD"
        assert "hf_very_secret" not in sent.to_text() + json.dumps(sent.to_json())

    @pytest.mark.parametrize("value", ["hf_abcDEF123", "AKIAIOSFODNN7EXAMPLE", "pass word", ""])
    def test_a_value_in_place_of_a_name_is_refused_and_not_repeated(self, project: Path, value: str) -> None:
        with pytest.raises(UsageError, match="by name, never by value") as error:
            submission(project, secrets=(f"TOKEN={value}",))
        assert not value or value not in str(error.value)

    def test_a_checkout_is_importable_on_the_cluster_and_a_stop_has_time(self, project: Path) -> None:
        variables = submission(project).runtime_env["env_vars"]
        assert variables["PYTHONPATH"].split(":")[0] == "platform"
        assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600

    def test_resources_image_and_name(self, project: Path) -> None:
        sent = submission(project, cpus=2, memory_gb=1.5, image="registry/mmva:1", name="nightly")
        assert sent.resources == {"entrypoint_num_cpus": 2, "entrypoint_memory": 3 * 2**29}
        assert (sent.runtime_env["image_uri"], sent.submission_id) == ("registry/mmva:1", "nightly")
        assert (sent.package.files, sent.runtime_env["env_vars"].get("PYTHONPATH")) == ((), None)
        assert "none; with an image" in sent.to_text()
        with pytest.raises(UsageError, match="leave --settings out"):
            submission(project, image="x", settings=project / "settings.yaml")
        assert "--submission-id nightly" in sent.to_text()

    def test_words_survive_the_shell(self, project: Path) -> None:
        entrypoint = submission(project, "annotate", "s3://c/a b", "--out", "s3://o;rm").entrypoint
        assert entrypoint == "python -m mmva_platform.cli annotate 's3://c/a b' --out 's3://o;rm'"

    def test_the_lock_is_cut_to_what_runs(self, repository: Path, project: Path) -> None:
        pins = locked_requirements(repository / "constraints.txt", "mmva-platform")
        names = {pin.partition("==")[0].lower() for pin in pins}
        assert {"torch", "mlflow", "pyarrow", "typer"} <= names
        assert not names & {"ray", "pytest", "mypy", "moto", "ruff"}
        pip = submission(project, lock=repository / "constraints.txt").runtime_env["pip"]
        assert (pip["packages"], pip["pip_install_options"]) == (pins, ["--no-deps"])
        with pytest.raises(UsageError, match="not both"):
            submission(project, lock=repository / "constraints.txt", image="x")

    def test_a_lock_of_ranges_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "lock.txt").write_text("numpy>=2\n")
        with pytest.raises(UsageError, match=r"line 1: 'numpy>=2' is not name==version"):
            locked_requirements(tmp_path / "lock.txt", "mmva-platform")


@pytest.mark.parametrize("options", [{}, {"lock": "constraints.txt"}, {"image": "registry/mmva:1"}], ids=str)
def test_ray_takes_the_environment_as_it_is_sent(
    repository: Path, project: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own validation and what its client would post; no pip and no podman has run here."""
    from ray.job_submission import JobSubmissionClient
    from ray.runtime_env import RuntimeEnv

    if "lock" in options:
        options = {"lock": str(repository / options["lock"])}
    sent = submission(project, secrets=("HF_TOKEN",), **options)
    posted: dict[str, Any] = {}
    # What needs a server: the connection, the upload of the package, the answer.
    monkeypatch.setattr(JobSubmissionClient, "_check_connection_and_version", lambda *_arguments, **_: None)
    monkeypatch.setattr(JobSubmissionClient, "_upload_package_if_needed", lambda *_arguments, **_: None)
    monkeypatch.setattr(
        JobSubmissionClient, "_do_request", lambda _self, _method, _path, **given: posted.update(given) or Accepted()
    )
    assert Jobs("http://127.0.0.1:9").submit(sent) == "job"
    environment = RuntimeEnv(**posted["json_data"]["runtime_env"])  # validated as on the cluster
    assert environment.env_vars()["HF_TOKEN"] == "${HF_TOKEN}"
    assert ("working_dir" in environment) == ("image" not in options)
    if "lock" in options:
        assert environment["pip"]["pip_install_options"] == ["--no-deps"]
        assert environment["pip"]["packages"] == sent.runtime_env["pip"]["packages"]


class Accepted:
    """A job server's answer."""

    status_code = 200

    @staticmethod
    def json() -> dict[str, str]:
        return {"submission_id": "job", "job_id": "job"}


class TestCommand:
    def test_dry_run_sends_nothing_and_prints_all(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (project / "settings.yaml").write_text("home: /mnt/home\n")
        arguments = ["--settings", str(project / "settings.yaml"), "jobs", "submit", "--working-dir", str(project)]
        verb = ["annotate", "s3://c", "--model", "models:/mmva@champion", "--out", "s3://o", "--json"]
        assert run([*arguments, "--address", "http://127.0.0.1:9", "--dry-run", "--json", *verb]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["entrypoint"].startswith("python -m mmva_platform.cli --settings .mmva-settings.yaml annotate ")
        assert printed["entrypoint"].endswith("--json")
        assert ".mmva-settings.yaml" in printed["working_dir"]["files"]

    def test_with_json_standard_output_is_one_document(
        self, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Followed:
            def __init__(self, _address: str) -> None: ...

            def submit(self, _submission: Submission) -> str:
                return "j-1"

            def follow(self, job: str, tell: Callable[[str], object]) -> JobState:
                tell("a line of its log\n")
                return JobState(job, "SUCCEEDED", "", None, 0, "")

        monkeypatch.setattr("mmva_platform.submission.Jobs", Followed)
        verb = ["annotate", "s3://c", "--model", "m", "--out", "s3://o"]
        assert run(["jobs", "submit", "--working-dir", str(project), "--json", *verb]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["id"] == "j-1"
        assert said.err == "a line of its log\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["annnotate", "x"], "'annnotate' is not a verb that runs on a cluster"),
            (["annotate", "s3://c", "--modle", "m"], "No such option: --modle"),
            (["annotate", "s3://c", "--model", "m"], "Missing option '--out'"),
            (["models", "promot", "1"], "No such command 'promot'"),
        ],
    )
    def test_a_wrong_verb_is_refused_here(
        self, project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        assert run(["jobs", "submit", "--working-dir", str(project), "--dry-run", *arguments]) == 2
        assert said in capsys.readouterr().err

    def test_settings_travel_from_wherever_they_lie(self, project: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere.yaml").write_text("home: /mnt/home\n")
        sent = submission(project, settings=tmp_path / "elsewhere.yaml", home="/mnt/other")
        assert "--settings .mmva-settings.yaml --home /mnt/other annotate" in sent.entrypoint
        write_package(sent.package, tmp_path / "a.zip")
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert archive.read(".mmva-settings.yaml") == b"home: /mnt/home\n"

    def test_wrong_settings_are_refused_here(self, project: Path, tmp_path: Path) -> None:
        (tmp_path / "wrong.yaml").write_text("hom: /mnt/home\n")
        with pytest.raises(UsageError, match="did you mean 'home'"):
            submission(project, settings=tmp_path / "wrong.yaml")

    def test_a_job_does_not_begin_without_its_secrets(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mmva_platform.cli", "--help"],
            env=os.environ | {"MMVA_REQUIRED_SECRETS": "PATH,NOT_THERE"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("mmva: NOT_THERE: no value on this node")

    def test_no_cluster_there(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["jobs", "list", "--address", "http://127.0.0.1:9"]) == 2
        assert "no Ray job server answers" in capsys.readouterr().err
