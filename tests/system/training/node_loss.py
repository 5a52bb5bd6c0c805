"""Two nodes, one of them lost in the middle of an elastic run: prints what became of the run as JSON.

As a script, because it needs a Ray of its own: python node_loss.py DATASET HOME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from mmva_platform.settings import ClusterSettings, Settings, validate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import train

EPOCHS = 40
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def main(dataset: str, home: str) -> None:
    store = 100 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": store, "_system_config": QUICK},
    )
    node = cluster.add_node(num_cpus=1, object_store_memory=store)
    cluster.wait_for_nodes()
    sizes: list[int] = []

    def lose_a_node(row: dict[str, Any]) -> None:
        sizes.append(row["workers"])
        if row["epoch"] == 1:
            cluster.remove_node(node, allow_graceful=False)

    values = {"dataset": dataset, "preset": "tiny", "name": "elastic", "epochs": EPOCHS, "batch_size": 2}
    values |= {"workers": [1, 2], "cpus_per_worker": 1, "model": {"hidden": 32}, "checkpoint": {"every_s": 0}}
    settings = Settings(home=Path(home), cluster=ClusterSettings(address=cluster.address))
    result = train(validate(Recipe, values, "recipe"), settings, progress=lose_a_node)
    facts = {"sizes": sizes, "epochs": [row["epoch"] for row in result.history], "asked": EPOCHS}
    sys.stdout.write(json.dumps(facts) + "\n")
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
