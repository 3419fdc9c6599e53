"""Names and files of a raw nnU-Net dataset: images, labels, structures and ``dataset.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.folders import dataset_id, dataset_prefix

ENDING = ".nii.gz"
SUFFIXES = {"train": "Tr", "test": "Ts"}


def new_dataset_name(text: str) -> str:
    """``DatasetNNN_NAME`` from ``40_NAME`` or from the full name.

    Raises:
        UserError: the text is neither, or nnU-Net does not accept the number.
    """
    match = re.fullmatch(r"(?:Dataset)?(\d+)_([A-Za-z0-9][A-Za-z0-9_-]*)", text)
    if match is None or int(match[1]) == 0:
        raise UserError(f"`dataset` must be a number from 1 on and a name, such as 40_CTRATE, got {text!r}")
    return dataset_prefix(int(match[1])) + match[2]


def refuse_taken_number(raw: Path) -> None:
    """Raise UserError if another raw dataset has the same number: nnU-Net refuses to work with both."""
    same = raw.parent.glob(f"{dataset_prefix(dataset_id(raw.name))}*")
    taken = [folder.name for folder in same if folder.name != raw.name]
    if taken:
        raise UserError(f"{raw.parent} contains {taken[0]}, which has the same number; choose another `dataset`")


def image_path(raw: Path, split: str, case: str) -> Path:
    return raw / f"images{SUFFIXES[split]}" / f"{case}_0000{ENDING}"


def label_path(raw: Path, split: str, case: str) -> Path:
    return raw / f"labels{SUFFIXES[split]}" / f"{case}{ENDING}"


def structures_path(raw: Path, split: str, case: str) -> Path:
    return raw / f"structures{SUFFIXES[split]}" / f"{case}{ENDING}"


def write_dataset_json(raw: Path, labels: Mapping[str, int], description: str) -> None:
    """Write ``dataset.json`` with one channel, CT, and the number of images in ``imagesTr`` as training cases."""
    write_json(
        raw / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **labels},
            "numTraining": len(list((raw / "imagesTr").glob(f"*_0000{ENDING}"))),
            "file_ending": ENDING,
            "description": description,
        },
    )
