"""Inpaint any number of slices, in overlapping windows of whole slices that continue each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.reconstruction.windows import slice_windows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion, Sampling
    from fvae_nnunet.synthesis.model.layout import Layout


def slices_seen(region: slice, n: int, window: int) -> slice:
    """The range that a model sees for a region along an axis.

    It is a window centred on the region, as far as the axis allows; longer if the region is.

    Args:
        region: range of slices, or of rows or columns of latent cells.
        n: length of the axis.
        window: length of the model's window along it.
    """
    length = min(n, max(window, region.stop - region.start))
    start = min(max(0, (region.start + region.stop - length) // 2), n - length)
    return slice(start, start + length)


def inpaint(
    model: LatentDiffusion,
    volume_hu: np.ndarray,
    layout: Layout,
    region: np.ndarray,
    draft_hu: np.ndarray | None,
    **sampling: Unpack[Sampling],
) -> tuple[np.ndarray, np.ndarray]:
    """``model.inpaint`` for any number of slices.

    If there are more slices than in the model's window, windows that overlap by half are inpainted one after the other.
    Each keeps the slices generated before and continues from them.

    Args:
        model: the model.
        volume_hu, layout, region, draft_hu: as for ``model.inpaint``, on the model's grid, any number of slices.
        sampling: as for ``model.inpaint``.

    Returns:
        Generated and reconstructed volume in HU, float32, as for ``model.inpaint``.
    """
    window = model.settings.window_slices
    working = volume_hu.astype(np.float32)
    generated, reconstructed = working.copy(), working.copy()
    done = 0
    for start, stop in slice_windows(len(working), window, 0 if len(working) <= window else window // 2):
        # the last one is moved back, so that it is as long as the others
        start = max(0, min(start, len(working) - window))
        fresh = region[start:stop].copy()
        fresh[: max(0, done - start)] = False
        if fresh.any():
            with_lesion, without = model.inpaint(
                working[start:stop],
                layout.slices(slice(start, stop)),
                fresh,
                None if draft_hu is None else draft_hu[start:stop],
                **sampling,
            )
            new = slice(max(0, done - start), None)
            target = slice(max(start, done), stop)
            generated[target], reconstructed[target] = with_lesion[new], without[new]
            working[target] += np.where(fresh[new], with_lesion[new] - without[new], 0)
        done = stop
    return generated, reconstructed
