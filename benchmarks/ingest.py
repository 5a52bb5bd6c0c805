"""`mmva data import` and `mmva embed` against loops that do the same by hand, as whole processes, in turns.

    python benchmarks/ingest.py --workdir DIR import | embed [--items SMALL LARGE] [--rounds 3]

Both sides run at two sizes of half images, half clips; the slope between them is an item's steady cost, the rest is
fixed cost (Ray's start above all). Claim: items a second at least .9 of the loop's.

import   the loop: two processes that read, hash and decode each file once; shards of the same schema as they go, synced
         to disk, with a digest each.
embed    the loop: a DataLoader that decodes, one modality after another, `compact` in fp32 torch, at the best of some
         settings (workers, threads, batch), tried first and kept in the work folder; one Parquet file a modality.

Pictures are JPEGs 512 pixels wide, clips two seconds of mono WAV at 44.1 kHz with a caption each. Shards have 256
rows, so that the small size, too, gives each process several. Exit code 1 where the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 256
HERE = Path(__file__).resolve()
SETTINGS = [(workers, threads, batch) for workers, threads in ((1, 1), (1, 2), (2, 2)) for batch in (16, 32)]


def make_media(folder: Path, items: int) -> Path:
    """Half pictures, half clips, with the two label files; no two alike."""
    import pandas as pd
    import soundfile
    from made_media import make_pictures

    if folder.exists():
        return folder
    rng, half, rate = np.random.default_rng(items), items // 2, 44_100
    make_pictures(folder / "media", half, seed=items)
    time_T = np.arange(2 * rate) / rate
    for number in range(half):
        pitches = 110 * 2 ** (rng.integers(0, 36, 4) / 12)
        chord_T = np.sin(2 * np.pi * pitches[:, None] * time_T).sum(axis=0) / 8 + rng.normal(0, 0.01, 2 * rate)
        soundfile.write(folder / "media" / f"{number // 5}-{number % 5}.wav", chord_T, rate)
    names = [f"{number:06d}" for number in range(half)]
    va_N2 = rng.random((half, 2))
    pd.DataFrame({"img": names, "valence": va_N2[:, 0], "arousal": va_N2[:, 1]}).to_csv(folder / "image_va.csv")
    ids = [f"{number // 5}-{number % 5}" for number in range(half)]
    captions = [f"A {word} tune with chords, number {n}" for n, word in enumerate(rng.choice(["calm", "loud"], half))]
    columns = {"Clip ID": ids, "Valence": va_N2[:, 0], "Arousal": va_N2[:, 1], "Caption": captions}
    pd.DataFrame(columns).to_csv(folder / "music_va.csv")
    return folder


def import_ours(made: Path, out: Path) -> None:
    """What `mmva data import` does, with small shards."""
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource
    from mmva_platform.settings import Settings

    config = ImportConfig(
        sources=(ImemnetSource(root=str(made), media="media"),), fractions=(0.7, 0.15, 0.15), shard_rows=ROWS
    )
    import_dataset(config, str(out), Settings(home=out.parent / "home"))


def embed_ours(made: Path, dataset: Path, out: Path) -> None:
    """What `mmva embed` does."""
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.settings import Settings

    del made
    embed_dataset(str(dataset), "compact", str(out), Settings(home=out.parent / "home"))


def import_by_hand(made: Path, out: Path) -> None:
    """Shards by two processes, labels beside them."""
    import pandas as pd

    images = pd.read_csv(made / "image_va.csv", dtype={"img": str})
    music = pd.read_csv(made / "music_va.csv", dtype={"Clip ID": str})
    rows = [("image", r["img"], f"{r['img']}.jpg", r["valence"], r["arousal"], "") for _, r in images.iterrows()]
    rows += [
        ("music", r["Clip ID"], f"{r['Clip ID']}.wav", r["Valence"], r["Arousal"], r["Caption"])
        for _, r in music.iterrows()
    ]
    shards = [(made / "media", out / f"{start:06d}.parquet", rows[start : start + ROWS])
              for start in range(0, len(rows), ROWS)]  # fmt: skip
    out.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        digests = pool.map(_shard_by_hand, shards, chunksize=1)
    (out / "dataset.json").write_text(json.dumps(digests))


def _shard_by_hand(task: tuple[Path, Path, list[Any]]) -> str:
    import hashlib

    import pyarrow as pa

    from mmva_platform.datasets.importing.inspection import check_decodes
    from mmva_platform.datasets.schema import DATASET_SCHEMA, parquet_bytes

    folder, target, rows = task
    values = []
    for modality, item, name, valence, arousal, caption in rows:
        data = (folder / name).read_bytes()
        check_decodes(modality, data)
        values.append({
            "id": item, "source": "made", "modality": modality, "split": "train", "group": item.split("-")[0],
            "valence": valence, "arousal": arousal, "caption": caption, "media": data, "media_format": name[-3:],
            "sha256": hashlib.sha256(data).hexdigest(),
        })  # fmt: skip
    shard = parquet_bytes(pa.Table.from_pylist(values, schema=DATASET_SCHEMA))
    with target.open("xb") as file:
        file.write(shard)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(shard).hexdigest()


def embed_by_hand(made: Path, out: Path, workers: int, threads: int, batch: int) -> None:
    """All three modalities through a DataLoader each."""
    import pandas as pd
    import torch

    torch.set_num_threads(threads)
    media, captions = made / "media", pd.read_csv(made / "music_va.csv")["Caption"].tolist()
    files = {"image": sorted(media.glob("*.jpg")), "music": sorted(media.glob("*.wav")), "caption": captions}
    out.mkdir(parents=True)
    with torch.inference_mode():
        for modality, items in files.items():
            _embed_modality(modality, items, out, workers=workers, batch=batch)


def _embed_modality(modality: str, items: list[Any], out: Path, *, workers: int, batch: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from handwritten_loop import Pictures, Tracks, collate_windows
    from torch.utils.data import DataLoader

    from mmva.backbones import load_encoder, preset

    encoder = load_encoder(preset("compact").specs[modality])  # type: ignore[index]
    options: dict[str, Any] = {"num_workers": workers, "batch_size": batch}
    if modality == "image":
        batches: Iterator[Any] = iter(DataLoader(Pictures(items, encoder, plain=False), **options))
        found = [encoder(**each).numpy() for each in batches]
    elif modality == "music":  # each clip is one window
        batches = iter(DataLoader(Tracks(items, encoder), collate_fn=collate_windows, **options))
        found = [encoder(**encoder.collate([window for track in each for window in track])).numpy() for each in batches]
    else:
        found = [encoder.encode(items[start : start + batch], batch) for start in range(0, len(items), batch)]
    pq.write_table(pa.table({"id": list(map(str, items)), "embedding": list(np.concatenate(found))}), out / modality)


def compare(what: str, workdir: Path, sizes: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Medians over rounds of both sides' lines through two sizes."""
    from harness import Line, measured

    made = {items: make_media(workdir / f"made-{items}", items) for items in sizes}
    datasets = {items: workdir / f"dataset-{items}" for items in sizes}
    runs = iter(range(10_000))

    def run(side: str, items: int, *more: int) -> Any:
        out = workdir / f"out-{time.time():.0f}-{next(runs)}"
        folders = [made[items], datasets[items]] if (what, side) == ("embed", "ours") else [made[items]]
        return measured([sys.executable, HERE, "--side", f"{what} {side}", *folders, out, *map(str, more)])

    setting: tuple[int, ...] = ()
    if what == "embed":
        for items in sizes:
            if not datasets[items].exists():
                import_ours(made[items], datasets[items])
        kept = workdir / "setting.json"
        if not kept.exists():
            best = min(SETTINGS, key=lambda setting: run("by-hand", sizes[0], *setting).seconds)
            kept.write_text(json.dumps(best))
        setting = tuple(json.loads(kept.read_text()))
    rows = []
    for _ in range(rounds):
        lines = {}
        for side, more in (("ours", ()), ("by-hand", setting)):
            small, large = ((items, run(side, items, *more)) for items in sizes)
            lines[side] = Line.through(small, large)
        ours, hand = lines["ours"], lines["by-hand"]
        rows.append((hand.each / ours.each, 1 / ours.each, 1 / hand.each, ours.fixed, hand.fixed,
                     ours.cpu_each / hand.cpu_each))  # fmt: skip
    names = ("ratio", "ours items/s", "by hand items/s", "ours fixed s", "by hand fixed s", "CPU an item, ours / hand")
    columns = list(zip(*rows, strict=True))
    found = {name: statistics.median(column) for name, column in zip(names, columns, strict=True)}
    spread = {name: (min(column), max(column)) for name, column in zip(names, columns, strict=True)}
    return found | {"spread": spread, "setting": setting, "sizes": sizes, "rounds": rounds}


def main() -> int:
    """Compare, print, and say whether the claim holds; with --side, be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["import", "embed"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = tuple(arguments.items or ((2048, 20_480) if arguments.what == "import" else (256, 768)))
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    found = compare(arguments.what, arguments.workdir.resolve(), sizes, arguments.rounds)
    print(json.dumps({"what": arguments.what, **found}, indent=2))
    holds = found["ratio"] >= 0.9
    print(f"ratio >= .9: {'holds' if holds else 'DOES NOT HOLD'}", file=sys.stderr)
    return 0 if holds else 1


def be_a_side(side: str, arguments: list[str]) -> None:
    """One process of the comparison."""
    paths = [Path(argument) for argument in arguments if not argument.isdigit()]
    numbers = [int(argument) for argument in arguments if argument.isdigit()]
    sides = {"import ours": import_ours, "import by-hand": import_by_hand, "embed ours": embed_ours,
             "embed by-hand": embed_by_hand}  # fmt: skip
    sides[side](*paths, *numbers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        be_a_side(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
