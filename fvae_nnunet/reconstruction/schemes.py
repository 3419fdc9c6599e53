"""Three schemes to reconstruct a long volume with a VAE that accepts a limited number of slices.

``windows``: overlapping windows that are blended; the default. ``paper``: the windows, precision and rounding of the
scripts released with the paper. ``stream``: one causal pass over all slices, without seams. Each scheme can pass a
window through the VAE several times (``combined_windows``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from fvae_nnunet.ct.hu_windows import HUWindow
from fvae_nnunet.ct.intensity import (
    hu_to_model,
    hu_to_model_over_unit_interval,
    model_to_hu,
    model_to_hu_over_unit_interval,
)
from fvae_nnunet.device.memory import even_part
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.combined_windows import Code, PlaneChange, combined
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.windows import blend_windows, slice_windows
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS

VOXELS_OF_A_CALL = 65 * 256 * 256
"""On a GPU, windows with a small plane are coded in one call up to this number of voxels."""

Pieces = Iterator[torch.Tensor]


def reconstructed_slices(
    vae: FrozenVAE,
    axial_hu: np.ndarray,
    settings: ReconstructionSettings,
    generator: torch.Generator | None = None,
    plane_mm: tuple[float, float] | None = None,
) -> Iterator[np.ndarray]:
    """Reconstruct a volume, yielding runs of slices in order.

    Args:
        vae: the frozen VAE.
        axial_hu: (z, y, x) in HU, any real dtype; not copied as a whole.
        settings: scheme, windows and HU windows.
        generator: if given, the latent is drawn from the posterior; None: its mode is used.
        plane_mm: distance of rows and of columns; required if the settings specify a pixel size.

    Yields:
        (d, y, x) float32 in HU inside the widest window, together the whole volume.

    Raises:
        UserError: the VAE's output is not finite (an overflow in half precision), or the VAE cannot stream.
    """
    schemes = {"windows": _windows, "paper": _paper, "stream": _stream}
    changes = settings.plane_changes(axial_hu.shape[1:], plane_mm)
    pieces = schemes[settings.scheme](_Volume(vae, axial_hu, settings, changes, generator))
    return blend_windows(_to_host(vae, pieces), settings.overlap_slices)


@dataclass(frozen=True)
class _Volume:
    """The arguments of ``reconstructed_slices``."""

    vae: FrozenVAE
    axial_hu: np.ndarray
    settings: ReconstructionSettings
    changes: Sequence[PlaneChange]
    generator: torch.Generator | None

    def slices(self, start: int, stop: int) -> torch.Tensor:
        """Slices (d, y, x) on the device, as int16 or float32."""
        dtype, device = np.int16 if self.axial_hu.dtype == np.int16 else np.float32, self.vae.device
        slices = torch.from_numpy(np.array(self.axial_hu[start:stop], dtype=dtype, order="C"))
        return slices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else slices.to(device)

    def piece(self, start: int, stop: int, code: Code) -> torch.Tensor:
        """Slices (d, y, x) after all their passes through ``code``."""
        return combined(self.slices(start, stop)[None], self.changes, self.settings.hu_windows, code)[0]


def _windows(volume: _Volume) -> Pieces:
    settings, changes = volume.settings, volume.changes
    windows = slice_windows(len(volume.axial_hu), settings.window_slices, settings.overlap_slices)
    pixels = math.prod(changes[0].size or volume.axial_hu.shape[1:])
    for together in _batches(windows, pixels, volume.vae.device, one_by_one=volume.generator is not None):
        window_hu = torch.stack([volume.slices(start, stop) for start, stop in together])
        yield from reconstructed_windows(volume.vae, window_hu, changes, settings.hu_windows, volume.generator)


def reconstructed_windows(
    vae: FrozenVAE,
    window_hu: torch.Tensor,
    changes: Sequence[PlaneChange],
    hu_windows: Sequence[HUWindow],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Reconstruct windows of equal shape, padded by replication to a size the VAE accepts and then cropped.

    Args:
        vae: the frozen VAE.
        window_hu: (B, d, y, x) in HU, any real dtype, on any device.
        changes, hu_windows: passes to combine, see ``combined_windows.combined``.
        generator: if given, the latent of each pass is drawn from the posterior; None: its mode is used.

    Returns:
        Same shape, float32, in HU inside the widest window, on the VAE's device; NaN where the VAE's output is not
        finite.
    """

    def code(slices_hu: torch.Tensor, hu_window: HUWindow, _: int) -> torch.Tensor:
        slices = vae.spec.padded_slices(slices_hu.shape[1])
        volume = hu_to_model(_padded(slices_hu, slices, vae), hu_window)
        decoded = vae.decode(vae.encode(volume[:, None], generator))[:, 0]
        return model_to_hu(_cut(decoded, slices_hu), hu_window)

    return combined(window_hu, changes, hu_windows, code)


def _batches(
    windows: list[tuple[int, int]], pixels: int, device: torch.device, *, one_by_one: bool
) -> Iterator[list[tuple[int, int]]]:
    """Groups of windows of equal length, each coded in one call."""
    for slices, group in groupby(windows, key=lambda window: window[1] - window[0]):
        equal = list(group)
        most = 1 if one_by_one else windows_of_a_call(slices * pixels, device)
        while equal:
            count = even_part(len(equal), most)
            yield equal[:count]
            equal = equal[count:]


def windows_of_a_call(voxels: int, device: torch.device) -> int:
    """Number of windows of this size that are coded in one call; if memory is short, the VAE divides them further."""
    return 1 if device.type == "cpu" else max(1, VOXELS_OF_A_CALL // voxels)


def _paper(volume: _Volume) -> Pieces:
    vae, window_slices = volume.vae, volume.settings.window_slices
    script = PAPER_SCRIPTS[vae.spec.name]

    def code(slices_hu: torch.Tensor, hu_window: HUWindow, _: int) -> torch.Tensor:
        # for a causal VAE, less padding after the last slice gives the same values
        slices = vae.spec.padded_slices(slices_hu.shape[1]) if vae.spec.causal else window_slices
        padded_hu = _padded(slices_hu, slices, vae)
        if script.unit_interval:
            dtype = vae.dtype if script.rounds_unit_interval else torch.float32
            grey = hu_to_model_over_unit_interval(padded_hu, hu_window, dtype)
        else:
            grey = hu_to_model(padded_hu, hu_window)
        decoded = _cut(vae.decode(vae.encode(grey[:, None], volume.generator))[:, 0], slices_hu)
        if script.unit_interval:
            return model_to_hu_over_unit_interval(decoded, hu_window, vae.dtype)
        return model_to_hu(decoded, hu_window)

    for start, stop in slice_windows(len(volume.axial_hu), window_slices, 0):
        yield volume.piece(start, stop, code)


def _stream(volume: _Volume) -> Pieces:
    vae, spec, settings = volume.vae, volume.vae.spec, volume.settings
    streams = [vae.open_stream() for _ in range(len(volume.changes) * len(settings.hu_windows))]

    def code(slices_hu: torch.Tensor, hu_window: HUWindow, number: int) -> torch.Tensor:
        stream = streams[number]
        if stream is None:
            raise UserError(f"{spec.name} cannot process a volume in one pass; use `scheme=windows`")
        missing = -(slices_hu.shape[1] - offset) % spec.slice_stride
        grey = hu_to_model(_padded(slices_hu, slices_hu.shape[1] + missing, vae), hu_window)
        return model_to_hu(_cut(stream.reconstruct(grey[:, None], volume.generator)[:, 0], slices_hu), hu_window)

    start = 0
    while start < len(volume.axial_hu):
        offset = spec.slice_offset if start == 0 else 0
        steps = max(1, (settings.window_slices - offset) // spec.slice_stride)
        stop = min(start + offset + steps * spec.slice_stride, len(volume.axial_hu))
        yield volume.piece(start, stop, code)
        start = stop


def _padded(window_hu: torch.Tensor, slices: int, vae: FrozenVAE) -> torch.Tensor:
    """(B, d, y, x) float32, padded with replicated values after the last slice, row and column."""
    _, depth, height, width = window_hu.shape
    behind = (vae.spec.padded_inplane(width) - width, vae.spec.padded_inplane(height) - height, slices - depth)
    return F.pad(window_hu.float(), (0, behind[0], 0, behind[1], 0, behind[2]), mode="replicate")


def _cut(decoded: torch.Tensor, window_hu: torch.Tensor) -> torch.Tensor:
    """Remove the padding; infinities, which clamping to the HU window would hide, become NaN."""
    _, slices, height, width = window_hu.shape
    nan = float("nan")
    return torch.nan_to_num(decoded[:, :slices, :height, :width], nan=nan, posinf=nan, neginf=nan)


def _to_host(vae: FrozenVAE, pieces: Pieces) -> Iterator[np.ndarray]:
    """The pieces as arrays; with a GPU one piece late, so that it computes the next one while the host works."""
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
        raise UserError(
            f"{vae.spec.name} in {vae.precision} returns values that are not finite; use `precision=float32`"
        )
    return piece.numpy()
