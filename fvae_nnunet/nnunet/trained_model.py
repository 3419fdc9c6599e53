"""Models trained with nnU-Net: their folders, folds, and the view that our trainers record in checkpoints."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import differences, sha256_of_files
from fvae_nnunet.nnunet.ct_channels import channel_names, find_ct_channels
from fvae_nnunet.nnunet.files import read_dataset_json, read_plans
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.image_readers import reader_of

RECORD_KEY = "fvae_nnunet"
"""Key of our record in a checkpoint, see ``trainers.recording_trainer``."""

COMPARED = ("trainer", "view", "view_probability", "view_blend", "view_in_validation", "synthetic_probability")
"""Entries of the record that must be equal in all folds of a model; for models of several views, also the views, their
names and weights."""

NOT_OF_THE_IMAGE = ("ct_channels", "preprocessing")
"""Entries of a view's settings that do not concern the reconstruction of a single image."""


@dataclass(frozen=True)
class TrainedModel:
    """A model folder of nnU-Net, and the folds that predict together.

    Attributes:
        folder: ``.../DatasetNNN_X/TRAINER__PLANS__CONFIGURATION``.
        folds: numbers, or ``all``.
        checkpoint_name: name of the checkpoint file in each fold's folder.
        dataset_json, plans: as stored by nnU-Net with the model.
        trainer: name of the trainer class; from the folder's name if the checkpoints do not record it.
        view: settings of the view used in training, as in the view's manifest; None if the checkpoints have no such
            record (nnU-Net's own trainers, and ours if no sample came from a view).
        saw_only_the_view: whether it was trained only on the view; None if the checkpoints do not tell.
        views: names of the views, if there are several; ``view`` is then None.
        hu_as_is: whether the view was made without the check that images are in HU; False also in older records.
    """

    folder: Path
    folds: tuple[int | str, ...]
    checkpoint_name: str
    dataset_json: dict[str, Any]
    plans: dict[str, Any]
    trainer: str
    view: dict[str, Any] | None
    saw_only_the_view: bool | None
    views: tuple[str, ...] = ()
    hu_as_is: bool = False

    @cached_property
    def weights_sha256(self) -> str:
        """Joint digest of all checkpoints, which are read once."""
        paths = [self.folder / f"fold_{fold}" / self.checkpoint_name for fold in self.folds]
        return sha256_of_files({path: sha256_of_file(path) for path in paths})

    @property
    def file_ending(self) -> str:
        return self.dataset_json["file_ending"]

    @property
    def reader(self) -> str | None:
        """Name of nnU-Net's image reader of this model."""
        return reader_of(self.plans, self.dataset_json)

    @property
    def channels(self) -> int:
        return len(channel_names(self.dataset_json))

    def reconstructed_channels(self, channels: Sequence[int] | None = None) -> list[int]:
        """Channels that the view reconstructs: as recorded, else the requested channels or those named CT.

        Raises:
            UserError: the requested channels differ from the record, or there is no record and no channel is CT.
        """
        recorded = (self.view or {}).get("ct_channels")
        if recorded is None or channels is not None:
            found = find_ct_channels(self.dataset_json, self.plans, channels)
            if recorded not in (None, found):
                raise UserError(
                    f"`channels`: the model in {self.folder} was trained with a view of the channels "
                    f"{', '.join(map(str, recorded))}; leave it out"
                )
            return found
        return list(recorded)

    @property
    def reconstruction(self) -> dict[str, Any] | None:
        """Settings of ``view`` for the reconstruction of one image, as in ``ReconstructionSettings.recorded_with``."""
        if self.view is None:
            return None
        return {key: value for key, value in self.view.items() if key not in NOT_OF_THE_IMAGE}


def model_folder(id_or_name: str, *, configuration: str, trainer: str, plans_name: str) -> Path:
    """Folder of the nnU-Net model with these names, whether it exists or not.

    Raises:
        UserError: there is no folder of results, or the id matches no dataset or several.
    """
    nnunet_folder("nnUNet_results")
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    try:
        return Path(get_output_folder(id_or_name, trainer, plans_name, configuration))
    except (RuntimeError, ValueError) as error:
        raise UserError(str(error)) from error


def open_model(folder: Path, folds: tuple[int | str, ...], checkpoint_name: str) -> TrainedModel:
    """Read a model folder and the records in the checkpoints of these folds, without the weights.

    Raises:
        UserError: a file is missing or cannot be read, or the folds were trained with different views.
    """
    for name in ("dataset.json", "plans.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not the folder of a trained model: no {name}. {_models_beside(folder)}")
    records = {fold: _record(folder, fold, checkpoint_name) for fold in folds}
    first, *others = folds
    for fold in others:
        # older versions recorded less
        several = any(record.get("views") for record in (records[first], records[fold]))
        compared = (*COMPARED, "views", "view_name") if several else COMPARED
        changed = differences(
            {name: value for name, value in records[first].items() if name in compared},
            records[fold],
            common_only=True,
        )
        if changed:
            raise UserError(
                f"fold {first} and fold {fold} in {folder} were trained with different settings:\n  "
                + "\n  ".join(changed)
                + "\nChoose folds that were trained with the same settings (`folds`)"
            )
    return TrainedModel(
        folder=folder,
        folds=tuple(folds),
        checkpoint_name=checkpoint_name,
        dataset_json=read_dataset_json(folder / "dataset.json"),
        plans=read_plans(folder / "plans.json"),
        trainer=records[first]["trainer"],
        view=records[first]["view"],
        saw_only_the_view=saw_only_the_view(records[first]),
        views=tuple(records[first].get("views") or ()),
        hu_as_is=any(record.get("view_hu_as_is", False) for record in records.values()),
    )


def _record(folder: Path, fold: int | str, checkpoint_name: str) -> dict[str, Any]:
    """Record in a fold's checkpoint, always with ``trainer`` and ``view``."""
    path = folder / f"fold_{fold}" / checkpoint_name
    if not path.is_file():
        there = sorted(found.parent.name.removeprefix("fold_") for found in folder.glob(f"fold_*/{checkpoint_name}"))
        raise UserError(
            f"{path} is missing; folds with a {checkpoint_name}: {', '.join(there) or 'none'}. Choose them with "
            "`folds` (and `checkpoint_name`)"
        )
    return {"trainer": folder.name.split("__")[0], "view": None, **read_record(path)}


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Read the record of our trainers in a checkpoint, as JSON values; empty for other trainers.

    Raises:
        UserError: the file cannot be read.
    """
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{checkpoint} cannot be read: {error}") from error
    record: dict[str, Any] = json.loads(json.dumps(content.get(RECORD_KEY) or {}))
    return record


def saw_only_the_view(record: Mapping[str, Any]) -> bool | None:
    """Whether a model was trained only on the view, by the record of its checkpoint; None if the record does not tell.

    Records of version 0.1.0 have no probabilities, so the names of this package's trainers decide.
    """
    if "view_probability" in record:
        return (
            record["view_probability"] == 1
            and list(record["view_blend"]) == [1, 1]
            and record["synthetic_probability"] == 0
        )
    trainer = record.get("trainer") or ""
    if trainer.startswith("nnUNetTrainerFVAEReconOnly"):
        return True
    if record.get("online"):
        return bool(record["online"]["probability"] == 1 and record["online"]["blend"] == [1, 1])
    if not record.get("view") or re.fullmatch(r"nnUNetTrainerFVAE(Blend|Synth)?(_\d+epochs?)?", trainer):
        return False
    return None


def _models_beside(folder: Path) -> str:
    if not folder.parent.is_dir():
        return f"{folder.parent} does not exist either"
    names = sorted(path.parent.name for path in folder.parent.glob("*__*__*/plans.json"))
    return f"Models in {folder.parent}: {', '.join(names) or 'none'}"
