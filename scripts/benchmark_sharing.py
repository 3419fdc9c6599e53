"""Benchmark: many tiny cases shared by several fvae-reconstruct, of which some are killed and started again.

    python scripts/benchmark_sharing.py --cases 50000 --processes 4 --kills 20

Compares the files with those of one undisturbed process, and prints the scheduling cost per case (the time of a call
that finds all cases complete, per case) and the memory of the processes. If allowed (Linux, root), each process has its
own process ids (``unshare``), as on another machine or in another container.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from process_memory import own_and_shared, process_tree
from tqdm import tqdm

from fvae_nnunet.files.recorded import sha256_of_file

SHAPE = (2, 8, 8)
MAIN = "import sys; from fvae_nnunet.cli.reconstruct import main; sys.exit(main())"
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


def write_images(folder: Path, cases: int) -> None:
    """Write images that all differ; each depends only on its number."""
    folder.mkdir()
    for number in tqdm(range(cases), desc="images", unit="case"):
        values = np.random.default_rng(number).integers(-1000, 1000, SHAPE).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / f"case_{number:05d}.nii.gz"))


def command(images: Path, output: Path, *, apart: bool) -> list[str]:
    call = [sys.executable, "-c", MAIN, "-i", str(images), "-o", str(output), "--vae", "control:identity", "-np", "0"]
    return [*UNSHARE, *call] if apart else call


def start(call: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def can_be_apart() -> bool:
    with suppress(OSError):
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    return False


def memory_mb(pid: int) -> float:
    """Memory of a process and its children."""
    with suppress(OSError, ValueError):
        return sum(sum(own_and_shared(one)) for one in process_tree(pid)) / 1e6
    return 0.0


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)


def share(call: Sequence[str], output: Path, arguments: argparse.Namespace) -> list[float]:
    """Run the processes and kill some at regular intervals of the work; return peak memories of the others."""
    chance = random.Random(0)
    running = [start(call) for _ in range(arguments.processes)]
    kills = [arguments.cases * (number + 1) // (arguments.kills + 1) for number in range(arguments.kills)]
    peaks: dict[int, float] = {}
    done = output / "fvae_manifest" / "cases"
    with tqdm(total=arguments.cases, desc="shared", unit="case") as bar:
        while running:
            time.sleep(0.5)
            for process in list(running):
                peaks[process.pid] = max(peaks.get(process.pid, 0.0), memory_mb(process.pid))
                if process.poll() is None:
                    continue
                running.remove(process)
                if process.returncode != 0:
                    assert process.stderr is not None
                    sys.exit(f"a process ended with {process.returncode}: {process.stderr.read().decode()[-2000:]}")
            complete = sum(1 for _ in done.iterdir()) if done.is_dir() else 0
            bar.update(complete - bar.n)
            if kills and complete >= kills[0] and running:
                kills.pop(0)
                killed = running.pop(chance.randrange(len(running)))
                killed.kill()
                killed.wait()
                peaks.pop(killed.pid, None)
                running.append(start(call))
    if kills:
        sys.exit(f"{len(kills)} of {arguments.kills} kills came too late")
    return list(peaks.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50000, metavar="N")
    parser.add_argument("--processes", type=int, default=4, metavar="N")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    arguments = parser.parse_args(argv)
    apart = can_be_apart()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", arguments.cases)
        alone, shared = folder / "alone", folder / "shared"
        with timed("one process, undisturbed"):
            subprocess.run(
                command(folder / "images", alone, apart=False),
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with timed(f"{arguments.processes} processes, {arguments.kills} kills"):
            peaks = share(command(folder / "images", shared, apart=apart), shared, arguments)
        began = time.perf_counter()
        subprocess.run(command(folder / "images", shared, apart=False), check=True, capture_output=True)
        scheduling_s = (time.perf_counter() - began) / arguments.cases
        expected, found = digests(alone), digests(shared)
        shutil.rmtree(shared)
    print(f"process ids of their own: {'yes' if apart else 'no, unshare is not allowed here'}")
    print(f"files: {len(expected)} expected, {sum(found.get(n) == d for n, d in expected.items())} the same bytes")
    print(f"left over: {sorted(found.keys() - expected.keys()) or 'nothing'}")
    print(f"memory of a process at its peak: {min(peaks):.0f} to {max(peaks):.0f} MB")
    print(f"scheduling: {scheduling_s * 1000:.2f} ms a case")
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main())
