"""Benchmark: samples per second that fvae-train-ldm draws from latents, compared with the speed of the network.

    python scripts/benchmark_latents.py --size tiny small

The baseline is a single drawing thread. The cache has the real format and holds random latents: slices of 512 x 512
pixels of a VAE with cells of 8 x 8 pixels and 16 channels, with lesions, organ, outlines and drafts. The forward and
backward passes of the network are timed on the same device for comparison.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.synthesis.model.conditions import ConditionFormat, detail_channels
from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.training.latent_cache import latents_path
from fvae_nnunet.synthesis.training.latent_draws import Batch, LatentDraws
from fvae_nnunet.synthesis.training.loop import denoising_loss
from fvae_nnunet.synthesis.training.settings import DEFAULTS
from fvae_nnunet.vae.base import VAESpec

SPEC = VAESpec("random", inplane_stride=8, latent_channels=16)
SLICES, CELLS, CASES, WINDOW = 100, 64, 4, 16
SECONDS = 5.0
"""Minimum time of each measurement."""


def random_cache(folder: Path) -> list[str]:
    """Write cases of random latents; return their names."""
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    shape = (SLICES, CELLS, CELLS)
    lesion = np.zeros(shape, np.float16)
    lesion[40:50, 30:34, 20:24] = 1
    names = [f"case_{number}" for number in range(CASES)]
    manifest = Manifest(folder)
    manifest.begin("latents", {}, {}, remedy="")
    for name in names:
        tensors = {
            "latent": rng.standard_normal((1, 16, *shape), np.float32).astype(np.float16),
            "draft": rng.standard_normal((1, 16, *shape), np.float32).astype(np.float16),
            "lesion": lesion[None],
            "region": (lesion > 0)[None, None].astype(np.uint8),
            "classes": rng.integers(0, 3, (1, 3, *shape), np.uint8),
            "shares": np.full((1, 3, *shape), 1 / 3, np.float16),
            "outline": rng.integers(0, 256, (1, 8, *shape), np.uint8),
            "appearance_hu": np.where(lesion > 0, 40.0, np.nan).astype(np.float16)[None, None].repeat(2, axis=1),
        }
        path = latents_path(folder, name)
        written = write_bytes(path, save(tensors))
        record = {
            "windows": [[0, first, first, int(first in (32, 48))] for first in range(0, SLICES - WINDOW, WINDOW)],
            "lesion_slices": [[0, number] for number in range(40, 50)],
            "shape": [1, *shape],
            "spacing_mm": [2.5, 0.7, 0.7],
        }
        manifest.write_case(name, inputs={}, outputs={path: written}, results=record)
    return names


def per_second(work: Callable[[int], object], samples: int) -> float:
    """Samples per second of repeated work; ``work`` takes the number of the repetition."""
    work(0)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        done += 1
        work(done)
    return samples * done / (time.perf_counter() - began)


def drawn_per_second(draws: LatentDraws, stage: int, samples: int, threads: int) -> float:
    """Samples of a stage per second, with batches drawn by several threads at once."""
    process = NoiseProcess("sample")
    with ThreadPoolExecutor(threads) as pool:

        def work(number: int) -> object:
            steps = range(number * threads, (number + 1) * threads)
            return list(pool.map(lambda step: draws.batch(stage, step, range(samples), seed=0, process=process), steps))

        return per_second(work, samples * threads)


def trained_per_second(network: LatentDenoiser, batch: Batch, device: torch.device) -> float:
    """Samples per second in training of the network, without the optimizer."""
    batch = batch.to(device)

    def work(_: int) -> None:
        prediction = network(batch.latent, batch.timesteps, batch.condition, context=batch.context)
        loss, _in_lesion = denoising_loss(
            prediction, batch.latent, batch.lesion, 8.0, loss="l1", generated=batch.generated
        )
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        return per_second(work, len(batch.latent))


def run(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = random_cache(folder)
        channels = (0.0,) * 16
        scale = AppearanceScale((40.0, 15.0), (10.0, 3.0))
        conditions = ConditionFormat("outline", 2, SPEC, channels, (1.0,) * 16, scale)
        print(f"{torch.get_num_threads()} threads of torch, {device}; samples per second")
        for size in arguments.size:
            defaults = DEFAULTS[size]
            crop = defaults.inplane_pixels // SPEC.inplane_stride
            draws = LatentDraws(
                folder, names, conditions=conditions, window=WINDOW, crop=crop, lesion_share=0.9, context="draft"
            )
            detail = detail_channels("outline", SPEC)
            network = LatentDenoiser(16, "outline", 2, size, detail_channels=detail, context="draft").to(device)
            one = drawn_per_second(draws, 1, defaults.batch, 1)
            batch = draws.batch(1, 0, range(defaults.batch), seed=0, process=NoiseProcess("sample"))
            trained = trained_per_second(network, batch, device)
            print(f"{size}: slices of {crop} x {crop} cells: 1 thread {one:.0f} (baseline), network {trained:.0f}")
            for threads in arguments.threads:
                more = drawn_per_second(draws, 1, defaults.batch, threads)
                print(f"{size}: {threads} threads {more:.0f} ({more / one:.2f} times the baseline)")
            windows = drawn_per_second(draws, 2, defaults.window_batch, 1)
            print(f"{size}: windows of {WINDOW} slices: 1 thread {windows:.1f}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark_latents.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=list(DEFAULTS), default=["tiny", "small"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 4], metavar="N", help="default 2 and 4")
    parser.add_argument(
        "-device", choices=("cuda", "cpu"), help="device of the network; default: cuda if there is a GPU"
    )
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
