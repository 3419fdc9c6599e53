"""Measure memory of a command and its descendants, sampled while it runs (Linux, from /proc)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLING_S = 0.02


@dataclass(frozen=True)
class Measured:
    """Standard output of a command, and its peak memory in bytes.

    Attributes:
        main_bytes: private and shared memory of the command's main process.
        all_bytes: private memory of all its processes, plus the increase of shared memory on the whole machine.
    """

    output: str
    seconds: float
    main_bytes: int
    all_bytes: int


def run_measured(command: Sequence[str]) -> Measured:
    """Run a command to its end.

    Raises:
        SystemExit: the command failed.
    """
    shared_before, most_main, most_all = _shared_of_machine(), 0, 0
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                own = {pid: own_and_shared(pid) for pid in process_tree(process.pid)}
            except (OSError, ValueError):
                continue
            most_main = max(most_main, sum(own[process.pid]))
            most_all = max(most_all, sum(own_bytes for own_bytes, _ in own.values()) + _shared_of_machine())
            time.sleep(SAMPLING_S)
        seconds = time.perf_counter() - began
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return Measured(output, seconds, most_main, max(0, most_all - shared_before))


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [
        pid, *(below for task in tasks for child in task.read_text().split() for below in process_tree(int(child)))
    ]  # fmt: skip


def own_and_shared(pid: int) -> tuple[int, int]:
    """Bytes of private and of shared memory that a process has touched."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, shared = (int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    return own, shared


def _shared_of_machine() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return int(line.split()[1]) * 1024
