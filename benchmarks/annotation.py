"""`mmva annotate` against a hand-written DataLoader loop, as whole processes, interleaved; medians of ratios.

    python benchmarks/annotation.py [--workdir DIR] [--items 400 2000] [--repeats 3] [--only images music ...]

Both sides run at two sizes: the slope between them is the steady cost of an item, the rest is fixed cost. CPU seconds
are those of the process and all that it started, Ray's own processes too. The loop uses the best of several settings,
tried first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from made_media import make_pictures, make_tracks, spoil

HERE = Path(__file__).resolve().parent
SETTINGS = [(workers, threads, batch) for workers in (1, 2) for threads in (1, 2) for batch in (8, 32)]


@dataclass
class Measured:
    """One whole process."""

    seconds: float
    cpu_s: float
    peak_mb: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """seconds = fixed + items * each."""

    fixed: float
    each: float
    cpu_each: float

    @classmethod
    def through(cls, small: tuple[int, Measured], large: tuple[int, Measured]) -> Line:
        """The line through two sizes."""
        (n1, a), (n2, b) = small, large
        each = (b.seconds - a.seconds) / (n2 - n1)
        return cls(a.seconds - n1 * each, each, (b.cpu_s - a.cpu_s) / (n2 - n1))


def measured(command: Sequence[str | Path]) -> Measured:
    """Run a command; wall time, CPU time of its whole tree, peak memory of driver and workers."""
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.monotonic()
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=errors)
        with watched(process.pid) as watch:
            code = process.wait()
        seconds = time.monotonic() - begun
        if code:
            errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}: exit {code}\n{errors.read()[-2000:]}")
    return Measured(seconds, sum(watch.cpu_s.values()), watch.peak_mb)


@dataclass
class Watch:
    """CPU seconds by process, and the largest resident set of the driver and of any one worker, in MB."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    def look(self, root: psutil.Process) -> None:
        """Look at every process of a tree; the last look at one that ends stands for it."""
        for process in (root, *root.children(recursive=True)):
            try:
                times, name = process.cpu_times(), " ".join(process.cmdline())
                kind = "driver" if process == root else "worker" if "ray::_ShardActor" in name else None
                self.cpu_s[process.pid] = times.user + times.system
                if kind:
                    self.peak_mb[kind] = max(self.peak_mb.get(kind, 0.0), process.memory_info().rss / 2**20)
            except psutil.Error:
                continue


@contextmanager
def watched(pid: int) -> Iterator[Watch]:
    """Look at a process and all that it started, ten times a second."""
    watch, stop = Watch(), threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            with suppress(psutil.Error):
                watch.look(psutil.Process(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


class Bench:
    """The commands of both sides over one work folder."""

    def __init__(self, workdir: Path) -> None:
        self.workdir, self.runs = workdir, 0
        self.out = workdir / "out" / str(os.getpid())  # what an earlier benchmark left there is another run's
        self.bundle = make_bundle(workdir / "bundle")

    def ours(self, media: Path, engine: str, *, keep: str | None = None) -> Measured:
        """A whole `mmva annotate` of a folder; it starts a Ray of its own unless RAY_ADDRESS names one."""
        self.runs += 1
        out = self.out / (keep or str(self.runs))
        return measured(
            [Path(sys.executable).parent / "mmva", "--home", self.workdir / "home", "annotate", media, "--model",
             self.bundle, "--out", out, "--engine", engine]
        )  # fmt: skip

    def loop(self, media: Path, items: int, setting: tuple[int, int, int], *options: str | Path) -> Measured:
        """A whole hand-written loop over a folder's first items."""
        workers, threads, batch = map(str, setting)
        return measured(
            [sys.executable, HERE / "handwritten_loop.py", "--bundle", self.bundle, "--media", media,
             "--items", str(items), "--workers", workers, "--threads", threads, "--batch", batch,
             "--out", self.workdir / "loop.parquet", *options]
        )  # fmt: skip

    def best_setting(self, media: Path, items: int, *options: str | Path) -> tuple[int, int, int]:
        """The loop's quickest setting on a sample."""
        return min(SETTINGS, key=lambda setting: self.loop(media, items, setting, *options).seconds)

    def onnx(self, out: str, modality: str) -> Path:
        """The exported network that a run of ours wrote."""
        plan = json.loads((self.out / out / "plan.json").read_text())
        return self.out / out / plan["engines"][modality]["file"]


def make_bundle(folder: Path) -> Path:
    """Untrained towers over the compact encoders: speed does not depend on what they have learnt."""
    if not folder.exists():
        from mmva.backbones import load_encoder, preset
        from mmva.bundle import save_bundle
        from mmva.model import MMVA

        encoders = {modality: load_encoder(spec) for modality, spec in preset("compact").specs.items()}
        model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
        model.attach_encoders(encoders)
        save_bundle(folder, model, intervals={}, card="untrained", provenance={})
    return folder


def bound(media: Path, items: int, onnx: Path | None) -> float:
    """Items a second if both cores did nothing but decode and infer: cores / CPU time of one item, one thread."""
    code = (
        "import sys, time, numpy as np, torch, onnxruntime as ort; from pathlib import Path\n"
        "from mmva.backbones import load_encoder, preset; from mmva.media.images import decode_image\n"
        "torch.set_num_threads(1); e = load_encoder(preset('compact').specs['image']); o = ort.SessionOptions()\n"
        "o.intra_op_num_threads = 1; s = ort.InferenceSession(sys.argv[3], o) if sys.argv[3] else None\n"
        "files = sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2])]\n"
        "def go(part):\n"
        "    p = torch.stack([e.prepare(decode_image(f.read_bytes()))['pixels'] for f in part])\n"
        "    with torch.inference_mode(): (s.run(None, {s.get_inputs()[0].name: p.numpy()}) if s else e(pixels=p))\n"
        "go(files[:8]); t = time.process_time()\n"
        "for i in range(0, len(files), 8): go(files[i : i + 8])\n"
        "print((time.process_time() - t) / len(files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(media), str(items), str(onnx or "")],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return (psutil.cpu_count() or 1) / float(done.stdout)


def images(bench: Bench, sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Ours with its best engine against the loop: same engine, the same with PIL's plain decoding, and fp32 torch."""
    small, large = (make_pictures(bench.workdir / f"images-{n}", n) for n in sizes)
    bench.ours(small, "onnx", keep="first")  # exports and calibrates; later runs find both in the cache
    onnx = bench.onnx("first", "image")
    peers: dict[str, tuple[str | Path, ...]] = {
        "onnx": ("--onnx", onnx), "onnx, plain decoding": ("--onnx", onnx, "--plain"), "fp32 torch": (),
    }  # fmt: skip
    settings = {name: bench.best_setting(small, min(sizes[0], 200), *options) for name, options in peers.items()}
    rows: list[dict[str, float]] = []
    for _ in range(repeats):
        ours = Line.through((sizes[0], bench.ours(small, "onnx")), (sizes[1], bench.ours(large, "onnx")))
        limit = bound(large, 200, onnx)
        row = {"ours, items/s": 1 / ours.each, "ours, fixed s": ours.fixed, "ours / bound": 1 / ours.each / limit}
        for name, options in peers.items():
            share = 1 if options else 4  # plain torch is slow: a quarter of the items shows its slope as well
            runs = [(n // share, bench.loop(large, n // share, settings[name], *options)) for n in sizes]
            loop = Line.through(runs[0], runs[1])
            saved = loop.each - ours.each
            row |= {
                f"speed / loop ({name})": loop.each / ours.each,
                f"CPU per item / loop ({name})": ours.cpu_each / loop.cpu_each,
                f"loop ({name}), items/s": 1 / loop.each,
                f"loop ({name}), fixed s": loop.fixed,
                f"break-even items ({name})": (ours.fixed - loop.fixed) / saved if saved > 0 else float("inf"),
            }
        rows.append(row)
    return medians(rows) | {f"loop ({name}): workers, threads, batch": value for name, value in settings.items()}


def music(bench: Bench, sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Tracks of three minutes: seconds of audio a second."""
    small, large = (make_tracks(bench.workdir / f"tracks-{n}", n) for n in sizes)
    bench.ours(small, "onnx", keep="first-music")
    options = ("--modality", "music", "--onnx", bench.onnx("first-music", "music"))
    setting = bench.best_setting(small, sizes[0], *options)
    rows = []
    for _ in range(repeats):
        ours = Line.through((sizes[0], bench.ours(small, "onnx")), (sizes[1], bench.ours(large, "onnx")))
        runs = [(n, bench.loop(large, n, setting, *options)) for n in sizes]
        loop = Line.through(runs[0], runs[1])
        rows.append({
            "music: times real time": 180 / ours.each,
            "music: speed / loop (onnx)": loop.each / ours.each,
            "music: loop, times real time": 180 / loop.each,
        })  # fmt: skip
    return medians(rows) | {"music loop: workers, threads, batch": setting}


def running(bench: Bench, sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Images on a Ray that is up already, as on a cluster, against the loop on the same engine."""
    small, large = (make_pictures(bench.workdir / f"images-{n}", n) for n in sizes)
    bench.ours(small, "onnx", keep="first-running")
    options = ("--onnx", bench.onnx("first-running", "image"))
    setting = bench.best_setting(small, min(sizes[0], 200), *options)
    rows = []
    with running_ray():
        bench.ours(small, "onnx")
        for _ in range(repeats):
            ours = Line.through((sizes[0], bench.ours(small, "onnx")), (sizes[1], bench.ours(large, "onnx")))
            loop = Line.through(*[(n, bench.loop(large, n, setting, *options)) for n in sizes])
            saved = loop.each - ours.each
            rows.append({
                "Ray up already: fixed s": ours.fixed,
                "Ray up already: speed / loop (onnx)": loop.each / ours.each,
                "Ray up already: break-even items (onnx)": (ours.fixed - loop.fixed) / saved if saved > 0 else np.inf,
            })  # fmt: skip
    return medians(rows)


@contextmanager
def running_ray() -> Iterator[None]:
    """A Ray of this process that others join, for as long as the block lasts; RAY_ADDRESS names it."""
    import ray

    ray.init(address="local", include_dashboard=False, object_store_memory=512 * 2**20, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


def corrupt(bench: Bench, sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    """One file in a hundred cut short, and what writing, quarantine and lineage take of the workers' time."""
    clean = make_pictures(bench.workdir / f"images-{sizes[1]}", sizes[1])
    spoilt = make_pictures(bench.workdir / f"spoilt-{sizes[1]}", sizes[1])
    spoil(spoilt, 100)
    rows = []
    for number in range(repeats):
        whole = bench.ours(clean, "onnx", keep=f"clean-{number}").seconds
        rows.append({
            "time with 1 % corrupt / clean": bench.ours(spoilt, "onnx").seconds / whole,
            "worker time with commits / without": share_of_commits(bench.out / f"clean-{number}"),
        })  # fmt: skip
    return medians(rows)


def share_of_commits(out: Path) -> float:
    """Worker seconds of all stages over those without writing, from the manifest."""
    seconds = json.loads((out / "MANIFEST.json").read_text())["totals"]["seconds"]
    return sum(seconds.values()) / (sum(seconds.values()) - seconds["write"])


def memory(bench: Bench, sizes: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Peak memory of the driver and of a worker, at N and 4 N images."""
    small, large = (make_pictures(bench.workdir / f"images-{n}", n) for n in (sizes[1], 4 * sizes[1]))
    rows = []
    for _ in range(repeats):
        few, many = bench.ours(small, "onnx").peak_mb, bench.ours(large, "onnx").peak_mb
        rows.append({f"peak of the {kind}, 4 N / N": many[kind] / few[kind] for kind in ("driver", "worker")})
    return medians(rows)


def medians(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median of each column, with its smallest and largest."""
    return {
        key: (statistics.median(row[key] for row in rows), min(row[key] for row in rows), max(row[key] for row in rows))
        for key in rows[0]
    }


PARTS: dict[str, Callable[[Bench, tuple[int, int], int], dict[str, Any]]] = {
    "images": images, "running": running, "music": music, "corrupt": corrupt, "memory": memory,
}  # fmt: skip


def main() -> None:
    """Run the parts and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--items", type=int, nargs=2, default=(400, 2000))
    parser.add_argument("--tracks", type=int, nargs=2, default=(3, 9))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    workdir = arguments.workdir or Path(tempfile.mkdtemp(prefix="mmva-annotation-benchmark-"))
    workdir.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    print(
        f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, {psutil.cpu_count()} cores, {platform.machine()}"
    )
    print(f"sizes {arguments.items}, tracks {arguments.tracks}, {arguments.repeats} repeats\n")
    print("| what | median | range |\n|---|---|---|")
    bench = Bench(workdir)
    for part in arguments.only:
        sizes = tuple(arguments.tracks if part == "music" else arguments.items)
        for key, value in PARTS[part](bench, sizes, arguments.repeats).items():
            if len(value) == 3 and isinstance(value[0], float):
                print(f"| {key} | {value[0]:.3g} | {value[1]:.3g} - {value[2]:.3g} |", flush=True)
            else:
                print(f"| {key} | {value} | |", flush=True)


if __name__ == "__main__":
    main()
