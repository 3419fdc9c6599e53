"""Write nnU-Net's own five-fold split of a dataset before the first training.

``nnUNetv2_train`` writes the same file if there is none. Written in advance, it is shared by trainings that start at
the same time.

    python scripts/crossval_splits.py nnUNet_raw/Dataset007_Pancreas nnUNet_preprocessed/Dataset007_Pancreas

With ``--every N`` there are N folds, and each validates on every N-th case in sorted order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import write_json

FOLDS = 5
FILE_NAME = "splits_final.json"


def crossval_splits(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    """Training and validation cases of each fold, as in ``nnUNetTrainer.do_split``.

    Raises:
        UserError: there are fewer cases than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(cases) < FOLDS:
        raise UserError(f"{len(cases)} cases cannot be split into {FOLDS} folds")
    folds: list[dict[str, Any]] = generate_crossval_split(sorted(cases), n_splits=FOLDS)
    return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds]


def every_nth_case(cases: Sequence[str], n: int) -> list[dict[str, list[str]]]:
    """Training and validation cases of ``n`` folds; fold k validates on every n-th case in sorted order from the k-th.

    Raises:
        UserError: there are fewer cases than folds, or fewer than two folds.
    """
    if not 2 <= n <= len(cases):
        raise UserError(f"{len(cases)} cases cannot be split into {n} folds")
    ordered = sorted(cases)
    return [
        {"train": [case for case in ordered if case not in val], "val": val}
        for val in (ordered[k::n] for k in range(n))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="crossval_splits.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raw", type=Path, help="the dataset's folder in nnUNet_raw")
    parser.add_argument("preprocessed", type=Path, help=f"its folder in nnUNet_preprocessed, for {FILE_NAME}")
    parser.add_argument("--every", type=int, metavar="N", help="N folds of every N-th case; default: nnU-Net's five")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    ending = read_json(args.raw / "dataset.json")["file_ending"]
    cases = [path.name.removesuffix(ending) for path in (args.raw / "labelsTr").glob(f"*{ending}")]
    target = args.preprocessed / FILE_NAME
    folds = crossval_splits(cases) if args.every is None else every_nth_case(cases, args.every)
    if target.exists() and read_json(target) != folds:
        raise UserError(f"{target} exists and holds another split; move it away first")
    write_json(target, folds)
    print(f"{target}: {len(cases)} cases, validated on {', '.join(str(len(fold['val'])) for fold in folds)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
