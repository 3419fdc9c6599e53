"""Convert CT volumes and class maps to the latents and conditions of a model, and latents back to CT volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from fvae_nnunet.ct.intensity import model_to_hu
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.windows import blend_windows
from fvae_nnunet.synthesis.model.conditions import ConditionFormat, packed_condition
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.model.latent_encoding import encode_draft, encode_slices, padded_shape, padded_volume
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.mask_conditions import cells_of
from fvae_nnunet.synthesis.model.scale import standardise, unstandardise
from fvae_nnunet.vae import FrozenVAE

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.sampling import LatentWindows


class LatentCodec:
    """Encoder and decoder of a model, for volumes (z, y, x) in axial order on the model's grid.

    Volumes are encoded as in training (``latent_encoding``): whole slices, padded at the end to at least the model's
    square and window, and to a size that the VAE accepts.

    Args:
        vae: the frozen VAE.
        settings: settings of the model.
    """

    def __init__(self, vae: FrozenVAE, settings: ModelSettings) -> None:
        self.vae, self.settings = vae, settings

    def padded_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The size at which a window of this shape is encoded.

        Raises:
            UserError: the shape is not that of a volume, or has more slices than a window.
        """
        if len(shape) != 3 or 0 in shape:
            raise UserError(f"a CT volume must have three axes (z, y, x) and at least one voxel, got shape {shape}")
        window = self.settings.window_slices
        if shape[0] > window:
            raise UserError(f"the volume has {shape[0]} slices; this model takes windows of {window}")
        return padded_shape(shape, self.vae.spec, window, self.settings.inplane_pixels)

    def encode(self, volume_hu: np.ndarray) -> torch.Tensor:
        """Encode a window: float32 (1, C, d, h, w), not standardised.

        Raises:
            UserError: it is not a volume, has more slices than a window, or has values that are not finite.
        """
        shape = self.padded_shape(volume_hu.shape)
        if volume_hu.dtype.kind == "f" and not np.isfinite(volume_hu).all():
            raise UserError("the volume has values that are not finite (NaN or infinite)")
        window = self.settings.hu_window
        return encode_slices(padded_volume(volume_hu, shape, window), self.vae, window).float()

    def encode_draft(self, latent: torch.Tensor, draft_hu: np.ndarray, drawn: slice) -> torch.Tensor:
        """Encode a window with a draft drawn into it.

        Args:
            latent: latent of the window without the draft, output of ``encode``.
            draft_hu: the window with the draft, of the same shape as the encoded window.
            drawn: slices that contain the draft; if the VAE codes slices independently, only these are encoded.
        """
        padded = padded_volume(draft_hu, self.padded_shape(draft_hu.shape), self.settings.hu_window)
        return encode_draft(padded, drawn, latent, self.vae, self.settings.hu_window)

    def decode(self, latent: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """Decode a latent (1, C, d, h, w), not standardised, to float32 HU of a shape (z, y, x), inside the HU window.

        Independent slices are decoded a few at a time.

        Raises:
            UserError: the decoded volume is not finite.
        """
        spec = self.vae.spec
        step = spec.window_slices if spec.independent_slices else latent.shape[2]
        runs = []
        for start in range(0, min(latent.shape[2], shape[0]), step):
            volume = self.vae.decode(latent[:, :, start : start + step])[0, 0, :, : shape[1], : shape[2]]
            if not torch.isfinite(volume).all():
                raise UserError(
                    f"{spec.name}: the decoded volume is not finite in {self.settings.precision}; train the model with "
                    "`precision='float32'`"
                )
            runs.append(model_to_hu(volume, self.settings.hu_window).cpu().numpy())
        return np.concatenate(runs)[: shape[0]]

    def decode_windows(
        self, latent: torch.Tensor, windows: LatentWindows, shape: tuple[int, ...]
    ) -> Iterator[np.ndarray]:
        """Decode a long volume of the shape (z, y, x), yielding runs of slices in order: float32 HU.

        Windows are decoded one by one and blended by ``windows.blend_windows``; independent slices are decoded once, a
        few at a time. Memory use therefore does not grow with the number of slices.
        """
        spec, slices = self.vae.spec, shape[0]
        if spec.independent_slices:
            for start in range(0, slices, spec.window_slices):
                stop = min(start + spec.window_slices, slices)
                yield self.decode(latent[:, :, start:stop], (stop - start, *shape[1:]))
            return
        decoded = (
            self.decode(latent[:, :, window.frames.to(latent.device)], (window.stop - window.start, *shape[1:]))
            for window in windows.windows
        )
        start = 0
        for run in blend_windows(decoded, windows.overlap_slices):
            run = run[: slices - start]
            start += len(run)
            if len(run):
                yield run

    def conditions(self, layout: Layout, windows: LatentWindows, device: torch.device) -> WindowConditions:
        """The conditions of all windows of a layout.

        Raises:
            UserError: the layout has a class that the model does not know.
        """
        names = self.settings.class_names
        highest = int(layout.class_map.max())
        if highest > len(names):
            known = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
            raise UserError(f"the class map has class {highest}; this model knows 0 background, {known}")
        spec, packed = self.vae.spec, []
        for window in windows.windows:
            part = layout.slices(slice(window.start, window.stop))
            sides = (max(side, self.settings.inplane_pixels) for side in part.shape[1:])
            shape = (window.stop - window.start, *map(spec.padded_inplane, sides))
            found = packed_condition(
                part.padded(shape), self.vae, encoding=self.settings.mask_encoding, classes=len(names)
            )
            packed.append({name: tensor.to(device) for name, tensor in found.items()})
        return WindowConditions(packed, self.settings.condition_format(spec), layout.spacing_mm)

    def cells(self, region: np.ndarray) -> torch.Tensor:
        """The latent cells with at least one voxel in a region: bool (z, y, x) becomes bool (1, 1, d, h, w)."""
        shape = self.padded_shape(region.shape)
        padded = np.pad(region, [(0, more - n) for more, n in zip(shape, region.shape, strict=True)])
        return cells_of(torch.from_numpy(padded)[None], self.vae.spec)[:, None]

    def standardised(self, latent: torch.Tensor) -> torch.Tensor:
        return standardise(latent, self.settings.latent_mean, self.settings.latent_std)

    def unstandardised(self, latent: torch.Tensor) -> torch.Tensor:
        return unstandardise(latent, self.settings.latent_mean, self.settings.latent_std)


class WindowConditions(Sequence[torch.Tensor]):
    """The condition (1, K, d, h, w) of each window, unpacked on access.

    One-hot conditions of 140 classes take 38 MB for a window of 17 x 64 x 64 cells, and a volume of 600 slices has 12
    windows; packed they take a tenth.
    """

    def __init__(
        self,
        packed: Sequence[Mapping[str, torch.Tensor]],
        condition_format: ConditionFormat,
        spacing_mm: Sequence[float],
    ) -> None:
        self._packed, self._format, self._spacing_mm = packed, condition_format, spacing_mm

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> WindowConditions: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | WindowConditions:
        if isinstance(index, slice):
            return WindowConditions(self._packed[index], self._format, self._spacing_mm)
        return self._format.dense(self._packed[index], self._spacing_mm)

    def cropped(self, rows: slice, columns: slice) -> WindowConditions:
        """The conditions of some rows and columns of latent cells."""
        packed = [{name: it[..., rows, columns] for name, it in window.items()} for window in self._packed]
        return WindowConditions(packed, self._format, self._spacing_mm)
