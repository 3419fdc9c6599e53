"""One command as several jobs: each runs the same command, and they share the cases by their locks.

Through submitit, on SLURM or as processes of this machine. A job at its time limit, or one that is preempted, is put
into the queue again; what it had not finished the others do meanwhile. A command that shares its cases ends well only
when every one is complete, so one job that has ended well is enough; with a part of the cases for each job all must.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.workers import obey_parent, start_uninterrupted
from fvae_nnunet.optional_packages import needed_for

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

LOGS = "jobs"
LOOK_EVERY_S = 2.0
_GRACE_S = 30.0
MINUTES = 24 * 60
"""Time limit of a job where none is given."""

RESUBMISSIONS = 20
"""So often a job comes back after its time limit."""


@dataclass(frozen=True)
class Command:
    """What a job runs: ``main(argv)`` of a module, in a process of its own.

    The job's process lets SIGTERM pass, so that it comes back after its time limit. The pools of processes that nnU-Net
    makes would inherit that and never end.
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
        """The job that goes on where this one was stopped (submitit calls this)."""
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
        commands: of the jobs.
        one_is_enough: whether all is done when one of them has ended well.
        cluster: ``slurm``, or ``local`` for processes of this machine.
        slurm: sbatch's options by their long names (``partition``, ``gpus_per_node``, ``mem``...); ``time`` is in
            minutes.
        logs: folder for what the jobs print.
        name: of the jobs.
        complete: how many cases are complete now.
        on_complete: called with that now and then.
        say: called with a line on the submission and on each job that ended badly.

    Returns:
        0 where the jobs did their work; else the status of the first that ended with another, or 1.

    Raises:
        UserError: submitit is missing, there is no such cluster here, or sbatch refused the jobs.
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
    say(f"submitted {len(submitted)} {cluster} jobs ({ids}); they print to {logs}")
    try:
        while not all(job.done() for job in submitted):
            on_complete(complete())
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        for job in submitted:
            job.cancel(check=False)
        say("the jobs are cancelled; what is complete stays")
        raise
    on_complete(complete())
    return _status(submitted, one_is_enough, say)


def sbatch_options(given: Iterable[str]) -> dict[str, str]:
    """``["partition=gpu,time=720", "gres=gpu:a100:1"]`` by name.

    Raises:
        UserError: a part is not of the form NAME=VALUE.
    """
    options = {}
    for part in (part for text in given for part in text.split(",") if part):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise UserError(f"`slurm`: NAME=VALUE is expected, such as partition=gpu,time=720; got {part!r}")
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
        raise UserError(f"`slurm`: time is in minutes, such as time=720; got {text!r}")
    return int(text)


def _number(value: int | str) -> int | str:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _status(jobs: Sequence[Job[int]], one_is_enough: bool, say: Callable[[str], object]) -> int:
    statuses = []
    for job in jobs:
        status, why = None, "it did not come to its end"
        with suppress(Exception):  # submitit raises what it finds, or does not find, of a job that has failed
            status = job.result()
            why = f"status {status}"
        statuses.append(status)
        if status != 0:
            say(f"job {job.job_id} ended: {why}; see {job.paths.stderr}")
    if statuses.count(0) == len(jobs) or (one_is_enough and 0 in statuses):
        return 0
    return next((status for status in statuses if status), 1)
