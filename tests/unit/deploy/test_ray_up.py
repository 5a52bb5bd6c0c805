"""`ray up` with the image of deploy/docker/Dockerfile: Ray's own command runner, whose ssh, docker and rsync are ours.

They run what they are told in mount namespaces: a "machine" that has them in /usr/local/bin, and a "container" that
has what the Dockerfile makes: packages, /opt/mmva/bin, /etc/profile.d, a home, and the files that `docker run` mounts.
Needs unshare, as root or with user namespaces.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
CLUSTER = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text().replace("<registry>", "registry"))

SSH = """#!/bin/bash
while [[ "$1" == -* ]]; do if [[ "$1" == -[oi] ]]; then shift; fi; shift; done; shift
exec unshare --mount --map-root-user sh -c 'mount --bind MACHINE/bin /usr/local/bin && exec bash -c "$0"' "$*"
"""
RSYNC = """#!/bin/bash
if [ "$1" = --server ]; then exec tee "$2" > /dev/null; fi
while [[ "$1" == -* ]]; do if [ "$1" = -e ] || [ "$1" = --rsh ]; then shell="$2"; shift; fi; shift; done
exec $shell "${2%%:*}" rsync --server "${2#*:}" < "$1"
"""
DOCKER = """#!/bin/bash
case "$1" in
  pull) ;;
  info) echo 'map[runc:{}]' ;;
  inspect)
    case "$3" in
      *Config.Env*) echo 'ENVIRONMENT' ;;
      *State.Running*) cat MACHINE/running 2> /dev/null ;;
    esac ;;
  run)
    while [ $# -gt 0 ]; do
      if [ "$1" = -v ]; then echo "mount --bind '${2%%:*}' 'MACHINE/container${2#*:}'" >> MACHINE/mounts; fi
      shift
    done
    echo true > MACHINE/running ;;
  exec)
    while [ "$1" != mmva ]; do shift; done; shift
    exec unshare --mount --map-root-user sh MACHINE/container.sh "$@" ;;
esac
"""
CONTAINER = """
while read -r line; do
  target="$(echo "$line" | cut -d "'" -f 4)"; mkdir -p "$(dirname "$target")"; touch "$target"
done < MACHINE/mounts
. MACHINE/mounts
for folder in home opt etc/profile.d usr/local/bin; do mount --rbind "MACHINE/container/$folder" "/$folder"; done
cd /home/ray && exec env -i HOME=IMAGE_HOME PATH=IMAGE_PATH:/usr/local/bin:/usr/bin:/bin "$@"
"""
RAY = """#!/bin/sh
echo "ray $*, $RAY_AUTH_MODE $(cat ~/.ray/auth_token)"
for option in "$@"; do case "$option" in --autoscaling-config=*) cat "${option#*=}" ;; esac; done
"""


def word(pattern: str) -> str:
    """What a pattern's group matches in the Dockerfile."""
    found = re.search(pattern, DOCKERFILE)
    assert found, pattern
    return found[1]


def install(file: Path, text: str, **names: str) -> None:
    for name, value in names.items():
        text = text.replace(name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine with ssh and docker, on which the image's container can be started."""
    folder = tmp_path_factory.mktemp("machine")
    image = {"HOME": word(r"HOME=(\S+)"), "PATH": word(r"PATH=(\S+?):\$PATH")}
    for name, text in (("ssh", SSH), ("rsync", RSYNC), ("docker", DOCKER)):
        environment = json.dumps([f"{key}={value}" for key, value in image.items()])
        install(folder / "bin" / name, text, MACHINE=str(folder), ENVIRONMENT=environment)
    container = folder / "container"
    for place in ("home/ray", "opt", "etc/profile.d", "usr/local/bin"):
        (container / place).mkdir(parents=True)
    assert "useradd --uid 1000 --create-home" in DOCKERFILE
    (container / "home" / "ray" / ".bashrc").touch()
    written = re.search(r"echo '(.+)' > /etc/profile\.d/(\S+)", DOCKERFILE)
    if written:
        (container / "etc" / "profile.d" / written[2]).write_text(written[1] + "\n")
    if "rsync" in word(r"apt-get install (.*?)\\\n").split():
        install(container / "usr" / "local" / "bin" / "rsync", RSYNC)
    install(container / "opt" / "mmva" / "bin" / "ray", RAY)
    install(folder / "container.sh", CONTAINER, MACHINE=str(folder), IMAGE_HOME=image["HOME"], IMAGE_PATH=image["PATH"])
    (folder / "mounts").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        yield folder


@pytest.fixture(scope="module")
def container(machine: Path) -> Iterator[Any]:
    """Ray's command runner after what `ray up` does to a new machine before it starts Ray."""
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    name = f"mmva-{machine.parent.name}-{os.getpid()}"
    runner = DockerCommandRunner(
        CLUSTER["docker"], log_prefix="", node_id="1", provider=SimpleNamespace(internal_ip=lambda _node: "10.0.0.1"),
        auth_config={"ssh_user": "root"}, cluster_name=name, process_runner=subprocess, use_internal_ip=True,
    )  # fmt: skip
    files = {"~/.ray/auth_token": "a token", "~/ray_bootstrap_config.yaml": "bootstrap: true"}
    mounts = {}
    for target, text in files.items():
        source = machine / target.replace("/", "_")
        source.write_text(text)
        mounts[target] = str(source)
    runner.run_init(as_head=True, file_mounts=mounts, sync_run_yet=False)
    for target, place in mounts.items():
        runner.run_rsync_up(place, target, options={"docker_mount_if_possible": target in CLUSTER["file_mounts"]})
    runner.run_init(as_head=True, file_mounts=mounts, sync_run_yet=True)
    yield runner
    shutil.rmtree(f"/tmp/ray_tmp_mount/{name}")


def test_the_head_starts_with_its_token_and_configuration(container: Any) -> None:
    stopped, started = (container.run(one, with_output=True).decode() for one in CLUSTER["head_start_ray_commands"])
    assert stopped.startswith("ray stop")
    assert "ray start --head" in started
    assert ", token a token" in started  # found where Ray looks for it
    assert "bootstrap: true" in started


def test_a_worker_starts_and_knows_its_head(container: Any) -> None:
    from ray.autoscaler._private.util import with_head_node_ip

    for command in with_head_node_ip(CLUSTER["worker_start_ray_commands"], "10.0.0.1"):
        said = container.run(command, with_output=True).decode()
    assert "ray start --address=10.0.0.1:6379" in said
    assert ", token a token" in said


def test_the_image_has_what_the_head_starts_workers_with() -> None:
    assert {"rsync", "openssh-client", "ca-certificates"} <= set(word(r"apt-get install (.*?)\\\n").split())
    assert word(r"useradd .*--shell (\S+)") == "/bin/bash"
    assert "USER 1000:1000" in DOCKERFILE


def test_a_node_type_of_the_cluster_has_a_role_for_its_work() -> None:
    for name, kind in CLUSTER["available_node_types"].items():
        [policy] = re.findall(r"deploy/iam/(\w[\w-]*)\.json", kind["node_config"]["IamInstanceProfile"]["Arn"])
        assert (ROOT / "deploy" / "iam" / f"{policy}.json").exists(), name
