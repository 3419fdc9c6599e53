"""Benchmark: the same cases with this package's pipeline, Dask and Snakemake, compared with one process in sequence.

    pip install distributed snakemake
    python scripts/benchmark_engines.py --cases 20 --shape 128 256 256 --rate 16.8 -np 2

A case is read (gzip), computed by a stand-in for one device that sleeps for the time that its voxels need at a given
rate, and written (gzip). Each engine is used as its documentation advises: Dask with ``-np`` worker processes and one
more that holds the device (a resource); Snakemake with ``-np`` simultaneous jobs, one case each, that wait for a lock
on the device. Dask's graph is submitted once as a whole, and once with at most ``-np`` + 3 active cases, as in the
pipeline. The files of every engine are compared with those of the baseline byte by byte. Times are for whole processes,
including start and imports. Memory is the private and shared memory of all processes, in int16 volumes, minus that of
the engine on tiny images.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from filelock import FileLock
from process_memory import run_measured

from fvae_nnunet.ct.files import read_volume, write_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.pipeline import BEYOND_WORKERS, StageSeconds, run_cases

ENDING = ".nii.gz"
SNAKEFILE = """
rule all:
    input: expand({output!r} + "/{{case}}{ending}", case={cases})

rule case:
    input: {images!r} + "/{{case}}{ending}"
    output: {output!r} + "/{{case}}{ending}"
    shell: {call!r} + " {{wildcards.case}}"
"""

Volume = tuple[np.ndarray, Geometry]


@dataclass(frozen=True)
class Job:
    images: Path
    output: Path
    rate: float
    """voxels per second"""
    workers: int

    @property
    def cases(self) -> list[str]:
        return sorted(path.name.removesuffix(ENDING) for path in self.images.glob("*" + ENDING))

    def read(self, case: str) -> Volume:
        volume_hu, geometry = read_volume(self.images / (case + ENDING))
        return volume_hu.astype(np.int16), geometry

    def compute(self, case: str, volume: Volume) -> Volume:
        time.sleep(volume[0].size / self.rate)
        return volume

    def write(self, case: str, volume: Volume) -> None:
        write_volume(self.output / (case + ENDING), *volume)

    def one_case(self, case: str) -> None:
        """Process a case in a process of its own that shares the device with others."""
        volume = self.read(case)
        with FileLock(self.output / "device.lock"):
            volume = self.compute(case, volume)
        self.write(case, volume)


def in_sequence(job: Job) -> None:
    for case in job.cases:
        job.write(case, job.compute(case, job.read(case)))


def by_pipeline(job: Job) -> None:
    outcomes = run_cases(
        job.cases, read=job.read, compute=job.compute, write=job.write, workers=job.workers, seconds=StageSeconds()
    )
    if failed := [outcome.case for outcome in outcomes if outcome.error]:
        sys.exit(f"failed: {failed}")


def by_dask(job: Job, *, at_once: int | None = None) -> None:
    from dask.distributed import Client, Nanny, Scheduler, SpecCluster, as_completed

    def worker(**resources: float) -> dict[str, object]:
        return {"cls": Nanny, "options": {"nthreads": 1, "resources": resources, "host": "127.0.0.1"}}

    workers = {f"disk{number}": worker(disk=1) for number in range(job.workers)} | {"device": worker(device=1)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0", "host": "127.0.0.1"}}
    with SpecCluster(workers, scheduler=scheduler) as cluster, Client(cluster) as client:

        def submit(case: str) -> object:
            volume = client.submit(job.read, case, resources={"disk": 1}, pure=False)
            computed = client.submit(job.compute, case, volume, resources={"device": 1}, pure=False)
            return client.submit(job.write, case, computed, resources={"disk": 1}, pure=False)

        cases = iter(job.cases)
        first = [submit(case) for case in islice(cases, at_once)]
        written = as_completed(first)
        for future in written:
            future.result()
            for case in islice(cases, 1):
                written.add(submit(case))


def by_snakemake(job: Job) -> None:
    call = [sys.executable, __file__, "--one-case", str(job.images), str(job.output), str(job.rate)]
    with tempfile.TemporaryDirectory() as folder:
        snakefile = Path(folder) / "Snakefile"
        snakefile.write_text(
            SNAKEFILE.format(
                images=str(job.images), output=str(job.output), cases=job.cases, call=" ".join(call), ending=ENDING
            )
        )
        command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--cores", str(job.workers), "-s"]
        subprocess.run([*command, str(snakefile)], cwd=folder, check=True, stdout=sys.stderr)


ENGINES: dict[str, Callable[[Job], None]] = {
    "one process in sequence": in_sequence,
    "this package's pipeline": by_pipeline,
    "Dask": by_dask,
    "Dask, few at once": lambda job: by_dask(job, at_once=job.workers + BEYOND_WORKERS),
    "Snakemake": by_snakemake,
}


def write_images(folder: Path, cases: int, shape: tuple[int, ...]) -> None:
    """Write images of noise over a smooth field, which gzip compresses about as well as CT."""
    folder.mkdir()
    smooth = np.add.outer(
        np.add.outer(*(np.linspace(-500, 0, size) for size in shape[:2])), np.linspace(0, 500, shape[2])
    )
    for number in range(cases):
        values = smooth + np.random.default_rng(number).normal(0, 12, shape)
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.int16)), str(folder / f"case{number:03d}{ENDING}"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in sorted(folder.glob("*" + ENDING))}


def run(engine: str, job: Job) -> tuple[float, int]:
    """Run an engine in a process of its own; return its seconds and the bytes of all processes."""
    job.output.mkdir()
    call = [sys.executable, __file__, "--run", engine, str(job.images), str(job.output), str(job.rate)]
    measured = run_measured([*call, "-np", str(job.workers)])
    return measured.seconds, measured.all_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument("--rate", type=float, default=16.8, metavar="MVOXEL_PER_S")
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--one-case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        engine, images, output, rate = arguments.run
        ENGINES[engine](Job(Path(images), Path(output), float(rate), arguments.np))
        return 0
    if arguments.one_case:
        images, output, rate, case = arguments.one_case
        Job(Path(images), Path(output), float(rate), 1).one_case(case)
        return 0

    os.environ |= {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "error"}
    voxels = math.prod(arguments.shape)
    print(
        f"{arguments.cases} cases of {voxels / 1e6:.1f} Mvoxel, device {arguments.rate} Mvoxel/s, "
        f"{os.cpu_count()} cores\n"
    )
    print("| engine | s | ratio | memory of all processes, volumes | same files |\n|---|---|---|---|---|")
    baseline_s, expected = 0.0, {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "images", arguments.cases, tuple(arguments.shape))
        write_images(root / "tiny", arguments.cases, (8, 8, 8))
        job = partial(Job, rate=arguments.rate * 1e6, workers=arguments.np)
        for engine in ENGINES:
            _, ground = run(engine, job(root / "tiny", root / "tiny_output"))
            seconds, memory = run(engine, job(root / "images", root / "output"))
            found = digests(root / "output")
            baseline_s, expected = baseline_s or seconds, expected or found
            same = "yes" if found == expected and len(found) == arguments.cases else "NO"
            volumes = (memory - ground) / (2 * voxels)
            print(f"| {engine} | {seconds:.1f} | {baseline_s / seconds:.2f} | {volumes:.1f} | {same} |", flush=True)
            for output in ("tiny_output", "output"):
                shutil.rmtree(root / output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
