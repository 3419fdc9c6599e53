"""Make a copy of a dataset in nnU-Net's raw format with test cases, using links; the original is only read.

A dataset with imagesTs and labelsTs keeps them. Otherwise training cases are held out: every 5th in sorted order (the
5th, 10th, ...), or N evenly spread cases with --test-cases N. They are left out of the copy's training folders.

    python scripts/hold_out_cases.py /data/Dataset007_Pancreas quickstart/nnUNet_raw/Dataset007_Pancreas
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError

LEAST_TRAINING_CASES = 5
"""Minimum number of training cases, since nnU-Net splits them into five folds."""


def held_out(cases: Sequence[str], *, test_cases: int | None = None) -> list[str]:
    """Test cases: every 5th in sorted order, or ``test_cases`` of them, every (number of cases // N)-th.

    Raises:
        UserError: too few cases would be left for nnU-Net's five folds, or none would be held out.
    """
    step = 5 if test_cases is None else len(cases) // max(test_cases, 1)
    chosen = sorted(cases)[step - 1 :: step][:test_cases] if step else []
    if not chosen or len(cases) - len(chosen) < LEAST_TRAINING_CASES or test_cases == 0:
        wanted = "every 5th case" if test_cases is None else f"{test_cases} cases"
        raise UserError(
            f"cannot hold out {wanted} of {len(cases)}: at least 1 test case and {LEAST_TRAINING_CASES} training cases "
            "are needed; add cases, or choose another --test-cases"
        )
    return chosen


def hold_out_cases(source: Path, target: Path, *, test_cases: int | None = None) -> tuple[int, list[str]]:
    """Write the copy, and return the number of training cases and the names of the test cases.

    Args:
        source: dataset folder with dataset.json, imagesTr, labelsTr, and optionally imagesTs with labelsTs.
        target: folder to write, named like the source; must not exist.
        test_cases: number of cases to hold out; None: every 5th.

    Raises:
        UserError: the source is not such a folder, or cannot be split.
    """
    if not (source / "dataset.json").is_file() or not (source / "imagesTr").is_dir():
        raise UserError(
            f"{source} is not a dataset in nnU-Net's raw format: it needs dataset.json, imagesTr and labelsTr"
        )
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    description = json.loads((source / "dataset.json").read_text())
    if "dataset" in description:
        raise UserError(
            f"{source} lists its files in dataset.json under the key 'dataset'; move them to imagesTr and labelsTr"
        )
    ending = description["file_ending"]
    cases = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))
    if (source / "imagesTs").is_dir() and (source / "labelsTs").is_dir():
        tested = sorted(path.name[: -len(ending)] for path in (source / "labelsTs").glob(f"*{ending}"))
        if test_cases is not None:
            raise UserError(f"{source} has its own test cases (imagesTs, labelsTs); leave out --test-cases")
        trained, test_part = cases, "Ts"
        if not tested or len(trained) < LEAST_TRAINING_CASES:
            raise UserError(
                f"{source} has {len(trained)} training and {len(tested)} test cases with labels; "
                f"at least {LEAST_TRAINING_CASES} and 1 are needed"
            )
    else:
        tested, test_part = held_out(cases, test_cases=test_cases), "Tr"
        trained = [case for case in cases if case not in tested]

    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for names, part, source_part in ((trained, "Tr", "Tr"), (tested, "Ts", test_part)):
        for kind in ("images", "labels"):
            (unfinished / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for case in names:
            images = sorted((source / f"images{source_part}").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))
            if not images:
                raise UserError(f"{source / f'images{source_part}'} has no image {case}_0000{ending} for its label")
            for image in images:
                _link(image, unfinished / f"images{part}" / image.name)
            _link(source / f"labels{source_part}" / f"{case}{ending}", unfinished / f"labels{part}" / f"{case}{ending}")
    description["numTraining"] = len(trained)
    (unfinished / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    unfinished.rename(target)
    return len(trained), tested


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # the file system or the account does not allow links
        shutil.copyfile(source, target)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hold_out_cases.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="dataset folder, nnU-Net's raw format")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument("--test-cases", type=int, metavar="N", help="number of cases to hold out; default: every 5th")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    n_train, tested = hold_out_cases(args.source, args.target, test_cases=args.test_cases)
    print(f"{n_train} training cases and {len(tested)} test cases ({', '.join(tested)}) in {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
