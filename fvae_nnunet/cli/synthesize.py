"""fvae-synthesize: insert synthetic lesions into real CT with a latent diffusion model.

Insert synthetic lesions into the raw CT of a dataset, or generate whole volumes from a list, with a model of
fvae-train-ldm. Writes images and labels in nnU-Net's raw format and a record of each case; cases that quality control
rejects are kept in a separate folder. See docs/synthesis.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import CaseProgress, add_work_options, do_cases, part_of, submit_cases, workers_of
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import check_output_folder
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.cli.synthesis_options import add_synthesis_options, check_way
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.jobs.devices import OnSlices
    from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds
    from fvae_nnunet.synthesis.generation.job import Job


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    add_synthesis_options(parser)
    add_work_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.cli.synthesis_job import job_of, list_job_of
    from fvae_nnunet.synthesis.generation.cases import case_name

    check_output_folder(arguments.output)
    check_way(arguments)
    part_of([], arguments)
    if arguments.list is not None:
        listed = list_job_of(arguments)
        return _do(arguments, listed, list(listed.listed))
    return _do(arguments, job_of(arguments), [case_name(number) for number in range(arguments.n)])


def _do(arguments: argparse.Namespace, job: Job[Any], names: list[str]) -> int:
    """Make this call's part of the cases and return the exit status."""
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER

    if arguments.submit is not None:
        return submit_cases(arguments, cases=part_of(names, arguments), folders=[job.output / MANIFEST_FOLDER])
    progress = do_cases(
        arguments,
        _Synthesize(arguments, job),
        cases=part_of(names, arguments),
        folders=[job.output / MANIFEST_FOLDER],
        progress_type=_Progress,
    )
    return progress.finish_in(job.output)


@dataclass(frozen=True)
class _Synthesize:
    """The work of one device."""

    arguments: argparse.Namespace
    job: Job[Any]

    def load(self, device: str | None) -> Any:
        import torch

        from fvae_nnunet.jobs.devices import chosen_device
        from fvae_nnunet.nnunet.segmenter import Segmenter
        from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion

        device = chosen_device(device)
        model = LatentDiffusion.load(
            self.job.model_folder,
            weights=self.arguments.weights,
            code=self.arguments.vae_code,
            trust_weights=self.arguments.trust_weights,
            text_encoder=self.arguments.text_encoder,
            device=device,
        )
        segmenter_model = self.job.segmenter_model
        return model, None if segmenter_model is None else Segmenter(segmenter_model, torch.device(device).type)

    def run(
        self, loaded: Any, cases: Iterator[str], *, first: bool, seconds: StageSeconds, on_slices: OnSlices
    ) -> Generator[Outcome, None, None]:
        from fvae_nnunet.synthesis.generation.job import make_cases

        model, segmenter = loaded
        return make_cases(
            self.job,
            model,
            segmenter,
            cases=cases,
            workers=workers_of(self.arguments),
            seconds=seconds,
            overwrite=self.arguments.overwrite and first,
            on_step=on_slices,
        )


def verdict(result: Mapping[str, Any]) -> str:
    """Verdict of quality control on a case, with its reasons."""
    reasons = "; ".join(result["reasons"])
    if not result["accepted"]:
        return f"rejected: {reasons}"
    return f"accepted without filter; would be rejected: {reasons}" if reasons else "accepted"


class _Progress(CaseProgress):
    """Counts accepted and rejected cases."""

    accepted = 0

    def on_slices(self, case: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{case}: step {done}/{total}")

    def add_result(self, case: str, result: dict[str, Any]) -> None:
        self.accepted += result["accepted"]
        self.bar.write(f"{case}: {result['said']}, {verdict(result)}", file=sys.stdout)

    def finish_in(self, output: Path) -> int:
        """Close the bar, print a summary and return the exit status."""
        again = (
            "fix the cause and run the same command again; cases in which no lesion fits fail every time: try another "
            "--seed or a larger -n"
        )
        status = self.finish("fvae-synthesize", again)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        rejected = self.done - self.accepted
        print(f"{counted(self.accepted, 'case')} accepted, {rejected} rejected, {self.besides}{failed}, in {output}")
        return status


if __name__ == "__main__":
    sys.exit(main())
