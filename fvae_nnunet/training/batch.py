"""One training batch as the network receives it, and the origin of each of its samples."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.ct.orientation import direction_of_nnunet
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.files import find_plans, read_dataset_json, read_plans, read_splits
from fvae_nnunet.nnunet.folders import dataset_id, dataset_name, nnunet_folder
from fvae_nnunet.nnunet.registration import EXTERNAL_TRAINERS, external_trainers
from fvae_nnunet.pictures.planes import Sides
from fvae_nnunet.training.batch_sides import ramp_along, sides_after
from fvae_nnunet.training.synthetic_dataset import SyntheticDataset
from fvae_nnunet.training.views import BlendedArray, ViewDataset


@dataclass(frozen=True)
class Sample:
    """A sample of a training batch; arrays have the image's own axes, with axial slices first; in 2d one slice.

    Attributes:
        case: identifier of the case; for a synthetic case, that of its source case.
        raw: raw image (c, z, y, x) of ``case`` with the same crop and augmentation.
        received: input of the network, (c, z, y, x); in a cascade with the labels of the previous stage as channels.
        masks: label or region -> its mask in the target, bool (z, y, x).
        weight: weight of the view in ``raw + weight * (view - raw)``: 0 for the raw image, 1 for the view; None if the
            trainer changed the sample in an unknown way.
        synthetic: name of the synthetic case, or None for other samples.
        sides: sides of the patient to the left, right, top and bottom of its axial slices, after mirroring and rotation
            by augmentation; None if the image reader gives no direction.
    """

    case: str
    raw: np.ndarray
    received: np.ndarray
    masks: dict[str, np.ndarray]
    weight: float | None
    synthetic: str | None = None
    sides: Sides | None = None

    @property
    def mark(self) -> str:
        """Kind of the sample: ``raw``, ``view``, ``synthetic (<name>)`` or a combination."""
        synthetic = "" if self.synthetic is None else f"synthetic ({self.synthetic})"
        if self.weight is None:
            return f"{synthetic}, changed by the trainer".lstrip(", ")
        if synthetic and self.weight == 0:
            return synthetic
        view = {0.0: "raw", 1.0: "view"}.get(self.weight, f"raw and view, weight {self.weight:.2f}")
        return f"{synthetic}, {view}".lstrip(", ")


@dataclass(frozen=True)
class TrainingBatch:
    """The samples of a batch, and the values of the first channel that are shown as black and white.

    ``grey`` describes these limits for the user.
    """

    samples: list[Sample]
    limits: tuple[float, float]
    grey: str


def take_training_batch(
    id_or_name: str,
    configuration: str,
    fold: int | str,
    *,
    trainer_name: str,
    plans_name: str,
    device: str,
    seed: int = 0,
) -> TrainingBatch:
    """Return the first training batch that a trainer would give its network after seeding all generators with ``seed``.

    Nothing is trained, and nothing remains in ``nnUNet_results``. Works for any trainer that calls its network in
    ``train_step``; the origin of samples is known only for our trainers.

    Args:
        id_or_name, configuration, fold, trainer_name, plans_name: as for ``nnUNetv2_train``.
        device: ``cuda``, ``cpu`` or ``mps``.
        seed: random seed of the batch.

    Raises:
        UserError: dataset, plans, configuration, preprocessed data or trainer are missing, or an error of the trainer.
    """
    name = dataset_name(id_or_name)
    nnunet_folder("nnUNet_results")
    plans_path = find_plans(nnunet_folder("nnUNet_preprocessed") / name, plans_name)
    known = read_plans(plans_path)["configurations"]
    read_dataset_json(plans_path.with_name("dataset.json"))
    if (splits_path := plans_path.with_name("splits_final.json")).is_file():
        read_splits(splits_path)
    if configuration not in known:
        raise UserError(f"{plans_path} has no configuration {configuration!r}; configurations: {', '.join(known)}")
    ours = {EXTERNAL_TRAINERS: external_trainers()}
    with _environment(nnUNet_n_proc_DA="0", nnUNet_compile="f", nnUNet_wandb_enabled="0", **ours):
        import torch
        from nnunetv2.run.run_training import get_trainer_from_args

        try:
            trainer = get_trainer_from_args(
                name, configuration, fold, trainer_name, plans_name, device=torch.device(device)
            )
        except RuntimeError as error:
            raise UserError(f"{error} (to let nnU-Net find the trainers of this package, run fvae-setup)") from error
        try:
            if not Path(trainer.preprocessed_dataset_folder).is_dir():
                raise UserError(
                    f"{trainer.preprocessed_dataset_folder} is missing; run first: "
                    + command_line("nnUNetv2_preprocess", d=dataset_id(name), plans_name=plans_name, c=configuration)
                )
            return _taken(trainer, seed)
        finally:
            _remove_log(trainer)


def _taken(trainer: Any, seed: int) -> TrainingBatch:
    trainer.initialize()
    traced: list[_TracedDataset] = []
    datasets = trainer.get_tr_and_val_datasets

    def noted_datasets() -> tuple[Any, Any]:
        training, validation = datasets()
        traced.append(_TracedDataset(training, trainer.plans_manager.transpose_forward))
        return traced[0], validation

    trainer.get_tr_and_val_datasets = noted_datasets
    loader, _ = trainer.get_dataloaders()
    dataset = traced[0]

    def batch_of(show: _Show) -> dict[str, Any]:
        dataset.loaded.clear()
        dataset.show = show
        _seed(seed)
        return next(loader)

    raw = batch_of("raw")
    ramps = [batch_of(axis)["data"].numpy() for axis in range(3)]
    batch = batch_of("case")
    loaded = batch["data"].clone()
    received = _received(trainer, batch)
    draw = getattr(trainer, "last_draw", None)
    drawn = {} if draw is None else dict(zip(draw.samples, draw.weights, strict=True))
    axial = _to_axial(trainer)
    masks = _masks(trainer, batch["target"])
    samples = []
    for number, origin in enumerate(dataset.loaded):
        changed = not bool((received[number] == loaded[number].to(received.device)).all())
        weight = drawn.get(number) if changed else origin.weight
        samples.append(
            Sample(
                case=origin.case,
                raw=axial(raw["data"][number].numpy()),
                received=axial(received[number].float().cpu().numpy()),
                masks={name: axial(mask[number][None])[0] for name, mask in masks.items()},
                weight=weight,
                synthetic=origin.synthetic,
                sides=sides_after(origin.direction, [axial(ramp[number]) for ramp in ramps]),
            )
        )
    limits, grey = _limits(trainer, samples)
    return TrainingBatch(samples, limits, grey)


@dataclass(frozen=True)
class _Origin:
    """Origin of a loaded case; ``case`` is the case whose raw image it is compared with.

    ``direction`` (3, 3) has a column for each axis of the case's data: its direction in the patient; None if unknown.
    """

    case: str
    weight: float = 0.0
    synthetic: str | None = None
    direction: np.ndarray | None = None


_Show = Literal["case", "raw"] | int
"""Show the case as it is, its raw image, or a ramp along an axis of its data (0 to 2)."""


class _TracedDataset:
    """nnU-Net's dataset that records the origin of each loaded case and returns the data selected by ``show``.

    The raw image of a synthetic case is that of its source case. The random numbers do not depend on ``show``, so the
    same seed gives the same crops and augmentation, and the augmented ramps show where the axes of a sample point.

    Args:
        dataset: nnU-Net's dataset.
        transpose: axes of an image in the order of the plans (``transpose_forward``).
    """

    def __init__(self, dataset: Any, transpose: Sequence[int]) -> None:
        self.dataset, self.transpose = dataset, transpose
        self.loaded: list[_Origin] = []
        self.show: _Show = "case"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, Any]:
        data, *rest, properties = self.dataset.load_case(identifier)
        origin, raw = self._traced(str(identifier), data)
        direction = direction_of_nnunet(properties)
        if direction is not None:
            origin = replace(origin, direction=direction[:, ::-1][:, list(self.transpose)])
        self.loaded.append(origin)
        if isinstance(self.show, int):
            return (ramp_along(self.show, data.shape), *rest, properties)
        return (raw if self.show == "raw" else data, *rest, properties)

    def _traced(self, identifier: str, data: Any) -> tuple[_Origin, Any]:
        """Origin of ``data``, and the corresponding raw image."""
        dataset = self.dataset
        synthetic = None
        if isinstance(dataset, SyntheticDataset):
            synthetic = dataset.name_of(data)
            sources, dataset = dataset.source_cases, dataset.inner
        inner = dataset.inner if isinstance(dataset, ViewDataset) else dataset
        if synthetic is not None:
            source = sources[synthetic]
            raw = inner.load_case(source)[0]
            if raw.shape != data.shape:
                # nnU-Net has cropped it differently from its source
                return _Origin(synthetic, synthetic=synthetic), data
            return _Origin(source, synthetic=synthetic), raw
        if isinstance(data, BlendedArray):
            return _Origin(identifier, float(data.weight)), data.raw
        if isinstance(dataset, ViewDataset) and Path(str(data.urlpath)).parent in dataset.folders:
            return _Origin(identifier, 1.0), inner.load_case(identifier)[0]
        return _Origin(identifier), data


class _Received(Exception):
    """Carries the input of the network."""


def _received(trainer: Any, batch: dict[str, Any]) -> Any:
    """Input that ``train_step`` gives to the network for this batch; the step ends there."""

    def stop(module: Any, arguments: tuple[Any, ...]) -> None:
        raise _Received(arguments[0].detach())

    handle = trainer.network.register_forward_pre_hook(stop)
    try:
        trainer.train_step(batch)
    except _Received as received:
        return received.args[0]
    finally:
        handle.remove()
    raise UserError(f"{type(trainer).__name__} does not call its network in train_step; its batches cannot be shown")


def _to_axial(trainer: Any) -> Any:
    """Return a function that maps (c, z, y, x) in the plans' axes to the image's own; (c, y, x) of 2d to one slice."""
    if len(trainer.configuration_manager.patch_size) == 2:
        return lambda array: array[:, None]
    order = (0, *(int(axis) + 1 for axis in np.argsort(trainer.plans_manager.plans["transpose_forward"])))
    return lambda array: array.transpose(order)


def _masks(trainer: Any, target: Any) -> dict[str, np.ndarray]:
    """Mask (B, ...) of each label or region, at full resolution."""
    full = (target[0] if isinstance(target, list) else target).numpy()
    manager, labels = trainer.label_manager, trainer.dataset_json["labels"]
    values = {name: tuple(np.atleast_1d(value).tolist()) for name, value in labels.items()}
    if manager.has_regions:
        names = {value: name for name, value in values.items()}
        regions = [tuple(np.atleast_1d(region).tolist()) for region in manager.foreground_regions]
        return {names[region]: full[:, number] > 0 for number, region in enumerate(regions)}
    return {name: full[:, 0] == value[0] for name, value in values.items() if value[0] in manager.foreground_labels}


def _limits(trainer: Any, samples: list[Sample]) -> tuple[tuple[float, float], str]:
    from fvae_nnunet.training.ct_patches import CTPatches

    try:
        channel = CTPatches.of_plans(
            trainer.plans_manager.plans, trainer.configuration_name, trainer.dataset_json
        ).channels[0]
    except UserError:
        channel = None
    if channel is not None and channel.index == 0:
        return channel.normalised_range, f"{channel.lower_hu:g} to {channel.upper_hu:g} HU"
    low, high = np.percentile(np.concatenate([sample.raw[0].ravel() for sample in samples]), (0.5, 99.5))
    return (float(low), float(max(high, low + 1e-6))), f"{low:.3g} to {high:.3g}, normalised"


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _remove_log(trainer: Any) -> None:
    """Remove the log that nnU-Net has started, and its folders if they are empty."""
    Path(trainer.log_file).unlink(missing_ok=True)
    folder = Path(trainer.output_folder)
    for empty in (folder, folder.parent, folder.parent.parent):
        try:
            empty.rmdir()
        except OSError:
            return


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
