"""Locations of nnU-Net's data: its three environment variables and the dataset folders below them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError


def nnunet_folder(variable: str) -> Path:
    """Folder named by ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        UserError: the variable is not set, or does not name a folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"the environment variable {variable} is not set; run: export {variable}=/path/to/{variable}")
    if not Path(value).is_dir():
        raise UserError(f"{variable} is set to {value}, which is not a folder; create it or correct the variable")
    return Path(value)


def dataset_id(name: str) -> int:
    """Id of ``DatasetNNN_Something``: all digits up to the underscore, since nnU-Net accepts ids above 999.

    Raises:
        UserError: it is not the name of a dataset.
    """
    match = re.match(r"Dataset(\d+)_", name)
    if match is None:
        raise UserError(f"{name!r} is not a dataset name such as Dataset007_Pancreas")
    return int(match[1])


def dataset_prefix(number: int) -> str:
    """Common prefix of the names of datasets with this id."""
    return f"Dataset{number:03d}_"


def dataset_argument(name: str) -> str:
    """Name of the dataset for a printed nnU-Net command: its id, or its full name if the id is ambiguous for nnU-Net
    (which matches id 100 also with Dataset1001_X, since that begins with Dataset100)."""
    number = dataset_id(name)
    folders = [os.environ.get(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    names = {path.name for folder in folders if folder for path in Path(folder).glob(f"Dataset{number:03d}*")}
    return name if names - {name} else str(number)


def dataset_name(id_or_name: str) -> str:
    """Full name ``DatasetNNN_Something`` of a dataset given by name or id, as in nnU-Net's commands.

    Raises:
        UserError: it is neither, or matches no dataset or several.
    """
    if not re.fullmatch(r"\d+|Dataset\d{3,}_.+", id_or_name):
        raise UserError(f"{id_or_name!r} is neither a dataset id such as 7 nor a name such as Dataset007_Pancreas")
    pattern = f"{dataset_prefix(int(id_or_name))}*" if id_or_name.isdigit() else id_or_name
    places = {variable: nnunet_folder(variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed")}
    names = sorted({folder.name for place in places.values() for folder in place.glob(pattern) if folder.is_dir()})
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(f"dataset {id_or_name} could be {' or '.join(names)}; give the name instead of the id")
    known = sorted({folder.name for place in places.values() for folder in place.glob("Dataset*_*")})
    raise UserError(
        f"no dataset {id_or_name} in {' or '.join(str(place) for place in places.values())}; "
        f"existing datasets: {', '.join(known) or 'none'}"
    )


def folders_above(folder: Path) -> list[Path]:
    """Parent of a folder by its path as given; if a link leads to it, also the parent of the folder itself."""
    as_given = Path(os.path.normpath(folder.absolute())).parent
    return list(dict.fromkeys((as_given, folder.resolve().parent)))


def training_files(raw: Path, dataset_json: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Files ``{"images": [...], "label": ...}`` of each training case of a raw dataset, as nnU-Net finds them.

    Raises:
        UserError: there are none, or nnU-Net would skip a file that is named like an image.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from fvae_nnunet.ct.files import find_files
    from fvae_nnunet.files.ordinary import check_file

    if "dataset" in dataset_json:
        files: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    else:
        # nnU-Net's function forks 12 processes for this, which can hang where threads or signal handlers are in use
        ending = dataset_json["file_ending"]
        for path in find_files(raw / "imagesTr", ending).values():
            check_file(path)
        files = {}
        for name in sorted(path.name for path in (raw / "imagesTr").iterdir() if path.name.endswith(ending)):
            case = name[: -len("_0000") - len(ending)]
            of_case = files.setdefault(case, {"images": [], "label": str(raw / "labelsTr" / f"{case}{ending}")})
            if re.fullmatch(r"_\d{4}", name[len(case) : -len(ending)]):
                of_case["images"].append(str(raw / "imagesTr" / name))
    if not files:
        raise UserError(f"{raw} holds no training images")
    return files
