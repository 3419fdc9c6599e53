"""Worker processes that run functions for this process, one call at a time each, and never outlive it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from fvae_nnunet.jobs import shared_arrays
from fvae_nnunet.jobs.interruptions import answer_sigterm

_GRACE_S = 5.0
_AGAIN_S = 0.01
_PR_SET_PDEATHSIG = 1


class WorkerDied(Exception):
    """The process ended during a call."""


class Worker:
    """A process with a set of functions.

    The thread that creates it must live until ``stop``, because Linux ends the process with that thread. Its first
    message, to be received before the first call, confirms that it is running.

    Args:
        functions: picklable functions, by name.
    """

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=True)
        self.process = context.Process(target=_serve, args=(theirs, functions), daemon=True)
        start_uninterrupted(self.process)
        theirs.close()

    def send(self, name: str, *arguments: Any) -> None:
        """Start a call; the arguments may be dropped afterwards.

        Raises:
            WorkerDied: the process is gone.
        """
        try:
            shared_arrays.send(self._connection, (name, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied from error

    def receive(self) -> Any:
        """Return the result of the call. Its exception is raised here, with the worker's traceback as its cause.

        Raises:
            WorkerDied: the process is gone.
        """
        try:
            result, error = shared_arrays.receive(self._connection)
        except (EOFError, ConnectionResetError) as end:
            raise WorkerDied from end
        if error is not None:
            raise error.restored()
        return result

    def stop(self) -> None:
        """End the process: at once if it is idle, else at its next step, or by force after some seconds."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(_GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._connection.close()


class PortableError:
    """An exception with the text of its traceback, in a form that can always be pickled."""

    def __init__(self, error: Exception) -> None:
        self.text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
            self.error = error
        except Exception:
            self.error = RuntimeError(repr(error))

    def restored(self) -> Exception:
        self.error.__cause__ = RuntimeError(f"in another process:\n{self.text}")
        return self.error


def start_uninterrupted(process: BaseProcess) -> None:
    """Start a process that interruptions (Ctrl-C) never reach, not even during its imports.

    A SIGINT or SIGTERM to this process takes effect once the start is complete, since a child that has not received all
    its arguments would end with a traceback. If signals cannot be blocked (Windows), interruptions reach the child
    until ``obey_parent``.
    """
    with _signals_deferred():
        if not hasattr(signal, "pthread_sigmask"):
            process.start()
            return
        resource_tracker.ensure_running()  # starting it later would unblock signals too early
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block; does nothing in threads other than the main thread.

    Blocking the signals is not enough, because the system delivers them to any thread that does not block them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    arrived: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in arrived:
            signal.raise_signal(one)


def obey_parent() -> None:
    """Let a child process end when its parent has ended for any reason, and ignore interruptions.

    SIGTERM from the parent ends the child cleanly (partly written files are removed). If the parent is gone, the child
    is killed at once, even during a long call of a C library, because another process may take over its case.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer_sigterm(_exit_once)
    sys.unraisablehook = _exit_again
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # type: ignore[func-returns-value]


def limit_threads(threads: int) -> None:
    """Limit the threads of torch in this process, whether it is already loaded or not."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    os.environ["OMP_NUM_THREADS"] = str(min(threads, int(wanted) if wanted.isdigit() else threads))
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(min(threads, torch.get_num_threads()))


def _exit_once(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _exit_again(unraisable: Any) -> None:
    """Request a swallowed exit again: Python swallows exceptions in callbacks, such as the release of a lock during an
    import."""
    if not isinstance(unraisable.exc_value, SystemExit):
        sys.__unraisablehook__(unraisable)
        return
    answer_sigterm(_exit_once)
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()


def _serve(connection: Any, functions: dict[str, Callable[..., Any]]) -> None:
    obey_parent()
    limit_threads(1)
    shared_arrays.send(connection, (None, None))
    with suppress(EOFError, SystemExit):
        while True:
            name, arguments = shared_arrays.receive(connection)
            result, failure = None, None
            try:
                result = functions[name](*arguments)
            except Exception as error:
                failure = PortableError(error)
            del arguments
            try:
                shared_arrays.send(connection, (result, failure))
            except Exception as error:
                shared_arrays.send(connection, (None, PortableError(error)))
            del result
    sys.stdout.flush()
    sys.stderr.flush()
    # nothing is left to do, and libraries take seconds to shut down
    os._exit(0)
