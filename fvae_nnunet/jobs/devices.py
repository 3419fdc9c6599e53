"""Distribution of one list of cases over several devices of this machine, with a process for each device.

The parent holds the list and the progress. Each child process loads the VAE, runs the pipeline of its device and asks
for its next case when it is ready. When a child dies, its unfinished cases go to the others.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds
from fvae_nnunet.jobs.workers import PortableError, limit_threads, obey_parent, start_uninterrupted

_GRACE_S = 15.0
_CRASHES_OF_A_CASE = 2
"""Number of processes that may die with a case before the case counts as failed, since it may be the cause."""

OnSlices = Callable[[str, int, int], object]


class Work(Protocol):
    """Work of the process of one device; picklable."""

    def load(self, device: str | None) -> Any:
        """Load the VAE on a device; None for the default device."""

    def run(
        self, loaded: Any, cases: Iterator[str], *, first: bool, seconds: StageSeconds, on_slices: OnSlices
    ) -> Generator[Outcome, None, None]:
        """Run the pipeline. It opens the output before it asks for the first case; ``first`` is true in one process
        only, and the others open the output after it."""


def available_devices(names: list[str]) -> list[str]:
    """Torch devices with these names; ``all`` stands for every CUDA GPU.

    Raises:
        UserError: torch does not see a device.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices: list[str] = []
    for name in names:
        known = gpus if name == "all" else [name] if name == "cpu" or name in gpus else gpus[:1] * (name == "cuda")
        known = ["mps"] if name == "mps" and torch.backends.mps.is_available() else known
        if not known:
            raise UserError(f"`devices`: torch does not see {name}; available: {', '.join([*gpus, 'cpu'])}")
        devices += known
    return devices


def chosen_device(name: str | None) -> str:
    """Torch device of one process: the named one; without a name, ``cuda`` if there is a GPU, else ``cpu``.

    Raises:
        UserError: torch sees no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA GPU is visible to torch; use `device='cpu'`, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch sees no MPS device; use `device='cpu'`")
    return name


@dataclass(eq=False)
class _Child:
    """State of a device's process in the parent: what it waits for, and its cases without an outcome."""

    name: str
    process: BaseProcess
    connection: Connection
    waits_for: str | None = None
    opens: bool = False
    opened: bool = False
    ended: bool = False
    cases: set[str] = field(default_factory=set)
    error: Exception | None = None

    def answer(self, content: Any) -> None:
        self.waits_for = None
        with suppress(OSError):
            self.connection.send(content)


def run_on_devices(
    devices: list[str],
    work: Work,
    cases: Iterable[str],
    *,
    seconds: StageSeconds,
    on_slices: OnSlices,
    say: Callable[[str], object],
) -> Generator[Outcome, None, None]:
    """Run ``work`` on all devices at once, with each case on one of them, and yield the outcome of each case.

    If a process dies, its cases are given to other processes. A case fails after two such deaths. If no process is
    left, all remaining cases fail.

    Args:
        devices: torch names of the devices; a name may occur several times (``cpu``).
        work: work of each process.
        cases: identifiers of the cases, requested one by one.
        seconds: filled with the sum over the devices.
        on_slices: called with case, slices done and slices of the case.
        say: called with a line for each process that failed.

    Raises:
        UserError: no process reached its first case; with the reason of the first process.
    """
    children: list[_Child] = []
    parent = _Parent(children, iter(cases), seconds, on_slices, say)
    try:
        for device in devices:
            children.append(_start(device, devices, work))
        yield from parent.outcomes()
    finally:
        parent.stop()
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join(_GRACE_S)
            if child.process.is_alive():
                child.process.kill()
            child.connection.close()


def _start(device: str, devices: list[str], work: Work) -> _Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    process = context.Process(target=_child_main, args=(theirs, device, max(1, cores // len(devices)), work))
    start_uninterrupted(process)
    theirs.close()
    return _Child(device, process, ours)


class _Parent:
    """Exchange between the list of cases and the children.

    A thread takes cases from the list. It may wait a long time for a case that another command holds, and the reports
    of the children must be passed on meanwhile.
    """

    def __init__(
        self,
        children: list[_Child],
        cases: Iterator[str],
        seconds: StageSeconds,
        on_slices: OnSlices,
        say: Callable[[str], object],
    ) -> None:
        self._children = children
        self._cases = cases
        self._seconds = seconds
        self._on_slices = on_slices
        self._say = say
        self._again: deque[str] = deque()
        self._crashes: Counter[str] = Counter()
        self._taken, self._give = multiprocessing.Pipe(duplex=False)
        self._wanted = threading.Semaphore(0)
        self._asked = False
        self._all_taken = False

    def outcomes(self) -> Iterator[Outcome]:
        threading.Thread(target=self._take_cases, daemon=True).start()
        while running := [child for child in self._children if not child.ended]:
            for connection in wait([self._taken, *(child.connection for child in running)]):
                if connection is self._taken:
                    self._again.extend(self._next_case())
                    continue
                child = next(child for child in running if child.connection is connection)
                try:
                    kind, content = child.connection.recv()
                except (EOFError, ConnectionResetError):
                    yield from self._close(child)
                    continue
                if kind == "outcome":
                    outcome, error = content
                    child.cases.discard(outcome.case)
                    yield outcome if error is None else replace(outcome, error=error.restored())
                elif kind == "slices":
                    self._on_slices(*content)
                elif kind == "waits":
                    child.waits_for = content
                    child.opened |= content == "case"
                elif kind == "seconds":
                    self._seconds.add(content)
                elif kind == "error":
                    child.error = content.restored()
            self._answer()
        first_error = next((child.error for child in self._children if child.error is not None), None)
        if first_error is not None and not any(child.opened for child in self._children):
            raise first_error
        while not self._all_taken:
            self._ask()
            self._again.extend(self._next_case())
        for case in self._again:
            yield Outcome(case, error=UserError("no process is left to work on it; see the errors above"))

    def stop(self) -> None:
        """Take no more cases."""
        self._all_taken = True
        self._wanted.release()

    def _take_cases(self) -> None:
        while self._wanted.acquire() and not self._all_taken:
            try:
                self._give.send(next(self._cases, None))
            except Exception as error:
                self._give.send(PortableError(error))

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._wanted.release()

    def _next_case(self) -> list[str]:
        """Case that the thread has taken, or an empty list if there are no more."""
        self._asked = False
        taken = self._taken.recv()
        if isinstance(taken, PortableError):
            raise taken.restored()
        self._all_taken = taken is None
        return [] if taken is None else [taken]

    def _answer(self) -> None:
        """Let one process open the output, then the others; give cases to those that ask."""
        running = [child for child in self._children if not child.ended]
        for child in running:
            if child.waits_for == "opening":
                opened = any(other.opened for other in self._children)
                if opened or not any(other.opens for other in running):
                    child.opens = True
                    child.answer(not opened)
            elif child.waits_for == "case":
                if self._again:
                    child.cases.add(self._again[0])
                    child.answer(self._again.popleft())
                elif not self._all_taken:
                    self._ask()
                elif not any(other.cases for other in running):
                    child.answer(None)

    def _close(self, child: _Child) -> Iterator[Outcome]:
        child.process.join()
        child.ended = True
        if child.error is None and child.process.exitcode == 0:
            return
        reason = str(child.error or "") or f"its process died with exit code {child.process.exitcode}"
        self._say(f"{child.name}: {reason}; its unfinished cases go to the other devices")
        for case in sorted(child.cases):
            self._crashes[case] += 1
            if self._crashes[case] < _CRASHES_OF_A_CASE:
                self._again.append(case)
            else:
                yield Outcome(
                    case, error=UserError(f"{_CRASHES_OF_A_CASE} processes died working on it; last: {reason}")
                )
        child.cases.clear()


def _child_main(connection: Connection, device: str, threads: int, work: Work) -> None:
    obey_parent()
    if device == "cpu":
        limit_threads(threads)
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_device(device)
    one_at_a_time = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with one_at_a_time:
            connection.send((kind, content))

    def cases() -> Iterator[str]:
        send("waits", "case")
        while (case := connection.recv()) is not None:
            yield case
            send("waits", "case")

    try:
        loaded = work.load(device)
        send("waits", "opening")
        first = connection.recv()
        seconds = StageSeconds()
        outcomes = work.run(
            loaded, cases(), first=first, seconds=seconds, on_slices=lambda *state: send("slices", state)
        )
        for outcome in outcomes:
            error = None if outcome.error is None else PortableError(outcome.error)
            send("outcome", (replace(outcome, error=None), error))
        send("seconds", seconds)
    except Exception as error:
        send("error", PortableError(error))
