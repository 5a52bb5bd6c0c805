"""What training costs beside the same work done by hand: ratios, each side measured in turns in the same run.

    python benchmarks/training.py --workdir DIR step | media | workers | memory

step     a step under Ray Train with one worker / the same step in a plain PyTorch loop here (claim: <= 1.05), and the
         share of a step that waits for data in features mode (claim: <= 5 %). Made-up embeddings of the
         `compact` preset's widths at IMEMNet-C's size, batch 256.
media    an epoch from media (frozen backbones, decoding included) / the same from stored embeddings (claim: >= 50), and
         after how many epochs embedding once has paid for itself. One process each, `compact`, generated media.
workers  two Ray workers against one, relative to what two independent processes reach together on this machine in the
         same minutes (claim: >= 0.85). --batch pairs a step: what ranks tell each other does not grow with it.
memory   features of --items items in shared memory: bytes promised, bytes of the store, peak of the driver; then towers
         started by their probes and an epoch over those views of the memory, batch 4096: seconds, and the peak again.

Prints a line a figure to stderr and JSON to stdout; exit code 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmva_platform.settings import ClusterSettings, Settings, validate
from mmva_platform.training.recipe import Recipe

WIDTHS = {"image": 1280, "music": 753, "caption": 384}
IMAGES, CLIPS = 24_744, 25_944
Seconds = list[float]


def recipe_of(**changes: Any) -> Recipe:
    """No probes: their cost is once a run and not a step's."""
    values = {"dataset": "made", "preset": "compact", "batch_size": 256, "epochs": 10_000, "workers": 1}
    return validate(Recipe, values | {"optimizer": {"ridge": 0.1}} | changes, "benchmark")


def made_triplets(images: int, clips: int, seed: int = 0) -> Any:
    """Random embeddings and labels."""
    from mmva_platform.training.data import Triplets

    rng = np.random.default_rng(seed)
    sizes = {"image": images, "music": clips, "caption": clips}
    emb = {m: rng.standard_normal((sizes[m], width), np.float32) for m, width in WIDTHS.items()}
    rows = {m: np.arange(clips) for m in ("music", "caption")}
    return Triplets(rng.random((images, 2)), rng.random((clips, 2)), rows, emb)


class Loop:
    """The training loop over data in memory; steps() times so many of them."""

    def __init__(self, train: Any, recipe: Recipe, world: Any = None) -> None:
        import torch
        from mmva_platform.training.build import build_model, new_state
        from mmva_platform.training.source import FeatureSource

        from mmva_platform.training.loop import WORLD_OF_ONE, plan_epoch

        torch.set_num_threads(1)
        self.recipe, self.world = recipe, world or WORLD_OF_ONE
        self.state = new_state(build_model(recipe, train), recipe, train, train, self.world)
        self.source = FeatureSource(train, train, recipe.loss.sigma)
        self.plan = plan_epoch(train, recipe, 0)

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds of so many steps, and of those the seconds that waited for data."""
        from mmva.matching import batches
        from mmva_platform.training.loop import train_step

        shares = batches(self.plan, self.recipe.batch_size, self.world.rank, self.world.size)
        began, waited = time.perf_counter(), 0.0
        data = self.source.batches(self.plan, 0, [shares[i % len(shares)] for i in range(count)], self.state.model)
        for _ in range(count):
            asked = time.perf_counter()
            batch = next(data)
            waited += time.perf_counter() - asked
            train_step(self.state, batch, self.recipe, self.world)
        return time.perf_counter() - began, waited


class Plain:
    """A hand-written PyTorch loop doing the same step: no ranks, no plan, no masks beyond the loss's own."""

    def __init__(self, train: Any, recipe: Recipe) -> None:
        import torch
        from mmva_platform.training.build import build_model, build_optimizer, penalty_gradients
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        torch.set_num_threads(1)
        self.recipe = recipe
        self.model = build_model(recipe, train)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging.decay))
        self.optimizer = build_optimizer(self.model.parameters(), recipe.optimizer)
        rows = {m: len(emb) for m, emb in train.emb.items()}
        self.penalised = penalty_gradients(self.model, rows, dict.fromkeys(WIDTHS, (0.1, 0.1)))
        self.emb = {m: torch.from_numpy(emb) for m, emb in train.emb.items()}
        self.image_va = torch.from_numpy(train.image_va_N2).float()
        self.music_va = torch.from_numpy(train.partner_va_M2).float()

    def steps(self, count: int) -> float:
        """Seconds of so many steps."""
        import torch

        from mmva.losses import mmva_loss

        generator = np.random.default_rng(0)
        size = self.recipe.batch_size
        began = time.perf_counter()
        for _ in range(count):
            image = torch.from_numpy(generator.integers(0, len(self.image_va), size))
            clip = torch.from_numpy(generator.integers(0, len(self.music_va), size))
            index = {"image": image, "music": clip, "caption": clip}
            va = self.model({m: self.emb[m][row] for m, row in index.items()})
            labels = {"image": self.image_va[image], "music": self.music_va[clip], "caption": self.music_va[clip]}
            self.optimizer.zero_grad(set_to_none=False)
            mmva_loss(va, labels, config=self.recipe.loss)[0].backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            with torch.no_grad():
                for parameter, factor in self.penalised:
                    parameter.grad.add_(factor * parameter)
            self.optimizer.step()
            self.average.update_parameters(self.model)
        return time.perf_counter() - began


def ray_worker(config: dict[str, Any]) -> None:
    """Inside Ray Train: waits for the word, times a round of steps, tells; until told to end."""
    import ray
    import ray.train

    from mmva_platform.training.loop import World

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    loop = Loop(ray.get(config["train"]), Recipe.model_validate(config["recipe"]), world)
    loop.steps(5)
    while (count := ray.get(config["turns"].next.remote(world.rank))) > 0:
        seconds, waited = loop.steps(count)
        ray.get(config["turns"].done.remote(world.rank, seconds, waited))


class Turns:
    """An actor by which the driver lets a worker group run rounds, and rests it between them."""

    def __init__(self, ranks: int) -> None:
        import asyncio

        self._asked = [asyncio.Queue() for _ in range(ranks)]
        self._told: Any = asyncio.Queue()

    async def next(self, rank: int) -> int:
        """Steps of the next round; 0 to end."""
        return await self._asked[rank].get()

    async def done(self, rank: int, seconds: float, waited: float) -> None:
        """A round is over."""
        await self._told.put((rank, seconds, waited))

    async def round(self, count: int) -> list[tuple[int, float, float]]:
        """Let all ranks run so many steps; their seconds."""
        for queue in self._asked:
            await queue.put(count)
        return [await self._told.get() for _ in self._asked] if count else []


class OnRay:
    """A Ray Train worker group that runs rounds when asked."""

    def __init__(self, train: Any, recipe: Recipe, workers: int, workdir: Path) -> None:
        import threading

        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        self._turns = ray.remote(num_cpus=0)(Turns).remote(workers)
        config = {"train": ray.put(train), "recipe": recipe.model_dump(mode="json"), "turns": self._turns}
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(name=f"bench-{os.getpid()}-{workers}", storage_path=str(workdir.resolve() / "ray")),
        )
        self._thread = threading.Thread(target=trainer.fit, daemon=True)
        self._thread.start()

    def round(self, count: int) -> tuple[float, float]:
        """Seconds of the slowest rank, and the share of them that waited for data."""
        import ray

        told = ray.get(self._turns.round.remote(count))
        seconds = max(seconds for _, seconds, _ in told)
        return seconds, max(waited / took for _, took, waited in told)

    def end(self) -> None:
        """Let the workers return."""
        import ray

        ray.get(self._turns.round.remote(0))
        self._thread.join(timeout=30)


def measure_step(workdir: Path, rounds: int, count: int) -> dict[str, Any]:
    """Ray Train with one worker against the plain loop, in turns."""
    from mmva_platform.cluster import quiet_ray_data, ray_session

    train, recipe = made_triplets(IMAGES, CLIPS), recipe_of()
    plain = Plain(train, recipe)
    plain.steps(5)
    ours, theirs, waits = [], [], []
    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=1024)):
        quiet_ray_data()
        group = OnRay(train, recipe, 1, workdir)
        group.round(5)
        for _ in range(rounds):
            theirs.append(plain.steps(count))
            seconds, wait = group.round(count)
            ours.append(seconds)
            waits.append(wait)
        group.end()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    wait = statistics.median(waits)
    return {
        "step_ms_ray": 1e3 * statistics.median(ours) / count,
        "step_ms_plain": 1e3 * statistics.median(theirs) / count,
        "ratio": ratio,
        "waiting": wait,
        "claims": {"ratio <= 1.05": ratio <= 1.05, "waiting <= 5 %": wait <= 0.05},
    }


def _alone(seconds: Any, start: Any, count: int, rounds: int, batch_size: int) -> None:
    loop = Loop(made_triplets(8 * batch_size, 8 * batch_size), recipe_of(batch_size=batch_size))
    loop.steps(5)
    for _ in range(rounds):
        start.wait()
        seconds.put(loop.steps(count)[0])
        start.wait()


def measure_workers(workdir: Path, rounds: int, count: int, batch_size: int) -> dict[str, Any]:
    """One and two Ray workers on the same global batch, and one and two processes of their own on half of it each."""
    from mmva_platform.cluster import quiet_ray_data, ray_session

    train, recipe = made_triplets(8 * batch_size, 8 * batch_size), recipe_of(batch_size=batch_size)
    spawn = multiprocessing.get_context("spawn")

    def processes(number: int, batch_size: int) -> tuple[Any, Any, list[Any]]:
        told, start = spawn.Queue(), spawn.Barrier(number + 1)
        made = [spawn.Process(target=_alone, args=(told, start, count, rounds, batch_size)) for _ in range(number)]
        for process in made:
            process.start()
        return told, start, made

    groups = {"one whole": processes(1, batch_size), "two halves": processes(2, batch_size // 2)}
    seconds: dict[str, Seconds] = {name: [] for name in ("ray 1", "ray 2", *groups)}
    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=512)):
        quiet_ray_data()
        on_ray = {n: OnRay(train, recipe, n, workdir) for n in (1, 2)}
        for group in on_ray.values():
            group.round(5)
        for _ in range(rounds):
            for n, group in on_ray.items():
                seconds[f"ray {n}"].append(group.round(count)[0])
            for name, (told, start, made) in groups.items():
                start.wait()
                seconds[name].append(max(told.get() for _ in made))
                start.wait()
        for group in on_ray.values():
            group.end()
    for _, _, made in groups.values():
        for process in made:
            process.join()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours, theirs = median["ray 1"] / median["ray 2"], median["one whole"] / median["two halves"]
    return {
        "batch_size": batch_size,
        "ms": {name: 1e3 * value / count for name, value in median.items()},
        "speedup_ray": ours,
        "speedup_processes": theirs,
        "relative": ours / theirs,
        "claims": {"relative >= 0.85": ours / theirs >= 0.85},
    }


def measure_media(workdir: Path, rounds: int, items: int) -> dict[str, Any]:
    """An epoch from media against the same epoch from embeddings, both in this process, and embedding once."""
    import torch
    from mmva_platform.training.build import build_model, new_state
    from mmva_platform.training.source import FeatureSource

    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding import embed_dataset
    from mmva_platform.datasets.features import load_features
    from mmva_platform.datasets.importing import ImportConfig, import_dataset
    from mmva_platform.training.data import triplets
    from mmva_platform.training.loop import UNWATCHED, World, train_epoch
    from mmva_platform.training.media.run import plan_media, prepare_media

    torch.set_num_threads(1)
    settings = Settings(home=workdir / "home")
    media, dataset = workdir / "media", str(workdir / "dataset")
    if not media.exists():
        generate(media, images=items, clips=items, seed=0)
    if not (workdir / "dataset" / "dataset.json").exists():
        files = {"images_csv": str(media / "image_va.csv"), "music_csv": str(media / "music_va.csv")}
        import_dataset(ImportConfig(media=str(media), fractions=(0.7, 0.15, 0.15), **files), dataset, settings)
    began = time.perf_counter()
    embed_dataset(dataset, "compact", None, settings)
    embedded = time.perf_counter() - began
    frozen = {"layers": dict.fromkeys(WIDTHS, 0)}
    recipe = recipe_of(dataset=dataset, mode="media", batch_size=64, media=frozen)
    plan, _ = plan_media(recipe, settings)
    state, source = prepare_media(recipe, plan, None, World(), torch.device("cpu"), pipeline=map)
    features = load_features(dataset, "compact", settings)
    train, val = triplets(features, "train"), triplets(features, "val")
    fast_state, fast = new_state(build_model(recipe, train), recipe, train, val), FeatureSource(train, val, 0.38)
    sides: dict[str, Callable[[], object]] = {
        "media": lambda: train_epoch(state, source, recipe, World(), UNWATCHED),
        "features": lambda: train_epoch(fast_state, fast, recipe, World(), UNWATCHED),
    }
    seconds: dict[str, Seconds] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, epoch in sides.items():
            for moved in (state, fast_state):
                moved.done, moved.sums = 0, {}
            began = time.perf_counter()
            epoch()
            if number:
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["media"] / median["features"]
    return {
        "pairs": min(len(train.image_va_N2), len(train.partner_va_M2)),
        "seconds": median,
        "ratio": ratio,
        "embedding_s": embedded,
        "epochs_until_embedding_has_paid": embedded / (median["media"] - median["features"]),
        "claims": {"ratio >= 50": ratio >= 50},
    }


def measure_memory(workdir: Path, items: int) -> dict[str, Any]:
    """Half of the items images, half clips without captions, through share_features; what that took."""
    from mmva_platform.training.memory import check_memory, share_features, shared_features

    from mmva_platform.cluster import ray_session

    uri = made_embedded_dataset(workdir / f"dataset-{items}", items)
    need = 4 * (items // 2) * (WIDTHS["image"] + WIDTHS["music"])
    store_mb = int(1.2 * need / 2**20)
    check_memory({"all": need}, store_mb * 2**20, None)
    settings = Settings(home=workdir / "home")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    with ray_session(ClusterSettings(address="local", num_cpus=2, object_store_mb=store_mb)):
        shared = share_features(uri, "made", settings, None)
        features = shared_features(shared)
        assert not features["image"].emb_ND.flags.owndata
        took = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "items": items,
            "embeddings_MiB": need / 2**20,
            "store_MiB": store_mb,
            "driver_before_MiB": before / 2**20,
            "driver_peak_MiB": peak / 2**20,
            "seconds": took,
            **one_epoch(features),
            "claims": {},
        }


def one_epoch(features: Any) -> dict[str, float]:
    """Towers from their probes, then an epoch in this process; its own memory is what passes the shared embeddings."""
    import torch
    from mmva_platform.training.build import build_model, new_state
    from mmva_platform.training.source import FeatureSource

    from mmva_platform.training.data import triplets
    from mmva_platform.training.loop import UNWATCHED, WORLD_OF_ONE, train_epoch

    torch.set_num_threads(2)
    recipe = recipe_of(batch_size=4096, optimizer={"ridge": "auto"})
    train, val = triplets(features, "train"), triplets(features, "val")
    began = time.perf_counter()
    state = new_state(build_model(recipe, train), recipe, train, val)
    started = time.perf_counter()
    train_epoch(state, FeatureSource(train, val, recipe.loss.sigma), recipe, WORLD_OF_ONE, UNWATCHED)
    return {
        "start_s": started - began,
        "epoch_s": time.perf_counter() - started,
        "steps": state.done,
        "pairs": min(len(train.image_va_N2), len(train.partner_va_M2)),
        "trained_peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def made_embedded_dataset(folder: Path, items: int, part_rows: int = 20_000) -> str:
    """A dataset of labels and embeddings alone, as import and embed leave them; there are no media behind it."""
    import pyarrow as pa

    from mmva_platform.datasets import embedding_set as sets
    from mmva_platform.datasets import schema
    from mmva_platform.storage import open_storage

    storage = open_storage(folder)
    if storage.exists("dataset.json"):
        return str(folder)
    rng, half = np.random.default_rng(0), items // 2
    modality = np.repeat(["image", "music"], half)
    columns = {
        "id": [f"{m}{n}" for n, m in enumerate(modality)], "source": ["made"] * items, "modality": modality,
        "split": rng.choice(["train", "val", "test"], items, p=[0.8, 0.05, 0.15]),
        "group": [str(n) for n in range(items)], "valence": rng.random(items), "arousal": rng.random(items),
        "caption": [""] * items, "media_format": ["none"] * items, "sha256": [""] * items,
    }  # fmt: skip
    labels = schema.parquet_bytes(pa.table(columns, schema=schema.LABELS_SCHEMA))
    storage.write("labels.parquet", labels)
    shards = tuple(
        schema.ShardInfo(name=m, modality=m, rows=half, bytes=0, sha256="0" * 64) for m in ("image", "music")
    )
    prints: dict[Any, str] = {}
    for name in ("image", "music"):
        prints[name] = {"image": "1", "music": "2"}[name] * 64
        ids = [item for item, kind in zip(columns["id"], modality, strict=True) if kind == name]
        parts = []
        for number, start in enumerate(range(0, half, part_rows)):
            own = ids[start : start + part_rows]
            data = sets.part_bytes(own, rng.standard_normal((len(own), WIDTHS[name]), np.float32), {})
            part = f"part-{number:05d}.parquet"
            storage.write(f"embeddings/{sets.folder_name(name, prints[name])}/{part}", data)
            parts.append(sets.PartInfo(name=part, rows=len(own), sha256=schema.sha256_of(data)))
        info = sets.EmbeddingsInfo(
            modality=name, fingerprint=prints[name], spec={}, dim=WIDTHS[name], preset="made", dataset="d" * 64,
            rows=half, parts=tuple(parts),
        )  # fmt: skip
        storage.write(
            f"embeddings/{sets.folder_name(name, prints[name])}/embeddings.json", schema.json_bytes(info.model_dump())
        )
    pointer = sets.Pointer(dataset="d" * 64, fingerprints=prints)
    storage.write("embeddings/made.json", schema.json_bytes(pointer.model_dump()))
    info = schema.DatasetInfo(
        schema_version=schema.SCHEMA_VERSION, digest="d" * 64, counts={}, sources={}, labels={},
        split=schema.SplitInfo(policy="song", seed=0), warnings=(),
        labels_sha256=schema.sha256_of(labels), shards=shards,
    )  # fmt: skip
    storage.write(schema.DATASET_FILE, schema.json_bytes(info.model_dump()))
    return str(folder)


def main() -> int:
    """Measure one thing, print, and say whether its claims hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "media", "workers", "memory"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=1024, help="workers: pairs a step")
    parser.add_argument("--items", type=int, default=None, help="media: 300; memory: 1,000,000")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: measure_step(arguments.workdir, arguments.rounds, arguments.steps),
        "workers": lambda: measure_workers(arguments.workdir, arguments.rounds, arguments.steps, arguments.batch),
        "media": lambda: measure_media(arguments.workdir, min(arguments.rounds, 3), arguments.items or 300),
        "memory": lambda: measure_memory(arguments.workdir, arguments.items or 1_000_000),
    }
    result = measure[arguments.what]()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    print(json.dumps({"what": arguments.what, "machine": machine, **result}, indent=2))
    for claim, holds in result["claims"].items():
        print(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}", file=sys.stderr)
    return 0 if all(result["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
