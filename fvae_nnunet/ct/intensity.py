"""Conversion of HU to the model's range and back, and rounding to int16."""

from __future__ import annotations

import numpy as np
import torch

from fvae_nnunet.errors import UserError

POSSIBLE_HU = (-10_000.0, 32_767.0)
"""Range of HU that scanners write: padding goes down to -8192, extended scales go up to 30710."""


def hu_to_model(volume_hu: torch.Tensor, hu_window: tuple[float, float]) -> torch.Tensor:
    """Clip HU to the window and map it linearly to [-1, 1]; any shape, returns float32."""
    lower, upper = hu_window
    half_width = (upper - lower) / 2
    return (volume_hu.to(torch.float32).clamp(lower, upper) - (lower + half_width)) / half_width


def model_to_hu(volume: torch.Tensor, hu_window: tuple[float, float]) -> torch.Tensor:
    """Inverse of ``hu_to_model`` inside the window: clamp to [-1, 1] and map to HU; any shape, returns float32."""
    lower, upper = hu_window
    half_width = (upper - lower) / 2
    return volume.to(torch.float32).clamp(-1, 1) * half_width + (lower + half_width)


def hu_to_model_over_unit_interval(
    volume_hu: torch.Tensor, hu_window: tuple[float, float], dtype: torch.dtype
) -> torch.Tensor:
    """``hu_to_model`` as in most of the paper's scripts: via [0, 1], and from there on in ``dtype``, which rounds.

    Accepts any shape and real dtype; returns ``dtype``.
    """
    lower, upper = hu_window
    # MPS does not support float64
    precise = volume_hu.to("cpu" if volume_hu.device.type == "mps" else volume_hu.device, torch.float64)
    unit = (precise.clamp(lower, upper) - lower) / (upper - lower)
    return unit.to(dtype).to(volume_hu.device) * 2 - 1


def model_to_hu_over_unit_interval(
    volume: torch.Tensor, hu_window: tuple[float, float], dtype: torch.dtype
) -> torch.Tensor:
    """Inverse of ``hu_to_model_over_unit_interval``; all steps in ``dtype``, returns float32."""
    lower, upper = hu_window
    unit = (volume.to(dtype).clamp(-1, 1) + 1) / 2
    return (unit * (upper - lower) + lower).to(torch.float32)


def truncate_to_int16(volume_hu: np.ndarray) -> np.ndarray:
    """HU truncated towards zero to int16, as in the paper's scripts; any shape. This biases HU by 0.5 towards zero.

    Raises:
        UserError: as for ``round_to_int16``.
    """
    return round_to_int16(np.trunc(volume_hu))


def as_stored_by_scanners(volume_hu: np.ndarray) -> np.ndarray:
    """HU rounded to int16 and clipped to a scanner's 12 bits, -1024 to 3071; any shape, finite values."""
    return np.clip(np.rint(volume_hu), -1024, 3071).astype(np.int16)


def round_to_int16(volume_hu: np.ndarray) -> np.ndarray:
    """HU rounded to the nearest int16; any shape.

    Raises:
        UserError: a value is not finite or does not fit int16; values are never clipped or wrapped.
    """
    if volume_hu.dtype == np.int16:
        return volume_hu
    if not np.isfinite(volume_hu).all():
        raise UserError("the volume has values that are not finite (NaN or infinite)")
    rounded = np.rint(volume_hu)
    limits = np.iinfo(np.int16)
    if rounded.size and (rounded.min() < limits.min or rounded.max() > limits.max):
        raise UserError(
            f"HU values from {rounded.min():g} to {rounded.max():g} do not fit int16; is the volume really in HU?"
        )
    return rounded.astype(np.int16)
