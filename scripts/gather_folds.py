"""Copy validation cases of several folds into one folder: predictions of a cross-validation, or their references.

python scripts/gather_folds.py splits_final.json 0 1 2 3 4 -i 'MODEL/fold_{fold}/validation' -o predictions
python scripts/gather_folds.py splits_final.json 0 1 2 3 4 -i nnUNet_raw/Dataset007_Pancreas/labelsTr -o labels
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json


def gather_folds(
    splits: Sequence[dict[str, list[str]]], folds: Sequence[int], source: str, target: Path, *, ending: str
) -> int:
    """Copy the validation cases of these folds and return their number.

    Args:
        splits: content of nnU-Net's ``splits_final.json``.
        folds: numbers of the folds.
        source: folder of the files; ``{fold}`` in it stands for the fold.
        target: folder to write; it is replaced when all files are copied.
        ending: ending of the files, such as ``.nii.gz``.

    Raises:
        UserError: a fold does not exist, a case is validated in two folds, a file is missing, or the target holds one
            of them or anything but such files.
    """
    unknown = [fold for fold in folds if not 0 <= fold < len(splits)]
    if unknown:
        raise UserError(f"there is no fold {', '.join(map(str, unknown))}; the split has folds 0 to {len(splits) - 1}")
    files: dict[str, Path] = {}
    for fold in folds:
        for case in splits[fold]["val"]:
            if case in files:
                raise UserError(f"{case} is validated in more than one of the folds {', '.join(map(str, folds))}")
            files[case] = Path(source.replace("{fold}", str(fold))) / f"{case}{ending}"
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} cases are missing (first: {missing[0]}); "
            "first train and validate all of these folds with this split"
        )
    others = [path.name for path in target.glob("[!.]*") if path.is_dir() or not path.name.endswith(ending)]
    if others or any(target.resolve() in path.resolve().parents for path in files.values()):
        raise UserError(f"{target} holds {others[0] if others else 'the files themselves'}; choose another folder")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for path in files.values():
        shutil.copyfile(path, unfinished / path.name)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return len(files)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gather_folds.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("splits", type=Path, help="nnU-Net's splits_final.json")
    parser.add_argument("folds", type=int, nargs="+", metavar="FOLD")
    parser.add_argument("-i", required=True, metavar="FOLDER", help="folder of the files; {fold} stands for the fold")
    parser.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="folder to write, replaced if it exists")
    parser.add_argument("--ending", default=".nii.gz", help="ending of the files; default .nii.gz")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    cases = gather_folds(read_json(args.splits), args.folds, args.i, args.o, ending=args.ending)
    print(f"{cases} cases of {len(args.folds)} folds in {args.o}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
