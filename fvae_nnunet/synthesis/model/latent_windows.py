"""Choose the windows of slices of a case that are encoded for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.lesions import numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec

IMAGE_VAE_WINDOW_SLICES = 16
"""Slices in a window for VAEs that code each slice independently; consistency along the slices spans this window."""


@dataclass(frozen=True)
class Piece:
    """A run of slices [start, stop) that is encoded at once, and the first latent slice of each window in it.

    With a VAE that codes slices independently, the whole case is one piece, because its latent does not depend on the
    window. With other VAEs each window is a piece.
    """

    start: int
    stop: int
    windows: tuple[int, ...]


def choose_window_slices(spec: VAESpec, wanted: int | None) -> int:
    """Number of slices in a window: the requested one, by default the VAE's own, or 16 if slices are independent.

    Raises:
        UserError: the VAE does not accept this number.
    """
    if wanted is None:
        return IMAGE_VAE_WINDOW_SLICES if spec.independent_slices else spec.padded_slices(spec.window_slices)
    if wanted < 1 or spec.padded_slices(wanted) != wanted:
        raise UserError(
            f"`window_slices={wanted}`: {spec.name} needs windows of {spec.slice_offset} + k * {spec.slice_stride} "
            f"slices, such as {spec.padded_slices(max(1, wanted))}"
        )
    return wanted


def latent_slices(spec: VAESpec, slices: int) -> int:
    """Number of latent slices for a valid number of slices."""
    return (slices - spec.slice_offset) // spec.slice_stride + (1 if spec.slice_offset else 0)


def plan_pieces(lesion: np.ndarray, window_slices: int, spec: VAESpec) -> list[Piece]:
    """Divide a case into pieces: adjacent windows that cover it, and for every lesion windows that contain it.

    The last covering window ends with the case and overlaps the one before. A lesion is a connected component (26
    neighbours), centred in its window as far as the case allows. A lesion longer than a window gets several adjacent
    windows; one completely inside the window of another lesion gets none.

    Args:
        lesion: bool (z, y, x), at least ``window_slices`` slices.
        window_slices: number of slices in a window, valid for the VAE.
        spec: specification of the VAE.
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
    """Half-open range of slices of each lesion, in order."""
    from scipy import ndimage

    numbered, _ = numbered_lesions(lesion)
    return sorted((int(box[0].start), int(box[0].stop)) for box in ndimage.find_objects(numbered))
