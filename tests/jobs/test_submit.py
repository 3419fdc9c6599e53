import os
import stat
from pathlib import Path

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs import submit
from fvae_nnunet.jobs.submit import Command, run_as_jobs, sbatch_options

pytest.importorskip("submitit")

CASES = 12


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(submit, "LOOK_EVERY_S", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))


def run(folder, mishap="", jobs=2, one_is_enough=True, cluster="local", slurm=()):
    said, counted = [], []
    status = run_as_jobs(
        [Command("job_work", (str(folder), str(CASES), mishap))] * jobs,
        one_is_enough=one_is_enough,
        cluster=cluster,
        slurm=sbatch_options(slurm),
        logs=folder / submit.LOGS,
        name="work",
        complete=lambda: len(list(folder.glob("case_*"))),
        on_complete=counted.append,
        say=said.append,
    )
    assert counted == sorted(counted)
    return status, said, counted


@pytest.mark.slow
def test_jobs_share_the_cases(tmp_path):
    status, said, counted = run(tmp_path)
    assert status == 0 and counted[-1] == CASES
    assert len({path.read_text() for path in tmp_path.glob("case_*")}) == 2
    (line,) = said
    assert line.startswith("submitted 2 local jobs (") and line.endswith(f"logs in {tmp_path / 'jobs'}")


@pytest.mark.slow
def test_what_a_killed_job_leaves_is_done_by_the_others(tmp_path):
    status, said, counted = run(tmp_path, "one is killed")
    assert status == 0 and counted[-1] == CASES
    assert "ended: status 137; see " in said[1] and Path(said[1].rpartition(" ")[2]).is_file()


@pytest.mark.slow
def test_where_each_job_has_a_part_all_must_end_well(tmp_path):
    assert run(tmp_path, "one is killed", one_is_enough=False)[0] == 137
    assert run(tmp_path, one_is_enough=False)[0] == 0


@pytest.mark.slow
def test_the_status_of_jobs_that_fail_is_passed_on(tmp_path):
    status, said, _ = run(tmp_path, "fails")
    assert status == 3 and all("ended: status 3" in line for line in said[1:]) and len(said) == 3


def test_jobs_that_all_crash_are_a_failure(tmp_path):
    status, said, _ = run(tmp_path, "one is killed", jobs=1)
    assert status == 137 and len(said) == 2


def test_slurm_gets_the_options(tmp_path, monkeypatch):
    """With an sbatch that notes its script."""
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = f"cp $1 {tmp_path}/script.sh; echo Submitted batch job 42"
    for name, text in {"srun": "", "sbatch": sbatch, "scancel": ""}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def stop(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, jobs=3, cluster="slurm", slurm=["partition=gpu,time=90", "mem=32GB", "licenses=a"])
    script = (tmp_path / "script.sh").read_text().splitlines()
    expected = "partition=gpu time=90 mem=32GB licenses=a gpus-per-node=1 array=0-2%3 job-name=work"
    assert {f"#SBATCH --{option}" for option in expected.split()} <= set(script)


def test_values_may_have_commas():
    given = ["partition=gpu,gpu2,mail-type=BEGIN,END,", "exclude=n[1-3,5]"]
    assert sbatch_options(given) == {"partition": "gpu,gpu2", "mail_type": "BEGIN,END", "exclude": "n[1-3,5]"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slurm": ["gpu"]}, "expected NAME=VALUE"),
        ({"slurm": ["gpu,mem=3"]}, "expected NAME=VALUE"),
        ({"slurm": ["mem="]}, "expected NAME=VALUE"),
        ({"slurm": ["time=1:00"], "cluster": "slurm"}, "in minutes|slurm"),
        ({"cluster": "mars"}, "cannot be submitted"),
    ],
)
def test_mistakes_are_one_message(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **arguments)
