"""Submission of one command as several jobs, which run the same command and share the cases through locks.

Jobs are submitted with submitit, on SLURM or as processes on this machine. A job that reaches its time limit or is
preempted is queued again, and the others meanwhile do its unfinished cases. A command that shares its cases succeeds
only when all of them are complete, so one successful job is enough. If each job has its own part of the cases, all jobs
must succeed.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.statuses import joint_status
from fvae_nnunet.jobs.workers import obey_parent, start_uninterrupted
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.optional_packages import needed_for

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

LOGS = "jobs"
LOOK_EVERY_S = 2.0
_GRACE_S = 30.0
MINUTES = 24 * 60
"""Default time limit of a job."""

RESUBMISSIONS = 20
"""Maximum number of times that a job is queued again after its time limit."""


@dataclass(frozen=True)
class Command:
    """Command of a job: ``main(argv)`` of a module, in a process of its own.

    The job's own process ignores SIGTERM, so that it is queued again after its time limit. nnU-Net's process pools
    would inherit this and never end.
    """

    module: str
    argv: tuple[str, ...]

    def __call__(self) -> int:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(self,))
        start_uninterrupted(process)
        try:
            process.join()
        finally:
            process.terminate()
            process.join(_GRACE_S)
            process.kill()
            process.join()
        code = process.exitcode or 0
        return code if code >= 0 else 128 - code

    def checkpoint(self) -> DelayedSubmission:
        """Job that resumes where this one was stopped (called by submitit)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run(command: Command) -> None:
    obey_parent()
    sys.exit(import_module(command.module).main(list(command.argv)))


def run_as_jobs(
    commands: Sequence[Command],
    *,
    one_is_enough: bool,
    cluster: str,
    slurm: Mapping[str, str],
    logs: Path,
    name: str,
    complete: Callable[[], int],
    on_complete: Callable[[int], object],
    say: Callable[[str], object],
) -> int:
    """Submit the jobs and wait for them; an interruption cancels them.

    Args:
        commands: command of each job.
        one_is_enough: whether all work is done when one job has succeeded.
        cluster: ``slurm``, or ``local`` for processes on this machine.
        slurm: sbatch's options by their long names (``partition``, ``gpus_per_node``, ``mem``...); ``time`` is in
            minutes.
        logs: folder for the output of the jobs.
        name: name of the jobs.
        complete: returns the number of cases that are complete now.
        on_complete: called with that number from time to time.
        say: called with a line on the submission and on each failed job.

    Returns:
        0 if the jobs did their work; else their ``joint_status``, with 1 for a job that did not finish.

    Raises:
        UserError: submitit is missing, the cluster is not available here, or sbatch refused the jobs.
    """
    with needed_for("submitting jobs"):
        import submitit

    logs.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster=cluster, slurm_max_num_timeout=RESUBMISSIONS)
        _set_parameters(executor, cluster, name, slurm)
        with executor.batch():
            submitted: list[Job[int]] = [executor.submit(command) for command in commands]
    except (RuntimeError, ValueError, TypeError, AssertionError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(f"the jobs cannot be submitted ({cluster}): {error}") from error
    ids = ", ".join(job.job_id for job in submitted)
    say(f"submitted {counted(len(submitted), f'{cluster} job')} ({ids}); logs in {logs}")
    try:
        while not all(job.done() for job in submitted):
            on_complete(complete())
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        for job in submitted:
            job.cancel(check=False)
        say("the jobs are cancelled; complete cases are kept")
        raise
    on_complete(complete())
    return _status(submitted, one_is_enough, say)


def sbatch_options(given: Iterable[str]) -> dict[str, str]:
    """Parse options such as ``["partition=gpu,time=720", "gres=gpu:a100:1"]`` into values by name.

    A part without ``=`` belongs to the value before it: ``partition=gpu,gpu2,time=720``.

    Raises:
        UserError: a part is not of the form NAME=VALUE.
    """
    options = {}
    for text in given:
        for part in re.split(r",(?=[^,=]+=)", text):
            name, equals, value = part.strip(",").partition("=")
            if not equals or not name or not value:
                raise UserError(f"`slurm`: expected NAME=VALUE, such as partition=gpu,time=720; got {part!r}")
            options[name.replace("-", "_")] = value
    return options


def _set_parameters(executor: AutoExecutor, cluster: str, name: str, slurm: Mapping[str, str]) -> None:
    executor.update_parameters(name=name, timeout_min=MINUTES)
    if cluster != "slurm":
        return
    from submitit import SlurmExecutor

    options: dict[str, Any] = {"time": str(MINUTES)} | dict(slurm)
    options["time"] = _minutes(options["time"])
    if not any("gpu" in name or name == "gres" for name in slurm):
        options["gpus_per_node"] = 1
    known = SlurmExecutor._valid_parameters()
    further = {name: value for name, value in options.items() if name not in known}
    executor.update_parameters(
        slurm_additional_parameters=further,
        **{f"slurm_{name}": _number(value) for name, value in options.items() if name in known},
    )


def _minutes(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"`slurm`: time must be in minutes, such as time=720; got {text!r}")
    return int(text)


def _number(value: int | str) -> int | str:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _status(jobs: Sequence[Job[int]], one_is_enough: bool, say: Callable[[str], object]) -> int:
    statuses: list[int | None] = []
    for job in jobs:
        status, why = None, "it did not finish"
        with suppress(Exception):  # submitit raises various errors for a failed job
            status = job.result()
            why = f"status {status}"
        statuses.append(status)
        if status != 0:
            say(f"job {job.job_id} ended: {why}; see {job.paths.stderr}")
    if statuses.count(0) == len(jobs) or (one_is_enough and 0 in statuses):
        return 0
    known = [status for status in statuses if status is not None]
    return joint_status([*known, *[1] * statuses.count(None)])
