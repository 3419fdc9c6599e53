"""nnU-Net's training patches: CT channels, inverse of the normalisation to HU, and orientation of slices."""

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
"""Smallest divisor of nnU-Net's CTNormalization."""


@dataclass(frozen=True)
class CTChannel:
    """A channel normalised with nnU-Net's CTNormalization: ``(clip(hu, lower, upper) - mean) / sd``.

    Attributes:
        index: index of the channel in the image.
        mean_hu, sd_hu: mean and standard deviation of the foreground of the training data, from the plans.
        lower_hu, upper_hu: percentiles 0.5 and 99.5 of this foreground. HU outside were clipped to them and are lost.
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
        """Normalisation without clipping; any shape, float32."""
        return (hu.float() - self.mean_hu) / self.sd_hu

    @property
    def normalised_range(self) -> tuple[float, float]:
        """Normalised percentiles: lowest and highest value of a patch before augmentation."""
        return (self.lower_hu - self.mean_hu) / self.sd_hu, (self.upper_hu - self.mean_hu) / self.sd_hu


@dataclass(frozen=True)
class CTPatches:
    """Properties of patches (c, z, y, x), or (c, y, x) in 2d, from the plans. Picklable.

    Attributes:
        channels: the CT channels.
        transpose_forward: axis k of a patch is axis ``transpose_forward[k]`` of the image from its reader, whose first
            axis is taken as the body axis. None in 2d, where a patch is a slice.
        plane_mm: distance between rows and between columns of a slice, in mm; None if unknown.
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
        """Read the properties of the patches of a configuration.

        Args:
            plans: content of the plans file.
            configuration: name of the configuration, such as ``3d_fullres``.
            dataset_json: content of ``dataset.json``.
            channels: channels that are CT; None for those named CT.
            hu_as_is: accept a foreground that cannot be in HU.

        Raises:
            UserError: no channel is CT, or a CT channel cannot be in HU or has a normalisation that cannot be undone.
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
                leave_out="leave out the channel (ct_channels of the trainer, or a view of other channels)",
                as_it_is="If the values are HU nevertheless, set hu_as_is = True in a subclass of the trainer, or "
                "train with a view that was made with --hu-as-is",
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
