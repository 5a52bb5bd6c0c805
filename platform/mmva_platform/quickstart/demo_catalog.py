"""A small catalog that no model here was trained on: photographs, other generated music, hand-written sentences.

One image and one audio file are broken on purpose, so that quarantine has examples.
"""

import importlib.util
from pathlib import Path
from typing import Final

import soundfile

from mmva.errors import UsageError
from mmva_platform.quickstart.demo_music import PIECES, RATE, render_piece

# Photographs in installed packages. scikit-image would download its other pictures on first use.
_PHOTOGRAPHS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    (
        "skimage",
        "data",
        (
            "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
            "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
            "motorcycle_left.png", "retina.jpg", "rocket.jpg",
        ),
    ),
)  # fmt: skip
CAPTIONS: Final[tuple[str, ...]] = (
    "Wedding band at full tilt: accordion, clapping and a trumpet that will not sit still.",
    "Children skip rope to a ukulele while somebody laughs off microphone.",
    "A stadium chorus, drums like fireworks, everyone singing the last line together.",
    "Sirens of distorted guitar over blast beats; the singer screams until his voice gives out.",
    "Low brass stabs and a ticking clock. Something is coming up the stairs.",
    "Detuned strings slide against each other, faster and faster, like a swarm of wasps.",
    "One cello, very slow, playing at a grave in the rain.",
    "A tired voice and three minor chords; he has stopped waiting for the phone to ring.",
    "An abandoned music box runs down note by note in a cold house.",
    "Soft nylon guitar on a porch at dusk, crickets, nothing to do tomorrow.",
    "Long, glowing synthesizer chords drift over slow waves, made for falling asleep.",
    "A choir hums quietly in a sunlit chapel while birds sing outside.",
)
_BLOCK = RATE  # libsndfile's Vorbis encoder fails on long pieces unless they are written second by second


def build_demo_catalog(out: Path, *, seed: int) -> Path:
    """Write the catalog into a new or empty folder: images/, music/ (flac, ogg, mp3, wav) and captions/*.txt.

    The seed changes only the music. Raises UsageError if the folder is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; give a new or empty one")
    images, music, captions = (out / name for name in ("images", "music", "captions"))
    for folder in (images, music, captions):
        folder.mkdir(parents=True)
    for path in photographs():
        (images / path.name).write_bytes(path.read_bytes())
    for piece in PIECES:
        samples_T2 = render_piece(piece, seed)
        with soundfile.SoundFile(music / piece.name, "w", samplerate=RATE, channels=2) as file:
            for begin in range(0, len(samples_T2), _BLOCK):
                file.write(samples_T2[begin : begin + _BLOCK])
    for number, text in enumerate(CAPTIONS, 1):
        (captions / f"{number:02d}.txt").write_text(text + "\n", encoding="utf-8")
    photograph = photographs()[0].read_bytes()
    (images / "broken-upload.jpg").write_bytes(photograph[: len(photograph) // 3])
    (music / "13-not-a-song.mp3").write_bytes(photograph)
    return out


def photographs() -> list[Path]:
    """Paths of the photographs in installed packages; at least that of matplotlib, which is always installed."""
    found: list[Path] = []
    for package, folder, names in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            paths = (Path(spec.origin).parent / folder / name for name in names)
            found += [path for path in paths if path.exists()]
    return found
