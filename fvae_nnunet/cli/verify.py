"""The option ``--verify`` of all commands that resume earlier work."""

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


def verify_finished(
    arguments: argparse.Namespace, folders: Iterable[Path], cases: Iterable[str], *, anew: str | None = "overwrite"
) -> None:
    """With ``--verify``, read the files of finished cases, print damaged ones and forget their cases.

    Args:
        arguments: the options.
        folders: folders of the manifests.
        cases: cases of this call.
        anew: option that makes all of them again; None: there is none.

    Raises:
        UserError: that option is given too.
    """
    if not arguments.verify:
        return
    if anew is not None and getattr(arguments, anew):
        raise UserError(f"`{anew}` makes everything again, so --verify has nothing to do; leave out one of them")
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.jobs.verification import forget_damaged

    manifests: list[Manifest] = [Manifest(folder) for folder in folders]
    cases = list(cases)
    with progress_bar(total=len(cases) * len(manifests), desc="verify", unit="case", leave=False) as bar:
        verified = forget_damaged(manifests, cases, threads=arguments.processes, on_case=bar.update)
    for line in verified.damaged:
        print(f"DAMAGED, will be made again: {said_as_options(line)}", file=sys.stderr)
    print(said_as_options(str(verified)))
