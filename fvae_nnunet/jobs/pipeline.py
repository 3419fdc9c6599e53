"""Pipeline of read, compute and write over many cases: workers read and write while the VAE computes in this process.

A case is alive from the moment it is taken from the list until it is written or has failed. With W workers, at most
W + 3 cases are alive, for any number of cases and any speed of the disk: one in each worker, one that is read and waits
for computation, one that is computed, and one whose result waits for a worker. This process itself holds only the case
that is computed and the waiting results (one while it computes, two while it must wait). A case that is read and waits
is in shared memory that this process has not touched yet. The size of a case is that of the return values of ``read``
and ``compute``: for CT in int16, 2 bytes per voxel for the raw volume and 2 for its reconstruction.

Reading has priority while no other case is on its way to the device; otherwise writing has, so that W - 1 workers can
write. One case is read ahead, and one more each time the device runs idle, up to W.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from fvae_nnunet.device.memory import release
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import FULL_DISK
from fvae_nnunet.jobs.workers import Worker, WorkerDied

BEYOND_WORKERS = 3
"""Number of cases that may be alive in addition to one for each worker."""


_GRACE_S = 1.0


@dataclass
class StageSeconds:
    """Wall-clock seconds of the computing process in each stage.

    Attributes:
        reading: waiting for a case to be read.
        computing: computing with the VAE.
        writing: waiting for a case to be written.
        idle: not computing, between the start of the first computation and the end of the last.
    """

    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    idle: float = 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time from the first to the last computation in which the device was idle, 0 to 1."""
        return self.idle / (self.idle + self.computing) if self.computing else 0.0

    def add(self, other: StageSeconds) -> None:
        """Add the seconds of another process."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Outcome:
    """Outcome of one case.

    Attributes:
        case: identifier of the case.
        result: return value of ``write``; None if ``read`` found nothing to do, or on failure.
        error: exception that stopped the case, or None.
    """

    case: str
    result: Any = None
    error: Exception | None = None


class _Fatal(UserError):
    """Error that would affect all other cases too."""


def _fatal(error: BaseException) -> UserError | None:
    """Error with which to stop if it would affect all other cases too, else None."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        where = "in the disk quota" if error.errno == errno.EDQUOT else "on the disk"
        return _Fatal(f"no space left {where} ({error.filename or error}); free some and run the command again")
    return None


def _how_it_died(exitcode: int | None, step: str) -> str:
    if exitcode == -signal.SIGKILL:
        return "its worker process was killed, probably for lack of memory; use fewer `processes`"
    how = signal.Signals(-exitcode).name if exitcode is not None and exitcode < 0 else f"exit status {exitcode}"
    return (
        f"its worker process ended ({how}) during the step {step!r}; messages of libraries, if any, are above. Check "
        "the files of the case, or use fewer `processes`"
    )


class _Clock:
    """Measures computing and idle time in ``StageSeconds``."""

    def __init__(self, seconds: StageSeconds) -> None:
        self.seconds = seconds
        self.stopped_at: float | None = None

    def compute(self, compute: Callable[[str, Any], Any], case: str, payload: Any) -> Any:
        started = time.perf_counter()
        if self.stopped_at is not None:
            self.seconds.idle += started - self.stopped_at
        try:
            return compute(case, payload)
        finally:
            self.stopped_at = time.perf_counter()
            self.seconds.computing += self.stopped_at - started


def unchanged(case: str, content: Any) -> Any:
    """Step of ``run_cases`` that returns its input."""
    return content


def run_cases(
    cases: Iterable[str],
    *,
    read: Callable[[str], Any],
    compute: Callable[[str, Any], Any] = unchanged,
    write: Callable[[str, Any], Any] = unchanged,
    workers: int,
    seconds: StageSeconds,
) -> Generator[Outcome, None, None]:
    """Run the three steps on every case, and yield its outcome as soon as it is known.

    The failure of one case does not stop the others. If a worker is killed, its case fails and a new worker replaces
    it. Memory is bounded as described in the module. Closing the generator ends the workers.

    Args:
        cases: identifiers; the next one is requested when it can be read, in another thread if there are workers.
        read: runs in a worker; returns the input of ``compute``, or None if there is nothing to do. Picklable.
        compute: runs in this process; returns the input of ``write``.
        write: runs in a worker. Picklable.
        workers: number of worker processes; 0 runs everything in this process, one case after the other.
        seconds: filled with the time spent in each stage.

    Raises:
        UserError: the disk is full or no worker can be started; cases that are already computed are still written.
    """
    if workers == 0:
        return _run_here(iter(cases), read, compute, write, seconds)
    return _Pipeline(iter(cases), read, write, workers).outcomes(compute, seconds)


def _run_here(
    cases: Iterator[str],
    read: Callable[[str], Any],
    compute: Callable[[str, Any], Any],
    write: Callable[[str, Any], Any],
    seconds: StageSeconds,
) -> Generator[Outcome, None, None]:
    clock = _Clock(seconds)
    for case in cases:
        try:
            started = time.perf_counter()
            payload = read(case)
            seconds.reading += time.perf_counter() - started
            if payload is None:
                yield Outcome(case)
                continue
            computed = clock.compute(compute, case, payload)
            del payload
            started = time.perf_counter()
            result = write(case, computed)
            del computed
            seconds.writing += time.perf_counter() - started
        except Exception as error:
            if (stop := _fatal(error)) is not None:
                raise stop from error
            release(error)
            yield Outcome(case, error=error)
        else:
            yield Outcome(case, result)


class _Pipeline:
    """Cases that are alive, and the threads that move them: one that takes cases from the list, and one per worker.

    All state is guarded by ``_changed``. No reference to a case's arrays is kept once they are passed on.
    """

    def __init__(
        self, cases: Iterator[str], read: Callable[[str], Any], write: Callable[[str, Any], Any], workers: int
    ) -> None:
        self._cases = cases
        self._functions: dict[str, Callable[..., Any]] = {"read": read, "write": write}
        self._changed = threading.Condition()
        self._alive = 0
        self._most_alive = workers + BEYOND_WORKERS
        self._ahead, self._most_ahead = 1, workers
        self._taken: deque[str] = deque()
        self._reading = 0
        self._read: deque[tuple[str, Any]] = deque()
        self._computed: deque[tuple[str, Any]] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._all_taken = False
        self._fatal: BaseException | None = None
        self._stopped = False
        self._workers: list[Worker] = []
        self._taker = threading.Thread(target=self._take_cases, daemon=True)
        self._servers: list[threading.Thread] = []

    def outcomes(self, compute: Callable[[str, Any], Any], seconds: StageSeconds) -> Generator[Outcome, None, None]:
        clock = _Clock(seconds)
        try:
            self._start()
            while True:
                case = None
                started = time.perf_counter()
                with self._changed:
                    for_writing = bool(self._read) or (self._all_taken and not self._taken and not self._reading)
                    self._changed.wait_for(lambda: self._outcomes or self._can_compute() or self._is_over())
                    if self._outcomes:
                        outcome = self._outcomes.popleft()
                    elif self._can_compute():
                        case, payload = self._read.popleft()
                        self._changed.notify_all()
                    elif self._fatal is not None:
                        raise self._fatal
                    else:
                        return
                waited = time.perf_counter() - started
                seconds.writing += waited if for_writing else 0
                seconds.reading += 0 if for_writing else waited
                if case is None:
                    yield outcome
                    continue
                try:
                    computed = clock.compute(compute, case, payload)
                except Exception as error:
                    release(error)
                    self._end("compute", Outcome(case, error=error))
                else:
                    self._hand_over(case, computed)
                    del computed
                finally:
                    del payload
        finally:
            self._stop()

    def _start(self) -> None:
        self._taker.start()
        # this thread starts the first workers, because it outlives them
        for worker in [self._new_worker() for _ in range(self._most_ahead)]:
            self._servers.append(threading.Thread(target=self._serve, args=(worker,), daemon=True))
            self._servers[-1].start()

    def _can_compute(self) -> bool:
        return bool(self._read) and len(self._computed) <= 1 and self._fatal is None

    def _is_over(self) -> bool:
        return self._alive <= 0 and (self._all_taken or self._fatal is not None)

    def _hand_over(self, case: str, computed: Any) -> None:
        with self._changed:
            self._computed.append((case, computed))
            if not self._read:
                self._ahead = min(self._ahead + 1, self._most_ahead)
            self._changed.notify_all()

    def _take_cases(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._fatal is not None or self._wants_case())
                    if self._stopped or self._fatal is not None:
                        return
                case = next(self._cases, None)
                with self._changed:
                    if case is None:
                        self._all_taken = True
                    elif self._fatal is None:
                        self._taken.append(case)
                        self._alive += 1
                    self._changed.notify_all()
                    if case is None:
                        return
        except BaseException as error:
            self._give_up(error)

    def _wants_case(self) -> bool:
        on_the_way = len(self._taken) + self._reading + len(self._read)
        return on_the_way < self._ahead and self._alive < self._most_alive

    def _serve(self, worker: Worker) -> None:
        """Keep one worker, or its replacements, busy until there is nothing more to do."""
        try:
            self._wait_until_up(worker)
            while (step := self._next_step()) is not None:
                if not worker.process.is_alive():
                    worker.stop()
                    worker = self._new_worker()
                    self._wait_until_up(worker)
                name, case, *payload = step
                try:
                    worker.send(name, case, *payload)
                    del step, payload
                    result = worker.receive()
                except WorkerDied:
                    worker.stop()
                    self._fail(name, case, UserError(_how_it_died(worker.process.exitcode, name)))
                except Exception as error:
                    self._fail(name, case, error)
                else:
                    self._pass_on(name, case, result)
                    del result
        except BaseException as error:
            self._break_off(error)
        finally:
            worker.stop()

    def _new_worker(self) -> Worker:
        worker = Worker(self._functions)
        with self._changed:
            self._workers.append(worker)
            if self._stopped:
                worker.process.terminate()
        return worker

    def _wait_until_up(self, worker: Worker) -> None:
        try:
            worker.receive()
        except WorkerDied as error:
            raise UserError("a worker process ended during its start; its messages, if any, are above") from error

    def _next_step(self) -> tuple[Any, ...] | None:
        """Wait for the next step of a worker: ``("read", case)`` or ``("write", case, computed)``; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._taken or self._computed or self._is_over())
            if self._stopped:
                return None
            device_is_fed = bool(self._read) or self._reading > 0
            if self._taken and not (self._computed and device_is_fed):
                self._reading += 1
                return "read", self._taken.popleft()
            if self._computed:
                self._changed.notify_all()
                return "write", *self._computed.popleft()
            return None

    def _pass_on(self, name: str, case: str, result: Any) -> None:
        if name == "write" or result is None:
            self._end(name, Outcome(case, result))
            return
        with self._changed:
            self._reading -= 1
            if self._fatal is None:
                self._read.append((case, result))
            else:
                self._alive -= 1
            self._changed.notify_all()

    def _fail(self, name: str, case: str, error: Exception) -> None:
        if (stop := _fatal(error)) is not None:
            stop.__cause__ = error
            self._give_up(stop)
        self._end(name, Outcome(case, error=error))

    def _end(self, name: str, outcome: Outcome) -> None:
        with self._changed:
            self._reading -= name == "read"
            self._alive -= 1
            if outcome.error is None or self._fatal is None:
                self._outcomes.append(outcome)
            self._changed.notify_all()

    def _give_up(self, error: BaseException) -> None:
        """Start no further cases; computed cases are still written."""
        with self._changed:
            self._fatal = self._fatal or error
            self._alive -= len(self._taken) + len(self._read)
            self._taken.clear()
            self._read.clear()
            self._changed.notify_all()

    def _break_off(self, error: BaseException) -> None:
        """Stop without waiting for anything, because a worker could not be started."""
        with self._changed:
            self._give_up(error)
            self._computed.clear()
            self._alive = 0

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for worker in self._workers:
                worker.process.terminate()
        for server in self._servers:
            server.join()
        # the thread may wait for a case for a long time
        self._taker.join(_GRACE_S)
