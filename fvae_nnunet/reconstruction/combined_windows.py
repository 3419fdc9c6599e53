"""Combine several passes of slices through a VAE: fuse HU windows, resample slices, average orientations.

A VAE has limited grey-level precision, and its latent cells cover a fixed number of pixels. A narrow HU window uses the
whole grey range for soft tissue, resampling changes how much detail a cell covers, and the errors of a VAE depend on
the orientation of the slice, so averaging several orientations reduces them (self-ensemble, Timofte et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fvae_nnunet.ct.hu_windows import HUWindow

Code = Callable[[torch.Tensor, HUWindow, int], torch.Tensor]
"""Function that reconstructs slices (B, d, y, x) in a HU window, same shape; its last argument counts passes from 0."""

TAPER_HU = 60.0
"""Width in HU, inside the ends of a narrow window, over which its reconstruction fades in; at most a quarter of the
window."""


@dataclass(frozen=True)
class PlaneChange:
    """An in-plane change applied to slices before the VAE and reverted after it.

    Attributes:
        size: (rows, columns) to resample to; None: no resampling.
        flipped: whether each in-plane axis (y, x) is flipped.
        transposed: whether rows and columns are exchanged, after the flips.
    """

    size: tuple[int, int] | None = None
    flipped: tuple[bool, bool] = (False, False)
    transposed: bool = False

    def there(self, slices: torch.Tensor) -> torch.Tensor:
        """Apply the change to slices (B, d, y, x), float32."""
        if self.size is not None:
            slices = resampled_plane(slices, self.size)
        slices = self._flipped(slices)
        return slices.transpose(-1, -2) if self.transposed else slices

    def back(self, slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Revert ``there`` for slices that had the given size (rows, columns)."""
        slices = self._flipped(slices.transpose(-1, -2) if self.transposed else slices)
        return slices if self.size is None else resampled_plane(slices, size)

    def _flipped(self, slices: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis, is_flipped in zip((-2, -1), self.flipped, strict=True) if is_flipped]
        return slices.flip(axes) if axes else slices


TURNS = tuple(
    PlaneChange(flipped=flipped, transposed=transposed)
    for transposed, flipped in (
        (False, (False, False)),
        (False, (True, True)),
        (False, (False, True)),
        (False, (True, False)),
        (True, (False, False)),
        (True, (True, True)),
        (True, (False, True)),
        (True, (True, False)),
    )
)
"""The eight orientations of a slice. The first is unchanged; any first few of them differ as much as possible."""


def resampled_plane(slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resample slices (B, d, y, x) to (rows, columns).

    Axes that shrink are averaged over each new pixel, with the share of each old pixel that it covers; axes that grow
    use cubic convolution (Keys 1981, a = -0.75). Both keep constants, except for rounding.
    """
    for axis, new in zip((-2, -1), size, strict=True):
        if new < slices.shape[axis]:
            slices = _averaged(slices, new, axis)
    if slices.shape[-2:] != tuple(size):
        slices = F.interpolate(slices, size, mode="bicubic", align_corners=False)
    return slices


def _averaged(slices: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """Mean over each of ``size`` new pixels along an axis (-2 or -1), each old pixel weighted by its covered share.

    Sums of a few products, not a matrix product, which a GPU may round to TF32.
    """
    old = slices.shape[axis]
    ends = torch.arange(size + 1, dtype=torch.float64) * old / size
    lower, upper = ends[:-1], ends[1:]
    first = lower.floor()
    total: torch.Tensor | None = None
    for step in range(int((upper.ceil() - first).max())):
        covered = (torch.minimum(upper, first + step + 1) - torch.maximum(lower, first + step)).clamp(min=0)
        weight = (covered * size / old).to(slices)
        pixels = slices.index_select(axis, (first + step).clamp(max=old - 1).long().to(slices.device))
        part = pixels * (weight if axis == -1 else weight[:, None])
        total = part if total is None else total + part
    assert total is not None
    return total


def fused(parts: Sequence[torch.Tensor], hu_windows: Sequence[HUWindow]) -> torch.Tensor:
    """Fuse the reconstructions of one image in several HU windows.

    A later window replaces the earlier ones where its own reconstruction is inside it and theirs is not far outside. It
    fades out over ``TAPER_HU`` at each end beyond which the first window continues, which avoids steps. The earlier
    reconstructions count too, because a window reconstructs clipped values near its end, not exactly at it.

    Args:
        parts: reconstructions of the same shape, in HU, each inside its window.
        hu_windows: window of each part; the first spans all others.
    """
    result, (lowest, highest) = parts[0], hu_windows[0]
    for part, (lower, upper) in zip(parts[1:], hu_windows[1:], strict=True):
        taper = min(TAPER_HU, (upper - lower) / 4)
        weight = torch.ones_like(part)
        if lower > lowest:
            weight = weight * _smooth_step((part - lower) / taper) * _smooth_step((result - lower) / taper + 1)
        if upper < highest:
            weight = weight * _smooth_step((upper - part) / taper) * _smooth_step((upper - result) / taper + 1)
        result = torch.lerp(result, part, weight)
    return result


def _smooth_step(position: torch.Tensor) -> torch.Tensor:
    position = position.clamp(0, 1)
    return position * position * (3 - 2 * position)


def combined(
    slices_hu: torch.Tensor,
    changes: Sequence[PlaneChange],
    hu_windows: Sequence[HUWindow],
    code: Code,
) -> torch.Tensor:
    """Pass slices through a VAE once per change and HU window, and combine the results.

    Args:
        slices_hu: (B, d, y, x) in HU.
        changes: at least one; their results are averaged.
        hu_windows: at least one; their results are fused.
        code: reconstruction function of one pass.

    Returns:
        Same shape, float32, in HU.
    """
    slices_hu = slices_hu.float()
    rows, columns = slices_hu.shape[-2:]
    total: torch.Tensor | None = None
    for number, change in enumerate(changes):
        seen = change.there(slices_hu)
        passes = [code(seen, hu_window, number * len(hu_windows) + index) for index, hu_window in enumerate(hu_windows)]
        view = change.back(fused(passes, hu_windows), (rows, columns))
        if change.size is not None:
            view = view.clamp(*hu_windows[0])  # cubic convolution overshoots at edges
        total = view if total is None else total + view
    assert total is not None
    return total if len(changes) == 1 else total / len(changes)
