"""Steps that need each other; what a plain chain of them does: test_quickstart.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import command_environment
import pytest
from command_chain import Runner, Step
from command_environment import command_variables

from fvae_nnunet.errors import UserError

APPEND = "import sys; print('ran', file=open(sys.argv[1], 'a'))"


def step(name: str, *, after: tuple[str, ...] = (), extra: str = "", code: str = APPEND, **keywords: Any) -> Step:
    return Step(name, ("python", "-c", code, name, extra), Path(name), (), after=after, **keywords)


def run_steps(work: Path, *steps: Step) -> set[str]:
    """The names of the steps that were skipped."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    runner = Runner(work, {**os.environ, "PATH": path})
    for one in steps:
        runner.run(one)
    return runner.skipped


def test_a_step_runs_anew_only_if_one_that_it_needs_did(tmp_path: Path) -> None:
    data, other = step("data"), step("other")
    training, table = step("training", after=("data",)), step("table", after=("training", "other"))
    assert run_steps(tmp_path, data, other, training, table) == set()
    assert run_steps(tmp_path, data, other, training, table) == {"data", "other", "training", "table"}
    changed = step("other", extra="changed")
    assert run_steps(tmp_path, data, changed, training, table) == {"data", "training"}
    assert (tmp_path / "training").read_text() == "ran\n"
    # another one between them changes nothing, but what a needed one needs does
    assert run_steps(tmp_path, data, changed, step("new"), training, table) == {"data", "other", "training", "table"}
    assert run_steps(tmp_path, step("data", extra="changed"), changed, training, table) == {"other"}


def test_options_do_not_count(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[3:], file=open(sys.argv[1], 'w'))"
    assert run_steps(tmp_path, step("a", code=code, options=("-device", "cpu"))) == set()
    assert run_steps(tmp_path, step("a", code=code, options=("-device", "cuda"))) == {"a"}
    assert (tmp_path / "a").read_text() == "['-device', 'cpu']\n"


def test_the_result_of_a_stopped_step_is_not_taken_for_whole(tmp_path: Path) -> None:
    interrupts = (
        "import os, signal; open('a', 'w').close(); os.kill(os.getppid(), signal.SIGINT); import time; time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_steps(tmp_path, step("a", code=interrupts))
    assert (tmp_path / "a").exists()
    assert run_steps(tmp_path, step("a")) == set()
    assert (tmp_path / "a").read_text() == "ran\n"


def test_a_step_may_end_with_another_status_where_its_result_is_there(tmp_path: Path) -> None:
    half, nothing = APPEND + "; sys.exit(1)", "import sys; sys.exit(1)"
    run_steps(tmp_path, step("made", code=half, statuses=(0, 1)))
    assert run_steps(tmp_path, step("made", code=half, statuses=(0, 1))) == {"made"}
    with pytest.raises(UserError, match="step other ended with status 1"):
        run_steps(tmp_path, step("other", code=half))
    with pytest.raises(UserError, match="step third ended without"):
        run_steps(tmp_path, step("third", code=nothing, statuses=(0, 1)))


def test_the_variables_keep_what_is_set_and_spare_small_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_environment, "cores", lambda: 4)
    for name in ("nnUNet_compile", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    variables = command_variables(tmp_path, "cpu", Path("/more"))
    assert variables["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert variables["nnUNet_extTrainer"].split(os.pathsep) == ["/mine", str(command_environment.TRAINERS), "/more"]
    assert (variables["nnUNet_compile"], variables["nnUNet_def_n_proc"]) == ("f", "2")
    assert "nnUNet_n_proc_DA" not in variables
    monkeypatch.setattr(command_environment, "cores", lambda: 16)
    assert variables.keys() - command_variables(tmp_path, "cuda").keys() == {
        "nnUNet_compile", "nnUNet_def_n_proc", "OMP_WAIT_POLICY",
    }  # fmt: skip
