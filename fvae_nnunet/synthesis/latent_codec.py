"""CT volumes and class maps as the latents and conditions of a model, and latents as CT volumes again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import hu_to_model, model_to_hu
from fvae_nnunet.synthesis.latent_scale import standardise, unstandardise
from fvae_nnunet.synthesis.mask_conditions import ClassShares, cells_of, class_shares, mask_condition
from fvae_nnunet.synthesis.model_folder import ModelSettings
from fvae_nnunet.vae import FrozenVAE
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.windows import blend_windows

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.sampling import LatentWindows


class LatentCodec:
    """Everything takes and gives volumes (z, y, x) in axial order.

    Sizes that the VAE does not admit are padded behind the last slice, row and column and cut back: HU with edge
    values, class maps with the last slice and with background in-plane, as in training.

    Args:
        vae: the frozen VAE.
        settings: of the model.
    """

    def __init__(self, vae: FrozenVAE, settings: ModelSettings) -> None:
        self.vae, self.settings = vae, settings

    def encode(self, volume_hu: np.ndarray) -> torch.Tensor:
        """float32 (1, C, d, h, w), not standardised.

        Raises:
            UserError: no volume, more slices than a window has, or values that are not finite.
        """
        self._check_window(volume_hu)
        padded = _padded(volume_hu.astype(np.float32), self.vae.spec, inplane_mode="edge")
        return self.vae.encode(hu_to_model(padded, self.settings.hu_window)[:, None]).float()

    def decode(self, latent: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """(1, C, d, h, w), not standardised, becomes float32 HU of the shape (z, y, x), inside the HU window.

        Raises:
            UserError: what is decoded is not finite.
        """
        volume = self.vae.decode(latent)[0, 0, : shape[0], : shape[1], : shape[2]]
        if not torch.isfinite(volume).all():
            raise UserError(f"{self.vae.spec.name}: the decoded volume is not finite in {self.settings.precision}")
        return model_to_hu(volume, self.settings.hu_window).cpu().numpy()

    def decode_windows(
        self, latent: torch.Tensor, windows: LatentWindows, shape: tuple[int, ...]
    ) -> Iterator[np.ndarray]:
        """A long volume of the shape (z, y, x) as runs of slices, in order: float32 HU.

        Windows are decoded one by one and blended as ``windows.blend_windows`` does; slices that do not see each other
        a few at a time, each once. So what is held does not grow with the number of slices.
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

    def conditions(self, class_map: np.ndarray, windows: LatentWindows, device: torch.device) -> WindowConditions:
        """The conditions of all windows of a class map, uint8 (z, y, x).

        Raises:
            UserError: it holds a class that the model does not know.
        """
        return WindowConditions(
            [self._condition(class_map[window.start : window.stop], window.stop - window.start).to(device)
             for window in windows.windows],
            len(self.settings.class_names),
        )  # fmt: skip

    def cells(self, region: np.ndarray) -> torch.Tensor:
        """The latent cells with a voxel in a region: bool (z, y, x) becomes bool (1, 1, d, h, w)."""
        return cells_of(_padded(region.astype(np.uint8), self.vae.spec) > 0, self.vae.spec)[:, None]

    def standardised(self, latent: torch.Tensor) -> torch.Tensor:
        return standardise(latent, self.settings.latent_mean, self.settings.latent_std)

    def unstandardised(self, latent: torch.Tensor) -> torch.Tensor:
        return unstandardise(latent, self.settings.latent_mean, self.settings.latent_std)

    def _condition(self, class_map: np.ndarray, slices: int) -> ClassShares | torch.Tensor:
        settings, classes, spec = self.settings, len(self.settings.class_names), self.vae.spec
        highest = int(class_map.max())
        if highest > classes:
            names = ", ".join(f"{number} {name}" for number, name in enumerate(settings.class_names, start=1))
            raise UserError(f"the class map holds {highest}; this model knows 0 background, {names}")
        padded = _padded(class_map, spec, slices=slices)
        if settings.mask_encoding == "onehot":
            return class_shares(padded, spec, classes=classes)
        return self.standardised(mask_condition(padded, spec, encoding="vae", classes=classes, vae=self.vae))

    def _check_window(self, volume_hu: np.ndarray) -> None:
        if volume_hu.ndim != 3 or 0 in volume_hu.shape:
            raise UserError(f"a CT volume has three axes (z, y, x) and at least one voxel, got shape {volume_hu.shape}")
        if len(volume_hu) > self.settings.window_slices:
            raise UserError(f"{len(volume_hu)} slices; this model takes windows of {self.settings.window_slices}")
        if volume_hu.dtype.kind == "f" and not np.isfinite(volume_hu).all():
            raise UserError("the volume holds values that are not finite (NaN or infinite)")


class WindowConditions(Sequence[torch.Tensor]):
    """The condition (1, K, d, h, w) of each window, unpacked when it is asked for.

    One-hot conditions of 140 classes take 38 MB for a window of 17 x 64 x 64 cells, and a volume of 600 slices has 12
    windows; packed they take a tenth.
    """

    def __init__(self, packed: Sequence[ClassShares | torch.Tensor], classes: int) -> None:
        self._packed, self._classes = packed, classes

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> WindowConditions: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | WindowConditions:
        if isinstance(index, slice):
            return WindowConditions(self._packed[index], self._classes)
        packed = self._packed[index]
        return packed.dense(self._classes) if isinstance(packed, ClassShares) else packed


def _padded(
    array: np.ndarray,
    spec: VAESpec,
    *,
    inplane_mode: Literal["constant", "edge"] = "constant",
    slices: int | None = None,
) -> torch.Tensor:
    """(z, y, x) to (1, D, H, W) as the VAE admits it, padded behind; to ``slices`` slices if given."""
    depth, height, width = array.shape
    beyond = (slices or spec.padded_slices(depth)) - depth
    inplane = ((0, spec.padded_inplane(height) - height), (0, spec.padded_inplane(width) - width))
    array = np.pad(array, ((0, beyond), (0, 0), (0, 0)), mode="edge")
    return torch.from_numpy(np.pad(array, ((0, 0), *inplane), mode=inplane_mode))[None]
