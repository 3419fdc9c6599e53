"""Benchmark: speed, memory and numerical accuracy of the reconstruction, compared with the authors' scheme.

    python scripts/benchmark_reconstruction.py --vae wan2.1 wan2.2 leanvae tiny --shape 17 96 96
    python scripts/benchmark_reconstruction.py --vae wan2.1 wan2.2 -device cuda --shape 130 512 512

The authors' scheme is the plain loop of the scripts released with the paper, with the published modules: float32, one
window of 65 slices after the other, without overlap (a short window is padded to the size that the model needs, not to
65, so that small sizes are compared fairly); for image VAEs one slice after the other. The published modules of Wan and
`tiny` are those of diffusers; LeanVAE's are not in a package, so it has no such rows. All rows code the same windows,
so that their values can be compared.

Weights are random (each layer keeps the variance), except those of `tiny`. Speed does not depend on them, but the
differences in HU are those of noise-like images, which are larger than with trained weights. The volume is a phantom.

Rounds are interleaved: every variant once, then again. Times are medians. Memory is the largest growth of the process
while a variant runs (CPU, sampled), or torch's peak of allocated memory (CUDA, including the weights of all variants).
The floor is the arithmetic of the published network (counted by torch) at the rate of a large matrix product in the
same precision, measured in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from phantoms import make_phantom
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.vae import FrozenVAE, load_vae
from fvae_nnunet.vae.registry import TINY_FOLDER
from fvae_nnunet.vae.wan.vae import load_wan
from fvae_nnunet.vae.wanted import Wanted

WAN22_SIZES: dict[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip

LEANVAE_SIZES = {
    "low": 128, "high": 384, "latent_channels": 4,
    "separate_layers": 2, "fusion_layers": 4, "steps": 2, "step_layers": 2,
}  # fmt: skip
LEANVAE_ARGS = {
    "l_dim": 128, "h_dim": 384, "embedding_dim": 512, "latent_dim": 4,
    "sep_num_layer": 2, "fusion_num_layer": 4, "ista_iter_num": 2, "ista_layer_num": 2,
}  # fmt: skip


@dataclass
class Published:
    """Published modules of a VAE, as called in the authors' loop.

    Attributes:
        code: encodes and decodes a window (1, 3, d, y, x) in [-1, 1].
        window_slices: number of slices in a window.
        admissible: returns the number of slices to which the model needs a window padded.
    """

    code: Callable[[torch.Tensor], torch.Tensor]
    window_slices: int
    admissible: Callable[[int], int]


@dataclass
class Row:
    """A variant and its measurements."""

    name: str
    dtype: torch.dtype
    reconstruct: Callable[[np.ndarray], np.ndarray]
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    result: np.ndarray | None = None


def randomise(module: nn.Module) -> nn.Module:
    """Set random weights that keep the variance of the input, with norms near one and no zeros."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if sum(size > 1 for size in parameter.shape) > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            parameter.data = 0.05 * noise + (1.0 if name.endswith(("gamma", "weight")) else 0.0)
    return module


def write_random_weights(name: str, folder: Path) -> Path | None:
    """Write a checkpoint in the VAE's own format; None for `tiny`, which has its own weights."""
    if name == "tiny":
        return None
    if name == "leanvae":
        from fvae_nnunet.vae.leanvae.network import LeanVAENetwork, Sizes

        module: nn.Module = LeanVAENetwork(Sizes(**LEANVAE_SIZES))
    else:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        module = AutoencoderKLWan(**(WAN22_SIZES if name == "wan2.2" else {}))
    path = folder / f"{name}.pth"
    state: dict[str, Any] = randomise(module).state_dict()
    torch.save({"args": LEANVAE_ARGS, "state_dict": state} if name == "leanvae" else state, path)
    return path


def published(name: str, weights: Path | None, device: torch.device, dtype: torch.dtype) -> Published | None:
    """Modules for the authors' loop; None for LeanVAE, whose modules are not in a package."""
    if name == "leanvae":
        return None
    model: Any
    if name == "tiny":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        model = AutoencoderKL.from_pretrained(TINY_FOLDER).to(device, dtype)
        channels = model.config.in_channels

        def code_slice(window: torch.Tensor) -> torch.Tensor:
            decoded = model.decode(model.encode(window[:, :channels, 0]).latent_dist.mode()).sample
            return decoded[:, :, None].expand(-1, 3, -1, -1, -1)

        return Published(code_slice, 1, lambda slices: slices)
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    assert weights is not None
    model = AutoencoderKLWan(**(WAN22_SIZES if name == "wan2.2" else {}))
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = nn.Module.to(model.eval(), device, dtype)
    return Published(
        lambda window: model.decode(model.encode(window).latent_dist.mode()).sample,
        65,
        lambda slices: 1 + 4 * -(-(slices - 1) // 4),
    )


@torch.no_grad()
def authors_loop(stock: Published, volume_hu: np.ndarray, device: torch.device, dtype: torch.dtype) -> np.ndarray:
    """Reconstruct (z, y, x) in HU like the released scripts; returns the result before the cast to int16."""
    frames = torch.from_numpy(np.clip(volume_hu, -1000, 1000) / 1000.0)
    frames = frames.repeat(1, 3, 1, 1, 1).to(device, dtype)
    output = torch.zeros_like(frames)
    for start in range(0, len(volume_hu), stock.window_slices):
        window = frames[:, :, start : start + stock.window_slices]
        missing = stock.admissible(window.shape[2]) - window.shape[2]
        padded = torch.nn.functional.pad(window, (0, 0, 0, 0, 0, missing), mode="replicate")
        output[:, :, start : start + window.shape[2]] = stock.code(padded)[:, :, : window.shape[2]]
    return (output[0].mean(0).clamp(-1, 1) * 1000).float().cpu().numpy()


def ours(vae: FrozenVAE) -> Callable[[np.ndarray], np.ndarray]:
    settings = ReconstructionSettings.for_vae(vae.spec, overlap_slices=0)
    return lambda volume_hu: reconstruct_volume(vae, volume_hu, settings)


def rows_of(name: str, weights: Path | None, arguments: argparse.Namespace) -> tuple[list[Row], float]:
    """Variants of one VAE, with the baseline first, and the arithmetic in MFLOP per voxel."""
    device = torch.device(arguments.device)
    rows = []
    mflop_per_voxel = float("nan")
    for dtype, label in ((torch.float32, "authors' scheme, float32"), (torch.bfloat16, "the same loop, bfloat16")):
        stock = published(name, weights, device, dtype)
        if stock is None:
            continue
        if dtype == torch.float32:
            mflop_per_voxel = count_mflop_per_voxel(stock, tuple(arguments.shape), device)
        rows.append(Row(label, dtype, partial(authors_loop, stock, device=device, dtype=dtype)))
    for dtype in (torch.float32, torch.bfloat16):
        vae = load_vae(name, weights=weights, device=device, dtype=dtype)
        rows.append(Row(f"ours, {_short(dtype)}", dtype, ours(vae)))
    if arguments.compile and name.startswith("wan"):
        for dtype in (torch.float32, torch.bfloat16):
            compiled = load_wan(Wanted(name, weights, device=device, dtype=dtype))
            for method in ("encode", "decode"):
                setattr(compiled._network, method, torch.compile(getattr(compiled._network, method)))
            rows.append(Row(f"ours, {_short(dtype)}, compiled", dtype, ours(compiled)))
    return rows, mflop_per_voxel


def count_mflop_per_voxel(stock: Published, shape: tuple[int, int, int], device: torch.device) -> float:
    """Multiplications and additions per voxel of one window, including attention, counted by torch."""
    slices = stock.admissible(min(shape[0], stock.window_slices))
    window = torch.zeros((1, 3, slices, *shape[1:]), device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stock.code(window)
    return counter.get_total_flops() / (slices * shape[1] * shape[2]) / 1e6


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a large matrix product, the best of several runs."""
    size = 8192 if device.type == "cuda" else 1536
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e12


def measure(row: Row, volume_hu: np.ndarray, device: torch.device) -> None:
    """Run a variant once and store time, peak memory and result."""
    _wait(device)
    with _peak_mib(row, device):
        started = time.perf_counter()
        row.result = row.reconstruct(volume_hu)
        _wait(device)
        row.seconds.append(time.perf_counter() - started)


@contextmanager
def _peak_mib(row: Row, device: torch.device) -> Iterator[None]:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield
        row.peak_mib = max(row.peak_mib, torch.cuda.max_memory_allocated() / 2**20)
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed by the last variant is reused without being seen
    before, done = _resident_mib(), threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            row.peak_mib = max(row.peak_mib, _resident_mib() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    yield
    done.set()
    sampler.join()


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def print_table(
    name: str, rows: list[Row], voxels: int, mflop_per_voxel: float, tflops: dict[torch.dtype, float]
) -> None:
    baseline = rows[0]
    reference = baseline.result
    assert reference is not None
    print(f"\n{name}: {mflop_per_voxel:.2f} MFLOP per voxel; reconstructed values have sd {reference.std():.0f} HU\n")
    print("| variant | s | Mvoxel/s | ratio | share of the floor | memory, MiB | max diff, HU | rms diff, HU |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        assert row.result is not None
        seconds = statistics.median(row.seconds)
        difference = row.result.astype(np.float64) - reference
        share = voxels * mflop_per_voxel * 1e6 / (tflops[row.dtype] * 1e12) / seconds
        print(
            f"| {row.name} | {seconds:.2f} | {voxels / seconds / 1e6:.3f} | "
            f"{statistics.median(baseline.seconds) / seconds:.2f} | {share:.0%} | {row.peak_mib:.0f} | "
            f"{np.abs(difference).max():.2g} | {np.sqrt(np.square(difference).mean()):.2g} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", nargs="+", default=["wan2.1"], choices=("wan2.1", "wan2.2", "leanvae", "tiny"))
    parser.add_argument("--shape", type=int, nargs=3, default=(17, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="number of rounds after one warm-up round; default 3"
    )
    parser.add_argument("--compile", action="store_true", help="also our Wan through torch.compile")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    tflops = {dtype: matmul_tflops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, CPU"
    print(f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}; volume "
          f"{'x'.join(map(str, arguments.shape))}; matrix product "
          + ", ".join(f"{_short(dtype)} {rate:.3g} TFLOP/s" for dtype, rate in tflops.items()))  # fmt: skip
    depth, height, width = arguments.shape
    phantom, _ = make_phantom("pancreas", seed=0, shape=(max(depth, 48), height, width), spacing_mm=(2.0, 1.0, 1.0))
    volume_hu = phantom[:depth].astype(np.int16)
    for name in arguments.vae:
        with tempfile.TemporaryDirectory(prefix="fvae_benchmark_") as folder:
            rows, mflop_per_voxel = rows_of(name, write_random_weights(name, Path(folder)), arguments)
        for round_number in range(arguments.rounds + 1):
            for row in rows:
                measure(row, volume_hu, device)
                if round_number == 0:
                    row.seconds.clear()
        print_table(name, rows, volume_hu.size, mflop_per_voxel, tflops)
        del rows
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
