"""Choice of the lesion labels of a dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvae_nnunet.errors import UserError

LESION_NAME = re.compile("tumou?r|lesion|cancer|carcinoma|sarcoma|metasta|nodule", re.IGNORECASE)
"""Labels with such names are evaluated lesion by lesion by default."""

NO_LESIONS = "none"


def lesion_labels(
    raw_folder: Path, label_values: Mapping[str, tuple[int, ...]], wanted: Sequence[str] | None
) -> dict[str, int]:
    """Names and values of the lesion labels, in the order of their classes.

    Args:
        raw_folder: raw folder of the dataset.
        label_values: name -> values of each foreground label or region.
        wanted: names of the labels; ``[NO_LESIONS]``: no label. None: all labels of a dataset with ``reports.json``,
            whose labels are diseases; else the only label with a lesion's name (``LESION_NAME``), or the only label.

    Raises:
        UserError: a label does not exist, is a region of several values, or the choice is ambiguous.
    """
    from fvae_nnunet.nnunet.case_reports import FILE_NAME

    path = raw_folder / "dataset.json"
    if wanted is not None and list(wanted) == [NO_LESIONS] and NO_LESIONS not in label_values:
        return {}
    if wanted is not None:
        unknown = [name for name in wanted if name not in label_values]
        if unknown:
            raise UserError(f"{path} has no label {unknown[0]!r}; it has {', '.join(label_values)}")
        names = list(dict.fromkeys(wanted))
    elif (raw_folder / FILE_NAME).is_file():
        names = list(label_values)
    else:
        names = [_only_lesion(path, list(label_values))]
    for name in names:
        if len(label_values[name]) != 1:
            raise UserError(
                f"{path}: {name} is a region of {len(label_values[name])} values, but a synthetic lesion is written as "
                "one value. Choose a label with a single value with `lesion`"
            )
    return {name: label_values[name][0] for name in names}


def _only_lesion(path: Path, names: list[str]) -> str:
    found = [name for name in names if LESION_NAME.search(name)] or (names if len(names) == 1 else [])
    if len(found) != 1:
        problem = (
            f"several labels could be the lesion ({', '.join(found)})"
            if found
            else f"no label is named like a lesion ({', '.join(names)})"
        )
        raise UserError(f"{path}: {problem}; choose one with `lesion`")
    return found[0]
