"""Benchmark: how busy the pipeline keeps a device, and how much memory it needs, with a stand-in for the device.

    python scripts/benchmark_pipeline.py --cases 20 --shape 128 256 256 -np 2

20 phantoms pass through the real read and write stages of fvae-reconstruct, and with --preprocess through those of
fvae-preprocess (to a finer spacing, so that nnU-Net resamples). The VAE is a stand-in that returns its input and sleeps
for the time that its voxels need at a given rate (--rates, Mvoxel/s), so it takes the time of a device without using
the CPU. Rows: everything in one process in sequence (-np 0, the baseline of the ratios), and the pipeline with -np
workers. Times include the start of the workers (their imports), but not that of the command. Default rates: one at
which -np workers on this machine's cores can keep up with the device, and one four times as fast, at which they cannot.

The idle share is that of the time from the first computation to the end of the last, as measured by the pipeline (and
printed by the commands), and as measured by the stand-in (all time in which it did not sleep: scaling, checks and
blending, which would run on a real device, use the CPU here, compete with the workers, and count as idle).

Memory (fvae-reconstruct only) is sampled every 20 ms from /proc and given in int16 volumes, minus that of the same run
on images of 8^3 voxels. Main process: its private and shared memory. All: the private memory of all processes, and the
shared memory of the whole machine, so nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from phantoms import write_phantom_dataset
from process_memory import Measured, run_measured

DATASET = "Dataset951_Pipeline"


def run_here(job: str, source: str, output: Path, *, workers: int, rate: float) -> dict[str, Any]:
    """Run a command's library function once in this process, with the stand-in."""
    import torch

    from fvae_nnunet.ct.files import find_images
    from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds
    from fvae_nnunet.reconstruction.folder import reconstruct_folder
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.vae.base import FrozenVAE, VAESpec

    class StandIn(FrozenVAE):
        spec = VAESpec("stand-in", inplane_stride=8, latent_channels=1, window_slices=4)
        weights_sha256 = weights_source = "none"
        device, dtype = torch.device("cpu"), torch.float32
        slept = 0.0

        def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            started = time.perf_counter()
            time.sleep(volume.numel() / rate)
            self.slept += time.perf_counter() - started
            return volume

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return latent

    torch.set_num_threads(1)
    vae = StandIn()
    settings = ReconstructionSettings.for_vae(vae.spec)
    seconds = StageSeconds()
    started = time.perf_counter()
    outcomes: Iterator[Outcome]
    if job == "reconstruct":
        images = find_images(Path(source))
        outcomes = reconstruct_folder(
            images, output, vae, settings=settings, workers=workers, seconds=seconds, made_with={}
        )
    else:
        from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
        from fvae_nnunet.preprocessing.make_views import make_views, open_views

        dataset = open_preprocessed_dataset(source, configurations=["3d_fullres"])
        folders = open_views(dataset, vae, view=output.name, settings=settings, made_with={"parameters": {}})
        outcomes = make_views(
            dataset, vae, folders, settings=settings, cases=dataset.cases, workers=workers, seconds=seconds
        )
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    span = seconds.computing + seconds.idle
    return {
        "elapsed": time.perf_counter() - started,
        "idle": seconds.idle_share,
        "idle_by_stand_in": 1 - vae.slept / span,
        "disk": seconds.reading + seconds.writing,
        "computing": seconds.computing - vae.slept,
    }


def measure(job: str, source: str, output: Path, *, workers: int, rate: float) -> tuple[dict[str, float], Measured]:
    """Run ``run_here`` in a process of its own; return its figures and its memory."""
    measured = run_measured([sys.executable, __file__, "--run-here", job, source, str(output), str(workers), str(rate)])
    shutil.rmtree(output, ignore_errors=True)
    return json.loads(measured.output.splitlines()[-1]), measured


def write_small_images(folder: Path, cases: int) -> None:
    import SimpleITK as sitk

    folder.mkdir()
    for number in range(cases):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), np.int16)), str(folder / f"small{number}.nii.gz"))


def benchmark(job: str, source: str, small: Path | None, root: Path, arguments: argparse.Namespace) -> None:
    voxels = math.prod(arguments.shape)
    runs = iter(range(1000))

    def run(workers: int, rate: float, job: str = job, source: str = source) -> tuple[dict[str, float], Measured]:
        return measure(job, source, root / f"run{next(runs)}", workers=workers, rate=rate * 1e6)

    probe, _ = run(0, 1e6)
    disk, processor = probe["disk"] / arguments.cases, probe["computing"] / arguments.cases
    # the workers need `disk` seconds per case, all cores together `disk + processor`
    cores = os.cpu_count() or 1
    least = max(disk / arguments.np, (disk + processor) / min(cores, arguments.np + 1)) - processor
    keeps_up = voxels / 1e6 / (1.5 * least)
    print(
        f"\nfvae-{job}: {arguments.cases} cases of {'x'.join(map(str, arguments.shape))} ({voxels / 1e6:.1f} Mvoxel), "
        f"{cores} cores. Reading and writing take {disk:.2f} s a case, the rest of a computation {processor:.2f} s\n"
    )
    print("| rate, Mvoxel/s | device, s per case | run | s | ratio | idle | by the stand-in | memory, main | all |")
    print("|---|---|---|---|---|---|---|---|---|")
    ground = {workers: run(workers, 1, job, str(small))[1] for workers in (0, arguments.np) if small is not None}
    for rate in arguments.rates or (keeps_up, 4 * keeps_up):
        baseline = None
        for workers in (0, arguments.np):
            figures, used = run(workers, rate)
            baseline = baseline or figures["elapsed"]
            memory = ["", ""]
            if ground:
                tiny = ground[workers]
                above = used.main_bytes - tiny.main_bytes, used.all_bytes - tiny.all_bytes
                memory = [f"{held / (2 * voxels):.1f}" for held in above]
            name = f"pipeline, -np {workers}" if workers else "in sequence, -np 0"
            print(
                f"| {rate:.1f} | {voxels / rate / 1e6:.2f} | {name} | {figures['elapsed']:.1f} | "
                f"{baseline / figures['elapsed']:.2f} | {figures['idle']:.0%} | {figures['idle_by_stand_in']:.0%} | "
                f"{memory[0]} | {memory[1]} |",
                flush=True,
            )
        needed = math.ceil(disk / (voxels / rate / 1e6 + processor))
        print(f"\nAt {rate:.1f} Mvoxel/s the disk stages need {needed} workers, each with a core of its own.\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument("--rates", type=float, nargs="+", metavar="MVOXEL_PER_S")
    parser.add_argument("--preprocess", action="store_true", help="also fvae-preprocess")
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--run-here", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_here:
        job, source, output, workers, rate = arguments.run_here
        print(json.dumps(run_here(job, source, Path(output), workers=int(workers), rate=float(rate))))
        return 0

    root = Path(tempfile.mkdtemp(prefix="fvae_benchmark_"))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable).mkdir()
        os.environ[variable] = str(root / variable)
    try:
        raw = root / "nnUNet_raw" / DATASET
        write_phantom_dataset(
            raw, "pancreas", n_train=arguments.cases, n_test=0, seed=0, shape=tuple(arguments.shape),
            spacing_mm=(2.0, 1.0, 1.0),
        )  # fmt: skip
        write_small_images(root / "small", arguments.cases)
        benchmark("reconstruct", str(raw / "imagesTr"), root / "small", root, arguments)
        if arguments.preprocess:
            plan = [Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"), "-d", "951", "-c", "3d_fullres"]
            plan += ["-overwrite_target_spacing", "1.8", "0.9", "0.9", "-npfp", "2", "-np", "2"]
            subprocess.run(plan, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            benchmark("preprocess", "951", None, root, arguments)
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
