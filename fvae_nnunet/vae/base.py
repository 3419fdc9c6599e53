"""The one interface behind which every frozen VAE stands."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class VAESpec:
    """What a VAE needs of its input and what it makes of it.

    Attributes:
        name: name in the registry.
        inplane_stride: pixels of a slice for one latent pixel, along y and x; y and x must be multiples of it.
        latent_channels: channels of the latent.
        slice_stride: slices for one latent slice; 1 for image VAEs, whose slices do not see each other.
        slice_offset: a window must hold ``slice_offset + k * slice_stride`` slices with k >= 0 (Wan: 1 + 4k).
        window_slices: native number of slices of a window; for image VAEs, how many slices one call should take.
        causal: no group of slices (those of one latent slice) depends on later groups, so padding behind the last slice
            changes nothing before it.
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
        """Where the first latent slice stands for one slice, with the window of the paper's scripts, 1 + 16 * 4."""
        return cls(name, inplane_stride, latent_channels, slice_stride, slice_offset=1, window_slices=65, causal=causal)

    @property
    def independent_slices(self) -> bool:
        """Whether each slice is coded alone (image VAEs): windows then have no seams and need no overlap."""
        return self.slice_stride == 1

    def padded_slices(self, slices: int) -> int:
        """The smallest admissible number of slices that is not less than ``slices`` (>= 1)."""
        if slices < 1:
            raise ValueError(f"a window needs at least one slice, got {slices}")
        steps = max(0, math.ceil((slices - self.slice_offset) / self.slice_stride))
        return max(1, self.slice_offset + steps * self.slice_stride)

    def slices_of(self, latent_slices: int) -> int:
        """How many slices so many latent slices (>= 1) stand for."""
        return (self.slice_offset or self.slice_stride) + (latent_slices - 1) * self.slice_stride

    def padded_inplane(self, pixels: int) -> int:
        """The smallest multiple of the in-plane stride that is not less than ``pixels`` (>= 1)."""
        return math.ceil(pixels / self.inplane_stride) * self.inplane_stride


class VAEStream(ABC):
    """One causal pass of a VAE over a volume, from the first slice to the last, with bounded memory.

    What a piece comes back as depends on the slices before it, as in one encoding and decoding of the whole volume.
    """

    @abstractmethod
    def reconstruct(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode and decode the next slices.

        Args:
            volume: (B, 1, d, H, W), float, in [-1, 1]; at the first call ``spec.slice_offset + k * spec.slice_stride``
                slices, then ``k * spec.slice_stride``; B, H and W the same at every call.
            generator: draws from the posterior if given.

        Returns:
            (B, 1, d, H, W), float32, on the VAE's device.
        """


EMBEDDED = "embedded"
"""The source of weights that this package holds."""


class FrozenVAE(ABC):
    """A pretrained autoencoder with fixed weights, seen as a map between CT volumes and latents.

    A plain object, not a module: it never enters a trainer's ``state_dict``. The weights are in ``eval()`` and
    need no gradients. How grey values become three colour channels and back is private to the subclass.

    Attributes:
        spec: strides, latent channels and admissible sizes.
        weights_sha256: hex digest of the weights as loaded (independent of the file format), for manifests.
        weights_source: where they came from, in words a user understands (hub id, folder or file).
        latent_mean, latent_std: per-channel statistics of the latent, tensors (latent_channels,), where the model
            publishes them, else None. Reconstruction does not use them.
        strength: of a control (see ``vae.denoisers``), ``auto`` where each volume has its own; None for VAEs.
    """

    spec: VAESpec
    weights_sha256: str
    weights_source: str
    latent_mean: torch.Tensor | None = None
    latent_std: torch.Tensor | None = None
    strength: float | str | None = None

    def remedy_for_other_weights(self, option: str) -> str:
        """What to do where something was made with other weights of this VAE; ``option`` names them."""
        if self.weights_source == EMBEDDED:
            return "those came with another version of fvae_nnunet: make it anew, or use that version"
        return f"say where these are: {option}"

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In what precision the model computes."""

    @property
    def kernels(self) -> str | None:
        """The package by whose code a part of it is computed, where it is not this one's; for manifests."""
        return None

    @property
    def precision(self) -> str:
        """Its name in manifests and options, such as ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def tf32(self) -> bool:
        """Whether what is said to be float32 may be computed in TF32 (``device_numerics``)."""
        return False

    @abstractmethod
    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The latent of ``volume``.

        Args:
            volume: (B, 1, D, H, W), float, in [-1, 1], on any device; D admissible for ``spec.padded_slices``,
                H and W multiples of ``spec.inplane_stride``.
            generator: draws from the posterior if given; otherwise its mode is returned. Ignored by
                autoencoders without a posterior.

        Returns:
            (B, latent_channels, d, h, w) in the model's precision, on its device, not scaled by
            ``latent_mean`` and ``latent_std``.

        Raises:
            ValueError: the shape is not admissible.
        """

    @abstractmethod
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The volume (B, 1, D, H, W), float32, of a latent as ``encode`` returns it. Values may leave [-1, 1]."""

    def for_volume(self, axial_hu: np.ndarray, hu_window: tuple[float, float]) -> FrozenVAE:
        """What codes this volume (z, y, x): of a control with the strength ``auto`` the one for its noise."""
        return self

    def open_stream(self) -> VAEStream | None:
        """A new pass over a volume, or None where the VAE is not causal or its code keeps no state between calls."""
        return None

    def check_volume(self, volume: torch.Tensor) -> None:
        """Raise ValueError where ``encode`` could not take ``volume`` as it is."""
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
