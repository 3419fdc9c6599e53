import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs import claims as claims_module
from fvae_nnunet.jobs.claims import CRASHED_AFTER_S, Claims, Owner

CASES = ["a", "b.c", "d"]


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def claims(*folders, known=CASES):
    return Claims(folders, known=known)


@pytest.fixture
def elsewhere(monkeypatch):
    """Claims made meanwhile are those of a process on another machine, each time a new one."""
    number = itertools.count()

    class Elsewhere:
        def __enter__(self):
            name = f"machine {next(number)}"
            monkeypatch.setattr(claims_module, "_machine", lambda: name)

        def __exit__(self, *_):
            monkeypatch.undo()

    return Elsewhere()


def begin(folder, cases, *, elsewhere):
    """A process on another machine that has claimed the first of its cases and is at work on it."""
    with elsewhere:
        other = claims(folder)
        each = other.each(cases)
        assert next(each) == cases[0]
    return other, each


def crash(other):
    """No sign of life for longer than the limit."""
    other._closing.set()
    for path in other._touched:
        os.utime(path, times=(time.time() - CRASHED_AFTER_S - 1,) * 2)


def test_a_case_is_claimed_once_and_nothing_is_left(tmp_path):
    with claims(tmp_path) as first, claims(tmp_path) as second:
        assert next(mine := first.each(CASES)) == "a"
        assert [*second.each(CASES[:2])] == ["b.c"]
        assert second.elsewhere == ["a"]
        second.release("b.c")
        first.release("a")
        assert [*mine] == ["b.c", "d"]
        assert all((tmp_path / "claims" / f"{case}.claim").is_file() for case in ("b.c", "d"))
    assert not list(tmp_path.iterdir())


def test_what_was_in_work_is_tried_once_more_at_the_end(tmp_path):
    with claims(tmp_path) as first, claims(tmp_path) as second:
        assert next(first.each(CASES)) == "a"
        others = second.each(CASES)
        assert [next(others), next(others)] == ["b.c", "d"]
        first.release("a")
        assert [*others] == ["a"]
        assert second.elsewhere == []


def test_all_folders_or_none(tmp_path):
    with claims(tmp_path / "2d") as one, claims(tmp_path / "3d", tmp_path / "2d") as both:
        assert next(one.each(["a"])) == "a"
        assert [*both.each(["a", "d"])] == ["d"]
        assert both.elsewhere == ["a"]
        assert "d.claim" in files(tmp_path / "3d")
        assert "a.claim" not in files(tmp_path / "3d")
    assert files(tmp_path) == []


def test_a_silent_process_elsewhere_is_succeeded_and_a_living_one_is_not(tmp_path, elsewhere):
    other, _ = begin(tmp_path, ["a", "d"], elsewhere=elsewhere)
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == []
        assert mine.elsewhere == ["a"]
    crash(other)
    with claims(tmp_path) as mine:
        assert [*mine.each(["b.c"])] == ["b.c", "a", "d"]
        assert mine.adopted == ["a", "d"]
        for case in ("b.c", "a", "d"):
            mine.release(case)
    assert files(tmp_path) == []


def test_cases_of_an_unknown_input_and_of_a_process_that_ended_well_are_left_alone(tmp_path, elsewhere):
    other, _ = begin(tmp_path, ["a", "x"], elsewhere=elsewhere)
    crash(other)
    with claims(tmp_path) as mine:
        assert [*mine.each([])] == ["a"]
        mine.release("a")
    assert [name.endswith(".run") for name in files(tmp_path)] == [True]
    for path in (tmp_path / "claims").iterdir():
        path.unlink()
    with elsewhere, claims(tmp_path) as other:
        next(other.each(["a", "d"]))
        other.release("a")
    with claims(tmp_path) as mine:
        assert [*mine.each([])] == []


def test_the_file_servers_clock_counts_not_ours(tmp_path, elsewhere, monkeypatch):
    begin(tmp_path, ["a"], elsewhere=elsewhere)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == []


def test_a_successor_that_crashes_is_succeeded_too_and_old_claims_do_not_come_back(tmp_path, elsewhere):
    first, _ = begin(tmp_path, ["a"], elsewhere=elsewhere)
    crash(first)
    second, _ = begin(tmp_path, ["a"], elsewhere=elsewhere)
    assert len([name for name in files(tmp_path) if name.endswith(".claim")]) == 2
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == []
    crash(second)
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == ["a"]
        first.release("a")
        second.release("a")
        with claims(tmp_path) as another:
            assert [*another.each(["a"])] == []
        mine.release("a")
    assert files(tmp_path) == []


def test_a_claim_cut_short_holds_until_it_is_old(tmp_path):
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "a.claim").write_text('{"token": ')
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == []
    os.utime(folder / "a.claim", times=(1, 1))
    with claims(tmp_path) as mine:
        assert [*mine.each(["a"])] == ["a"]
        mine.release("a")
    assert files(tmp_path) == []


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    with claims(tmp_path) as mine:
        next(mine.each(["a"]))
        claim = tmp_path / "claims" / "a.claim"
        os.utime(claim, times=(1, 1))
        deadline = time.monotonic() + 5
        while claim.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_overwriting_under_a_process_at_work_is_refused(tmp_path):
    with claims(tmp_path) as first:
        claims(tmp_path).refuse_others()
        next(first.each(CASES))
        with pytest.raises(UserError, match=f"by process {os.getpid()} on"):
            claims(tmp_path).refuse_others()


CLAIM_AND_WAIT = (
    "import sys, time; from pathlib import Path; from fvae_nnunet.jobs.claims import Claims\n"
    "with Claims([Path(sys.argv[1])], known=['a', 'd']) as claims:\n"
    "    next(claims.each(['a', 'd'])); print('claimed', flush=True); time.sleep(60)\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_on_the_same_machine_a_killed_process_is_succeeded_at_once_and_a_stopped_one_never(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CLAIM_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        other.send_signal(signal.SIGSTOP)
        for path in (tmp_path / "claims").iterdir():
            os.utime(path, times=(1, 1))
        with claims(tmp_path) as mine:
            assert [*mine.each(["b.c"])] == ["b.c"]
        other.kill()
        deadline = time.monotonic() + 5
        while not Owner.read(tmp_path / "claims" / "a.claim").has_crashed(0):
            assert time.monotonic() < deadline
        with claims(tmp_path) as mine:
            assert [*mine.each(["b.c"])] == ["b.c", "a", "d"]
            for case in ("b.c", "a", "d"):
                mine.release(case)
    assert files(tmp_path) == []


def test_a_pid_used_again_is_not_taken_for_the_process(tmp_path):
    with claims(tmp_path) as mine:
        next(mine.each(["a"]))
        path = tmp_path / "claims" / "a.claim"
        assert not Owner.read(path).has_crashed(0)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
        assert Owner.read(path).has_crashed(0) == (sys.platform == "linux")


def take_all(folder, cases, start, results):
    with Claims([folder], known=cases) as mine:
        start.wait()
        got = []
        for case in mine.each(cases):
            # two holders at once would meet here
            os.close(os.open(folder / f"{case}.working", os.O_CREAT | os.O_EXCL))
            (folder / f"{case}.working").unlink()
            (folder / f"{case}.{len(got)}.{os.getpid()}").touch()
            got.append(case)
            mine.release(case)
        results.put((got, mine.elsewhere))


def test_many_processes_at_one_crashed_folder_never_hold_a_case_together(tmp_path, elsewhere):
    cases = [f"case{number:02d}" for number in range(60)]
    with elsewhere:
        crashed = claims(tmp_path, known=cases)
        each = crashed.each(cases)
        for _ in cases:
            next(each)
    crash(crashed)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=take_all, args=(tmp_path, cases, start, results)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    done = {case for got, _ in found for case in got}
    assert done == set(cases)
    assert not list(tmp_path.glob("*.working"))
    assert not Path(tmp_path, "claims").exists()
