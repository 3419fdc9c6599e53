"""Several passes of one window of slices through a VAE, combined: HU windows fused, slices resampled, turns averaged.

A VAE has so many grey values and a latent cell of so many pixels. A narrow HU window spends the grey values on soft
tissue, finer or coarser pixels change which detail a cell holds, and what a VAE gets wrong differs with the way the
slice lies, so that it falls in the mean of several turns (the self-ensemble of Timofte et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fvae_nnunet.ct.hu_windows import HUWindow

Code = Callable[[torch.Tensor, HUWindow, int], torch.Tensor]
"""The reconstruction of slices (B, d, y, x) in a HU window, same shape; it is told which pass this is, from 0."""

TAPER_HU = 60.0
"""Over so many HU inside its ends a narrow window's reconstruction takes over; at most a quarter of the window."""


@dataclass(frozen=True)
class PlaneChange:
    """What is done to the slices before a VAE sees them, and undone behind it.

    Attributes:
        size: (rows, columns) that they are resampled to; None: as they are.
        flipped: along rows, along columns.
        transposed: rows and columns exchanged, behind the flips.
    """

    size: tuple[int, int] | None = None
    flipped: tuple[bool, bool] = (False, False)
    transposed: bool = False

    def there(self, slices: torch.Tensor) -> torch.Tensor:
        """Slices (B, d, y, x), float32, as the VAE shall see them."""
        if self.size is not None:
            slices = resampled_plane(slices, self.size)
        slices = self._flipped(slices)
        return slices.transpose(-1, -2) if self.transposed else slices

    def back(self, slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Undoes ``there`` for slices that had the given (rows, columns)."""
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
"""The eight ways a slice can lie; the first is as it is, and any first few lie as differently as they can."""


def resampled_plane(slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Slices (B, d, y, x) resampled to (rows, columns): axes that shrink by the mean of what falls into a pixel, axes
    that grow by cubic convolution (Keys 1981, a = -0.75). Both keep the mean of a constant exactly."""
    rows, columns = slices.shape[-2:]
    smaller = min(rows, size[0]), min(columns, size[1])
    if smaller != (rows, columns):
        slices = F.adaptive_avg_pool2d(slices, smaller)
    if smaller != size:
        slices = F.interpolate(slices, size, mode="bicubic", align_corners=False)
    return slices


def fused(parts: Sequence[torch.Tensor], hu_windows: Sequence[HUWindow]) -> torch.Tensor:
    """Reconstructions of one image in several HU windows as one.

    A later window replaces the earlier ones where its own reconstruction lies inside it and theirs not far outside. It
    fades out over `TAPER_HU` at those of its ends where the first window goes on, so that there are no steps. What they
    say counts too, because a window's reconstruction of what it clips lies near its end, not at it.

    Args:
        parts: same shape, in HU, each inside its window.
        hu_windows: of each; the first spans all others.
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
    """Slices through a VAE as often as there are changes times HU windows.

    Args:
        slices_hu: (B, d, y, x) in HU.
        changes: one at least; their results are averaged.
        hu_windows: one at least; their results are fused.
        code: of one pass.

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
        total = view if total is None else total + view
    assert total is not None
    return total if len(changes) == 1 else total / len(changes)
