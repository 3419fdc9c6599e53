"""nnU-Net's trainer with synthetic cases among its training cases, in addition to reconstructed views."""

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
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.trainers.recording_trainer import RAW_VARIABLE
from fvae_nnunet.trainers.view_trainers import nnUNetTrainerFVAE
from fvae_nnunet.training.synthetic_dataset import (
    SyntheticData,
    SyntheticDataset,
    check_synthetic,
    synthetic_preprocessing_settings,
)


class nnUNetTrainerFVAESynth(nnUNetTrainerFVAE):
    """Trainer in which random samples of a batch are synthetic cases; the others are raw or view as usual.

    Only synthetic cases made from training cases of the fold are used (both their source case and the donors of lesion
    shapes), and none in validation. With probability 0 this is bit-identical to ``nnUNetTrainerFVAE``. See
    docs/synthetic_training.md.

    Attributes:
        synthetic_probability: probability that a training sample is a synthetic case.
        synthetic_settings: record of the synthetic cases in use; None until they are opened.
        synthetic_cases: digest of each of these cases.
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
                f"{self.configuration_name} needs the segmentation of the previous stage as input, which synthetic "
                "cases do not have; train the previous stage or 3d_fullres with synthetic cases, and the cascade with "
                "nnUNetTrainerFVAE"
            )
        data = self._open_synthetic()
        used = data.made_from(training.identifiers)
        if not used:
            raise UserError(
                f"none of the {len(data.source_cases)} synthetic cases in {data.folder} was made only from training "
                f"cases of fold {self.fold}; make such cases with: {self._synthesize_command()}"
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
        """Raise UserError if the loaded checkpoint was trained with other synthetic cases."""
        before = (self.continued or {}).get("synthetic_cases") or digests
        anew = self.changed_cases_since_checkpoint("synthetic_cases", digests)
        found = {
            "removed": sorted(before.keys() - digests.keys()),
            "added": sorted(digests.keys() - before.keys()),
            "changed": anew,
        }
        changed = [
            f"{counted(len(cases), 'synthetic case')} {how} (first: {cases[0]})"
            for how, cases in found.items()
            if cases
        ]
        self.refuse_to_go_on(changed, "Restore the synthetic cases that it was trained with")

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
        """Command that trains a model for this fold, if it is not trained, and makes cases from its training cases."""
        number = dataset_id(self.plans_manager.dataset_name)
        fold = None if self.fold == "all" else self.fold
        of_fold = "" if fold is None else f"__fold{fold}"
        model = Path(self.output_folder_base).parent / f"fvae_ldm__wan2.1{of_fold}"
        train = command_line("fvae-train-ldm", number, fold=fold)
        return f"{train} && {command_line('fvae-synthesize', number, ldm=model, fold=fold, n=200)}"

    def _say_synthetic(self, data: SyntheticData, used: dict[str, str], seen: list[str]) -> None:
        """Record and log the synthetic cases in use, and warn of leakage through their model."""
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
            f"out because their image or a lesion shape is not from a training case of fold {self.fold}; {checked}; "
            f"made with {json.dumps(self.synthetic_settings['models'])}"
        )
        if seen:
            self.print_to_log_file(
                f"fvae_nnunet WARNING: the diffusion model was trained on {counted(len(seen), 'validation case')} of "
                f"this fold (first: {seen[0]}), so their appearance has leaked into training, and validation scores "
                "may be too high; train a model for this fold: "
                + command_line("fvae-train-ldm", dataset_id(self.plans_manager.dataset_name), fold=self.fold)
            )


class nnUNetTrainerFVAESynthRaw(nnUNetTrainerFVAESynth):
    """Synthetic cases among raw cases, without views."""

    view_probability = 0.0
