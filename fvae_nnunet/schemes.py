"""Three ways to take a long volume through a VAE that sees a limited number of slices.

``windows``: overlapping windows that are blended; the default. ``paper``: the windows, precision and rounding of the
scripts released with the paper. ``stream``: one causal pass over all slices, without seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import (
    hu_to_model,
    hu_to_model_over_unit_interval,
    model_to_hu,
    model_to_hu_over_unit_interval,
)
from fvae_nnunet.reconstruction_settings import Reconstruction
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS
from fvae_nnunet.windows import blend_windows, slice_windows

VOXELS_OF_A_CALL = 65 * 256 * 256
"""On a GPU, windows with a small plane are coded together up to this many voxels."""

Pieces = Iterator[torch.Tensor]


def reconstructed_slices(
    vae: FrozenVAE, axial_hu: np.ndarray, settings: Reconstruction, generator: torch.Generator | None = None
) -> Iterator[np.ndarray]:
    """The reconstruction of a volume, a run of slices at a time, in order.

    Args:
        vae: the frozen VAE.
        axial_hu: (z, y, x) in HU, any real dtype; not copied as a whole.
        settings: scheme, windows and HU window.
        generator: draws from the posterior if given.

    Yields:
        (d, y, x) float32 in HU inside the window, together the whole volume.

    Raises:
        UserError: the VAE's output is not finite (an overflow in half precision), or it cannot stream.
    """
    schemes = {"windows": _windows, "paper": _paper, "stream": _stream}
    pieces = schemes[settings.scheme](vae, axial_hu, settings, generator)
    return blend_windows(_to_host(vae, pieces), settings.overlap_slices)


def _windows(
    vae: FrozenVAE, axial_hu: np.ndarray, settings: Reconstruction, generator: torch.Generator | None
) -> Pieces:
    windows = slice_windows(len(axial_hu), settings.window_slices, settings.overlap_slices)
    for together in _batches(windows, axial_hu[0].size, vae.device, one_by_one=generator is not None):
        window_hu = torch.stack([_slices(axial_hu, start, stop, vae.device) for start, stop in together])
        yield from reconstructed_windows(vae, window_hu, settings.hu_window, generator)


def reconstructed_windows(
    vae: FrozenVAE,
    window_hu: torch.Tensor,
    hu_window: tuple[float, float],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Windows of equal shape through the VAE in one call, padded by replication to what it admits and cut back.

    Args:
        vae: the frozen VAE.
        window_hu: (B, d, y, x) in HU, any real dtype, on any device.
        hu_window: what the VAE sees.
        generator: draws from the posterior if given.

    Returns:
        Same shape, float32, in HU inside the window, on the VAE's device; NaN where the VAE's output is not finite.
    """
    slices = vae.spec.padded_slices(window_hu.shape[1])
    volume = hu_to_model(_padded(window_hu, slices, vae), hu_window)
    decoded = vae.decode(vae.encode(volume[:, None], generator))[:, 0]
    return model_to_hu(_cut(decoded, window_hu), hu_window)


def _batches(
    windows: list[tuple[int, int]], pixels: int, device: torch.device, *, one_by_one: bool
) -> Iterator[list[tuple[int, int]]]:
    """The windows in groups of equal length that are coded in one call."""
    for slices, group in groupby(windows, key=lambda window: window[1] - window[0]):
        equal = list(group)
        count = 1 if one_by_one or device.type == "cpu" else max(1, VOXELS_OF_A_CALL // (slices * pixels))
        yield from (equal[first : first + count] for first in range(0, len(equal), count))


def _paper(vae: FrozenVAE, axial_hu: np.ndarray, settings: Reconstruction, generator: torch.Generator | None) -> Pieces:
    script = PAPER_SCRIPTS[vae.spec.name]
    for start, stop in slice_windows(len(axial_hu), settings.window_slices, 0):
        window_hu = _slices(axial_hu, start, stop, vae.device)[None]
        # behind the slices of a causal VAE less padding gives the same values
        slices = vae.spec.padded_slices(stop - start) if vae.spec.causal else settings.window_slices
        padded_hu = _padded(window_hu, slices, vae)
        if script.unit_interval:
            dtype = vae.dtype if script.rounds_unit_interval else torch.float32
            volume = hu_to_model_over_unit_interval(padded_hu, settings.hu_window, dtype)
        else:
            volume = hu_to_model(padded_hu, settings.hu_window)
        decoded = _cut(vae.decode(vae.encode(volume[:, None], generator))[:, 0], window_hu)
        if script.unit_interval:
            yield model_to_hu_over_unit_interval(decoded, settings.hu_window, vae.dtype)[0]
        else:
            yield model_to_hu(decoded, settings.hu_window)[0]


def _stream(
    vae: FrozenVAE, axial_hu: np.ndarray, settings: Reconstruction, generator: torch.Generator | None
) -> Pieces:
    stream = vae.open_stream()
    if stream is None:
        raise UserError(f"{vae.spec.name} cannot code a volume in one pass; use --scheme windows")
    spec = vae.spec
    start = 0
    while start < len(axial_hu):
        offset = spec.slice_offset if start == 0 else 0
        steps = max(1, (settings.window_slices - offset) // spec.slice_stride)
        stop = min(start + offset + steps * spec.slice_stride, len(axial_hu))
        window_hu = _slices(axial_hu, start, stop, vae.device)[None]
        missing = -(stop - start - offset) % spec.slice_stride
        volume = hu_to_model(_padded(window_hu, stop - start + missing, vae), settings.hu_window)
        decoded = stream.reconstruct(volume[:, None], generator)[:, 0]
        yield model_to_hu(_cut(decoded, window_hu), settings.hu_window)[0]
        start = stop


def _slices(axial_hu: np.ndarray, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Slices (d, y, x) on the device, as int16 or float32."""
    dtype = np.int16 if axial_hu.dtype == np.int16 else np.float32
    slices = torch.from_numpy(np.array(axial_hu[start:stop], dtype=dtype, order="C"))
    return slices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else slices.to(device)


def _padded(window_hu: torch.Tensor, slices: int, vae: FrozenVAE) -> torch.Tensor:
    """(B, d, y, x) float32, padded with replicated values behind the last slice, row and column."""
    _, depth, height, width = window_hu.shape
    behind = (vae.spec.padded_inplane(width) - width, vae.spec.padded_inplane(height) - height, slices - depth)
    return F.pad(window_hu.float(), (0, behind[0], 0, behind[1], 0, behind[2]), mode="replicate")


def _cut(decoded: torch.Tensor, window_hu: torch.Tensor) -> torch.Tensor:
    """Without the padding; infinities, which the clamping to the HU window would hide, become NaN."""
    _, slices, height, width = window_hu.shape
    nan = float("nan")
    return torch.nan_to_num(decoded[:, :slices, :height, :width], nan=nan, posinf=nan, neginf=nan)


def _to_host(vae: FrozenVAE, pieces: Pieces) -> Iterator[np.ndarray]:
    """The pieces as arrays. From a GPU one piece late, so that it computes the next while the host handles this one."""
    waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for piece in pieces:
        if piece.device.type != "cuda":
            yield _finite(vae, piece.cpu())
            continue
        on_host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
        on_host.copy_(piece, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(piece.device))
        if waiting is not None:
            waiting[1].synchronize()
            yield _finite(vae, waiting[0])
        waiting = on_host, copied
    if waiting is not None:
        waiting[1].synchronize()
        yield _finite(vae, waiting[0])


def _finite(vae: FrozenVAE, piece: torch.Tensor) -> np.ndarray:
    if not torch.isfinite(piece).all():
        raise UserError(f"{vae.spec.name} in {vae.dtype} gives values that are not finite; use --precision float32")
    return piece.numpy()
