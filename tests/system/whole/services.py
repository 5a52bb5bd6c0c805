"""What runs on the hosts: SeaweedFS in parts, PostgreSQL, MLflow, Ray's head and workers."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from hosts import Host
from seaweed import ACCESS, SECRET

BUCKETS: Final = ("media", "work")
S3, MLFLOW, GCS, DASHBOARD, API = 8333, 5000, 6379, 8265, 8000
_BIN: Final = Path(sys.executable).parent
_MASTER, _FILER, _VOLUME, _POSTGRES = 9333, 8888, 9340, 5432
_STORE_BYTES: Final = 128 * 2**20


def start_storage(host: Host) -> None:
    """SeaweedFS' master, filer and S3 gateway; every object will have two copies on different volume servers."""
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    identities = host.folder / "identities.json"
    identities.write_text(json.dumps({"identities": [identity]}))
    for part in ("master", "filer"):
        (host.folder / part).mkdir(exist_ok=True)
    host.start(
        *("master", _BIN / "weed", "master", f"-ip={host.address}", f"-port={_MASTER}", f"-mdir={host.folder}/master"),
        *("-telemetry=false", "-defaultReplication=001", "-volumeSizeLimitMB=128"),
    )
    host.start(
        *("filer", _BIN / "weed", "filer", f"-ip={host.address}", f"-port={_FILER}", f"-master={_at(host, _MASTER)}"),
        *(f"-defaultStoreDir={host.folder}/filer", f"-localSocket={host.folder}/filer.sock"),
        *("-s3", f"-s3.port={S3}", f"-s3.config={identities}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0"),
        "-s3.port.lance=0",
    )


def start_volume(host: Host, storage: Host) -> None:
    """One of SeaweedFS' volume servers, which hold the bytes."""
    (host.folder / "volumes").mkdir(exist_ok=True)
    host.start(
        *("volume", _BIN / "weed", "volume", f"-ip={host.address}", f"-port={_VOLUME}", f"-dir={host.folder}/volumes"),
        *(f"-master={_at(storage, _MASTER)}", "-max=100", "-dataCenter=one", "-rack=one"),
    )


def start_postgres(host: Host) -> None:
    """PostgreSQL, as another user where we are root; whoever reaches it is let in."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL's server binaries are missing: apt-get install postgresql"
    data = host.folder / "data"
    as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
    if not data.exists():
        data.mkdir(mode=0o700)
        shutil.chown(data, "postgres")
        options = ("-U", "mlflow", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        host.run(*as_postgres, found[-1], "-D", data, *options)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet trust\n")
    options = ("-c", f"listen_addresses={host.address}", "-c", "unix_socket_directories=", "-c", "fsync=off")
    host.start("postgres", *as_postgres, found[-1].with_name("postgres"), "-D", data, "-p", _POSTGRES, *options)


def start_mlflow(host: Host, postgres: Host, storage: Host) -> None:
    """MLflow's server on PostgreSQL; artifacts go through it into object storage."""
    own = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{_at(storage, S3)}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    host.start(
        *("mlflow", _BIN / "mlflow", "server", "--host", host.address, "--port", MLFLOW, "--workers", "1"),
        *("--backend-store-uri", f"postgresql+pg8000://mlflow@{_at(postgres, _POSTGRES)}/postgres"),
        *("--artifacts-destination", "s3://work/mlflow"),
        environment=environment() | own,
    )


def start_head(host: Host, root: Path) -> None:
    """Ray's head: no work on it, drivers and dashboard only."""
    _start_ray(
        host,
        root,
        *("--head", "--num-cpus=0", f"--port={GCS}", f"--temp-dir={host.ray_folder}", "--include-dashboard=true"),
        *(f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD}"),
    )


def start_worker(host: Host, head: Host, root: Path) -> None:
    """A Ray node that works."""
    _start_ray(host, root, f"--address={_at(head, GCS)}", "--num-cpus=3")


def _start_ray(host: Host, root: Path, *options: str) -> None:
    common = (f"--node-ip-address={host.address}", f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats")
    # Ray starves its workers for the sake of whoever else is on a host, and here all hosts share their processors.
    ours = environment() | token(root) | {"RAY_worker_niceness": "0"}
    again = ("bash", "-c", 'until "$@"; do sleep 1; done', "bash")  # as KubeRay and systemd do
    host.start("ray", *again, _BIN / "ray", "start", "--block", *common, *options, environment=ours)


def environment() -> dict[str, str]:
    """Of every process: this checkout's packages, object storage's keys, one thread."""
    repository = Path(__file__).resolve().parents[3]
    return os.environ | {
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'platform'}",
        "OMP_NUM_THREADS": "1",
    }


def token(root: Path) -> dict[str, str]:
    """What lets a process speak with Ray."""
    file = root / "ray-token"
    if not file.exists():
        file.write_text("0123456789abcdef" * 4)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


def s3_client(storage: Host) -> Any:
    """A client of object storage that tries once."""
    return boto3.client(
        "s3", endpoint_url=f"http://{_at(storage, S3)}", region_name="us-east-1",
        aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
        config=Config(
            retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20, s3={"addressing_style": "path"}
        ),
    )  # fmt: skip


def stores(storage: Host) -> bool:
    """Whether object storage has its buckets and takes an object."""
    client = s3_client(storage)
    try:
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for name in set(BUCKETS) - there:
            client.create_bucket(Bucket=name)
        client.put_object(Bucket=BUCKETS[-1], Key=".ready", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    return True


def ask(host: Host, port: int, path: str, key: Path | None = None, body: dict[str, Any] | None = None) -> str | None:
    """What a server answers, asked with the key in a file; None if it does not, or says no."""
    request = urllib.request.Request(f"http://{_at(host, port)}{path}")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key.read_text().strip()}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return None


def _at(host: Host, port: int) -> str:
    return f"{host.address}:{port}"
