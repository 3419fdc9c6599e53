"""Divide a volume into overlapping windows of slices, and blend their reconstructions back into one volume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted


def slice_windows(slices: int, window_slices: int, overlap_slices: int) -> list[tuple[int, int]]:
    """Half-open ranges [start, stop) of slices that cover a volume.

    Windows start every ``window_slices - overlap_slices`` slices and the last one ends with the volume, so it may be
    shorter, but is never contained in its predecessor. Neighbours share exactly ``overlap_slices`` slices and no slice
    is in more than two windows. ``window_slices=65, overlap_slices=0`` are the windows of the paper's scripts.

    Raises:
        UserError: the window is empty, or the overlap is negative or more than half of the window.
    """
    if window_slices < 1:
        raise UserError(f"a window needs at least one slice, got {window_slices}")
    if not 0 <= overlap_slices <= window_slices // 2:
        raise UserError(
            f"the overlap must be between 0 and half of the window ({window_slices // 2} of "
            f"{counted(window_slices, 'slice')}), got {overlap_slices}"
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
    """Weights of the later window in the slices that two windows share: float32 (overlap_slices,).

    They are a raised cosine strictly between 0 and 1; the earlier window has one minus these weights.
    """
    position = np.arange(1, overlap_slices + 1, dtype=np.float64) / (overlap_slices + 1)
    return (np.sin(position * np.pi / 2) ** 2).astype(np.float32)


def blend_windows(windows: Iterable[np.ndarray], overlap_slices: int) -> Iterator[np.ndarray]:
    """Blend windows, yielding the slices of the volume in order, as soon as they are final.

    Args:
        windows: reconstructed windows (d, y, x), float32, in order, divided as by ``slice_windows``; modified in place.
        overlap_slices: number of slices that neighbours share.

    Yields:
        Runs of slices (d, y, x), float32, together the volume. Where two windows agree, the value is kept exactly. At
        most one window and ``overlap_slices`` slices are held in memory at a time.
    """
    weights = blend_weights(overlap_slices)[:, None, None]
    earlier: np.ndarray | None = None
    for window in windows:
        if earlier is not None:
            later = window[:overlap_slices]
            later[...] = earlier[-overlap_slices:] + weights * (later - earlier[-overlap_slices:])
        if overlap_slices == 0:
            yield window
            continue
        if earlier is not None and len(earlier) > overlap_slices:
            yield earlier[:-overlap_slices]
        earlier = window
    if earlier is not None:
        yield earlier
