"""What gpu.py compares with: the network alone on the GPU, decoding alone on the CPUs, and the GPU's utilization."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from mmva.backbones import BackboneSpec
    from mmva.backbones.presets import Preset

SIDE: Final = 512
BATCHES: Final = (64, 256, 1024)
START_S: Final = 120.0  # until all processes are ready
SAMPLE_MS: Final = 200


def make_images(folder: Path, count: int) -> Path:
    """So many JPEGs, 512 pixels wide, made on all cores: colored clouds with fine noise, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.map(partial(_make_image, folder), range(count), chunksize=64)
    return folder


def _make_image(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    height = int(rng.integers(SIDE // 2, SIDE + 1))
    clouds = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (SIDE, height), Image.Resampling.BICUBIC
    )
    pixels_HW3 = np.asarray(clouds) // 8 * 7 + rng.integers(0, 24, (height, SIDE, 3), np.uint8)
    Image.fromarray(pixels_HW3).save(folder / f"{number:06d}.jpg", quality=88)


def vit_preset(folder: Path) -> Preset:
    """CLIP's ViT-B/32 with random weights in a folder, and the tiny encoders for music and captions."""
    from mmva.backbones import BackboneSpec, preset
    from mmva.backbones.presets import Preset

    if not folder.exists():
        import torch
        from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig()).save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
    tiny = preset("tiny")
    return Preset("vit", BackboneSpec("image", "clip", str(folder)), music=tiny.music, caption=tiny.caption)


def forward_rate(
    spec: BackboneSpec, folder: Path, seconds: float, *, bf16: bool, device: str = "cuda"
) -> tuple[float, int]:
    """Images/s of the network on ready tensors, and the best batch size, within this time for all sizes."""
    import torch

    from mmva.backbones import load_encoder
    from mmva.media.images.decode import decode_image

    torch.backends.cudnn.allow_tf32 = False  # as the engine cuda: true float32
    encoder = load_encoder(spec)
    prepared = encoder.prepare(decode_image(next(folder.iterdir()).read_bytes()))
    encoder = encoder.to(device).eval()
    rates = {}
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for size in BATCHES:
            batch = {name: tensor.to(device) for name, tensor in encoder.collate([prepared] * size).items()}
            _forward(encoder, batch, 0.0, device)  # warm-up
            rates[size] = size * _forward(encoder, batch, seconds / len(BATCHES), device)
    best = max(rates, key=lambda size: rates[size])
    return rates[best], best


def _forward(encoder: Any, batch: dict[str, Any], seconds: float, device: str) -> float:
    """Batches a second; at least three."""
    import torch

    begun, done = time.perf_counter(), 0
    while done < 3 or time.perf_counter() - begun < seconds:
        encoder(**batch)
        done += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return done / (time.perf_counter() - begun)


def decode_rates(spec: BackboneSpec, folder: Path, seconds: float) -> tuple[float, float]:
    """Images/s of all cores together: decoding; decoding and preparing for the network. Half of the time for each."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(cores), context.Queue()
    files = sorted(folder.iterdir())
    processes = [
        context.Process(target=_decode, args=(spec, files[core::cores], seconds / 2, barrier, results))
        for core in range(cores)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=START_S + 2 * seconds) for _ in processes]
    for process in processes:
        process.join()
    return sum(decoded for decoded, _ in found), sum(prepared for _, prepared in found)


def _decode(spec: BackboneSpec, files: list[Path], seconds: float, barrier: Any, results: Any) -> None:
    """One core's two rates, measured while the others measure theirs."""
    import torch

    from mmva.backbones import load_encoder
    from mmva.media.images.decode import decode_image

    torch.set_num_threads(1)
    encoder = load_encoder(spec)

    def rate(*, prepare: bool) -> float:
        barrier.wait(START_S)
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            image = decode_image(files[done % len(files)].read_bytes())
            if prepare:
                encoder.prepare(image)
            done += 1
        return done / (time.perf_counter() - begun)

    with torch.inference_mode():
        results.put((rate(prepare=False), rate(prepare=True)))


class Utilization:
    """Samples nvidia-smi's utilization of the first GPU while a block runs."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def __enter__(self) -> Self:
        command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        self._process: subprocess.Popen[str] | None
        try:
            self._process = subprocess.Popen([*command, f"--loop-ms={SAMPLE_MS}"], stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:
            self._process = None
            return self
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():  # "[N/A]" where the driver does not say
                self.samples.append(float(line))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    def mean(self) -> float | None:
        """Mean in percent from the first to the last sample that is not 0; None if there is none."""
        busy = np.flatnonzero(self.samples)
        return float(np.mean(self.samples[busy[0] : busy[-1] + 1])) if len(busy) else None
