import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from pipeline_work import VOXELS, read_in_time, read_volume, run, write_half, write_in_time, write_slowly

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs import shared_arrays
from fvae_nnunet.jobs.pipeline import BEYOND_WORKERS, StageSeconds


@pytest.mark.parametrize("workers", [0, 2])
def test_one_failure_does_not_stop_the_others(workers):
    cases = ["a", "unreadable", "finished", "b", "unwritable", "uncomputable", "c", "d", "e"]
    outcomes = list(run(cases, workers))
    assert sorted(outcome.case for outcome in outcomes) == sorted(cases)
    found = {outcome.case: outcome for outcome in outcomes}
    assert {case: type(found[case].error) for case in cases if found[case].error} == {
        "unreadable": UserError, "unwritable": ValueError, "uncomputable": RuntimeError,
    }  # fmt: skip
    assert found["finished"].result is None
    for case in "abcde":
        assert found[case].result.startswith(f"{case} read by")
        assert found[case].result.endswith("computed")
        assert (f"by {os.getpid()}," in found[case].result) == (workers == 0)
    if workers:
        assert "in write\n" in str(found["unwritable"].error.__cause__)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("full", "said"), [("full", "left on the disk"), ("over quota", "left in the disk quota")])
def test_a_full_disk_stops_everything_after_what_is_computed_is_written(workers, full, said):
    done, computed = [], []

    def compute(case, payload):
        computed.append(case)
        return payload

    with pytest.raises(UserError, match=rf"no space {said} \(target\); free some"):
        for outcome in run(["a", full, *"bcdefghijk"], workers, compute=compute):
            done.append(outcome.case)
    assert done == [case for case in computed if case != full]
    assert "k" not in done


def test_a_library_that_ends_the_process_is_not_called_a_lack_of_memory():
    found = {outcome.case: outcome for outcome in run(["a", "aborted"], 1)}
    assert found["a"].error is None
    assert "its worker process ended (SIGABRT) during the step 'write'" in str(found["aborted"].error)


def test_a_worker_that_is_killed_costs_only_its_case():
    found = {outcome.case: outcome for outcome in run(["a", "killed", "b", "c", "d"], 1)}
    assert "its worker process was killed, probably for lack of memory" in str(found["killed"].error)
    assert [case for case, outcome in found.items() if outcome.error is None] == ["a", "b", "c", "d"]


def test_what_cannot_be_sent_is_the_failure_of_its_case():
    found = {outcome.case: outcome for outcome in run(["a", "b"], 1, compute=lambda case, payload: lambda: 0)}
    assert {type(outcome.error) for outcome in found.values()} <= {AttributeError, TypeError}
    assert len(found) == 2


def test_an_error_of_the_list_of_cases_comes_out():
    def cases():
        yield "a"
        raise UserError("the list ends here")

    with pytest.raises(UserError, match="the list ends here"):
        list(run(cases(), 1))


def test_volumes_arrive_whole_and_as_they_lie():
    strides = read_volume("0")["volume"].strides

    def compute(case, raw):
        assert raw["volume"].strides == strides
        return raw["volume"] * np.int16(2)

    for outcome in run(["1", "2", "3"], 2, read=read_volume, compute=compute, write=write_slowly):
        assert outcome.result[:2] == (2 * int(outcome.case) * np.prod(VOXELS), strides)


def max_at_once(spans):
    return max(sum(start <= instant < stop for start, stop in spans) for instant, _ in spans)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_however_slow_the_disk_so_many_cases_are_alive_and_so_few_arrays_are_here(workers):
    most_raw, most_results = 0, 0
    raw_volumes, results = [], []
    taken, written = {}, {}

    def cases():
        for case in "0123456789":
            taken[case] = time.time()
            yield case

    def compute(case, raw):
        nonlocal most_raw, most_results
        raw_volumes.append(weakref.ref(raw["volume"]))
        result = np.zeros(VOXELS, np.int16)
        results.append(weakref.ref(result))
        most_raw = max(most_raw, sum(array() is not None for array in raw_volumes))
        most_results = max(most_results, sum(array() is not None for array in results))
        return result

    for outcome in run(cases(), workers, read=read_volume, compute=compute, write=write_slowly):
        written[outcome.case] = outcome.result[2:]
    alive = max_at_once([(taken[case], written[case][1]) for case in taken])
    assert alive <= (workers + BEYOND_WORKERS if workers else 1)
    assert max_at_once(list(written.values())) == {0: 1, 1: 1, 3: 3}[workers]
    assert most_raw == 1
    assert most_results <= 2


@pytest.mark.slow
def test_the_device_is_busy_when_the_disk_can_keep_up():
    def compute(case, payload):
        time.sleep(0.2)

    shares = {}
    for workers in (0, 2):
        seconds = StageSeconds()
        list(run(list("abcdefgh"), workers, read=read_in_time, compute=compute, write=write_in_time, seconds=seconds))
        assert seconds.computing >= 1.6
        shares[workers] = seconds.idle_share
    assert shares[0] > 0.4
    assert shares[2] < shares[0] / 2


def test_compact_is_int16_only_where_nothing_is_lost():
    whole = np.array([[-1000.0, 0.0], [3071.0, 32767.0]], np.float32)
    assert shared_arrays.compact(whole).dtype == np.int16
    assert np.array_equal(shared_arrays.compact(whole), whole)
    for lossy in (whole + 0.5, whole + 1, np.where(whole == 0, np.nan, whole)):
        assert shared_arrays.compact(lossy) is lossy


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_worker_ends_with_its_parent_even_inside_a_library(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pipeline_work as t\n"
        "list(t.run(['a'], 1, compute=lambda *_: sys.argv[2], write=t.write_without_letting_go))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parents[1] / "support"), str(tmp_path)])
    begun = tmp_path / "begun"
    while not (begun.is_file() and begun.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    worker = Path("/proc", begun.read_text(), "stat")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while worker.exists() and ") Z " not in worker.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interruption_ends_the_workers_in_order(tmp_path):
    def compute(case, payload):
        if case == "b":
            while not (tmp_path / "a.half").exists():
                time.sleep(0.02)
            raise KeyboardInterrupt
        return tmp_path

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run(["a", "b", "c"], 2, compute=compute, write=write_half))
    assert time.monotonic() - started < 30
    assert not list(tmp_path.iterdir())
