"""Benchmark: time and memory of fvae-preprocess on CT-sized phantoms, compared with plain loops in the same run.

    python scripts/benchmark_preprocess.py --cases 4 --shape 100 384 384 --vae tiny

Rows: nnU-Net's own preprocessing of the same cases, for reference; fvae-preprocess in one process (-np 0: read, VAE and
write one after the other), the baseline of the ratios; fvae-preprocess with reading and writing in other processes.
Times are wall-clock times of the whole command, including start-up. Memory is the largest resident set of any process
of the command, and the largest sum over all of them (shared pages count in each), sampled every 50 ms from /proc.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from phantoms import write_phantom_dataset


@dataclass(frozen=True)
class Measured:
    seconds: float
    largest_process_mib: float
    all_processes_mib: float
    output: str


def resident_mib_of_tree(pid: int) -> list[float]:
    """Resident sets of a process and all its descendants, MiB; empty once it has ended."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [resident, *(mib for child in children for mib in resident_mib_of_tree(int(child)))]


def measure(command: list[str]) -> Measured:
    """Run a command to its end; its output is shown if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        largest = total = 0.0
        while process.poll() is None:
            resident = resident_mib_of_tree(process.pid)
            largest, total = max(largest, *resident, 0.0), max(total, sum(resident))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        log.seek(0)
        output = log.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{output}")
    return Measured(seconds, largest, total, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(100, 384, 384), metavar=("Z", "Y", "X"))
    parser.add_argument("--vae", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("-np", type=int, default=2)
    arguments = parser.parse_args()

    commands = Path(sys.executable).parent
    root = Path(tempfile.mkdtemp(prefix="fvae_benchmark_"))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable).mkdir()
        os.environ[variable] = str(root / variable)
    try:
        write_phantom_dataset(
            root / "nnUNet_raw" / "Dataset950_Benchmark", "pancreas", n_train=arguments.cases, n_test=0, seed=0,
            shape=tuple(arguments.shape), spacing_mm=(1.5, 0.8, 0.8),
        )  # fmt: skip
        measure([f"{commands}/nnUNetv2_plan_and_preprocess", "-d", "950", "--no_pp", "-npfp", "2"])
        nnunet = measure([f"{commands}/nnUNetv2_preprocess", "-d", "950", "-c", "3d_fullres", "-np", str(arguments.np)])
        ours = [f"{commands}/fvae-preprocess", "950", "-c", "3d_fullres", "--vae", arguments.vae]
        ours += ["--weights", arguments.weights] if arguments.weights else []
        measure([*ours, "-np", "0", "--view", "warm-up", "-num_parts", str(arguments.cases)])
        one = measure([*ours, "-np", "0", "--view", "one"])
        several = measure([*ours, "-np", str(arguments.np), "--view", "several"])
    finally:
        shutil.rmtree(root)

    voxels = arguments.cases * arguments.shape[0] * arguments.shape[1] * arguments.shape[2]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {arguments.cases} cases of "
          f"{'x'.join(map(str, arguments.shape))}; VAE {arguments.vae}, float32\n")  # fmt: skip
    print("| command | s per case | ratio | Mvoxel/s | largest process, MiB | all processes, MiB |")
    print("|---|---|---|---|---|---|")
    rows = {
        f"nnUNetv2_preprocess -np {arguments.np}": nnunet,
        "fvae-preprocess -np 0 (baseline)": one,
        f"fvae-preprocess -np {arguments.np}": several,
    }
    for name, row in rows.items():
        print(
            f"| {name} | {row.seconds / arguments.cases:.2f} | {one.seconds / row.seconds:.2f} | "
            f"{voxels / row.seconds / 1e6:.2f} | {row.largest_process_mib:.0f} | {row.all_processes_mib:.0f} |"
        )
    for name in list(rows)[1:]:
        where = re.search(r"^time: .*$", rows[name].output, re.MULTILINE)
        print(f"\n{name}: {where.group() if where else rows[name].output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
