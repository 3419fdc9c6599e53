"""Locks on the cases of a folder, so that several processes, also on several machines, can share the work.

While processes work in a folder, ``<folder>/locks`` holds::

    <case>.lock                       the case is taken
    runs/<host>-<pid>-<random>.lock   this process works in the folder; its name ends in .alone.lock until a process
                                      that deletes what is there has begun again

Each file is locked by its process (``filelock``), and the system releases the lock when the process ends for any
reason. On a file system without such locks, the file itself is the lock. The file of a killed process then remains,
and only a process on the same host notices that its owner is gone.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from fvae_nnunet.errors import UserError

SUBFOLDER = "locks"
RUNS = "runs"
ALONE = ".alone"
LOOK_AGAIN_S = 1.0
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class CaseLocks:
    """Locks of this process on cases; a context manager that releases them.

    Args:
        folders: folders to which cases are written; a case is locked in all of them or in none.
        wait: whether ``each`` finally waits for cases that other processes hold.
        alone: refuse other processes until the first case is taken, as needed to delete what is in the folders.
        say: called with a line when the waiting begins.

    Attributes:
        missing: cases that other processes still held at the end of ``each``; empty if it waited.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        wait: bool = True,
        alone: bool = False,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._folders = [folder / SUBFOLDER for folder in sorted(folders)]
        self._wait = wait
        self._alone = alone
        self._say = say
        self._run = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._runs: list[BaseFileLock] = []
        self._held: dict[str, list[BaseFileLock]] = {}
        self._closing = threading.Event()
        self._new_folders: list[Path] = []
        self.missing: list[str] = []

    def __enter__(self) -> CaseLocks:
        """Register this process in the folders, which are created if necessary, and removed at the end if still empty.

        Raises:
            UserError: another process works in one of the folders, and one of both must be alone.
        """
        for folder in self._folders:
            missing = [path for path in folder.parents if not path.exists()]
            self._new_folders += [path for path in missing if path not in self._new_folders]
        self._runs = self._registered(ALONE if self._alone else "")
        try:
            self._refuse_others()
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for case in list(self._held):
            self.release(case)
        for run in self._runs:
            _give_back(run)
        if self._runs:
            self._other_runs()  # removes files of killed processes
        for folder in self._folders:
            with suppress(OSError):  # other processes still work here
                (folder / RUNS).rmdir()
                folder.rmdir()
        for new in sorted(self._new_folders, reverse=True):
            with suppress(OSError):
                new.rmdir()

    def _registered(self, kind: str) -> list[BaseFileLock]:
        runs = []
        for folder in self._folders:
            while (run := _locked(folder / RUNS / f"{self._run}{kind}.lock")) is None:
                pass
            runs.append(run)
        return runs

    def _refuse_others(self) -> None:
        others = self._other_runs()
        for run in others if self._alone else [run for run in others if run.stem.endswith(ALONE)]:
            raise UserError(
                f"{run.parents[2]} is being written by another process (host and process id: "
                f"{run.stem.removesuffix(ALONE)}); wait for it or stop it"
            )

    def each(self, cases: Iterable[str]) -> Iterator[str]:
        """Lock and yield one case after the other; the caller releases each with ``release``.

        Cases that other processes hold come last, as soon as they are released. The caller then reads the record of
        such a case to see whether it is complete.
        """
        busy = []
        for case in cases:
            if self.take(case):
                yield case
            else:
                busy.append(case)
        if busy and self._wait:
            which = busy[0] if len(busy) == 1 else f"{len(busy)} cases (first: {busy[0]})"
            self._say(f"waiting for other processes that work on {which}; their locks are in {self._folders[0]}")
        while busy and self._wait and not self._closing.wait(LOOK_AGAIN_S):
            still_busy = []
            for case in busy:
                if self.take(case):
                    yield case
                else:
                    still_busy.append(case)
            busy = still_busy
        self.missing = busy

    def take(self, case: str) -> bool:
        """Lock a case; False if another process holds it."""
        if self._alone:
            alone, self._runs, self._alone = self._runs, self._registered(""), False
            for run in alone:
                _give_back(run)
        taken: list[BaseFileLock] = []
        for folder in self._folders:
            lock = _locked(folder / f"{case}.lock")
            if lock is None:
                for other in taken:
                    _give_back(other)
                return False
            taken.append(lock)
        self._held[case] = taken
        return True

    def release(self, case: str) -> None:
        """Release the lock of a case, whether it is done or failed."""
        for lock in self._held.pop(case, []):
            _give_back(lock)

    def _other_runs(self) -> list[Path]:
        """Lock files of other running processes; removes those of processes that have ended."""
        alive = []
        for path in (path for folder in self._folders for path in (folder / RUNS).glob("*.lock")):
            if path.stem.removesuffix(ALONE) == self._run:
                continue
            lock = _locked(path)
            if lock is None:
                alive.append(path)
            else:
                _give_back(lock)
        return alive


def delete_all_but_locks(folder: Path) -> None:
    """Delete the content of a folder, and the folder itself unless processes are registered in it.

    Folders in it are deleted before files, so that a manifest is there as long as one of its records.
    """
    for path in sorted(folder.iterdir(), key=Path.is_file):
        if path.is_dir() and not path.is_symlink():
            if path.name != SUBFOLDER:
                shutil.rmtree(path)
        else:
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _locked(path: Path) -> BaseFileLock | None:
    """Acquire the lock of a file; None if another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = _kind_of_lock(path.parent)(path, thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except FileNotFoundError:  # another process has removed the empty folder
            continue
        return lock


def _give_back(lock: BaseFileLock) -> None:
    """Unlock and remove a lock file.

    At the moment of removal, a process that has just opened the file and one that creates it again may both lock the
    same case. They find the case complete, or both write the same bytes.
    """
    if os.name == "posix" and not isinstance(lock, SoftFileLock):  # other kinds remove their files themselves
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


_kinds: dict[int, type[BaseFileLock]] = {}


def _kind_of_lock(folder: Path) -> type[BaseFileLock]:
    """Kind of lock that works on the file system of the folder."""
    device = folder.stat().st_dev
    if device not in _kinds:
        _kinds[device] = FileLock if _can_lock(folder) else SoftFileLock
        if _kinds[device] is SoftFileLock:
            warnings.warn(
                f"the file system of {folder} has no locks (flock), so a killed process leaves its lock files in "
                f"{folder}; if a command waits for a case that no process works on, delete them",
                stacklevel=2,
            )
    return _kinds[device]


def _can_lock(folder: Path) -> bool:
    if os.name != "posix":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return False
            raise
    return True
