"""Which windows of slices of a case are encoded for training, and which latent slices hold lesion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.shapes import TOUCHING
from fvae_nnunet.vae.base import VAESpec

IMAGE_VAE_WINDOW_SLICES = 16
"""Slices of a window for VAEs that code each slice alone: what slice consistency then looks over."""


@dataclass(frozen=True)
class Piece:
    """A run of slices that is encoded at once, [start, stop), and the windows in it by their first latent slice.

    A VAE that codes slices alone has one piece, the whole case, since its latent does not depend on the window. Other
    VAEs have a piece for each window.
    """

    start: int
    stop: int
    windows: tuple[int, ...]


def choose_window_slices(spec: VAESpec, wanted: int | None) -> int:
    """Slices in a window: those wanted, else the VAE's own, for VAEs that code slices alone 16.

    Raises:
        UserError: the VAE does not admit that number.
    """
    if wanted is None:
        return IMAGE_VAE_WINDOW_SLICES if spec.independent_slices else spec.padded_slices(spec.window_slices)
    if wanted < 1 or spec.padded_slices(wanted) != wanted:
        raise UserError(
            f"`window_slices={wanted}`: {spec.name} takes windows of {spec.slice_offset} + k * {spec.slice_stride} "
            f"slices, such as {spec.padded_slices(max(1, wanted))}"
        )
    return wanted


def latent_slices(spec: VAESpec, slices: int) -> int:
    """Latent slices of an admissible number of slices."""
    return (slices - spec.slice_offset) // spec.slice_stride + (1 if spec.slice_offset else 0)


def plan_pieces(lesion: np.ndarray, window_slices: int, spec: VAESpec) -> list[Piece]:
    """The pieces of a case: windows side by side that cover it, and for every lesion windows that hold it.

    The last covering window ends with the case and overlaps the one before. A lesion is a connected component (26
    neighbours); its window has it in the middle as far as the case allows. A lesion that is longer than a window gets
    windows side by side, and one that lies whole in the window of another lesion gets none of its own.

    Args:
        lesion: bool (z, y, x), at least ``window_slices`` slices.
        window_slices: admissible for the VAE.
        spec: of the VAE.
    """
    slices = len(lesion)
    last = slices - window_slices
    starts = [*range(0, last, window_slices), last]
    centred: list[int] = []
    for first, stop in _lesion_ranges(lesion):
        if any(start <= first and stop <= start + window_slices for start in centred):
            continue
        windows = -(-(stop - first) // window_slices)
        begin = (first + stop - windows * window_slices) // 2
        centred += [min(max(0, begin + number * window_slices), last) for number in range(windows)]
    starts = sorted({*starts, *centred})
    if spec.independent_slices:
        return [Piece(0, slices, tuple(starts))]
    return [Piece(start, start + window_slices, (0,)) for start in starts]


def _lesion_ranges(lesion: np.ndarray) -> list[tuple[int, int]]:
    """First slice and the one behind the last of each lesion, in order."""
    from scipy import ndimage

    numbered, _ = ndimage.label(lesion, structure=TOUCHING)
    return sorted((int(box[0].start), int(box[0].stop)) for box in ndimage.find_objects(numbered))
