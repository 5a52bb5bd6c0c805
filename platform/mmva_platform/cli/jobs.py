"""`mmva jobs ...`: the other verbs on a cluster."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.cli.context import SAID_NO, WRONG_USAGE, Json, emit

app = typer.Typer(help="Run the other verbs on a Ray cluster: submit, list, logs, stop.", no_args_is_help=True)

VERBS = ("annotate", "annotations", "data", "embed", "evaluate", "models", "train")
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}

Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, where jobs are submitted")
]
Job = Annotated[str, typer.Argument(help="id of the job, as `mmva jobs list` prints it")]
_HERE = "http://127.0.0.1:8265"


@app.command("submit", context_settings=_PASSED_ON)
def submit(
    context: typer.Context,
    arguments: Annotated[list[str], typer.Argument(metavar="VERB ...", help="a verb of mmva and all its arguments")],
    *,
    address: Address = _HERE,
    working_dir: Annotated[Path, typer.Option(help="folder to send")] = Path(),
    exclude: Annotated[list[str] | None, typer.Option(help="files not to send: .gitignore pattern; repeatable")] = None,
    max_mb: Annotated[float, typer.Option(help="largest folder to send, in MB")] = 100.0,
    lock: Annotated[Path | None, typer.Option(help="install this file's versions for the job: constraints.txt")] = None,
    image: Annotated[str | None, typer.Option(help="container image to run in")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of the driver; default: it runs on the head")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of the driver")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="memory of the driver")] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(help="name of a variable on the nodes, or NAME=NAME_ON_THE_NODES; never a value; repeatable"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="id of the job, unique in the cluster")] = None,
    wait: Annotated[bool, typer.Option(help="stream the job's output until it ends")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the exact submission, and send nothing")] = False,
    as_json: Json = False,
) -> None:
    """Run a verb on a cluster. Ctrl-C or a lost connection ends the streaming, not the job."""
    from mmva_platform.settings import validate
    from mmva_platform.submission import JobRequest, Jobs, make_submission

    _check_verb(context, arguments)
    given = context.find_root().params
    options = {
        "arguments": tuple(arguments),
        "settings": given.get("settings"),
        "home": None if given.get("home") is None else str(given["home"]),
        "working_dir": working_dir,
        "exclude": tuple(exclude or ()),
        "max_mb": max_mb,
        "lock": lock,
        "image": image,
        "cpus": cpus,
        "gpus": gpus,
        "memory_gb": memory_gb,
        "secrets": tuple(secret or ()),
        "name": name,
    }
    submission = make_submission(validate(JobRequest, options, "jobs submit"))
    if dry_run:
        emit(f"to {address}\n{submission.to_text()}", {"address": address, **submission.to_json()}, as_json=as_json)
        return
    jobs = Jobs(address)
    job = jobs.submit(submission)
    emit(f"submitted {job} to {address}", {"id": job, "address": address}, as_json=as_json)
    if wait:
        _follow(jobs, job, sys.stderr if as_json else sys.stdout)  # with --json, standard output is one document


@app.command("list")
def list_jobs(*, address: Address = _HERE, as_json: Json = False) -> None:
    """List the jobs of the cluster, the newest first."""
    from mmva_platform.submission import Jobs

    states = Jobs(address).list()
    lines = [f"{state.id}  {state.status:<9}  {_when(state)}  {_short(state.entrypoint)}" for state in states]
    emit("\n".join(lines) or "no jobs", [state.to_json() for state in states], as_json=as_json)


@app.command("logs")
def logs(
    job: Job,
    *,
    address: Address = _HERE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stream the output until the job ends")] = False,
) -> None:
    """Print the output of a job."""
    from mmva_platform.submission import Jobs

    jobs = Jobs(address)
    if follow:
        _follow(jobs, job, sys.stdout)
    else:
        emit(jobs.logs(job), None, as_json=False)


@app.command("stop")
def stop(
    job: Job,
    *,
    address: Address = _HERE,
    wait: Annotated[bool, typer.Option(help="wait until the job has ended")] = True,
    as_json: Json = False,
) -> None:
    """Stop a job. mmva annotate first finishes and commits its running shards."""
    from mmva_platform.submission import Jobs

    jobs = Jobs(address)
    jobs.stop(job)
    state = jobs.wait(job) if wait else jobs.state(job)
    emit(f"{job}: {state.status}", state.to_json(), as_json=as_json)


def _check_verb(context: typer.Context, arguments: list[str]) -> None:
    """Report a wrong verb or option now; on the cluster it would take minutes."""
    if arguments[0] not in VERBS:
        raise UsageError(
            f"jobs submit: {arguments[0]!r} is not a verb that runs on a cluster; choose one of {', '.join(VERBS)}"
        )
    root = context.find_root()
    _parse(root.command, root, arguments)


def _parse(command: Any, parent: Any, arguments: list[str]) -> None:
    """Parse as click would, without calling anything; click's errors name the option."""
    name, child, rest = command.resolve_command(parent, list(arguments))
    parsed = child.make_context(name, rest, parent=parent)
    if hasattr(child, "resolve_command"):
        _parse(child, parsed, [*parsed._protected_args, *parsed.args])  # noqa: SLF001 - click has no other name for it


def _follow(jobs: Any, job: str, out: TextIO) -> None:
    """Stream the job's output; raise the error of its exit code if it failed."""

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        state = jobs.follow(job, write)
    except KeyboardInterrupt:
        raise OperationFailed(
            f"the job {job} continues. `mmva jobs logs {job} --follow` shows its output again, `mmva jobs "
            f"stop {job}` ends it"
        ) from None
    if state.status == "SUCCEEDED":
        return
    kind = {WRONG_USAGE: UsageError, SAID_NO: CheckFailed}.get(state.exit_code or 0, OperationFailed)
    raise kind(f"{job}: {state.status} ({state.message})")


def _when(state: Any) -> str:
    return f"{state.begun:%Y-%m-%d %H:%M:%S}" if state.begun else "-"


def _short(entrypoint: str) -> str:
    words = shlex.split(entrypoint)
    ours = words[:3] == ["python", "-m", "mmva_platform.cli"]
    return shlex.join(["mmva", *words[3:]] if ours else words)
