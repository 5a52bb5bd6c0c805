"""Builds the exact submission from the user's options: entry point, runtime environment, resources, metadata.

Secrets are sent by name and never read: everyone who may list jobs would see a value in the cluster's job table. Ray
replaces `${NAME}` on the node that runs the process, from that node's own environment.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from mmva.errors import UsageError
from mmva_platform.settings import Config, Settings, load_config
from mmva_platform.submission.lock import locked_requirements
from mmva_platform.submission.packing import Package, choose_files

SECRETS_VARIABLE: Final = "MMVA_REQUIRED_SECRETS"  # names that must have a value before the verb starts
# A name on the cluster must have an underscore: otherwise an AWS access key would look like a name.
_SECRET: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(=[A-Z]+_[A-Z0-9_]*)?")
_SETTINGS_FILE: Final = ".mmva-settings.yaml"
_STOP_WAIT_S: Final = 900  # by default Ray kills a stopped job after 3 s; running shards need longer


class JobRequest(Config):
    """The options of `mmva jobs submit`."""

    arguments: tuple[str, ...] = Field(min_length=1, description="a verb of mmva and its arguments")
    settings: Path | None = Field(None, description="settings file of the job; sent from any folder")
    home: str | None = Field(None, description="home of the job, on the cluster")
    working_dir: Path = Field(Path(), description="folder to send, without the excluded files")
    exclude: tuple[str, ...] = Field((), description="more excluded files: .gitignore patterns")
    max_mb: float = Field(100.0, gt=0, description="largest working directory, in MB before compression")
    lock: Path | None = Field(None, description="pip installs these exact versions on the cluster, for this job")
    image: str | None = Field(None, description="container image for the job's processes; then no files are sent")
    cpus: float | None = Field(None, ge=0, description="CPUs of the driver; with 0 it runs on the head")
    gpus: float | None = Field(None, ge=0, description="GPUs of the driver")
    memory_gb: float | None = Field(None, gt=0, description="memory of the driver")
    secrets: tuple[str, ...] = Field((), description="NAME, or NAME=NAME_ON_THE_CLUSTER")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="id of the job, unique")


@dataclass(frozen=True)
class Submission:
    """The exact submission, except for the package's address, which Ray creates at upload."""

    entrypoint: str
    runtime_env: dict[str, Any]
    package: Package
    resources: dict[str, float]
    metadata: dict[str, str]
    submission_id: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return {
            "entrypoint": self.entrypoint,
            "runtime_env": self.runtime_env,
            "working_dir": {
                "directory": str(self.package.directory),
                "bytes": self.package.size,
                "files": [*self.package.files, *self.package.added],
            },
            "resources": self.resources,
            "metadata": self.metadata,
            "submission_id": self.submission_id,
        }

    def to_text(self) -> str:
        """A few lines for a person; the last one is the equivalent `ray job submit`."""
        size = f"{len(self.package.files)} files, {self.package.size / 1e6:.2f} MB before compression"
        sent = f"{self.package.directory}, {size}" if self.package.files else "none; with an image Ray sends no files"
        lines = [
            f"entry point: {self.entrypoint}",
            f"working directory: {sent}",
            *(f"{key}: {value:g}" for key, value in self.resources.items()),
            *(f"environment: {name}={value}" for name, value in sorted(self.runtime_env["env_vars"].items())),
        ]
        if "image_uri" in self.runtime_env:
            lines.append(f"image: {self.runtime_env['image_uri']}")
        if "pip" in self.runtime_env:
            lines.append(f"pip: {len(self.runtime_env['pip']['packages'])} exact versions")
        if self.package.added:
            lines.append(f"sent with it: {', '.join(f'{path} as {name}' for name, path in self.package.added.items())}")
        return "\n".join([*lines, f"the same by hand: {shlex.join(self._ray_command())} -- {self.entrypoint}"])

    def _ray_command(self) -> list[str]:
        options = {f"--{name.replace('_', '-')}": f"{value:g}" for name, value in self.resources.items()}
        if self.submission_id:
            options["--submission-id"] = self.submission_id
        pairs = [word for option in options.items() for word in option]
        directory = ["--working-dir", str(self.package.directory)] if self.package.files else []
        return ["ray", "job", "submit", *directory, *pairs, "--runtime-env-json", json.dumps(self.runtime_env)]


def make_submission(request: JobRequest) -> Submission:
    """Choose the files and build the submission; nothing is sent.

    Raises UsageError for an unusable working directory or lock, a lock or settings together with an image, or a secret
    that is not given by name.
    """
    _check_references(request.secrets)
    if request.lock and request.image:
        raise UsageError("jobs submit: an image brings its own packages; use --lock or --image, not both")
    if request.image and request.settings:
        raise UsageError(
            "jobs submit: Ray sends no files with an image; leave --settings out, and let MMVA_SETTINGS of the image "
            "name a file in it"
        )
    directory = request.working_dir.resolve()
    package = Package(directory, (), 0) if request.image else choose_files(directory, request.exclude, request.max_mb)
    before: list[str] = []
    if request.settings is not None:
        load_config(Settings, request.settings)  # reports mistakes now
        package = replace(package, added={_SETTINGS_FILE: request.settings})
        before += ["--settings", _SETTINGS_FILE]
    if request.home is not None:
        before += ["--home", request.home]
    runtime_env: dict[str, Any] = {"env_vars": _environment(package, request.secrets)}
    if request.lock:
        pins = locked_requirements(request.lock, "mmva-platform")
        runtime_env["pip"] = {"packages": pins, "pip_check": False, "pip_install_options": ["--no-deps"]}
    if request.image:
        runtime_env["image_uri"] = request.image
    resources = {
        "entrypoint_num_cpus": request.cpus,
        "entrypoint_num_gpus": request.gpus,
        "entrypoint_memory": None if request.memory_gb is None else round(request.memory_gb * 2**30),
    }
    return Submission(
        entrypoint=shlex.join(["python", "-m", "mmva_platform.cli", *before, *request.arguments]),
        runtime_env=runtime_env,
        package=package,
        resources={name: value for name, value in resources.items() if value is not None},
        metadata={"mmva_verb": " ".join(_verb(request.arguments))},
        submission_id=request.name,
    )


def _check_references(secrets: Sequence[str]) -> None:
    """Raise UsageError for a text that may be a secret's value, without repeating it."""
    for secret in secrets:
        if not _SECRET.fullmatch(secret):
            name = secret.partition("=")[0]
            raise UsageError(
                f"--secret {name}: write {name} or {name}=NAME_ON_THE_CLUSTER (capitals and underscores); give secrets "
                "by name, never by value"
            )


def _environment(package: Package, secrets: Sequence[str]) -> dict[str, str]:
    """Environment variables of all processes of the job; Ray expands ${...} on the node."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    if any(name.startswith("platform/mmva_platform/") for name in package.files):
        variables["PYTHONPATH"] = "platform:${PYTHONPATH}"  # relative to the working directory, where Ray starts all
    names = [secret.partition("=")[0] for secret in secrets]
    for name, secret in zip(names, secrets, strict=True):
        variables[name] = f"${{{secret.partition('=')[2] or name}}}"
    if names:
        variables[SECRETS_VARIABLE] = ",".join(names)
    return variables


def _verb(arguments: Sequence[str]) -> list[str]:
    """The words before the first option or path."""
    return [word for word in arguments[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
