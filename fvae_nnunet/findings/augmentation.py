"""Moderate augmentation of volumes for a classifier: small rotations, scalings, shifts and changes of grey values."""

from __future__ import annotations

import math
from typing import Any

import torch

_PROBABILITY = 0.5
_TURN = math.radians(10)
_SCALE = 0.1
_MOVE = 0.05
"""Fraction of the volume's side."""
_GREY = 0.1
_NOISE_SD = 0.05
_NOISE_PROBABILITY = 0.15


class Augmentation:
    """MONAI's random transforms for volumes in [-1, 1].

    Each of the following has probability 0.5: an affine transform (rotation by up to 10 degrees around each axis,
    scaling by up to 10 %, shift by up to 5 % of the side); values times 0.9 to 1.1; values plus -0.1 to 0.1. Noise
    with a standard deviation of up to 0.05 has probability 0.15. There is no mirroring, as a chest is not symmetric.

    Args:
        shape: shape of the volumes (D, H, W).
        device: torch device of the volumes.
    """

    def __init__(self, shape: tuple[int, int, int], device: str) -> None:
        from monai.transforms import Compose, RandAffine, RandGaussianNoise, RandScaleIntensity, RandShiftIntensity

        self._transforms: Any = Compose(
            [
                RandAffine(
                    prob=_PROBABILITY,
                    rotate_range=(_TURN,) * 3,
                    scale_range=(_SCALE,) * 3,
                    translate_range=tuple(_MOVE * side for side in shape),
                    padding_mode="border",
                    spatial_size=shape,
                    cache_grid=True,
                    device=torch.device(device),
                ),
                RandScaleIntensity(factors=_GREY, prob=_PROBABILITY),
                RandShiftIntensity(offsets=_GREY, prob=_PROBABILITY),
                RandGaussianNoise(prob=_NOISE_PROBABILITY, std=_NOISE_SD),
            ]
        )

    def __call__(self, volume: torch.Tensor, seed: int) -> torch.Tensor:
        """Return an augmented copy of a volume (1, D, H, W) on its device; equal seeds give equal results."""
        self._transforms.set_random_state(seed=seed)
        changed = self._transforms(volume)
        plain: torch.Tensor = changed.as_tensor() if hasattr(changed, "as_tensor") else changed
        return plain
