"""What the option ``--verify`` does in all commands that go on with what they made before."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.jobs.manifest import Manifest


def verify_finished(arguments: argparse.Namespace, folders: Iterable[Path], cases: Iterable[str]) -> None:
    """Where ``--verify`` is given: read the files of finished cases, name damaged ones and forget their cases.

    Args:
        arguments: the options.
        folders: of the manifests.
        cases: that this call is to do.

    Raises:
        UserError: everything is to be made anew anyway.
    """
    if not arguments.verify:
        return
    if getattr(arguments, "overwrite", False):
        raise UserError("--overwrite makes everything anew, so there is nothing to verify; leave one of them out")
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.jobs.verification import forget_damaged

    manifests: list[Manifest] = [Manifest(folder) for folder in folders]
    cases = list(cases)
    with progress_bar(total=len(cases) * len(manifests), desc="verify", unit="case", leave=False) as bar:
        verified = forget_damaged(manifests, cases, threads=arguments.processes, on_case=bar.update)
    for line in verified.damaged:
        print(f"DAMAGED, is made again: {said_as_options(line)}", file=sys.stderr)
    print(said_as_options(str(verified)))
