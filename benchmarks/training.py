"""What training costs beside the same work done by hand: ratios, both sides measured in turns in the same run.

    python benchmarks/training.py --workdir DIR step | workers | checkpoint | media | memory

step        a step under Ray Train with one worker / the same step in a plain PyTorch loop here (claim: <= 1.05).
            Made-up embeddings of the `compact` preset's widths at IMEMNet-C's size, batch 256.
workers     a step of two Ray workers / of two processes with plain DDP, as torchrun starts them (claim: <= 1.10).
checkpoint  rounds of steps with a checkpoint written in their midst / the same rounds without (claim: <= 1.05).
media       an epoch of media mode / a plain DataLoader over the same files on the same cores (claim: <= 1.15), and / an
            epoch from embeddings (claim: >= 50). One process each, `compact`, frozen backbones, generated media.
memory      features of --items items in shared memory: bytes promised, bytes of the store, peak of the driver.

Prints a line a claim to stderr and JSON to stdout; exit code 1 where a claim does not hold.
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
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmva.files import sha256_hex
from mmva_platform.settings import ClusterSettings, Settings, validate
from mmva_platform.training.recipe import Recipe

WIDTHS = {"image": 1280, "music": 753, "caption": 384}
IMAGES, CLIPS = 24_744, 25_944


def recipe_of(**changes: Any) -> Recipe:
    """No probes: their cost is once a run and not a step's. Saves only when it is asked to."""
    values = {"dataset": "made", "preset": "compact", "batch_size": 256, "epochs": 10_000, "workers": 1}
    values |= {"optimizer": {"ridge": 0.1}, "checkpoint": {"every_s": 1e9}}
    return validate(Recipe, values | changes, "benchmark")


def made_triplets(images: int, clips: int, seed: int = 0) -> Any:
    """Random embeddings and labels."""
    from mmva_platform.training.loop.data import Triplets

    rng = np.random.default_rng(seed)
    sizes = {"image": images, "music": clips, "caption": clips}
    emb = {m: rng.standard_normal((sizes[m], width), np.float32) for m, width in WIDTHS.items()}
    rows = {m: np.arange(clips) for m in ("music", "caption")}
    return Triplets(rng.random((images, 2)), rng.random((clips, 2)), rows, emb)


class Loop:
    """The training loop over data in memory; steps() times so many of them."""

    def __init__(self, train: Any, recipe: Recipe, world: Any = None) -> None:
        import torch

        from mmva.losses import loss_scales
        from mmva_platform.training.loop.features import FeatureSource
        from mmva_platform.training.loop.loop import batch_counts, plan_epoch
        from mmva_platform.training.loop.state import WORLD_OF_ONE, build_model, new_state

        torch.set_num_threads(1)
        self.recipe, self.world = recipe, world or WORLD_OF_ONE
        self.state = new_state(build_model(recipe, train), recipe, train, train, self.world)
        self.source = FeatureSource(train, train, recipe.loss.sigma)
        self.plan = plan_epoch(train, recipe, 0)
        counts_ST = torch.from_numpy(batch_counts(train, self.plan, recipe))
        self.scale_ST = loss_scales(counts_ST, recipe.loss, self.world.size).float()

    def steps(self, count: int, callback: Any = None) -> float:
        """Seconds of so many steps."""
        from mmva.matching import batches
        from mmva_platform.training.loop.loop import train_step

        shares = batches(self.plan, self.recipe.batch_size, self.world.rank, self.world.size)
        numbers = [number % len(shares) for number in range(count)]
        began = time.perf_counter()
        data = self.source.batches(self.plan, 0, [shares[number] for number in numbers])
        for number, pieces in zip(numbers, data, strict=True):
            self.state.sums_T += train_step(self.state, pieces, self.scale_ST[number], self.recipe)
            self.state.done = number + 1
            if callback is not None:
                callback.on_step_end(self.state, None)
        return time.perf_counter() - began


class Plain:
    """A hand-written PyTorch loop doing the same step: no plan, no masks beyond the loss's own."""

    def __init__(self, train: Any, recipe: Recipe, ranks: int = 1) -> None:
        import torch
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        from mmva_platform.training.loop.state import build_model, build_optimizer, build_schedule, penalty_factors

        torch.set_num_threads(1)
        self.recipe, self.size = recipe, recipe.batch_size // ranks
        self.model = build_model(recipe, train)
        self.parallel = torch.nn.parallel.DistributedDataParallel(self.model) if ranks > 1 else self.model
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging.decay))
        self.optimizer = build_optimizer([{"params": list(self.model.parameters())}], recipe.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.schedule, total_steps=10**6)
        rows = {m: len(emb) for m, emb in train.emb.items()}
        self.penalised = penalty_factors(self.model, rows, dict.fromkeys(WIDTHS, (0.1, 0.1)))
        self.emb = {m: torch.from_numpy(emb) for m, emb in train.emb.items()}
        self.image_va = torch.from_numpy(train.image_va_N2).float()
        self.music_va = torch.from_numpy(train.partner_va_M2).float()

    def steps(self, count: int) -> float:
        """Seconds of so many steps."""
        import torch

        from mmva.losses import mmva_loss

        generator = np.random.default_rng(0)
        began = time.perf_counter()
        for _ in range(count):
            image = torch.from_numpy(generator.integers(0, len(self.image_va), self.size))
            clip = torch.from_numpy(generator.integers(0, len(self.music_va), self.size))
            index = {"image": image, "music": clip, "caption": clip}
            va = self.parallel({m: self.emb[m][row] for m, row in index.items()})
            labels = {"image": self.image_va[image], "music": self.music_va[clip], "caption": self.music_va[clip]}
            self.optimizer.zero_grad()
            mmva_loss(va, labels, config=self.recipe.loss)[0].backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            with torch.no_grad():
                for parameter, factor in self.penalised:
                    parameter.grad.add_(factor * parameter)
            self.optimizer.step()
            self.schedule.step()
            self.average.update_parameters(self.model)
        return time.perf_counter() - began


def plain_rank(rank: int, place: str, batch_size: int, turns: Any, rounds: list[int]) -> None:
    """One of the two processes that torchrun would start."""
    import torch

    told, start = turns
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    plain = Plain(made_triplets(8 * batch_size, 8 * batch_size), recipe_of(batch_size=batch_size), 2)
    for count in rounds:
        start.wait()
        told.put(plain.steps(count))
    start.wait()
    torch.distributed.destroy_process_group()


def ray_worker(config: dict[str, Any]) -> None:
    """Inside Ray Train: waits for the word, times a round of steps, tells; until told to end."""
    import ray.train
    from ray.train.torch import prepare_model

    from mmva_platform.training.distributed.worker import Reporter
    from mmva_platform.training.loop.state import World

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    recipe = Recipe.model_validate(config["recipe"])
    loop = Loop(ray.get(config["train"]), recipe, world)
    options = {"broadcast_buffers": False, "find_unused_parameters": True}
    loop.state.parallel = prepare_model(loop.state.model, parallel_strategy_kwargs=options)
    reporter = Reporter(recipe, loop.source, world, config["stop"])
    while (count := config["asked"][world.rank].get()) != 0:
        if count < 0:  # with a checkpoint: rank 0 finds that it is time
            reporter.saved_at -= 1e10
        config["told"].put(loop.steps(abs(count), reporter))
    reporter.close()


class OnRay:
    """A Ray Train worker group that runs rounds when asked."""

    def __init__(self, train: Any, recipe: Recipe, workers: int, workdir: Path) -> None:
        import ray
        from ray.train import CheckpointConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.queue import Queue

        self._asked = [Queue(actor_options={"num_cpus": 0}) for _ in range(workers)]
        self._told, stop = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        config = {"train": ray.put(train), "recipe": recipe.model_dump(mode="json"), "stop": stop}
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config=config | {"asked": self._asked, "told": self._told},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name=f"bench-{os.getpid()}-{workers}",
                storage_path=str(workdir.resolve() / "ray"),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        self._thread = threading.Thread(target=trainer.fit, daemon=True)
        self._thread.start()

    def round(self, count: int) -> float:
        """Seconds of the slowest rank; a negative count has a checkpoint written in its midst."""
        for asked in self._asked:
            asked.put(count)
        return max(self._told.get() for _ in self._asked)

    def end(self) -> None:
        """Let the workers return."""
        for asked in self._asked:
            asked.put(0)
        self._thread.join(timeout=30)


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, one round after the other; a first round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            took = side()
            if number:
                seconds[name].append(took)
    return seconds


def compared(seconds: dict[str, list[float]], count: int, most: float) -> dict[str, Any]:
    """Median milliseconds a step of both sides, the median of the rounds' ratios, and the claim about it."""
    (first, ours), (second, theirs) = seconds.items()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    ms = {name: 1e3 * statistics.median(values) / count for name, values in seconds.items()}
    return {"ms": ms, f"{first} / {second}": ratio, "claims": {f"{first} / {second} <= {most}": ratio <= most}}


def measure_step(workdir: Path, rounds: int, count: int) -> dict[str, Any]:
    """Ray Train with one worker against the plain loop."""
    from mmva_platform.cluster import quiet_ray_data, ray_session

    train, recipe = made_triplets(IMAGES, CLIPS), recipe_of()
    plain = Plain(train, recipe)
    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=1024)):
        quiet_ray_data()
        group = OnRay(train, recipe, 1, workdir)
        seconds = in_turns({"ray": lambda: group.round(count), "plain": lambda: plain.steps(count)}, rounds)
        group.end()
    return compared(seconds, count, 1.05)


def measure_workers(workdir: Path, rounds: int, count: int, batch_size: int) -> dict[str, Any]:
    """Two Ray workers against two processes with plain DDP, on the same global batch."""
    from mmva_platform.cluster import quiet_ray_data, ray_session

    train, recipe = made_triplets(8 * batch_size, 8 * batch_size), recipe_of(batch_size=batch_size, workers=2)
    spawn = multiprocessing.get_context("spawn")
    told, start, place = spawn.Queue(), spawn.Barrier(3), str(workdir.resolve() / f"rendezvous-{os.getpid()}")
    counts = [count] * (rounds + 1)
    ranks = [spawn.Process(target=plain_rank, args=(r, place, batch_size, (told, start), counts)) for r in (0, 1)]
    for rank in ranks:
        rank.start()

    def plain() -> float:
        start.wait()
        return max(told.get(), told.get())

    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=512)):
        quiet_ray_data()
        group = OnRay(train, recipe, 2, workdir)
        seconds = in_turns({"ray": lambda: group.round(count), "torchrun": plain}, rounds)
        group.end()
    start.wait()
    for rank in ranks:
        rank.join()
    return {"batch_size": batch_size, **compared(seconds, count, 1.1)}


def measure_checkpoint(workdir: Path, rounds: int, count: int) -> dict[str, Any]:
    """Rounds with a checkpoint against rounds without."""
    from mmva_platform.cluster import quiet_ray_data, ray_session

    train, recipe = made_triplets(IMAGES, CLIPS), recipe_of()
    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=1024)):
        quiet_ray_data()
        group = OnRay(train, recipe, 1, workdir)
        sides = {"with": lambda: group.round(-count), "without": lambda: group.round(count)}
        seconds = in_turns(sides, rounds)
        group.end()
    return compared(seconds, count, 1.05)


def measure_media(workdir: Path, rounds: int, items: int) -> dict[str, Any]:
    """An epoch from media against a plain DataLoader over the same items, and against one from embeddings."""
    import torch

    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.features import load_features
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource
    from mmva_platform.training.loop.data import triplets
    from mmva_platform.training.loop.features import FeatureSource
    from mmva_platform.training.loop.loop import plan_epoch, train_epoch
    from mmva_platform.training.loop.state import WORLD_OF_ONE, build_model, new_state
    from mmva_platform.training.media.run import plan_media, prepare_media

    torch.set_num_threads(1)
    settings = Settings(home=workdir / "home", scratch=workdir / "scratch")
    media, dataset = workdir / "media", str(workdir / "dataset")
    if not media.exists():
        generate(media, images=items, clips=items, seed=0)
    if not (workdir / "dataset" / "dataset.json").exists():
        import_dataset(
            ImportConfig(sources=(ImemnetSource(root=str(media)),), fractions=(0.7, 0.15, 0.15)), dataset, settings
        )
        embed_dataset(dataset, "compact", None, settings)
    frozen = {"layers": dict.fromkeys(WIDTHS, 0), "loaders": 1}
    recipe = recipe_of(dataset=dataset, mode="media", batch_size=64, media=frozen)
    plan, _ = plan_media(recipe, settings)
    state, source = prepare_media(recipe, plan, None, WORLD_OF_ONE, torch.device("cpu"))
    features = load_features(dataset, "compact", settings)
    train, val = triplets(features, "train"), triplets(features, "val")
    fast_state, fast = new_state(build_model(recipe, train), recipe, train, val), FeatureSource(train, val, 0.38)

    def epoch(of: Any, batches: Any) -> float:
        of.done = 0
        began = time.perf_counter()
        drawn = plan_epoch(batches.pairing, recipe, 0)
        train_epoch(of, batches, recipe, drawn, world=WORLD_OF_ONE, callback=None)
        return time.perf_counter() - began

    plain = PlainMedia(source.dataset, state.model, 64)
    sides = {
        "media": lambda: epoch(state, source),
        "DataLoader": plain.epoch,
        "features": lambda: epoch(fast_state, fast),
    }
    seconds = in_turns(sides, rounds)
    fast_seconds = seconds.pop("features")
    found = compared(seconds, 1, 1.15)
    ratio = statistics.median(seconds["media"]) / statistics.median(fast_seconds)
    found["claims"]["media / features >= 50"] = ratio >= 50
    return {"pairs": min(len(train.image_va_N2), len(train.partner_va_M2)), **found, "media / features": ratio}


class PlainMedia:
    """A DataLoader as anyone would write it: an item a row, collated by torch, the same backbones and towers."""

    def __init__(self, dataset: Any, model: Any, batch_size: int) -> None:
        from torch.utils.data import DataLoader

        self._dataset, self._model = dataset, model
        options = {"num_workers": 1, "batch_size": batch_size, "persistent_workers": True}
        self._loader = DataLoader(self, collate_fn=list, shuffle=True, **options)

    def __len__(self) -> int:
        pairing = self._dataset.train
        return min(len(pairing.image_va_N2), len(pairing.partner_va_M2))

    def __getitem__(self, row: int) -> dict[str, Any]:
        items, decode = self._dataset.train.items, self._dataset.decoder
        return {m: decode(m, items[m].place(row % len(items[m])), (0, row))[0] for m in items}

    def epoch(self) -> float:
        """Seconds of an epoch."""
        import torch

        began = time.perf_counter()
        for batch in self._loader:
            inputs = {
                m: (
                    len(batch),
                    [(torch.arange(len(batch)), self._dataset.decoder.encoders[m].collate([i[m] for i in batch]))],
                )
                for m in batch[0]
            }
            sum(va.sum() for va in self._model(inputs).values()).backward()
        return time.perf_counter() - began


def measure_memory(workdir: Path, items: int) -> dict[str, Any]:
    """Half of the items images, half clips without captions, through share_features; what that took."""
    from mmva_platform.cluster import ray_session
    from mmva_platform.training.loop.features import check_memory, share_features, shared_features

    uri = made_embedded_dataset(workdir / f"dataset-{items}", items)
    need = 4 * (items // 2) * (WIDTHS["image"] + WIDTHS["music"])
    store_mb = int(1.2 * need / 2**20)
    check_memory({"all": need}, store_mb * 2**20, None)
    settings = Settings(home=workdir / "home")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    with ray_session(ClusterSettings(address="local", num_cpus=2, object_store_mb=store_mb)):
        shared = share_features(recipe_of(dataset=uri, preset="made"), settings)
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
            "claims": {},
        }


def made_embedded_dataset(folder: Path, items: int, part_rows: int = 20_000) -> str:
    """A dataset of labels and embeddings alone, as import and embed leave them; there are no media behind it."""
    import pyarrow as pa

    from mmva_platform.datasets import schema
    from mmva_platform.datasets.embedding import files as sets
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
        "valence_sd": [None] * items, "arousal_sd": [None] * items,
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
            parts.append(sets.PartInfo(name=part, rows=len(own), sha256=sha256_hex(data)))
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
        labels_sha256=sha256_hex(labels), shards=shards,
    )  # fmt: skip
    storage.write(schema.DATASET_FILE, schema.json_bytes(info.model_dump()))
    return str(folder)


def main() -> int:
    """Measure one thing, print, and say whether its claims hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "workers", "checkpoint", "media", "memory"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=1024, help="workers: pairs a step")
    parser.add_argument("--items", type=int, default=None, help="media: 300; memory: 1,000,000")
    arguments = parser.parse_args()
    place, rounds, steps = arguments.workdir, arguments.rounds, arguments.steps
    place.mkdir(parents=True, exist_ok=True)
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: measure_step(place, rounds, steps),
        "workers": lambda: measure_workers(place, rounds, steps, arguments.batch),
        "checkpoint": lambda: measure_checkpoint(place, rounds, 10 * steps),
        "media": lambda: measure_media(place, min(rounds, 3), arguments.items or 300),
        "memory": lambda: measure_memory(place, arguments.items or 1_000_000),
    }
    result = measure[arguments.what]()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    print(json.dumps({"what": arguments.what, "machine": machine, **result}, indent=2))
    for claim, holds in result["claims"].items():
        print(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}", file=sys.stderr)
    return 0 if all(result["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
