"""Training patches as nnU-Net cuts them: which channels are CT, how to have their HU back, and where the slices are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fvae_nnunet.ct.hounsfield import check_foreground_hu
from fvae_nnunet.ct.orientation import AxisOrder
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.ct_channels import channel_names, find_ct_channels

SMALLEST_SD_HU = 1e-8
"""nnU-Net's CTNormalization divides by no less."""


@dataclass(frozen=True)
class CTChannel:
    """A channel that nnU-Net's CTNormalization has normalised: ``(clip(hu, lower, upper) - mean) / sd``.

    Attributes:
        index: of the channel in the image.
        mean_hu, sd_hu: of the foreground of the training data, from the plans.
        lower_hu, upper_hu: its percentiles 0.5 and 99.5. HU outside were clipped to them and are not known any more.
    """

    index: int
    mean_hu: float
    sd_hu: float
    lower_hu: float
    upper_hu: float

    def to_hu(self, normalised: torch.Tensor) -> torch.Tensor:
        """Inverse of the normalisation inside the percentiles, within the rounding of float32; any shape."""
        return normalised.float() * self.sd_hu + self.mean_hu

    def normalised(self, hu: torch.Tensor) -> torch.Tensor:
        """The normalisation without its clipping; any shape, float32."""
        return (hu.float() - self.mean_hu) / self.sd_hu

    @property
    def normalised_range(self) -> tuple[float, float]:
        """The percentiles, normalised: lowest and highest value of a patch before augmentation."""
        return (self.lower_hu - self.mean_hu) / self.sd_hu, (self.upper_hu - self.mean_hu) / self.sd_hu


@dataclass(frozen=True)
class CTPatches:
    """What the plans say of patches (c, z, y, x), or (c, y, x) in 2d. Picklable.

    Attributes:
        channels: those that are CT.
        transpose_forward: axis k of a patch is axis ``transpose_forward[k]`` of the image as its reader gave it, whose
            first axis counts as the body axis. None in 2d: the patch is a slice already.
        plane_mm: distance of rows and of columns of a slice; None: not known.
    """

    channels: tuple[CTChannel, ...]
    transpose_forward: AxisOrder | None
    plane_mm: tuple[float, float] | None = None

    @classmethod
    def of_plans(
        cls,
        plans: dict[str, Any],
        configuration: str,
        dataset_json: dict[str, Any],
        *,
        channels: Sequence[int] | None = None,
        hu_as_is: bool = False,
    ) -> CTPatches:
        """The patches of a configuration.

        Args:
            plans: the content of the plans file.
            configuration: such as ``3d_fullres``.
            dataset_json: the content of ``dataset.json``.
            channels: those that are CT; None for those that are called CT.
            hu_as_is: take also a foreground that cannot be in HU.

        Raises:
            UserError: no channel is CT, or one that is CT cannot be in HU or has a normalisation that cannot be undone.
        """
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(plans).get_configuration(configuration)
        statistics = plans["foreground_intensity_properties_per_channel"]
        indices = find_ct_channels(dataset_json, plans, channels)
        if not hu_as_is:
            check_foreground_hu(
                plans,
                channel_names(dataset_json),
                indices,
                leave_out="leave the channel out (ct_channels of the trainer, or a view of other channels)",
                as_it_is="If the values are HU all the same, set hu_as_is = True in a subclass of the trainer, or "
                "train with a view that was made so",
            )
        found = []
        for index in indices:
            scheme = manager.normalization_schemes[index]
            if scheme != "CTNormalization":
                raise UserError(
                    f"{configuration}: channel {index} is CT but its normalisation is {scheme}, which cannot be undone "
                    "during training. Use a view made before training (fvae-preprocess, nnUNetTrainerFVAE), or "
                    "name the channel CT in dataset.json and plan again"
                )
            foreground = statistics[str(index)]
            found.append(
                CTChannel(
                    index=index,
                    mean_hu=float(foreground["mean"]),
                    sd_hu=max(float(foreground["std"]), SMALLEST_SD_HU),
                    lower_hu=float(foreground["percentile_00_5"]),
                    upper_hu=float(foreground["percentile_99_5"]),
                )
            )
        first, second, third = (int(axis) for axis in plans["transpose_forward"])
        is_2d = len(manager.patch_size) == 2
        forward = None if is_2d else (first, second, third)
        axial_mm = manager.spacing if forward is None else [manager.spacing[axis] for axis in np.argsort(forward)]
        return cls(tuple(found), forward, (float(axial_mm[-2]), float(axial_mm[-1])))

    def to_axial(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, z, y, x) or (B, y, x) with the patch's axes to (B, body axis, front-back, left-right)."""
        if self.transpose_forward is None:
            return patches[:, None]
        backward = np.argsort(self.transpose_forward)
        return patches.permute(0, *(int(axis) + 1 for axis in backward))

    def from_axial(self, axial: torch.Tensor) -> torch.Tensor:
        """Inverse of ``to_axial``."""
        if self.transpose_forward is None:
            return axial[:, 0]
        return axial.permute(0, *(axis + 1 for axis in self.transpose_forward))
