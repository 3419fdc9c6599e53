"""Training cases of a fold of nnU-Net's cross-validation."""

from __future__ import annotations

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.files import read_splits
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.numbers_as_text import counted

_SPLIT_SEED, _SPLITS = 12345, 5  # nnU-Net's own, nnUNetTrainer.do_split


def training_cases(dataset: str, cases: list[str], fold: int) -> list[str]:
    """Training cases of a fold, from nnU-Net's file, or from nnU-Net's default split into five folds if there is none.

    Args:
        dataset: full name of the dataset.
        cases: all cases with a raw image, sorted.
        fold: number of the fold.

    Raises:
        UserError: the fold does not exist, or none of its cases has a raw image.
    """
    path = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    if path.is_file():
        splits = read_splits(path)
    else:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        if len(cases) < _SPLITS:
            raise UserError(
                f"{dataset} has {counted(len(cases), 'case')}, too few for {_SPLITS} folds; leave out `fold`"
            )
        splits = generate_crossval_split(cases, seed=_SPLIT_SEED, n_splits=_SPLITS)
    if not 0 <= fold < len(splits):
        raise UserError(f"`fold={fold}` does not exist: {path} has folds 0 to {len(splits) - 1}")
    chosen = sorted(set(map(str, splits[fold]["train"])) & set(cases))
    if not chosen:
        raise UserError(f"no training case of fold {fold} in {path} has a raw image")
    return chosen
