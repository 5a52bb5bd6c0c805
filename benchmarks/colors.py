"""What does color management cost a picture that has no color profile?

    python benchmarks/colors.py [--images 300] [--rounds 9]

CPU time of `decode_image`, as it is and without color management, in turns in one thread, on JPEGs 512 pixels wide
without a profile. Decoding is a part of an item's work, so the share of throughput is smaller. Exit code 1 above 1.05.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from made_media import make_pictures
from report import Report

from mmva.media.images import decode as images

MOST = 1.05


def cpu_s(files: Sequence[bytes], *, managed: bool) -> float:
    """CPU time of decoding all files."""
    kept = images.to_srgb, images.gamma_exponent
    if not managed:
        images.to_srgb, images.gamma_exponent = (lambda image, _profile: image), (lambda _info: None)
    try:
        begun = time.process_time()
        for data in files:
            images.decode_image(data)
        return time.process_time() - begun
    finally:
        images.to_srgb, images.gamma_exponent = kept


def main() -> int:
    """Make pictures, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    report = Report("colors", images=arguments.images)
    with tempfile.TemporaryDirectory(prefix="mmva-colors-") as folder:
        made = make_pictures(Path(folder), arguments.images)
        files = [path.read_bytes() for path in sorted(made.glob("*.jpg"))]
    cpu_s(files, managed=True)  # the first round pays for what is loaded once
    rounds = []
    for number in range(arguments.rounds):
        order = (True, False) if number % 2 else (False, True)
        seconds = {managed: cpu_s(files, managed=managed) for managed in order}
        rounds.append({
            "ms an image": 1000 * seconds[True] / len(files),
            "ms an image without color management": 1000 * seconds[False] / len(files),
            "with / without": seconds[True] / seconds[False],
        })  # fmt: skip
    report.add_rounds(rounds, {"with / without": f"at most {MOST}"})
    report.show()
    return int({row["what"]: row["value"] for row in report.rows}["with / without"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
