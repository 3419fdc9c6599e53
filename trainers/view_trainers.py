"""nnU-Net's trainer with reconstructed views among its training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fvae_nnunet import __version__
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.trainers.recording_trainer import RecordingTrainer
from fvae_nnunet.training.views import (
    VIEW_VARIABLE,
    ViewDataset,
    check_view,
    find_views,
    preprocessing_settings,
    view_folder,
)


class nnUNetTrainerFVAE(RecordingTrainer):
    """Trainer in which random samples of a batch are the case's view instead of the raw image.

    Attributes:
        view: name of the view, or of several views with weights (``a:2,b:1``), of which each sample draws one; None for
            those in ``nnUNet_fvae_view``, or the only one.
        view_probability: probability that a training sample comes from the view.
        view_blend: lowest and highest weight of the view in ``raw + weight * (view - raw)``, drawn for each sample.
        view_in_validation: also validate on the view, during and after training.
    """

    view_probability = 0.5
    view_blend = (1.0, 1.0)
    view_in_validation = False

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        if self.view_probability > 0:
            cases = sorted({*training.identifiers, *(validation.identifiers if self.view_in_validation else ())})
            training = ViewDataset(
                training, self._open_views(cases), probability=self.view_probability, blend=self.view_blend
            )
        if self.view_in_validation:
            validation = ViewDataset(validation, self._open_views(validation.identifiers), probability=1.0)
        return training, validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if not self.view_in_validation:
            super().perform_actual_validation(save_probabilities)
            return
        raw_class: Any = self.dataset_class  # type: ignore[has-type]

        def view_dataset(folder: str, identifiers: list[str] | None = None, **keywords: Any) -> Any:
            inner = raw_class(folder, identifiers, **keywords)
            if identifiers is None:  # nnU-Net only lists the cases
                return inner
            return ViewDataset(inner, self._open_views(inner.identifiers), probability=1.0)

        view_dataset.get_identifiers = raw_class.get_identifiers  # type: ignore[attr-defined]
        self.dataset_class = view_dataset
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.dataset_class = raw_class

    def _open_views(self, cases: list[str]) -> dict[Path, float]:
        """Check that each view holds these cases and fits the data and plans; return the folders and their weights."""
        data_folder = Path(self.preprocessed_dataset_folder)
        views = find_views(data_folder, self.preprocess_command, self.view)
        if len(views) > 1 and self.view_in_validation:
            raise UserError(
                f"{type(self).__name__} validates on the view, so it takes only one, not {', '.join(views)}; choose "
                f"one of them ({VIEW_VARIABLE}), or train with nnUNetTrainerFVAE"
            )
        preprocessing = preprocessing_settings(self.plans_manager.plans, self.configuration_manager)
        folders = {view: view_folder(data_folder, view) for view in views}
        contents = {
            view: check_view(folder, data_folder, cases, preprocessing, self.preprocess_command)
            for view, folder in folders.items()
        }
        settings = {view: _without_preprocessing(content["settings"]) for view, content in contents.items()}
        prefixes = {view: f"{view}/" for view in views} if len(views) > 1 else dict.fromkeys(views, "")
        digests = {
            f"{prefixes[view]}{case}": Manifest(folder).content_sha256([case])[:16]
            for view, folder in folders.items()
            for case in cases
        }
        record = _record_of(views, settings)
        self._refuse_other_views(record, digests)
        self.view_cases = {**self.view_cases, **digests}
        if self.view_name is None:
            self.view_name = record["view_name"]
            self.view_settings, self.views_settings = record["view"], record["views"]
            self.view_hu_as_is = any(
                content["made_with"]["parameters"].get("hu_as_is", False) for content in contents.values()
            )
            for view, folder in folders.items():
                repair = self.preprocess_command(**contents[view]["made_with"]["parameters"], verify=True)
                checked = Manifest(folder).check_sample(cases, repair)
                share = self.view_probability * views[view] / sum(views.values())
                self.print_to_log_file(
                    f"fvae_nnunet {__version__}: {len(cases)} cases with view {view!r} in {folder}, "
                    f"drawn with probability {share:g}, weight {self.view_blend[0]:g} to "
                    f"{self.view_blend[1]:g}, {'also' if self.view_in_validation else 'not'} in validation; {checked}; "
                    f"made with {json.dumps(settings[view])}"
                )
        return {folders[view]: weight for view, weight in views.items()}

    def _refuse_other_views(self, record: dict[str, Any], digests: dict[str, str]) -> None:
        """Raise UserError if the loaded checkpoint was trained with other views, or other content of the same views."""
        changed = self.changed_since_checkpoint(record)
        others = self.changed_cases_since_checkpoint("view_cases", digests)
        now = record["view_name"]
        if others:
            changed.append(
                f"the view {now!r} was made again: {len(others)} of {len(digests)} cases have changed "
                f"(first: {others[0]})"
            )
        before = (self.continued or {}).get("view_name")
        named = f" (export {VIEW_VARIABLE}={before})" if before not in (None, now) and self.view is None else ""
        self.refuse_to_go_on(changed, f"Restore the view that it was trained with{named}")


def _without_preprocessing(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "preprocessing"}


def _record_of(views: dict[str, float], settings: dict[str, Any]) -> dict[str, Any]:
    """Entries of a checkpoint's record for one or several views, with the settings of each."""
    if len(views) == 1:
        (view,) = views
        return {"view_name": view, "view": settings[view], "views": None}
    name = ",".join(f"{view}:{weight:g}" for view, weight in views.items())
    return {"view_name": name, "view": None, "views": settings}


class nnUNetTrainerFVAEReconOnly(nnUNetTrainerFVAE):
    """The paper's protocol: train and validate only on the view. Reconstruct test images before prediction."""

    view_probability = 1.0
    view_in_validation = True


class nnUNetTrainerFVAEBlend(nnUNetTrainerFVAE):
    """Trainer in which every sample is a random convex combination of raw image and view."""

    view_probability = 1.0
    view_blend = (0.0, 1.0)


def with_epochs(base: type[RecordingTrainer], epochs: int) -> type[RecordingTrainer]:
    """Return a subclass of ``base`` that trains for ``epochs`` epochs, named like nnU-Net's own: ``..._5epochs``."""

    class Variant(base):  # type: ignore[misc,valid-type]
        def __init__(
            self,
            plans: dict[str, Any],
            configuration: str,
            fold: int,
            dataset_json: dict[str, Any],
            device: torch.device = torch.device("cuda"),  # noqa: B008
        ) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = epochs

    Variant.__name__ = Variant.__qualname__ = f"{base.__name__}_{epochs}epoch{'' if epochs == 1 else 's'}"
    Variant.__module__ = __package__
    return Variant
