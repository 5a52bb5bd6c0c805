"""musicnn without TensorFlow: the mel front end against its formula, the checkpoint reader against a hand-made file."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from mmva.backbones import BackboneSpec
from mmva.backbones.musicnn import TRAINED_FRAMES, LogMel, MusicNN, MusicnnEncoder
from mmva.backbones.tf_checkpoint import read_checkpoint
from mmva.errors import UsageError

RATE, N_FFT, HOP, BANDS = 16_000, 512, 256, 96


def slaney_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox: linear to 1 kHz (66.67 Hz a mel), then 27 mels to a factor of 6.4."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def reference_log_mel(samples: np.ndarray) -> np.ndarray:
    """The front end from its definition, in float64 numpy, frame by frame."""
    padded = np.pad(samples.astype(np.float64), N_FFT // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    frames = np.stack([padded[i : i + N_FFT] for i in range(0, len(samples) + 1, HOP)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    edges = slaney_hz(np.linspace(slaney_mel(np.float64(0)), slaney_mel(np.float64(RATE / 2)), BANDS + 2))
    bins = np.arange(N_FFT // 2 + 1) * RATE / N_FFT
    bank = np.zeros((BANDS, len(bins)))
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        triangle = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
        bank[band] = np.maximum(0, triangle) * 2 / (high - low)
    return np.log10(10_000 * power @ bank.T + 1)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.0])
def test_log_mel_is_librosas(seconds):
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * RATE)) / RATE
    samples = (0.3 * np.sin(2 * np.pi * (200 + 900 * t) * t) + rng.normal(0, 0.01, len(t))).astype(np.float32)
    mel_TF = LogMel()(torch.from_numpy(samples)).numpy()
    assert mel_TF.shape == (1 + len(samples) // HOP, BANDS)
    np.testing.assert_allclose(mel_TF, reference_log_mel(samples), atol=2e-4)


def test_loud_music_stays_finite_where_float16_overflows():
    square = np.sign(np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    mel = LogMel()(torch.from_numpy(square))
    assert mel.isfinite().all()
    power = (10.0 ** mel.max() - 1) / 10_000
    assert 10_000 * power > np.finfo(np.float16).max, "the case upstream's cast breaks on"


@pytest.fixture(scope="module")
def encoder() -> MusicnnEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MusicNN()
        for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm1d)):
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
    return MusicnnEncoder(BackboneSpec("music", "musicnn", "wheel:musicnn"), network)


@pytest.mark.parametrize("samples", [1, 1_600, 32_000, 100_000])
def test_any_length_embeds(encoder, samples):
    emb_ND = encoder.encode([np.full(samples, 0.1, np.float32)] * 2)
    assert emb_ND.shape == (2, 953)
    assert np.isfinite(emb_ND).all()


def test_neighbours_of_other_lengths_do_not_matter(encoder):
    rng = np.random.default_rng(0)
    items = [rng.normal(0, 0.1, length).astype(np.float32) for length in (32_000, 8_000, 32_000, 60_000)]
    alone = np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(encoder.encode(items), alone, atol=1e-5)


def test_a_short_clip_is_repeated_to_the_trained_length(encoder, monkeypatch):
    mel = torch.rand(1, 100, BANDS)
    expected = encoder.network(torch.cat([mel, mel], dim=1)[:, :TRAINED_FRAMES])["mean_pool"]
    monkeypatch.setattr(encoder.log_mel, "forward", lambda _samples: mel)
    torch.testing.assert_close(encoder(samples=torch.zeros(1, 99 * HOP))[:, :753], expected)


def test_taking_the_maximum_first_changes_nothing(encoder):
    """Front blocks against the order of the paper: convolution, ReLU, batch norm, maximum; gammas of both signs."""
    x_B1TF = torch.randn(2, 1, 150, BANDS)
    for block in (*encoder.network.timbral, *encoder.network.temporal):
        response = torch.nn.functional.conv2d(x_B1TF, block.conv.weight, block.conv.bias, padding=block.padding)
        slow = block.norm(response.relu().flatten(2)).unflatten(2, response.shape[2:]).amax(dim=3)
        torch.testing.assert_close(block(x_B1TF), slow, atol=1e-5, rtol=1e-5)


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A sorted-table block: prefix-compressed keys, one restart point, then type 0 and a checksum."""
    body, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return body + struct.pack("<II", 0, 1) + b"\0" + b"crc!"


def write_checkpoint(folder, variables: dict[str, np.ndarray]) -> None:
    """Write what TensorFlow's Saver writes, from the format's definition."""
    data, entries = b"", [(b"", field(1, 1))]
    for name in sorted(variables):
        value = variables[name]
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        dtype = {"float32": 1, "int64": 9}[str(value.dtype)]
        offset = field(4, len(data)) if data else b""  # protocol buffers leave out zeros
        crc = varint(6 << 3 | 5) + b"crc!"
        entries.append((name.encode(), field(1, dtype) + field(2, shape) + offset + field(5, value.nbytes) + crc))
        data += value.tobytes()
    table = block(entries)
    handle = varint(0) + varint(len(table) - 5)
    index = block([(b"zzz", handle)])
    index_handle = varint(len(table)) + varint(len(index) - 5)
    footer = (varint(0) + varint(0) + index_handle).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / ".index").write_bytes(table + index + footer)
    (folder / ".data-00000-of-00001").write_bytes(data)


def test_checkpoint_reader_returns_names_shapes_and_values(tmp_path):
    rng = np.random.default_rng(0)
    floats = {
        "conv2d/kernel": rng.normal(size=(7, 38, 1, 5)).astype(np.float32),
        "conv2d/bias": rng.normal(size=5).astype(np.float32),
        "dense/bias": rng.normal(size=300).astype(np.float32),
        "scale": np.float32(2.5).reshape(()),
    }
    write_checkpoint(tmp_path, floats | {"global_step": np.int64([7]).reshape(())})
    found = read_checkpoint(tmp_path)
    assert found.keys() == floats.keys(), "the counter is not a weight"
    for name, value in floats.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "magic", "data", "absent"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    write_checkpoint(tmp_path, {"a/kernel": np.ones((3, 4), np.float32)})
    index, data = tmp_path / ".index", tmp_path / ".data-00000-of-00001"
    content = index.read_bytes()
    {
        "truncated": lambda: index.write_bytes(content[-60:]),
        "empty": lambda: index.write_bytes(b""),
        "magic": lambda: index.write_bytes(content[:-1] + b"?"),
        "data": lambda: data.write_bytes(b"1234"),
        "absent": data.unlink,
    }[damage]()
    with pytest.raises(UsageError, match=str(tmp_path)) as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
