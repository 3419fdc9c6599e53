import errno
import os

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.pipeline import StageSeconds, run_cases


def read(case):
    if case == "unreadable":
        raise UserError("cannot be read")
    return None if case == "finished" else f"{case} read by {os.getpid()}"


def write(case, computed):
    if case == "unwritable":
        raise ValueError("cannot be written")
    if case == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "target")
    if case == "killed":
        os._exit(1)
    return computed


def compute(case, payload):
    if case == "uncomputable":
        raise RuntimeError("out of memory")
    return f"{payload}, computed"


def outcomes(cases, workers):
    return list(run_cases(cases, read=read, compute=compute, write=write, workers=workers, seconds=StageSeconds()))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_failure_does_not_stop_the_others_and_order_is_kept(workers):
    cases = ["a", "unreadable", "finished", "b", "unwritable", "uncomputable", "c", "d", "e"]
    found = {outcome.case: outcome for outcome in outcomes(cases, workers)}
    assert sorted(found) == sorted(cases)
    assert {case for case, outcome in found.items() if outcome.error} == {"unreadable", "unwritable", "uncomputable"}
    assert found["finished"].result is None
    assert all(found[case].result.endswith("computed") for case in "abcde")
    assert [case for case in found if case in "abcde"] == list("abcde")


def test_with_workers_reading_happens_elsewhere():
    (outcome,) = outcomes(["a"], 1)
    assert f"by {os.getpid()}," not in outcome.result


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_everything(workers):
    with pytest.raises(UserError, match="no space left"):
        outcomes(["a", "full", "b"], workers)


def test_a_worker_that_dies_is_said():
    with pytest.raises(UserError, match="a worker process died"):
        outcomes(["a", "killed", "b", "c", "d"], 1)


def test_memory_is_bounded_by_what_is_in_flight():
    in_flight, most = 0, 0

    def count_read(case):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        return case

    def count_write(case, computed):
        nonlocal in_flight
        in_flight -= 1

    cases = [str(number) for number in range(50)]
    list(run_cases(cases, read=count_read, compute=compute, write=count_write, workers=0, seconds=StageSeconds()))
    assert most <= 4
