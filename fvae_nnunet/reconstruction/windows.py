"""Overlapping windows of slices, and blending their reconstructions back into one volume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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


def blend_windows(windows: Iterable[np.ndarray], overlap_slices: int) -> Iterator[np.ndarray]:
    """The slices of the volume, in order, as soon as they are final.

    Args:
        windows: the reconstructed windows (d, y, x), float32, in order, as ``slice_windows`` cuts them. They are
            written to.
        overlap_slices: slices that neighbours share.

    Yields:
        Runs of slices (d, y, x), float32: together the volume. Where two windows agree the value is kept to the bit.
        At most one window and ``overlap_slices`` slices are held at a time.
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
