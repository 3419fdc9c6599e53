"""Many cases through read, compute, write: reading and writing in other processes while the VAE works in this one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from fvae_nnunet.errors import UserError

_READ_AHEAD = 2
_PENDING_WRITES = 2


@dataclass
class StageSeconds:
    """Wall-clock seconds of this process: waiting for a case to be read, computing, waiting for one to be written."""

    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: its identifier.
        result: what ``write`` returned; None if ``read`` found nothing to do, or on failure.
        error: the exception that stopped it, or None.
    """

    case: str
    result: Any = None
    error: Exception | None = None


class _InlineExecutor(Executor):
    """Runs each job at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_worker() -> None:
    """Leave as soon as the parent is gone (also by SIGKILL), and share the cores with the other processes."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # type: ignore[func-returns-value]


def _executor(workers: int) -> Executor:
    if workers == 0:
        return _InlineExecutor()
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _result(future: Future[Any]) -> Any:
    """The future's result; errors that no other case would escape either become a UserError."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _Fatal("a worker process died, most likely for lack of memory; use fewer processes (-np)") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _Fatal(
                f"no space left on the disk ({error.filename or error}); free some and run it again"
            ) from error
        raise


class _Fatal(UserError):
    pass


def run_cases(
    cases: Iterable[str],
    *,
    read: Callable[[str], Any],
    compute: Callable[[str, Any], Any],
    write: Callable[[str, Any], Any],
    workers: int,
    seconds: StageSeconds,
) -> Iterator[Outcome]:
    """Put every case through the three steps and yield what became of it, in order.

    One case's failure does not stop the others. At most two cases wait to be computed and two to be written, so
    memory does not grow with the number of cases.

    Args:
        cases: identifiers.
        read: runs in a worker; returns what ``compute`` needs, or None if there is nothing to do. Picklable.
        compute: runs in this process; returns what ``write`` needs.
        write: runs in a worker. Picklable.
        workers: number of processes; 0 runs everything in this one.
        seconds: filled with where the time went.

    Raises:
        UserError: a worker died or the disk is full; the cases before are complete.
    """
    remaining = iter(cases)
    reads: deque[tuple[str, Future[Any]]] = deque()
    writes: deque[tuple[str, Future[Any]]] = deque()
    with _executor(workers) as executor:
        try:
            while True:
                while len(reads) < _READ_AHEAD and (case := next(remaining, None)) is not None:
                    reads.append((case, executor.submit(read, case)))
                if not reads and not writes:
                    return
                if reads:
                    case, future = reads.popleft()
                    yield from _compute(
                        case, future, compute, seconds, lambda c, w: writes.append((c, executor.submit(write, c, w)))
                    )
                while writes and (len(writes) > _PENDING_WRITES or not reads or writes[0][1].done()):
                    case, future = writes.popleft()
                    started = time.perf_counter()
                    try:
                        outcome = Outcome(case, _result(future))
                    except _Fatal:
                        raise
                    except Exception as error:
                        outcome = Outcome(case, error=error)
                    seconds.writing += time.perf_counter() - started
                    yield outcome
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _compute(
    case: str,
    future: Future[Any],
    compute: Callable[[str, Any], Any],
    seconds: StageSeconds,
    submit_write: Callable[[str, Any], None],
) -> Iterator[Outcome]:
    started = time.perf_counter()
    try:
        payload = _result(future)
        seconds.reading += time.perf_counter() - started
        if payload is None:
            yield Outcome(case)
            return
        started = time.perf_counter()
        computed = compute(case, payload)
        seconds.computing += time.perf_counter() - started
    except _Fatal:
        raise
    except Exception as error:
        yield Outcome(case, error=error)
        return
    submit_write(case, computed)
