"""Overlapping windows of slices, and blending their reconstructions back into one volume."""

from __future__ import annotations

import numpy as np

from fvae_nnunet.errors import UserError


def slice_windows(slices: int, window_slices: int, overlap_slices: int) -> list[tuple[int, int]]:
    """Half-open ranges [start, stop) of slices that cover a volume.

    Windows start every ``window_slices - overlap_slices`` slices and the last one ends with the volume, so it may
    be short, but never lies within its predecessor. Neighbours share exactly ``overlap_slices`` slices and no slice
    lies in more than two windows. ``window_slices=65, overlap_slices=0`` are the windows of the paper's scripts.

    Raises:
        UserError: the window is empty, or the overlap is negative or more than half of the window.
    """
    if window_slices < 1:
        raise UserError(f"a window needs at least one slice, got {window_slices}")
    if not 0 <= overlap_slices <= window_slices // 2:
        raise UserError(
            f"the overlap must lie between 0 and half of the window ({window_slices // 2} of {window_slices} slices), "
            f"got {overlap_slices}"
        )
    windows = []
    start = 0
    while True:
        stop = min(start + window_slices, slices)
        windows.append((start, stop))
        if stop == slices:
            return windows
        start += window_slices - overlap_slices


def blend_weights(overlap_slices: int) -> np.ndarray:
    """Weight of the later window in the slices that two windows share: float32 (overlap_slices,).

    A raised cosine strictly between 0 and 1; the weight of the earlier window is one minus it.
    """
    position = np.arange(1, overlap_slices + 1, dtype=np.float64) / (overlap_slices + 1)
    return (np.sin(position * np.pi / 2) ** 2).astype(np.float32)


def blend_window(volume: np.ndarray, piece: np.ndarray, start: int, overlap_slices: int) -> None:
    """Write the window ``piece`` (d, y, x) into ``volume`` (z, y, x), float32, from slice ``start`` on, in place.

    Windows must come in order. The first ``overlap_slices`` slices are blended with what the previous window left
    (none for the window at slice 0); where both agree the value is kept to the bit.
    """
    shared = overlap_slices if start > 0 else 0
    weights = blend_weights(shared)[:, None, None]
    earlier = volume[start : start + shared]
    earlier += weights * (piece[:shared] - earlier)
    volume[start + shared : start + len(piece)] = piece[shared:]
