"""Which labels of a dataset are lesions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvae_nnunet.errors import UserError

LESION_NAME = re.compile("tumou?r|lesion|cancer|carcinoma|sarcoma|metasta|nodule", re.IGNORECASE)
"""Labels with such names are evaluated lesion by lesion unless others are chosen."""

NO_LESIONS = "none"


def lesion_labels(
    raw_folder: Path, label_values: Mapping[str, tuple[int, ...]], wanted: Sequence[str] | None
) -> dict[str, int]:
    """Names and values of the lesions' labels, in the order of their classes.

    Args:
        raw_folder: of the dataset.
        label_values: name -> values of each foreground label or region.
        wanted: names; ``[NO_LESIONS]``: none. None: of a dataset with ``reports.json``, whose labels are diseases, all;
            else the only one whose name is a lesion's (``LESION_NAME``), or the only label.

    Raises:
        UserError: no such label, a region of several values, or it is not clear which.
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
                f"{path}: {name} is a region of {len(label_values[name])} values; a synthetic lesion is written as one "
                "value. Give a label of one value with `lesion`"
            )
    return {name: label_values[name][0] for name in names}


def _only_lesion(path: Path, names: list[str]) -> str:
    found = [name for name in names if LESION_NAME.search(name)] or (names if len(names) == 1 else [])
    if len(found) != 1:
        which = f"{', '.join(found)} could be" if found else f"none of {', '.join(names)} has the name of"
        raise UserError(f"{path}: {which} the lesion's label; name it with `lesion`")
    return found[0]
