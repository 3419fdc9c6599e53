"""Locks of one process are tried against those of real other processes."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import filelock
import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs import locks as locks_module
from fvae_nnunet.jobs.locks import CaseLocks, delete_all_but_locks

CASES = ["a", "b.c", "d"]

HOLD = """
import sys
from pathlib import Path
from fvae_nnunet.jobs.locks import CaseLocks
with CaseLocks([Path(folder) for folder in sys.argv[2:]]) as locks:
    for case in sys.argv[1].split(","):
        assert locks.take(case)
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that holds cases until its input ends."""

    def __init__(self, cases: str, *folders: Path) -> None:
        command = [sys.executable, "-c", HOLD, cases, *map(str, folders)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"

    def leave(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(locks_module, "LOOK_AGAIN_S", 0.02)


@pytest.fixture
def begin():
    others = []

    def started(cases, *folders):
        others.append(Other(cases, *folders))
        return others[-1]

    yield started
    for other in others:
        other.kill()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_case_is_held_once_and_nothing_is_left(tmp_path):
    with CaseLocks([tmp_path]) as ours, CaseLocks([tmp_path], wait=False) as others:
        for case in ours.each(CASES):
            assert not others.take(case)
            ours.release(case)
            assert others.take(case)
            others.release(case)
    assert ours.missing == [] and list(tmp_path.iterdir()) == []


def test_a_lock_is_given_back_by_any_thread(tmp_path):
    with CaseLocks([tmp_path]) as ours:
        each = ours.each(CASES)
        taker = threading.Thread(target=next, args=(each,))
        taker.start()
        taker.join()
        ours.release("a")
        assert not list((tmp_path / "locks").glob("*.lock"))
        with CaseLocks([tmp_path]) as others:
            assert others.take("a")


def test_what_others_hold_comes_last_as_soon_as_it_is_free(tmp_path, begin):
    other, said = begin("a,d", tmp_path), []
    with CaseLocks([tmp_path], say=said.append) as locks:
        each = locks.each(CASES)
        assert next(each) == "b.c" and said == []
        locks.release("b.c")
        leaving = threading.Timer(0.3, other.leave)
        leaving.start()
        assert list(each) == ["a", "d"]
        leaving.join()
    assert locks.missing == []
    assert said == [
        f"waiting for other processes that work on 2 cases (first: a); their locks are in {tmp_path / 'locks'}"
    ]


def test_without_waiting_they_are_missing(tmp_path, begin):
    other = begin("a,d", tmp_path)
    with CaseLocks([tmp_path], wait=False) as locks:
        assert list(locks.each(CASES)) == ["b.c"]
        assert locks.missing == ["a", "d"]
    other.leave()
    assert list(tmp_path.iterdir()) == []


def test_leaving_ends_the_waiting(tmp_path, begin):
    begin("a", tmp_path)
    with CaseLocks([tmp_path]) as locks:
        waiting = threading.Thread(target=list, args=(locks.each(["a"]),))
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()
    waiting.join(5)
    assert not waiting.is_alive() and locks.missing == ["a"]


def test_all_folders_or_none(tmp_path, begin):
    first, second = tmp_path / "1", tmp_path / "2"
    begin("a", second)
    with CaseLocks([second, first], wait=False) as both, CaseLocks([first], wait=False) as one:
        assert list(both.each(["a", "d"])) == ["d"]
        assert list(one.each(["a", "d"])) == ["a"]


def test_a_killed_process_holds_nothing_and_what_it_left_is_removed(tmp_path, begin):
    other = begin("a,d", tmp_path)
    other.kill()
    assert files(tmp_path / "locks") == ["a.lock", "d.lock", next((tmp_path / "locks/runs").iterdir()).name]
    with CaseLocks([tmp_path], wait=False) as locks:
        for case in locks.each(CASES):
            locks.release(case)
        assert locks.missing == []
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_process_keeps_its_case(tmp_path, begin):
    other = begin("a", tmp_path)
    os.kill(other.process.pid, signal.SIGSTOP)
    with CaseLocks([tmp_path], wait=False) as locks:
        assert list(locks.each(["a"])) == []
    os.kill(other.process.pid, signal.SIGCONT)


def test_overwriting_under_a_process_at_work_is_refused(tmp_path, begin):
    other = begin("a", tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path} is being written .*-{other.process.pid}-"):
        CaseLocks([tmp_path], alone=True).__enter__()
    other.kill()
    with CaseLocks([tmp_path], alone=True) as locks:
        assert locks.take("a")
    assert list(tmp_path.iterdir()) == []


def test_until_it_has_begun_again_a_process_that_overwrites_is_alone(tmp_path):
    """It is alone while its VAE is loaded and while it deletes, and others may share its cases afterwards."""
    folder = tmp_path / "a" / "view"
    with CaseLocks([folder], alone=True) as alone:
        for also in (False, True):
            with pytest.raises(UserError, match=rf"{folder} is being written by another process"):
                CaseLocks([folder], alone=also).__enter__()
        (folder / "cases").mkdir()
        (folder / "manifest.json").touch()
        delete_all_but_locks(folder)
        with pytest.raises(UserError, match="is being written"):
            CaseLocks([folder]).__enter__()
        assert alone.take("a")
        with CaseLocks([folder], wait=False) as other:
            assert not other.take("a") and other.take("b")
        with pytest.raises(UserError, match="is being written"):
            CaseLocks([folder], alone=True).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay_and_those_with_files_too(tmp_path):
    (tmp_path / "before").mkdir()
    with CaseLocks([tmp_path / "before", tmp_path / "new" / "view"]):
        (tmp_path / "new" / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["before", "file", "new"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_has_files_as_locks_and_that_is_said_once(tmp_path, monkeypatch, number):
    import fcntl

    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(locks_module, "_kinds", {})
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks") as warned, CaseLocks([tmp_path], wait=False) as ours:
        assert ours.take("a") and ours.take("d")
        with CaseLocks([tmp_path], wait=False) as others:
            assert list(others.each(CASES)) == ["b.c"] and others.missing == ["a", "d"]
            ours.release("a")
            assert others.take("a")
            with pytest.raises(UserError, match="is being written"):
                CaseLocks([tmp_path], alone=True).__enter__()
    assert len(warned) == 1
    assert list(tmp_path.iterdir()) == []


def test_of_a_killed_process_of_this_host_the_file_is_taken_over(tmp_path, monkeypatch):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / "locks").mkdir()
    lock = filelock.SoftFileLock(tmp_path / "locks" / "a.lock")
    lock.acquire()
    text = Path(lock.lock_file).read_text()
    assert str(os.getpid()) in text
    Path(lock.lock_file).write_text(text.replace(str(os.getpid()), str(killed.pid)))
    monkeypatch.setattr(locks_module, "_kind_of_lock", lambda folder: filelock.SoftFileLock)
    deadline = time.monotonic() + 20
    with CaseLocks([tmp_path], wait=False) as locks:
        while not locks.take("a"):  # young files are left alone
            assert time.monotonic() < deadline
            time.sleep(0.1)


WORK = """
import os, sys, time
from pathlib import Path
from fvae_nnunet.jobs import locks as locks_module
from fvae_nnunet.jobs.locks import CaseLocks
locks_module.LOOK_AGAIN_S = 0.01
folder = Path(sys.argv[1])
with CaseLocks([folder]) as locks:
    for case in locks.each([f"case_{number}" for number in range(60)]):
        if not (folder / case).exists():
            with (folder / "log").open("a") as log:
                log.write(f"{case} {os.getpid()} begins\\n")
                log.flush()
                time.sleep(0.005)
                log.write(f"{case} {os.getpid()} ends\\n")
            (folder / case).touch()
        locks.release(case)
"""


@pytest.mark.slow
def test_processes_that_are_killed_and_started_again_share_the_cases(tmp_path):
    """Whoever ends well finds all cases complete; no case is done twice, but for those of a killed process."""
    chance = random.Random(0)
    running = [subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)]) for _ in range(3)]
    for _ in range(6):
        time.sleep(0.25)
        killed = running.pop(chance.randrange(len(running)))
        killed.kill()
        killed.wait()
        running.append(subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)]))
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(list(tmp_path.glob("case_*"))) == 60
    ends = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines() if line.endswith("ends"))
    assert set(ends.values()) == {1}
    assert not (tmp_path / "locks").exists()
