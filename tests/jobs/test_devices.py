import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from device_work import Work, be_ended_inside_a_callback, exit_with_interruption_blocked

from fvae_nnunet.cli import preprocess, reconstruct
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.devices import available_devices, chosen_device, run_on_devices
from fvae_nnunet.jobs.locks import CaseLocks
from fvae_nnunet.jobs.pipeline import StageSeconds
from fvae_nnunet.jobs.workers import start_uninterrupted

CASES = [f"case{number:02d}" for number in range(8)]


def do(work, cases=CASES, devices=("cpu", "cpu")):
    said = []
    seconds = StageSeconds()
    outcomes = list(
        run_on_devices(
            list(devices), work, cases, seconds=seconds, on_slices=lambda *_: None, say=said.append
        )
    )  # fmt: skip
    return outcomes, said, seconds


@pytest.mark.slow
def test_each_case_is_done_once_by_processes_that_share_them(tmp_path):
    outcomes, said, seconds = do(Work(tmp_path, workers=1), [*CASES, "wrong"])
    assert sorted(outcome.case for outcome in outcomes) == sorted([*CASES, "wrong"])
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert failed.case == "wrong"
    assert isinstance(failed.error, ValueError)
    assert "in compute\n" in str(failed.error.__cause__)
    assert len({outcome.result for outcome in outcomes if not outcome.error}) == 2
    assert sorted(path.read_text() for path in tmp_path.glob("opened.*")) == ["False", "True"]
    assert said == []
    assert seconds.computing >= 0.1 * len(CASES)


@pytest.mark.slow
def test_a_killed_process_leaves_its_cases_to_the_others(tmp_path):
    outcomes, said, _ = do(Work(tmp_path, kills="case03"))
    assert sorted(outcome.case for outcome in outcomes) == CASES
    assert not any(outcome.error for outcome in outcomes)
    (line,) = said
    assert "died with exit code -9; its unfinished cases go to the other devices" in line


@pytest.mark.slow
def test_a_case_that_kills_has_failed_after_two_and_the_rest_is_done(tmp_path):
    outcomes, said, _ = do(Work(tmp_path, kills="case03", kills_once=False), devices=("cpu",) * 3)
    assert sorted(outcome.case for outcome in outcomes) == CASES
    assert [outcome.case for outcome in outcomes if outcome.error] == ["case03"]
    assert len(said) == 2


def test_what_is_left_when_no_process_is_left_has_failed(tmp_path):
    outcomes, _, _ = do(Work(tmp_path, kills="case03", kills_once=False), devices=("cpu",))
    assert sorted(outcome.case for outcome in outcomes) == CASES
    assert [outcome.case for outcome in outcomes if not outcome.error] == CASES[:3]


def test_what_keeps_every_process_from_starting_is_raised(tmp_path):
    with pytest.raises(UserError, match="no weights for cpu"):
        do(Work(tmp_path, fails_to_load=True))


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available_devices(["all"]) == ["cuda:0", "cuda:1"]
    assert available_devices(["cuda:1", "cpu", "cpu"]) == ["cuda:1", "cpu", "cpu"]
    assert available_devices(["cuda"]) == ["cuda:0"]
    for wrong in ("cuda:2", "gpu"):
        with pytest.raises(UserError, match=f"does not see {wrong}; available: cuda:0, cuda:1, cpu"):
            available_devices(["cpu", wrong])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="does not see all; available: cpu"):
        available_devices(["all"])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(6):
        image = sitk.GetImageFromArray(rng.integers(-1000, 1000, (3, 32, 32)).astype(np.int16))
        sitk.WriteImage(image, str(folder / f"case{number}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """What one process without workers makes of the images."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    assert reconstruct.main(["-i", str(images), "-o", str(folder), "--vae", "tiny", "-np", "0"]) == 0
    return contents(folder)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(images, out, *extra):
    main = "import sys; from fvae_nnunet.cli.reconstruct import main; sys.exit(main())"
    arguments = ["-i", str(images), "-o", str(out), "--vae", "tiny", *extra]
    return [sys.executable, "-c", main, *arguments]


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.slow
def test_four_processes_write_the_bytes_of_one(images, alone, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["-i", str(images), "-o", str(out), "--vae", "tiny", "-np", "0"]
    assert reconstruct.main([*arguments, "--devices", "cpu", "cpu", "cpu", "cpu"]) == 0
    assert contents(out) == alone
    printed = capsys.readouterr().out
    assert "6 cases done (mean PSNR" in printed
    assert "on 4 devices" in printed
    assert "device idle " in printed
    assert reconstruct.main([*arguments, "--devices", "cpu", "-device", "cpu"]) == 1
    assert "are mutually exclusive" in capsys.readouterr().err


@pytest.mark.slow
def test_a_case_of_another_process_is_waited_for_and_made_if_that_leaves_it(images, alone, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["-i", str(images), "-o", str(out), "--vae", "tiny", "-np", "0"]
    with CaseLocks([out / "fvae_manifest"]) as other:
        assert other.take("case1")
        assert reconstruct.main([*arguments, "--no-wait"]) == 75
        printed = capsys.readouterr()
        assert "5 cases done" in printed.out and "0 already complete, 1 in other processes" in printed.out
        assert "fvae-reconstruct: other processes still work on 1 case" in printed.err
        assert reconstruct.main([*arguments, "--overwrite"]) == 1
        assert "is being written by another process" in capsys.readouterr().err
        leaving = threading.Timer(1, other.release, args=["case1"])
        leaving.start()
        assert reconstruct.main(arguments) == 0
        leaving.join()
    printed = capsys.readouterr()
    assert "waiting for other processes that work on case1" in printed.err
    assert "1 case done" in printed.out and "in other processes" not in printed.out
    assert contents(out) == alone


def test_the_device_of_one_process_is_the_named_one_or_the_best(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [chosen_device(name) for name in (None, "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert chosen_device(None) == "cpu"
    with pytest.raises(UserError, match="no CUDA GPU is visible to torch; use `device='cpu'`"):
        chosen_device("cuda")
    with pytest.raises(UserError, match="torch sees no MPS device"):
        chosen_device("mps")


def living_of_group(group):
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            states.append(path.read_text())
    return [state for state in states if state.rpartition(")")[2].split()[2] == str(group) and ") Z " not in state]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_processes_in_order(images, tmp_path, number):
    out = tmp_path / "out"
    run = subprocess.Popen(
        command(images, out, "-np", "2", "--devices", "cpu", "cpu"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: list(out.glob("fvae_manifest/locks/*.lock")), run)
    os.killpg(run.pid, number) if number == signal.SIGINT else run.terminate()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "interrupted" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 10
    while left := living_of_group(run.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not (out / "fvae_manifest" / "locks").exists()
    assert not list(out.glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_second_interruption_ends_at_once_and_a_killed_parent_leaves_no_process(images, tmp_path):
    for how in ("twice", "killed"):
        out = tmp_path / how
        run = subprocess.Popen(
            command(images, out, "-np", "2", "--devices", "cpu", "cpu"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        wait_for(lambda out=out: list(out.glob("fvae_manifest/locks/*.lock")), run)
        os.kill(run.pid, signal.SIGKILL if how == "killed" else signal.SIGINT)
        if how == "twice":
            with suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGINT)
        began = time.monotonic()
        _, errors = run.communicate(timeout=60)
        assert run.returncode == (-signal.SIGKILL if how == "killed" else 130)
        # Python's own, of a process that was just being started
        assert "Traceback" not in errors or ("in spawn_main" in errors and "Ran out of input" in errors)
        while living_of_group(run.pid):
            assert time.monotonic() < began + 10
            time.sleep(0.05)


def test_an_interruption_does_not_reach_a_process_that_still_starts():
    process = multiprocessing.get_context("spawn").Process(target=exit_with_interruption_blocked)
    start_uninterrupted(process)
    process.join()
    assert process.exitcode == 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_when_a_process_has_started(number):
    class Starting:
        complete = False

        def start(self):
            threading.Thread(target=os.kill, args=(os.getpid(), number)).start()
            time.sleep(0.2)
            self.complete = True

    def leave(*_):
        raise InterruptedError

    process = Starting()
    before = signal.signal(number, leave)
    try:
        with pytest.raises(InterruptedError):
            start_uninterrupted(process)
        assert process.complete
        assert signal.getsignal(number) is leave
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself signals")
def test_a_request_to_end_is_not_lost_in_a_callback_that_swallows_it(tmp_path, capfd):
    cleared = tmp_path / "cleared"
    process = multiprocessing.get_context("spawn").Process(target=be_ended_inside_a_callback, args=(str(cleared),))
    process.start()
    process.join(15)
    assert process.exitcode == 128 + signal.SIGTERM
    assert cleared.exists() and "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_two_identical_commands_at_once_do_each_case_once(images, alone, tmp_path):
    out = tmp_path / "out"
    processes = [start(images, out, "-np", "1") for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert contents(out) == alone
    done = [line.split(":")[0] for text, _ in printed for line in text.splitlines() if ": PSNR" in line]
    assert sorted(done) == sorted(path.name[: -len(".nii.gz")] for path in images.iterdir())


@pytest.mark.slow
def test_a_killed_process_leaves_its_cases_to_one_that_is_at_work(images, alone, tmp_path):
    out = tmp_path / "out"
    killed = start(images, out, "-np", "1")
    wait_for(lambda: list(out.glob("fvae_manifest/locks/*.lock")), killed)
    os.kill(killed.pid, signal.SIGSTOP)
    other = start(images, out, "-np", "0")
    wait_for(lambda: len(list(out.glob("fvae_manifest/locks/runs/*.lock"))) == 2, other)
    killed.kill()
    killed.communicate()
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert contents(out) == alone
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_two_commands_on_several_devices_wait_for_each_other(images, alone, tmp_path):
    """Each has cases that the other waits for, and must go on while it waits itself."""
    out = tmp_path / "out"
    processes = [start(images, out, "-np", "0", "--devices", "cpu", "cpu") for _ in range(2)]
    printed = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert contents(out) == alone


@pytest.mark.slow
def test_four_processes_make_the_view_of_one(clone):
    import blosc2

    folders = {}
    for view, extra in (("one", []), ("four", ["--devices", "cpu", "cpu", "cpu", "cpu"])):
        arguments = [clone.id, "-c", "3d_fullres", "--vae", "tiny", "--view", view, "-np", "0", *extra]
        assert preprocess.main(arguments) == 0
        folders[view] = clone.preprocessed / f"nnUNetPlans_3d_fullres__fvae_{view}"
    arrays = {
        view: {path.name: blosc2.open(str(path), mode="r")[:] for path in folder.glob("*.b2nd")}
        for view, folder in folders.items()
    }
    assert len(arrays["one"]) == 5
    assert arrays["one"].keys() == arrays["four"].keys()
    for name, array in arrays["one"].items():
        assert np.array_equal(array, arrays["four"][name])
    assert contents(folders["one"] / "cases") == contents(folders["four"] / "cases")
