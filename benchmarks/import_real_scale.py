"""IMEMNet-C's import at its real scale: 24,744 images and 25,944 clips, as one `mmva data import`.

    IMEMNET_DIR=... python benchmarks/import_real_scale.py --workdir DIR

Ids, labels and the split by song are the published ones as far as they are public: all images, 9,144 clips; the other
clips are numbered on in the split's songs, with labels drawn from those that are known. The media are small and made,
no two alike: pictures of 64 pixels, a second of mono sound at 16 kHz. Prints JSON: seconds, bytes, peak memory of the
driver and of the largest worker, and what the report says. --scale .01 takes every hundredth item.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from harness import measured
from PIL import Image

IMAGES, CLIPS = 24_744, 25_944
SIDE, RATE = 64, 16_000


def music_table(folder: Path, seed: int = 0) -> pd.DataFrame:
    """Known clips, then further ones of the split's songs up to the published number; a caption each."""
    rng = np.random.default_rng(seed)
    known = pd.read_csv(folder / "music_va_known.csv", dtype={"clip_id": str})
    songs = pd.read_csv(folder / "song_split.csv", dtype=str)["song_id"]
    taken = set(known["clip_id"])
    further = (f"{song}-{number}" for number in itertools.count(1) for song in songs)
    made = list(itertools.islice((clip for clip in further if clip not in taken), CLIPS - len(known)))
    labels = known[["valence", "arousal"]].to_numpy()[rng.integers(len(known), size=len(made))]
    ids = [*known["clip_id"], *made]
    table = pd.DataFrame(np.vstack([known[["valence", "arousal"]], labels]), columns=["Valence", "Arousal"])
    table.insert(0, "Clip ID", ids)
    table["Caption"] = [f"A tune that is called {clip}, played on number {i % 97}." for i, clip in enumerate(ids)]
    return table


def make_media(images: list[str], clips: list[str], folder: Path, seed: int = 0) -> None:
    """A JPEG an image and a WAV a clip, under the published names; some extensions in capitals, as published."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "music"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(images):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{name}{'.JPG' if number % 10 == 0 else '.jpg'}", quality=90)
    time_T = np.arange(RATE) / RATE
    for number, name in enumerate(clips):
        tone_T = 0.4 * np.sin(2 * np.pi * rng.uniform(80, 2000) * time_T) + rng.normal(0, 0.05, RATE)
        suffix = ".WAV" if number % 10 == 0 else ".wav"
        soundfile.write(folder / "music" / f"{name}{suffix}", np.clip(tone_T, -1, 1), RATE, subtype="PCM_16")


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Make what is not there, import and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    source, workdir = Path(os.environ["IMEMNET_DIR"]), arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    every = round(1 / arguments.scale)
    images = pd.read_csv(source / "image_va.csv", dtype=str).iloc[::every]
    music = music_table(source).iloc[::every]
    images.to_csv(workdir / "image_va.csv", index=False)
    music.to_csv(workdir / "music_va.csv")
    media, out = workdir / "media", workdir / f"dataset-{time.time():.0f}"
    began = time.monotonic()
    if not media.exists():
        make_media(images["img"].unique().tolist(), music["Clip ID"].tolist(), media)
    making = time.monotonic() - began
    command = [Path(sys.executable).with_name("mmva"), "--home", workdir / "home", "data"]
    imported = measured(
        [*command, "import", "--images-csv", workdir / "image_va.csv", "--music-csv", workdir / "music_va.csv",
         "--media", media, "--split", source / "song_split.csv", "--out", out]
    )  # fmt: skip
    checked = measured([*command, "check", out])
    info = json.loads((out / "dataset.json").read_text())
    report = json.loads((out / info["report_file"]).read_text())
    facts = {
        "made_media_s": making,
        "media_bytes": size_of(media),
        "import_s": imported.seconds,
        "import_cpu_s": imported.cpu_s,
        "peak_MiB": imported.peak_mb,
        "dataset_bytes": size_of(out),
        "shards": len(info["shards"]),
        "rows": info["counts"],
        "report": report["counts"],
        "check_s": checked.seconds,
        "check_peak_MiB": checked.peak_mb,
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
