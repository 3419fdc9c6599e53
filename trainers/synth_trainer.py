"""nnU-Net's trainer with synthetic tumours among its training cases, beside the reconstructed views."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet import __version__
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.portable_names import portable_name
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.nnunet.folders import dataset_id
from fvae_nnunet.trainers.recording_trainer import RAW_VARIABLE
from fvae_nnunet.trainers.view_trainers import nnUNetTrainerFVAE
from fvae_nnunet.training.synthetic_dataset import (
    SyntheticData,
    SyntheticDataset,
    check_synthetic,
    synthetic_preprocessing_settings,
)


class nnUNetTrainerFVAESynth(nnUNetTrainerFVAE):
    """Each sample of a training batch is, by chance, a synthetic case; the others are raw or view as ever.

    Only synthetic cases that were made from training cases of the fold are used (their source case, and the cases that
    lent their lesions a shape), and none in validation. With probability 0 this is ``nnUNetTrainerFVAE`` to the bit.
    See docs/synthetic_training.md.

    Attributes:
        synthetic_probability: chance of a training sample to be a synthetic case.
        synthetic_settings: which synthetic cases are used; None as long as there are none.
        synthetic_cases: a digest of each.
    """

    synthetic_probability = 0.3
    synthetic_settings: dict[str, Any] | None = None
    synthetic_cases: Mapping[str, str] = {}

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        if self.synthetic_probability == 0:
            return training, validation
        if self.is_cascaded:
            raise UserError(
                f"{self.configuration_name} needs the segmentation of the previous stage as input, and there is none "
                "of synthetic cases; train the previous stage or 3d_fullres with synthetic cases, and the cascade with "
                "nnUNetTrainerFVAE"
            )
        data = self._open_synthetic()
        used = data.made_from(training.identifiers)
        if not used:
            raise UserError(
                f"none of the {len(data.source_cases)} synthetic cases in {data.folder} was made from training cases "
                f"of fold {self.fold} alone; make some with: {self._synthesize_command()}"
            )
        validated = set(validation.identifiers) - set(training.identifiers)
        self._say_synthetic(data, used, data.seen_by_models(validated))
        synthetic = self.dataset_class(str(data.folder), sorted(used))
        return SyntheticDataset(training, synthetic, used, probability=self.synthetic_probability), validation

    def training_record(self) -> dict[str, Any]:
        return {
            **super().training_record(),
            "synthetic": self.synthetic_settings,
            "synthetic_cases": dict(self.synthetic_cases),
        }

    def _refuse_other_cases(self, digests: dict[str, str]) -> None:
        """UserError where the loaded checkpoint was trained with other synthetic cases."""
        before = (self.continued or {}).get("synthetic_cases") or digests
        anew = self.changed_cases_since_checkpoint("synthetic_cases", digests)
        found = {
            "no longer there": sorted(before.keys() - digests.keys()),
            "new": sorted(digests.keys() - before.keys()),
            "made anew": anew,
        }
        changed = [
            f"{len(cases)} synthetic cases are {how} (first: {cases[0]})" for how, cases in found.items() if cases
        ]
        self.refuse_to_go_on(changed, "Bring back the synthetic cases that it was trained with")

    def _open_synthetic(self) -> SyntheticData:
        preprocessing = synthetic_preprocessing_settings(
            self.plans_manager.plans, self.configuration_manager, self.dataset_json
        )
        folder = Path(os.environ.get(RAW_VARIABLE, ""), "fvae_synthetic", self.plans_manager.dataset_name)
        way_to = (
            f"Make some with: {self._synthesize_command()}\n"
            f"and preprocess them with: {self.preprocess_command(synthetic=folder)}"
        )
        data_folder = Path(self.preprocessed_dataset_folder)
        return check_synthetic(data_folder, preprocessing, self.preprocess_command, way_to)

    def _synthesize_command(self) -> str:
        """Trains a model for this fold, or finds that it is trained, and makes cases of its training cases."""
        number = dataset_id(self.plans_manager.dataset_name)
        fold = None if self.fold == "all" else self.fold
        of_fold = "" if fold is None else f"__fold{fold}"
        model = Path(self.output_folder_base).parent / f"fvae_ldm__wan2.1{of_fold}"
        train = command_line("fvae-train-ldm", number, fold=fold)
        return f"{train} && {command_line('fvae-synthesize', number, ldm=model, fold=fold, n=200)}"

    def _say_synthetic(self, data: SyntheticData, used: dict[str, str], seen: list[str]) -> None:
        """Record, and say in the log, which synthetic cases are used and what is wrong with their model."""
        if self.synthetic_settings is not None:
            return
        digests = {case: Manifest(data.folder).content_sha256([case])[:16] for case in sorted(used)}
        self._refuse_other_cases(digests)
        repair = self.preprocess_command(synthetic=data.settings["synthetic_folder"], verify=True)
        checked = Manifest(data.folder).check_sample(sorted(used), repair)
        left_out = len(data.source_cases) - len(used)
        self.synthetic_cases = digests
        self.synthetic_settings = {
            "probability": self.synthetic_probability,
            "synthetic_folder": portable_name(data.settings["synthetic_folder"]),
            "cases": sorted(used),
            "left_out": left_out,
            "models": [
                {
                    key: portable_name(value) if key == "folder" else value
                    for key, value in model.items()
                    if key != "training_cases"
                }
                for model in data.models
            ],
            "validation_cases_seen_by_model": seen,
        }
        self.print_to_log_file(
            f"fvae_nnunet {__version__}: {len(used)} synthetic cases from {len(set(used.values()))} source cases in "
            f"{data.folder}, drawn with probability {self.synthetic_probability:g}, not in validation; {left_out} left "
            f"out, because their image or a lesion's shape is not of a training case of fold {self.fold}; {checked}; "
            f"made with {json.dumps(self.synthetic_settings['models'])}"
        )
        if seen:
            self.print_to_log_file(
                f"fvae_nnunet WARNING: the diffusion model was trained on {len(seen)} validation cases of this fold "
                f"(first: {seen[0]}), so that what they look like has leaked into training and validation scores may "
                "be too good; train a model for this fold: "
                + command_line("fvae-train-ldm", dataset_id(self.plans_manager.dataset_name), fold=self.fold)
            )


class nnUNetTrainerFVAESynthRaw(nnUNetTrainerFVAESynth):
    """Synthetic cases among raw ones; no view is needed."""

    view_probability = 0.0
