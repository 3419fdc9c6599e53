"""Commands that process many cases on one or several devices: options, progress and the cases of a call."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.cli.submit import add_submit_options, submit
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.statuses import INCOMPLETE
from fvae_nnunet.numbers_as_text import counted, interval, number, percent

if TYPE_CHECKING:
    from fvae_nnunet.jobs.devices import Work
    from fvae_nnunet.jobs.locks import CaseLocks
    from fvae_nnunet.jobs.pipeline import Outcome

Progress = TypeVar("Progress", bound="CaseProgress")


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that distribute the work; the result does not depend on them."""
    group = parser.add_argument_group("work")
    add_common(group, "processes")
    # fmt: off
    group.add_argument("--devices", nargs="+", metavar="DEVICE",
        help="instead of -device: run one process on each of these devices, such as cuda:0 cuda:1, all (CUDA GPUs) or "
        "cpu cpu; they share the cases and the processes of -np")
    # fmt: on
    add_common(group, "no_wait", "num_parts", "part_id", "overwrite", "verify", "verbose")
    add_submit_options(parser)


def part_of(cases: list[str], arguments: argparse.Namespace) -> list[str]:
    """The cases of this call's part."""
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise UserError(
            f"-part_id must be at least 0 and below -num_parts, got {arguments.part_id} of {arguments.num_parts} parts"
        )
    if arguments.overwrite and arguments.num_parts > 1:
        raise UserError("--overwrite deletes the output of the other parts; run it without -num_parts")
    if arguments.devices and arguments.device:
        raise UserError("-device and --devices are mutually exclusive; give one of them")
    return cases[arguments.part_id :: arguments.num_parts]


def workers_of(arguments: argparse.Namespace) -> int:
    """Processes that read and write for one device."""
    processes: int = arguments.processes
    return max(1, processes // len(arguments.devices)) if processes and arguments.devices else processes


def do_cases(
    arguments: argparse.Namespace,
    work: Work,
    *,
    cases: list[str],
    folders: Iterable[Path],
    progress_type: type[Progress],
) -> Progress:
    """Process the cases on the devices that the options name, sharing them with all processes that do the same.

    Args:
        arguments: the options; ``devices`` is replaced by the devices it stands for.
        work: loads the VAE and processes cases with it; the result of each is a dictionary.
        cases: cases of this call's part.
        folders: folders in which cases are locked, see ``locks``.
        progress_type: reports the outcome of each case.
    """
    from fvae_nnunet.jobs.devices import available_devices, run_on_devices
    from fvae_nnunet.jobs.locks import CaseLocks

    arguments.devices = available_devices(arguments.devices or [])
    folders = list(folders)
    verify_finished(arguments, folders, cases)
    with CaseLocks(
        folders, wait=not arguments.no_wait, alone=arguments.overwrite, say=lambda line: progress.say(line)
    ) as locks:
        loaded = None if arguments.devices else work.load(arguments.device)
        progress = progress_type(len(cases), devices=len(arguments.devices), verbose=arguments.verbose)
        how: dict[str, Any] = {"seconds": progress.seconds, "on_slices": progress.on_slices}
        if arguments.devices:
            outcomes = run_on_devices(arguments.devices, work, locks.each(cases), say=progress.say, **how)
        else:
            outcomes = work.run(loaded, locks.each(cases), first=True, **how)
        progress.follow(outcomes, locks)
    return progress


def submit_cases(arguments: argparse.Namespace, *, cases: list[str], folders: Iterable[Path]) -> int:
    """Submit jobs that do the work of ``do_cases``; return the exit status."""
    from fvae_nnunet.jobs.submit import LOGS

    folders = list(folders)
    return submit(
        arguments, logs=folders[0] / LOGS, total=len(cases), complete=lambda: len(complete_cases(cases, folders))
    )


def complete_cases(cases: Iterable[str], folders: Iterable[Path]) -> set[str]:
    """Those of the cases that are complete in all folders, which hold manifests."""
    from fvae_nnunet.jobs.manifest import Manifest

    return set(cases).intersection(*(Manifest(folder).cases for folder in folders))


class CaseProgress:
    """Progress over cases: a tqdm bar with an estimate of the time left, a line for each case, and the failures.

    Args:
        total: number of cases.
        devices: number of devices that compute at the same time; 0 for the default device.
        verbose: show the traceback of a failed case.
    """

    def __init__(self, total: int, *, devices: int = 0, verbose: bool = False) -> None:
        from fvae_nnunet.jobs.pipeline import StageSeconds
        from fvae_nnunet.jobs.progress_bar import progress_bar

        self.seconds = StageSeconds()
        self.devices = max(1, devices)
        self.bar = progress_bar(total=total, unit="case")
        self.verbose = verbose
        self.done = 0
        self.skipped = 0
        self.failed: list[str] = []
        self.missing: list[str] = []

    def on_slices(self, case: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{case}: slice {done}/{total}")

    def say(self, line: str) -> None:
        self.bar.write(said_as_options(line), file=sys.stderr)

    def follow(self, outcomes: Generator[Outcome, None, None], locks: CaseLocks) -> None:
        """Add the outcomes of the cases and release their locks."""
        # closed before the last locks are released, so that no process still works on a case
        with closing(outcomes):
            for outcome in outcomes:
                locks.release(outcome.case)
                self.add(outcome)
        self.missing = locks.missing

    def add(self, outcome: Outcome) -> None:
        """Count one case and report its outcome."""
        if outcome.error is not None:
            self.failed.append(outcome.case)
            self.say(failure_line(outcome.case, outcome.error))
            if self.verbose:
                self.bar.write("".join(traceback.format_exception(outcome.error)), file=sys.stderr)
        elif outcome.result is None:
            self.skipped += 1
        else:
            self.done += 1
            self.add_result(outcome.case, outcome.result)
        self.bar.total = max(self.bar.total, self.bar.n + 1)
        self.bar.update()

    def add_result(self, case: str, result: Any) -> None:
        """Report the result of a case."""
        raise NotImplementedError

    def say_failed(self, command: str, remedy: str) -> int:
        """Close the bar, list the cases that failed or are missing, and return the exit status.

        Returns:
            0: every case is complete; 1: some failed; 75: other processes still work on the rest.
        """
        self.bar.close()
        if self.failed:
            failed = f"{len(self.failed)} of {self.bar.total} cases failed: {', '.join(self.failed)}"
            print(f"{command}: {failed}. {remedy}", file=sys.stderr)
        if self.missing:
            print(f"{command}: other processes still work on {counted(len(self.missing), 'case')}", file=sys.stderr)
        return 1 if self.failed else INCOMPLETE if self.missing else 0

    def finish(self, command: str, again: str) -> int:
        """As ``say_failed``, after a line with the time spent in each stage."""
        self.bar.close()
        seconds = self.seconds
        several = f" on {self.devices} devices, summed over them" if self.devices > 1 else ""
        print(
            f"time: {number(self.elapsed_s, 's')} s, of which{several} VAE {number(seconds.computing, 's')} s, waiting "
            f"for reading {number(seconds.reading, 's')} s and for writing {number(seconds.writing, 's')} s; "
            f"device idle {percent(seconds.idle_share)}"
        )
        return self.say_failed(command, f"{'' if self.missing else 'The others are complete; '}{again}")

    @property
    def elapsed_s(self) -> float:
        return float(self.bar.format_dict["elapsed"])

    @property
    def besides(self) -> str:
        """Numbers of cases not done in this call, for a summary."""
        missing = f", {len(self.missing)} in other processes" if self.missing else ""
        return f"{self.skipped} already complete{missing}"


class ReconstructionProgress(CaseProgress):
    """Reports for each case how much its reconstruction differs from the image."""

    def __init__(self, total: int, **options: Any) -> None:
        super().__init__(total, **options)
        self.psnr_db: list[float] = []

    def add_result(self, case: str, result: dict[str, Any]) -> None:
        self.psnr_db.append(result["psnr_db"])
        noise = ""
        if result.get("noise_raw_hu") is not None:
            noise = f", noise {interval(result['noise_raw_hu'], result['noise_view_hu'], 'HU')} HU"
        self.bar.write(
            f"{case}: PSNR {number(result['psnr_db'], 'dB')} dB, mean absolute error "
            f"{number(result['mean_absolute_error_hu'], 'HU')} HU{noise}", file=sys.stdout,
        )  # fmt: skip
        if result.get("impossible_voxels"):
            self.say(
                f"{case}: warning: HU from {result['lowest_hu']:g} to {result['highest_hu']:g}; "
                f"{counted(result['impossible_voxels'], 'voxel')} outside the range of CT clipped to the window. Check "
                "that the image is in HU"
            )

    @property
    def summary(self) -> str:
        """First part of the summary, valid once the bar is closed."""
        mean = f" (mean PSNR {number(sum(self.psnr_db) / len(self.psnr_db), 'dB')} dB)" if self.psnr_db else ""
        return f"{counted(self.done, 'case')} done{mean}, {self.besides}, {number(self.elapsed_s, 's')} s"


def failure_line(case: str, error: Exception) -> str:
    """Message for a failed case, with parameters shown as options."""
    return f"{case}: FAILED: {said_as_options(str(error)) if isinstance(error, UserError) else repr(error)}"
