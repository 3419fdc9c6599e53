"""Steps that need each other, shared by several processes; what a single chain of them does: test_quickstart.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import steps
from steps import Runner, Step

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.claims import Claims

APPEND = "import sys; print('ran', file=open(sys.argv[1], 'a'))"


def step(name: str, *, after: tuple[str, ...] = (), extra: str = "", code: str = APPEND, **keywords: Any) -> Step:
    return Step(name, ("python", "-c", code, name, extra), Path(name), (), after=after, **keywords)


def runner(work: Path) -> Runner:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return Runner(work, {**os.environ, "PATH": path}, work / "steps" / "task")


def run_each_alone(work: Path, *several: Step) -> set[str]:
    """The names of the steps that were skipped; each is run by a runner of its own, as another process would."""
    skipped: set[str] = set()
    for one in several:
        alone = runner(work)
        alone.run(one)
        skipped |= alone.skipped
    return skipped


def test_a_step_runs_anew_only_if_one_that_it_needs_did(tmp_path: Path) -> None:
    data, other = step("data"), step("other")
    training, table = step("training", after=("data",)), step("table", after=("training", "other"))
    assert run_each_alone(tmp_path, data, other, training, table) == set()
    assert run_each_alone(tmp_path, data, other, training, table) == {"data", "other", "training", "table"}
    changed = step("other", extra="changed")
    assert run_each_alone(tmp_path, data, changed, training, table) == {"data", "training"}
    assert (tmp_path / "training").read_text() == "ran\n"
    assert (tmp_path / "steps" / "task" / "table.json").is_file()


def test_a_step_does_not_run_before_what_it_needs_or_after_that_became_old(tmp_path: Path) -> None:
    data, view, training = step("data"), step("view", after=("data",)), step("training", after=("view",))
    with pytest.raises(UserError, match="step training needs view, which is not complete"):
        run_each_alone(tmp_path, data, training)
    run_each_alone(tmp_path, view, training)
    run_each_alone(tmp_path, step("data", extra="changed"))
    assert not runner(tmp_path).is_complete(training), "the view that it was made from is older than the data"
    with pytest.raises(UserError, match="needs view"):
        run_each_alone(tmp_path, training)


def test_options_and_variables_reach_the_command_and_change_nothing_else(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['where'], sys.argv[3:], file=open(sys.argv[1], 'w'))"

    def on(device: str) -> Step:
        return step("a", code=code, options=("-device", device), variables={"where": "the place"})

    assert on("cpu").line.startswith("where='the place' python -c ")
    assert on("cpu").line.endswith(" a '' -device cpu")
    assert run_each_alone(tmp_path, on("cpu")) == set()
    assert (tmp_path / "a").read_text() == "the place ['-device', 'cpu']\n"
    assert run_each_alone(tmp_path, on("cuda")) == {"a"}


def test_the_same_record_spares_later_steps_and_keeps_the_result(tmp_path: Path) -> None:
    code = "import sys; print('ran', file=open(sys.argv[1], 'a')); print(sys.argv[2][:1], file=open('record', 'w'))"

    def view(extra: str) -> Step:
        return step("view", code=code, extra=extra, after=("data",), record=Path("record"))

    data, training = step("data"), step("training", after=("view",))
    run_each_alone(tmp_path, data, view("a1"), training)
    assert run_each_alone(tmp_path, data, view("a2"), training) == {"data", "training"}
    assert (tmp_path / "view").read_text() == "ran\nran\n", "nothing was deleted for another command"
    assert run_each_alone(tmp_path, data, view("b"), training) == {"data"}
    assert run_each_alone(tmp_path, step("data", extra="changed"), view("b")) == set()
    assert (tmp_path / "view").read_text() == "ran\n", "what was made from other data was deleted"


def test_a_failed_step_keeps_those_after_it_from_running(tmp_path: Path) -> None:
    data, training = step("data"), step("training", after=("data",))
    run_each_alone(tmp_path, data, training)
    with pytest.raises(UserError, match=r"(?s)step data ended with status 3.*the reason"):
        run_each_alone(tmp_path, step("data", code="import sys; print('the reason'); sys.exit(3)"))
    with pytest.raises(UserError, match="needs data"):
        run_each_alone(tmp_path, training)


def test_a_step_that_another_process_works_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "steps" / "task"
    monkeypatch.setattr(steps, "PATIENCE_S", 0)
    with Claims([folder], known=["a"]) as others:
        assert list(others.each(["a"])) == ["a"]
        with pytest.raises(UserError, match="another process is at work on step a in"):
            run_each_alone(tmp_path, step("a"))
        assert not (tmp_path / "a").exists()
    assert run_each_alone(tmp_path, step("a")) == set()

    # the other one finishes while this one waits
    monkeypatch.setattr(steps, "PATIENCE_S", 60)
    (tmp_path / "a").write_text("by the other\n")
    stamp = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps(stamp | {"complete": False}))
    others = Claims([folder], known=["a"])
    assert list(others.each(["a"])) == ["a"]

    def finish(_: float) -> None:
        (folder / "a.json").write_text(json.dumps(stamp))
        others.__exit__(None)

    monkeypatch.setattr(steps.time, "sleep", finish)
    assert run_each_alone(tmp_path, step("a")) == {"a"}
    assert (tmp_path / "a").read_text() == "by the other\n"
    assert "another process is at work" in capsys.readouterr().out


def test_the_result_of_a_stopped_step_is_not_taken_for_whole(tmp_path: Path) -> None:
    interrupts = (
        "import os, signal; open('a', 'w').close(); os.kill(os.getppid(), signal.SIGINT); import time; time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_each_alone(tmp_path, step("a", code=interrupts))
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "steps" / "task" / "claims").exists(), "the claim was given back"
    assert run_each_alone(tmp_path, step("a")) == set()
    assert (tmp_path / "a").read_text() == "ran\n"


def test_a_step_may_end_with_another_status_where_its_result_is_there(tmp_path: Path) -> None:
    half, nothing = APPEND + "; sys.exit(1)", "import sys; sys.exit(1)"
    run_each_alone(tmp_path, step("made", code=half, statuses=(0, 1)))
    assert run_each_alone(tmp_path, step("made", code=half, statuses=(0, 1))) == {"made"}
    with pytest.raises(UserError, match="step other ended with status 1"):
        run_each_alone(tmp_path, step("other", code=half))
    with pytest.raises(UserError, match="step third ended without"):
        run_each_alone(tmp_path, step("third", code=nothing, statuses=(0, 1)))
