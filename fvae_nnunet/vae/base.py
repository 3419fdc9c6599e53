"""The interface that every frozen VAE implements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class VAESpec:
    """Input sizes that a VAE accepts, and the size of its latent.

    Attributes:
        name: name in the registry.
        inplane_stride: pixels per latent pixel along y and x; both sizes must be multiples of it.
        latent_channels: channels of the latent.
        slice_stride: slices per latent slice; 1 for image VAEs, which code each slice independently.
        slice_offset: a window must hold ``slice_offset + k * slice_stride`` slices with k >= 0 (Wan: 1 + 4k).
        window_slices: native number of slices of a window; for image VAEs, the number of slices to pass per call.
        causal: whether no group of slices (those of one latent slice) depends on later groups, so that padding after
            the last slice does not change earlier slices.
    """

    name: str
    inplane_stride: int
    latent_channels: int
    slice_stride: int = 1
    slice_offset: int = 0
    window_slices: int = 8
    causal: bool = False

    @classmethod
    def of_video(
        cls, name: str, latent_channels: int, *, causal: bool, inplane_stride: int = 8, slice_stride: int = 4
    ) -> VAESpec:
        """A video VAE whose first latent slice codes one slice, with the window of the paper's scripts, 1 + 16 * 4."""
        return cls(name, inplane_stride, latent_channels, slice_stride, slice_offset=1, window_slices=65, causal=causal)

    @property
    def independent_slices(self) -> bool:
        """Whether each slice is coded alone (image VAEs), so that windows have no seams and need no overlap."""
        return self.slice_stride == 1

    def padded_slices(self, slices: int) -> int:
        """The smallest admissible number of slices that is not less than ``slices`` (>= 1)."""
        if slices < 1:
            raise ValueError(f"a window needs at least one slice, got {slices}")
        steps = max(0, math.ceil((slices - self.slice_offset) / self.slice_stride))
        return max(1, self.slice_offset + steps * self.slice_stride)

    def slices_of(self, latent_slices: int) -> int:
        """Number of slices coded by ``latent_slices`` (>= 1)."""
        return (self.slice_offset or self.slice_stride) + (latent_slices - 1) * self.slice_stride

    def padded_inplane(self, pixels: int) -> int:
        """The smallest multiple of the in-plane stride that is not less than ``pixels`` (>= 1)."""
        return math.ceil(pixels / self.inplane_stride) * self.inplane_stride


class VAEStream(ABC):
    """One causal pass of a VAE over a volume, from the first slice to the last, with bounded memory.

    The reconstruction of each piece depends on the slices before it, as when the whole volume is coded at once.
    """

    @abstractmethod
    def reconstruct(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode and decode the next slices.

        Args:
            volume: (B, 1, d, H, W), float, in [-1, 1]; ``spec.slice_offset + k * spec.slice_stride`` slices in the
                first call, ``k * spec.slice_stride`` in later ones; B, H and W are the same in every call.
            generator: if given, the latent is sampled from the posterior.

        Returns:
            (B, 1, d, H, W), float32, on the VAE's device.
        """


EMBEDDED = "embedded"
"""``weights_source`` of weights that ship with this package."""


class FrozenVAE(ABC):
    """A pretrained autoencoder with fixed weights that maps CT volumes to latents and back.

    A plain object, not a module, so that it never enters a trainer's ``state_dict``. The model is in ``eval()`` mode
    and needs no gradients. The conversion of grey values to three colour channels and back is private to the subclass.

    Attributes:
        spec: strides, latent channels and admissible sizes.
        weights_sha256: hex digest of the weights as loaded (independent of the file format), for manifests.
        weights_source: origin of the weights, readable for users (hub id, folder or file).
        latent_mean, latent_std: per-channel statistics of the latent, tensors (latent_channels,), where the model
            publishes them, else None. Reconstruction does not use them.
        strength: strength of a control (see ``vae.denoisers``), ``auto`` if it is set per volume; None for VAEs.
    """

    spec: VAESpec
    weights_sha256: str
    weights_source: str
    latent_mean: torch.Tensor | None = None
    latent_std: torch.Tensor | None = None
    strength: float | str | None = None

    def remedy_for_other_weights(self, option: str) -> str:
        """Advice when a result was made with other weights of this VAE; ``option`` is the option that names weights."""
        if self.weights_source == EMBEDDED:
            return "those came with another version of fvae_nnunet: create it again, or use that version"
        return f"say where these are: {option}"

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision in which the model computes."""

    @property
    def kernels(self) -> str | None:
        """External package that computes a part of the model, for manifests; None if there is none."""
        return None

    @property
    def precision(self) -> str:
        """Name of the precision in manifests and options, such as ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def tf32(self) -> bool:
        """Whether float32 may be computed in TF32 (``device.numerics``)."""
        return False

    @abstractmethod
    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode ``volume``.

        Args:
            volume: (B, 1, D, H, W), float, in [-1, 1], on any device; D admissible for ``spec.padded_slices``,
                H and W multiples of ``spec.inplane_stride``.
            generator: if given, the latent is sampled from the posterior; otherwise the mode is returned. Ignored
                by autoencoders without a posterior.

        Returns:
            (B, latent_channels, d, h, w) in the model's precision, on its device, not scaled by
            ``latent_mean`` and ``latent_std``.

        Raises:
            ValueError: the shape is not admissible.
        """

    @abstractmethod
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent from ``encode`` to a volume (B, 1, D, H, W), float32. Values may leave [-1, 1]."""

    def for_volume(self, axial_hu: np.ndarray, hu_window: tuple[float, float]) -> FrozenVAE:
        """The VAE for this volume (z, y, x): a control with strength ``auto`` is adapted to the volume's noise."""
        return self

    def open_stream(self) -> VAEStream | None:
        """Start a pass over a volume; None if the VAE is not causal or its code keeps no state between calls."""
        return None

    def check_volume(self, volume: torch.Tensor) -> None:
        """Raise ValueError if ``encode`` cannot accept the shape of ``volume``."""
        spec = self.spec
        if volume.ndim != 5 or volume.shape[1] != 1:
            raise ValueError(f"{spec.name}: expected (B, 1, D, H, W), got {tuple(volume.shape)}")
        slices, height, width = volume.shape[2:]
        if slices != spec.padded_slices(slices):
            raise ValueError(
                f"{spec.name}: {slices} slices; needs {spec.slice_offset} + k * {spec.slice_stride} slices"
            )
        if height % spec.inplane_stride or width % spec.inplane_stride:
            raise ValueError(f"{spec.name}: {height} x {width} pixels; needs multiples of {spec.inplane_stride}")
