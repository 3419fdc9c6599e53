"""The option ``--submit``: run a command as several jobs on a cluster or on this machine."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.errors import UserError


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--submit``, ``--jobs`` and ``--slurm``."""
    group = parser.add_argument_group("jobs")
    # fmt: off
    group.add_argument("--submit", choices=("slurm", "local"),
        help="do the work in jobs on a SLURM cluster, or in processes on this machine, and wait for them; requires "
        "pip install 'fvae_nnunet[cluster]'")
    group.add_argument("--jobs", type=int, default=2, metavar="N", help="with --submit: number of jobs; default 2")
    group.add_argument("--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="with --submit slurm: options of sbatch, such as partition=gpu,time=720,mem=64GB (time in minutes); "
        "default: one GPU for a day")
    # fmt: on


def submit(
    arguments: argparse.Namespace,
    *,
    logs: Path,
    total: int,
    complete: Callable[[], int],
    options_of_job: Callable[[int], Sequence[str]] | None = None,
) -> int:
    """Run the called command as jobs, show a bar of complete cases, and return the exit status.

    Args:
        arguments: the options, with ``called`` (program and its arguments) from ``run_command``.
        logs: folder for the output of the jobs.
        total: number of cases.
        complete: returns the number of cases that are complete now.
        options_of_job: additional options of the job with a given number; None if the jobs share the cases through
            locks.
    """
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.jobs.submit import Command, run_as_jobs, sbatch_options

    if arguments.jobs < 1:
        raise UserError(f"`jobs` must be at least 1, got {arguments.jobs}")
    if getattr(arguments, "overwrite", False):
        raise UserError("`overwrite` and `submit` are mutually exclusive: every job would start over; give one of them")
    program, argv = arguments.called
    module = f"fvae_nnunet.cli.{program.removeprefix('fvae-').replace('-', '_')}"
    commands = [
        Command(module, (*submitted_argv(argv), *(options_of_job(number) if options_of_job else ())))
        for number in range(arguments.jobs)
    ]
    with progress_bar(total=total, initial=complete(), unit="case") as bar:
        status = run_as_jobs(
            commands,
            one_is_enough=options_of_job is None,
            cluster=arguments.submit,
            slurm=sbatch_options(arguments.slurm),
            logs=logs,
            name=program,
            complete=complete,
            on_complete=lambda done: bar.update(done - bar.n),
            say=lambda line: bar.write(said_as_options(line)),
        )
    print(f"{complete()} of {total} cases complete")
    return status


def submitted_argv(argv: Sequence[str]) -> list[str]:
    """Arguments of a command without those for submission."""
    parser = argparse.ArgumentParser(add_help=False)
    add_submit_options(parser)
    words_after = {
        option: math.inf if action.nargs == "+" else 1 for option, action in parser._option_string_actions.items()
    }
    kept, to_skip = [], 0.0
    for word in argv:
        option, has_value, _ = word.partition("=")
        if option in words_after:
            to_skip = 0 if has_value else words_after[option]
            continue
        if word.startswith("-") and not word[1:2].isdigit():
            to_skip = 0
        if to_skip:
            to_skip -= 1
        else:
            kept.append(word)
    return kept
