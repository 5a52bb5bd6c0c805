"""The peer of annotate_images.py and annotation.py, as a good engineer writes it: a DataLoader and a loop.

    python benchmarks/handwritten_loop.py --bundle DIR --media DIR [--onnx FILE] --items N --out FILE

No bookkeeping: one Parquet file at the end, a bad file ends it. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGUN = time.monotonic()

import numpy as np  # noqa: E402 - the clock starts before the imports: they are part of the loop's fixed cost
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from mmva.backbones import Encoder, load_encoder, preset  # noqa: E402
from mmva.media.audio.decode import decode_audio  # noqa: E402
from mmva.media.images.decode import decode_image  # noqa: E402
from mmva.media.windows import HOP_S, WINDOW_S, windows  # noqa: E402
from mmva.models.bundle import load_bundle  # noqa: E402

Batch = dict[str, torch.Tensor]


class Pictures(Dataset[Batch]):
    """Files to the network's input; `plain` decodes as most would, else with this project's decoder."""

    def __init__(self, files: list[Path], encoder: Encoder, *, plain: bool) -> None:
        self.files, self.prepare, self.plain = files, encoder.prepare, plain

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        data = self.files[index].read_bytes()
        image = Image.open(io.BytesIO(data)).convert("RGB") if self.plain else decode_image(data)
        return self.prepare(image)


class Tracks(Dataset[list[Batch]]):
    """Files to the windows of their music."""

    def __init__(self, files: list[Path], encoder: Encoder) -> None:
        self.files, self.encoder = files, encoder

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Batch]:
        rate = self.encoder.sample_rate
        assert rate is not None
        samples_T = decode_audio(self.files[index].read_bytes(), rate)
        return [self.encoder.prepare(window) for window in windows(samples_T, rate, WINDOW_S, HOP_S)[1]]


def embedder(encoder: Encoder, onnx: Path | None, threads: int) -> Callable[[Batch], np.ndarray[Any, Any]]:
    """The network of a batch: torch, or an exported file through ONNX Runtime."""
    if onnx is None:
        return lambda batch: encoder(**batch).float().numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(onnx), options)
    log_mel = getattr(encoder, "log_mel", None)
    before = None if log_mel is None else log_mel.power  # musicnn's exported network begins behind the power spectrum
    (name,) = [entry.name for entry in session.get_inputs()]

    def run(batch: Batch) -> np.ndarray[Any, Any]:
        (tensor,) = batch.values()
        return session.run(None, {name: (before(tensor) if before else tensor).numpy()})[0]

    return run


def collate_windows(tracks: list[list[Batch]]) -> list[list[Batch]]:
    """Tracks stay lists: their windows are batched by the loop."""
    return tracks


def main() -> None:
    """Run the loop once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--media", type=Path, required=True)
    parser.add_argument("--modality", choices=("image", "music"), default="image")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--plain", action="store_true", help="decode images in full, as PIL does by default")
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    modality = arguments.modality
    encoder = load_encoder(preset("compact").specs[modality])
    model = load_bundle(arguments.bundle, load_encoders=False)
    embed = embedder(encoder, arguments.onnx, arguments.threads)
    files = sorted(arguments.media.iterdir())[: arguments.items]
    embeddings: list[np.ndarray[Any, Any]] = []
    options: dict[str, Any] = {"num_workers": arguments.workers, "batch_size": arguments.batch}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        if modality == "image":
            pictures = DataLoader(Pictures(files, encoder, plain=arguments.plain), **options)
            embeddings.extend(embed(batch) for batch in pictures)
        else:
            options |= {"batch_size": 1, "collate_fn": collate_windows}
            for (track,) in DataLoader(Tracks(files, encoder), **options):
                parts = [track[i : i + arguments.batch] for i in range(0, len(track), arguments.batch)]
                equal = [group for part in parts for group in _of_equal_length(part)]
                emb_WD = np.concatenate([embed(encoder.collate(part)) for part in equal])
                embeddings.append(emb_WD.mean(axis=0, keepdims=True))
    emb_ND = np.concatenate(embeddings).astype(np.float32)
    va_N2 = model.predict_embeddings(modality, emb_ND)
    columns = {
        "id": [file.name for file in files],
        "valence": va_N2[:, 0],
        "arousal": va_N2[:, 1],
        "embedding": list(emb_ND),
    }
    pq.write_table(pa.table(columns), arguments.out)
    print(json.dumps({"items": len(files), "seconds": time.monotonic() - BEGUN}))


def _of_equal_length(windows_: list[Batch]) -> list[list[Batch]]:
    groups: dict[int, list[Batch]] = {}
    for window in windows_:
        groups.setdefault(next(iter(window.values())).shape[0], []).append(window)
    return list(groups.values())


if __name__ == "__main__":
    main()
