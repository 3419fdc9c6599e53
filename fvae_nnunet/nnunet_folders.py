"""Where nnU-Net keeps its data: its three environment variables and the dataset folders below them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fvae_nnunet.errors import UserError


def nnunet_folder(variable: str) -> Path:
    """The folder that ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results`` names.

    Raises:
        UserError: the variable is not set or names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"the environment variable {variable} is not set; run: export {variable}=/path/to/{variable}")
    if not Path(value).is_dir():
        raise UserError(f"{variable} is set to {value}, which is no folder; create it or correct the variable")
    return Path(value)


def dataset_name(id_or_name: str) -> str:
    """The name ``DatasetNNN_Something`` of a dataset that is given by name or by id, as nnU-Net's commands take it.

    Raises:
        UserError: it is neither, or no dataset or more than one dataset answers to it.
    """
    if not re.fullmatch(r"\d+|Dataset\d{3}_.+", id_or_name):
        raise UserError(f"{id_or_name!r} is neither a dataset id such as 7 nor a name such as Dataset007_Pancreas")
    pattern = f"Dataset{int(id_or_name):03d}_*" if id_or_name.isdigit() else id_or_name
    places = {variable: nnunet_folder(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed")}
    names = sorted({folder.name for place in places.values() for folder in place.glob(pattern) if folder.is_dir()})
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(f"dataset {id_or_name} could be {' or '.join(names)}; give the name instead of the id")
    known = sorted({folder.name for place in places.values() for folder in place.glob("Dataset*_*")})
    raise UserError(
        f"no dataset {id_or_name} in {' or '.join(str(place) for place in places.values())}; "
        f"there are: {', '.join(known) or 'none'}"
    )
