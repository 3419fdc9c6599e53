"""Base class of our trainers: its checkpoints work without this package and record how they were trained."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fvae_nnunet import __version__
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.jobs.manifest import differences
from fvae_nnunet.nnunet.folders import dataset_id
from fvae_nnunet.nnunet.trained_model import RECORD_KEY, read_record, saw_only_the_view

RAW_VARIABLE = "nnUNet_raw"

OF_NNUNET = {"view_probability": 0.0, "synthetic_probability": 0.0}
"""Record assumed for checkpoints of nnU-Net's own trainers, which have none."""


class RecordingTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a record of the training data in checkpoints; it resumes only with the same data.

    Attributes:
        view: name of the view or views to use; None for those in ``nnUNet_fvae_view``, or the only one.
        view_probability, view_blend, view_in_validation, synthetic_probability: see the subclasses; here only raw
            images are used.
        view_settings: settings of the view, as in its manifest; None until it is opened, and with several views.
        views_settings: settings of several views, by name; None with one view.
        view_hu_as_is: whether a view was made without the check that its images are in HU (``--hu-as-is``).
        view_name, view_cases: name of the view or views (``a:2,b:1``), and a digest of each of their cases.
        continued: record of the loaded checkpoint; None if none is loaded.
    """

    view: str | None = None
    view_probability = 0.0
    view_blend = (1.0, 1.0)
    view_in_validation = False
    synthetic_probability = 0.0
    view_settings: dict[str, Any] | None = None
    views_settings: dict[str, Any] | None = None
    view_hu_as_is = False
    view_name: str | None = None
    view_cases: Mapping[str, str] = {}
    continued: dict[str, Any] | None = None

    def training_record(self) -> dict[str, Any]:
        """Record of a checkpoint, stored under ``fvae_nnunet``."""
        return {
            "version": __version__,
            "trainer": type(self).__name__,
            # classes in modules of this package; the variants of length belong to the package itself
            "base": next(base.__name__ for base in type(self).__mro__ if base.__module__.startswith(f"{__package__}.")),
            **self._shares(),
            "view": self.view_settings,
            "views": self.views_settings,
            "view_hu_as_is": self.view_hu_as_is,
            "view_name": self.view_name,
            "view_cases": dict(self.view_cases),
        }

    def _shares(self) -> dict[str, Any]:
        return {
            "view_probability": self.view_probability,
            "view_blend": list(self.view_blend),
            "view_in_validation": self.view_in_validation,
            "synthetic_probability": self.synthetic_probability,
        }

    def preprocess_command(self, **parameters: Any) -> str:
        """Command that makes a view of the data, or preprocesses synthetic cases, with these parameters."""
        number, plans = dataset_id(self.plans_manager.dataset_name), self.plans_manager.plans_name
        return command_line("fvae-preprocess", number, c=self.configuration_name, p=plans, **parameters)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        self.refuse_to_go_on(
            self.changed_since_checkpoint(self._shares()), f"Restore them in the class {type(self).__name__}"
        )
        return super().get_tr_and_val_datasets()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if saw_only_the_view(self.training_record()):
            views = ", ".join(self.views_settings or ())
            self.print_to_log_file(
                f"fvae_nnunet: this model has seen only {'views' if views else 'the view'}, but nnUNetv2_predict, "
                "which nnUNetv2_find_best_configuration prints, would give it raw images. Reconstruct and predict them "
                "with:"
            )
            self.print_to_log_file(self.predict_command(), add_timestamp=False)
            if views:
                self.print_to_log_file(f"and --vae and the options of one of its views ({views})", add_timestamp=False)

    def predict_command(self) -> str:
        """``fvae-predict`` command for this model, with all trained folds, and for a cascade with the first stage."""
        folds = ["all"]
        if self.fold != "all":
            trained = Path(self.output_folder_base).glob("fold_*/checkpoint_final.pth")
            names = {path.parent.name.removeprefix("fold_") for path in trained} | {str(self.fold)}
            folds = sorted(filter(str.isdecimal, names), key=int)
        previous = self.configuration_manager.previous_stage_name
        raw = Path(os.environ.get(RAW_VARIABLE, ""), self.plans_manager.dataset_name, "imagesTs")
        return command_line(
            "fvae-predict",
            i=raw if raw.is_dir() else "imagesTs",
            o="predictions",
            d=self.plans_manager.dataset_name,
            c=self.configuration_name,
            tr=type(self).__name__,
            p=self.plans_manager.plans_name,
            f=folds,
            prev_stage_predictions=f"predictions_{previous}" if previous else None,
        )

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's checkpoint with the name of nnU-Net's own trainer, so that it works without this package.

        The actual trainer and view are recorded under the key ``fvae_nnunet``. A subclass that builds its own network
        keeps its name. Written atomically.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # type: ignore[arg-type]
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[RECORD_KEY] = self.training_record()
        if type(self).build_network_architecture is nnUNetTrainer.build_network_architecture:
            checkpoint["trainer_name"] = nnUNetTrainer.__name__
        with atomic_write(Path(filename)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint like nnU-Net, and keep its record for comparison when the data are opened."""
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            self.continued = read_record(Path(filename_or_checkpoint)) or OF_NNUNET

    def changed_since_checkpoint(self, now: Mapping[str, Any]) -> list[str]:
        """Differences between a part of the record and that of the loaded checkpoint, as ``manifest.differences``.

        Only common entries are compared, because older versions recorded less.
        """
        return differences(self.continued or {}, json.loads(json.dumps(now)), common_only=True)

    def changed_cases_since_checkpoint(self, key: str, now: Mapping[str, str]) -> list[str]:
        """Cases under ``key`` in both records whose digest differs from that of the loaded checkpoint, sorted."""
        before = (self.continued or {}).get(key) or {}
        return sorted(case for case, digest in now.items() if before.get(case, digest) != digest)

    def refuse_to_go_on(self, changed: list[str], remedy: str) -> None:
        """Raise UserError if something has changed since the loaded checkpoint was written.

        Args:
            changed: a line for each difference.
            remedy: what to do to resume, the start of a sentence.
        """
        if changed:
            raise UserError(
                f"the model in {self.output_folder} was trained with other data or settings than now:\n  "
                + "\n  ".join(changed)
                + f"\n{remedy} to resume. Or start again: nnUNetv2_train without --c overwrites this model; a subclass "
                "with another name has its own folder (docs/own_trainer.md), and -pretrained_weights starts from the "
                "weights of this model"
            )
