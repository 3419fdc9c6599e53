"""Who is at work on which case of a folder, so that several processes, also on several machines, can share it.

``<folder>/claims`` holds, only while somebody works there::

    <case>.claim            the case is taken; made with O_EXCL, so only one process can
    <case>.<token>.claim    the successor of the claim with that token, whose process has crashed
    <token>.run             a process is at work in this folder, and these are its cases

Each file is JSON and names its owner: ``token`` (unique to the file), ``host``, ``machine`` (the running system and its
process namespace), ``pid`` and ``started`` (of that process, so that a reused pid is not taken for it). A thread of the
owner touches its files every half minute.

A file's owner has crashed if its process is gone from this very machine, or if the file has not been touched for five
minutes by the clock of the file server (ours is never asked). A claim of a crashed owner is succeeded, not replaced:
the successor's file carries the token of the claim it succeeds and is made with O_EXCL as well, so there is at most one
for each, and the last of the chain owns the case. Claims are given back first file first; who made a successor looks
again whether the chain still leads to it. This needs of the file system no more than NFS gives.

A process that is stopped for longer than five minutes and wakes up again may do a case that another has taken over
on another machine; both write the same content.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from fvae_nnunet.errors import UserError

SUBFOLDER = "claims"
BEAT_S = 30.0
CRASHED_AFTER_S = 300.0


@dataclass(frozen=True)
class Owner:
    """Which process made a file, and when the file server saw its last sign of life.

    Attributes:
        token: unique to the file.
        host, machine, pid, started: the process.
        cases: of a run.
        touched: the file's time of modification, by the file server's clock.
    """

    token: str
    host: str = ""
    machine: str = ""
    pid: int = 0
    started: str = ""
    cases: tuple[str, ...] = ()
    touched: float = 0.0

    @classmethod
    def here(cls, cases: Iterable[str] = ()) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid), tuple(cases))

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The owner of a file, or None where there is no such file. A file not yet written has an unknown owner."""
        try:
            with path.open() as file:
                text, state = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        try:
            content = json.loads(text)
            return cls(**content | {"cases": tuple(content["cases"]), "touched": state.st_mtime})
        except (json.JSONDecodeError, KeyError, TypeError):
            return cls(token=f"inode{state.st_ino}", touched=state.st_mtime)

    def has_crashed(self, server_time: float) -> bool:
        """Whether the process is gone, or silent for so long that it must be."""
        if self.machine and self.machine == _machine():
            try:
                os.kill(self.pid, 0)
                there = _started(self.pid)
            except ProcessLookupError:
                return True
            except PermissionError:
                there = ""
            if self.started and there:
                return there != self.started
        return server_time - self.touched > CRASHED_AFTER_S


@cache
def _machine() -> str:
    """The running system and its process namespace: only inside it do two pids mean the same. Empty if unknown."""
    if os.name != "posix":
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; "ended" for a zombie, empty if unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]


class Claims:
    """This process' claims on cases; a context that gives them back.

    Args:
        folders: where a case is written; it is claimed in all of them or in none.
        known: the cases that this process could do. Others in the folder are left alone.

    Attributes:
        elsewhere: cases of ``each`` that other processes were still at work on at its end.
        adopted: cases that ``each`` took over from processes that have crashed.
    """

    def __init__(self, folders: Iterable[Path], *, known: Iterable[str]) -> None:
        self._folders = [folder / SUBFOLDER for folder in sorted(folders)]
        self._known = set(known)
        self._lock = threading.Lock()
        self._runs: list[Path] = []
        self._held: dict[str, list[tuple[Path, str]]] = {}
        self._touched: set[Path] = set()
        self._handled: set[str] = set()
        self._closing = threading.Event()
        self.elsewhere: list[str] = []
        self.adopted: list[str] = []

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._closing.set()
        if not self._runs:
            return
        for case in list(self._held):
            self.release(case)
        if error is None:
            for path, run in self._crashed_runs():
                if set(run.cases) <= self._handled:
                    path.unlink(missing_ok=True)
        for path in self._runs:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()

    def refuse_others(self) -> None:
        """Raise UserError where another process is at work in one of the folders."""
        for folder in self._folders:
            for path in folder.glob("*.run"):
                with tempfile.TemporaryFile(dir=folder) as file:
                    now = os.fstat(file.fileno()).st_mtime
                run = Owner.read(path)
                if run is not None and not run.has_crashed(now):
                    raise UserError(
                        f"{folder.parent} is being written by process {run.pid} on {run.host}; wait for it, or stop it"
                    )

    def each(self, cases: Iterable[str]) -> Iterator[str]:
        """Claim one case after the other and yield it. Whoever gets a case gives it back with ``release``.

        First these cases, then those of crashed processes, then once more those that others were at work on before.
        """
        cases = list(cases)
        self._register(cases)
        busy = []
        for case in cases:
            if self.take(case):
                yield case
            else:
                busy.append(case)
        for case in self._left_behind(cases):
            if self.take(case):
                self.adopted.append(case)
                yield case
        for case in busy:
            if self.take(case):
                yield case
            else:
                self.elsewhere.append(case)

    def take(self, case: str) -> bool:
        """Claim a case; False if another process has it. Only inside ``each``."""
        taken: list[tuple[Path, str]] = []
        for folder in self._folders:
            token = self._take_in(folder, case)
            if token is None:
                self._give_back(case, taken)
                return False
            taken.append((folder, token))
        with self._lock:
            self._held[case] = taken
        return True

    def release(self, case: str) -> None:
        """Give a case back, done or failed."""
        with self._lock:
            taken = self._held.pop(case, [])
            self._handled.add(case)
        self._give_back(case, taken)

    def _take_in(self, folder: Path, case: str) -> str | None:
        """The token of our claim, or None if the case is another's."""
        paths, owner = _chain(folder, case)
        if owner is not None and not owner.has_crashed(self._server_time()):
            return None
        mine = Owner.here()
        if not self._make(paths[-1], mine):
            return None
        _, owner = _chain(folder, case)
        if owner is None or owner.token != mine.token:
            # the chain was given back while its end was being succeeded
            self._remove(paths[-1])
            return None
        return mine.token

    def _give_back(self, case: str, taken: list[tuple[Path, str]]) -> None:
        for folder, token in taken:
            paths, owner = _chain(folder, case)
            if owner is not None and owner.token == token:
                for path in paths[:-1]:
                    self._remove(path)

    def _make(self, path: Path, owner: Owner) -> bool:
        """Make a file that must not exist yet, and keep it touched; False if it does."""
        content = asdict(owner)
        del content["touched"]
        try:
            with path.open("x") as file:
                json.dump(content, file)
        except FileExistsError:
            return False
        except OSError:
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._touched.add(path)
        return True

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._touched.discard(path)
        path.unlink(missing_ok=True)

    def _register(self, cases: list[str]) -> None:
        run = Owner.here(cases)
        for folder in self._folders:
            path = folder / f"{run.token}.run"
            while path not in self._runs:
                folder.mkdir(parents=True, exist_ok=True)
                # another process may have removed the folder again, as it was empty
                with suppress(FileNotFoundError):
                    self._make(path, run)
                    self._runs.append(path)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_S):
            with self._lock:
                paths = list(self._touched)
            for path in paths:
                with suppress(FileNotFoundError):
                    os.utime(path)

    def _server_time(self) -> float:
        """The file server's clock now."""
        os.utime(self._runs[0])
        return self._runs[0].stat().st_mtime

    def _crashed_runs(self) -> list[tuple[Path, Owner]]:
        now = self._server_time()
        found = [(path, Owner.read(path)) for folder in self._folders for path in folder.glob("*.run")]
        return [(path, run) for path, run in found if run is not None and run.has_crashed(now)]

    def _left_behind(self, own: list[str]) -> list[str]:
        """Known cases of processes that registered and crashed, without those that are ours anyway."""
        left = {case for _, run in self._crashed_runs() for case in run.cases}
        return sorted((left & self._known) - set(own))


def _chain(folder: Path, case: str) -> tuple[list[Path], Owner | None]:
    """The files of the claim on a case and the first that is free; the owner in the last that is there."""
    paths, owner = [folder / f"{case}.claim"], None
    while (found := Owner.read(paths[-1])) is not None:
        owner = found
        paths.append(folder / f"{case}.{owner.token}.claim")
    return paths, owner
