"""Ray Serve on the cluster from deploy/serve.yaml, what stands in <...> replaced; and a request to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hosts import until
from services import API, DASHBOARD, ask
from topology import REPOSITORY, Topology


def deploy(topology: Topology) -> Path:
    """Deploy the API, wait until its model answers; the file of a key for it."""
    home = topology.root / "home"
    key = topology.root / "key"
    key.write_text(topology.mmva("--home", home, "serve", "--new-key", "tests", "--scope", "annotate"))
    config = yaml.safe_load((REPOSITORY / "deploy" / "serve.yaml").read_text())
    config["http_options"]["host"] = "0.0.0.0"  # the person is on another host
    arguments = config["applications"][0]["args"]
    own = yaml.safe_load(topology.settings.read_text())
    arguments |= {"home": str(home), "tracking": own["tracking"], "storage": own["storage"]}
    arguments["serving"] |= {
        "keys_file": str(home / "serving" / "keys.yaml"), "replicas": 1, "replica_cpus": 0.5, "bulk": {},
        "max_replicas": None, "api_replicas": 1, "max_api_replicas": None,
        "engine": "torch", "jobs": "s3://work/serving/jobs", "roots": ["s3://media"], "out_roots": ["s3://work/api"],
    }  # fmt: skip
    file = topology.root / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    topology.person("serve", "deploy", "--address", f"http://{topology.head.address}:{DASHBOARD}", file)
    until(lambda: ask(topology.head, API, "/readyz"), "the API", 120.0)
    return key


def annotated(topology: Topology, key: Path, *items: dict[str, str]) -> list[dict[str, Any]]:
    """What the API says of items; nothing if it does not answer."""
    said = ask(topology.head, API, "/v1/annotate", key, {"items": list(items)})
    results: list[dict[str, Any]] = [] if said is None else json.loads(said)["items"]
    return results
