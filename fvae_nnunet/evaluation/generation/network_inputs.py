"""Inputs of feature networks: a volume on a fixed grid, or slices in three planes, scaled from fixed HU ranges.

Scaling does not depend on the image: with a range from the image (minimum to maximum), features would depend on its
extremes, for instance a metal clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fvae_nnunet.ct.hu_windows import check_hu_window
from fvae_nnunet.ct.intensity import hu_to_model
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json

PLANES = ("axial", "coronal", "sagittal")

VOLUME = "volume"
"""Name of the single part of a volume input."""

ORDERS = ("zyx", "zxy")

SCALES = {
    "caffe": "blue, green, red from 0 to 1, minus 0.406, 0.456 and 0.485 (ImageNet's means)",
    "signed": "three equal channels from -1 to 1",
    "unit": "three equal channels from 0 to 1",
}

_CAFFE_MEANS = (0.406, 0.456, 0.485)

_ROUNDING = 1e-6
"""Added before a number of voxels is truncated: 30 * 0.7 / 0.7 must not lose one."""


@dataclass(frozen=True)
class _OnGrid:
    """Common base of both inputs: a grid around the centre of the image, and a HU window mapped to [-1, 1].

    Attributes:
        shape: size (z, y, x) in voxels, cropped or padded around the centre.
        spacing_mm: spacing (z, y, x), by trilinear interpolation.
        hu_window: HU window for clipping; outside the image, values are its lower end.
    """

    kind: ClassVar[str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    hu_window: tuple[float, float]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in self.shape):
            raise UserError(f"shape must be three whole numbers (z, y, x), got {self.shape}")
        if len(self.spacing_mm) != 3 or not all(np.isfinite(edge) and edge > 0 for edge in self.spacing_mm):
            raise UserError(f"spacing_mm must be three positive numbers (z, y, x), got {self.spacing_mm}")
        check_hu_window(self.hu_window)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings for records and cache keys."""
        return {"input": self.kind} | asdict(self)


@dataclass(frozen=True)
class VolumeInput(_OnGrid):
    """A volume for a network: float32 (1, 1, *shape), HU window mapped to [-1, 1], -1 outside the image.

    The defaults are CT-CLIP's: HU clipped to [-1000, 1000] and divided by 1000, 1.5 x 0.75 x 0.75 mm (trilinear),
    cropped or padded around the centre to 240 x 480 x 480, axes in the order z, x, y (the published inference script
    transposes nibabel's (x, y, z) that way).

    Attributes:
        order: axis order of the network's input, ``zyx`` or ``zxy``; ``shape`` stays (z, y, x). z increases towards the
            head, y towards the back, x towards the patient's left.
    """

    kind = "volume"
    shape: tuple[int, int, int] = (240, 480, 480)
    spacing_mm: tuple[float, float, float] = (1.5, 0.75, 0.75)
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    order: str = "zxy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise UserError(f"order must be {' or '.join(ORDERS)}, got {self.order!r}")

    def prepare(self, volume_hu: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, torch.Tensor]:
        """``{"volume": tensor}`` from HU (z, y, x) as returned by `ct.files.read_upright`."""
        volume = on_grid(volume_hu, spacing_mm, self.shape, self.spacing_mm, self.hu_window)
        return {VOLUME: (volume if self.order == "zyx" else volume.transpose(1, 2))[None, None].contiguous()}


@dataclass(frozen=True)
class SliceInput(_OnGrid):
    """Slices in three planes for a 2D network: float32 (slices, 3, rows, columns) for each plane.

    The defaults are those of the published FID 2.5D of MAISI (spacing, field, fraction of slices), with the HU window
    instead of its minimum and maximum over each stack. Slices are in radiological orientation: axial ones with the
    front up, coronal and sagittal ones with the head up.

    Attributes:
        share: fraction of the slices of each plane that is used, from the middle.
        step: only every ``step``-th of these is used.
        scale: a key of `SCALES`.
    """

    kind = "slices"
    shape: tuple[int, int, int] = (512, 512, 512)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    share: float = 0.4
    step: int = 1
    scale: str = "caffe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UserError(f"the share of slices must be above 0 and at most 1, got {self.share}")
        if self.step < 1:
            raise UserError(f"the step between slices must be at least 1, got {self.step}")
        if self.scale not in SCALES:
            raise UserError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")

    def prepare(self, volume_hu: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, torch.Tensor]:
        """Plane -> grey slices (slices, rows, columns) in [0, 1], from HU (z, y, x) as returned by `read_upright`.

        `channels` adds the three channels later, as they take three times the memory.
        """
        unit = (on_grid(volume_hu, spacing_mm, self.shape, self.spacing_mm, self.hu_window) + 1) / 2
        upright = unit.flip(0)
        stacks = (unit, upright.permute(1, 0, 2), upright.permute(2, 0, 1))
        return {plane: stack[self._indices(len(stack))] for plane, stack in zip(PLANES, stacks, strict=True)}

    def channels(self, grey: torch.Tensor) -> torch.Tensor:
        """(slices, rows, columns) in [0, 1] -> (slices, 3, rows, columns), scaled."""
        coloured = grey[:, None].expand(-1, 3, -1, -1)
        if self.scale == "caffe":
            return coloured - torch.tensor(_CAFFE_MEANS, device=grey.device).view(1, 3, 1, 1)
        return coloured * 2 - 1 if self.scale == "signed" else coloured

    def _indices(self, slices: int) -> slice:
        first = int((1 - self.share) / 2 * slices + _ROUNDING)
        last = max(first + 1, int((1 + self.share) / 2 * slices + _ROUNDING))
        return slice(first, last, self.step)


NetworkInput = VolumeInput | SliceInput


def read_network_input(path: Path, default: NetworkInput) -> NetworkInput:
    """The input described in a network's settings file, ``FILE.json`` beside ``FILE.pt``.

    Args:
        path: file of the network.
        default: input if there is no such file; also provides missing keys if it is of the same kind.

    Raises:
        UserError: unknown keys or impossible values.
    """
    settings_path = path.with_suffix(".json")
    if not settings_path.is_file():
        return default
    content = read_json(settings_path)
    kinds: dict[str, type[NetworkInput]] = {kind.kind: kind for kind in (VolumeInput, SliceInput)}
    kind = content.pop("input", default.kind) if isinstance(content, dict) else None
    if kind not in kinds:
        raise UserError(f'{settings_path} must be an object with "input": "volume" or "slices"')
    known = [field.name for field in fields(kinds[kind])]
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise UserError(f"{settings_path}: unknown keys: {', '.join(unknown)}; known for {kind}: {', '.join(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    base = asdict(default) if isinstance(default, kinds[kind]) else {}
    try:
        return kinds[kind](**base | values)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{settings_path}: {error}") from error


def on_grid(
    volume_hu: np.ndarray,
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    grid_mm: Sequence[float],
    hu_window: tuple[float, float],
) -> torch.Tensor:
    """HU (z, y, x) resampled to float32 in [-1, 1], cropped or padded with -1 around the centre.

    Trilinear (``align_corners=False``), without prior smoothing. If the number of voxels to crop or pad is odd, the
    extra one is at the end.

    Raises:
        UserError: values are not finite.
    """
    if volume_hu.dtype.kind == "f" and not np.isfinite(volume_hu).all():
        raise UserError("the image holds values that are not finite (NaN or infinite)")
    volume = hu_to_model(torch.from_numpy(np.ascontiguousarray(volume_hu)), hu_window)
    size = [
        max(1, int(n * edge / target + _ROUNDING))
        for n, edge, target in zip(volume.shape, spacing_mm, grid_mm, strict=True)
    ]
    if size != list(volume.shape):
        volume = torch.nn.functional.interpolate(volume[None, None], size=size, mode="trilinear")[0, 0]
    result = torch.full(tuple(shape), -1.0)
    here, there = [], []
    for n, target in zip(volume.shape, shape, strict=True):
        length = min(n, target)
        here.append(slice((target - length) // 2, (target - length) // 2 + length))
        there.append(slice((n - length) // 2, (n - length) // 2 + length))
    result[tuple(here)] = volume[tuple(there)]
    return result
