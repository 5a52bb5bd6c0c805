"""`ray up` with the image of deploy/docker/Dockerfile: Ray's own command runner, with a docker that is a namespace.

What Ray's command runner would send over ssh is run here instead, in a mount namespace that has what the Dockerfile
makes: the file in /etc/profile.d and programs in /opt/mmva/bin. Needs unshare, as root or with user namespaces.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
CLUSTER = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `docker` that runs `docker exec -it NAME COMMAND...` in what the image changes of a file system."""
    folder = tmp_path_factory.mktemp("container")
    for name in ("profile.d", "bin", "opt/mmva/bin"):
        (folder / name).mkdir(parents=True)
    written = re.search(r"echo '(.+)' > /etc/profile\.d/(\S+)", DOCKERFILE)
    if written:
        (folder / "profile.d" / written[2]).write_text(written[1] + "\n")
    for name in ("ray", "mmva", "python"):
        program = folder / "opt" / "mmva" / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*"\n')
        program.chmod(0o755)
    (folder / "home").mkdir()
    (folder / "home" / ".bashrc").touch()  # by useradd --create-home
    assert "useradd --uid 1000 --create-home" in DOCKERFILE
    path = re.search(r"PATH=(\S+)", DOCKERFILE)
    assert path
    inside = (
        f"mount --bind {folder}/profile.d /etc/profile.d && mount --bind {folder}/opt /opt && "
        f'PATH={path[1].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")} HOME={folder}/home exec "$@"'
    )
    docker = folder / "bin" / "docker"
    docker.write_text(
        "#!/bin/bash\n"
        'while [ "$1" != mmva ]; do shift; done; shift\n'
        f'exec unshare --mount --map-root-user sh -c {shlex.quote(inside)} sh "$@"\n'
    )
    docker.chmod(0o755)
    return folder


@pytest.mark.parametrize("command", [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]])
def test_a_start_command_finds_ray(container: Path, command: str) -> None:
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.docker import with_docker_exec

    in_login_shell = " ".join(_with_interactive(command))
    [sent] = with_docker_exec([in_login_shell], container_name="mmva", docker_cmd="docker", with_interactive=True)
    done = subprocess.run(
        ["bash", "-c", sent], env={"PATH": f"{container}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "ray " + command.partition("ray ")[2].split()[0] in done.stdout, done.stderr


def test_the_image_has_what_the_command_runner_calls() -> None:
    installed = re.search(r"apt-get install .*?(?=&&|\n\n)", DOCKERFILE, re.DOTALL)
    assert installed
    assert {"rsync", "openssh-client", "ca-certificates"} <= set(installed[0].split())
    [home] = re.findall(r"HOME=(\S+)", DOCKERFILE)  # where Ray mounts ~/.ray/auth_token
    assert home == "/home/ray"
    assert "USER 1000:1000" in DOCKERFILE


def test_a_node_type_of_the_cluster_has_a_role_for_its_work() -> None:
    for name, kind in CLUSTER["available_node_types"].items():
        [policy] = re.findall(r"deploy/iam/(\w[\w-]*)\.json", kind["node_config"]["IamInstanceProfile"]["Arn"])
        assert (ROOT / "deploy" / "iam" / f"{policy}.json").exists(), name
