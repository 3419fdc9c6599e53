"""Base of all VAEs that are a torch module: frozen weights, precision, input checks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn
from torch.nn import functional

from fvae_nnunet.device.memory import CallSize, memory_explained
from fvae_nnunet.device.numerics import tf32, tf32_is_wanted
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.weights import state_dict_sha256

if TYPE_CHECKING:
    from typing_extensions import NotRequired

CPU_CALL_VOXELS = 512 * 512
"""Voxels per call of image VAEs on a CPU: with more, half of the time goes into allocating and freeing memory."""


class Placement(TypedDict):
    """Origin of the weights, readable for users, and device and precision for computing.

    The defaults are the CPU and float32.
    """

    source: str
    device: NotRequired[str | torch.device]
    dtype: NotRequired[torch.dtype]


class ModuleVAE(FrozenVAE):
    """A frozen VAE around one module.

    Subclasses receive tensors that are checked and already on the device and in the precision of the module, with
    gradients and autocast off. If there is not enough memory for all volumes of a batch at once (for image VAEs: all
    slices), calls take fewer of them, see ``CallSize``; this affects values only by rounding.

    Args:
        module: the model with its weights in the precision of their source; it is hashed, frozen and then cast.
        spec: strides, latent channels and admissible sizes.
        source, device, dtype: see ``Placement``.
        features_per_voxel: values per voxel in the widest feature map; 0 if unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: VAESpec,
        *,
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        features_per_voxel: int = 0,
    ) -> None:
        self.spec = spec
        images_on_cpu = spec.independent_slices and torch.device(device).type == "cpu"
        most = CPU_CALL_VOXELS if images_on_cpu else math.inf
        voxels_of_value = spec.slice_stride * spec.inplane_stride**2
        self._encoding = CallSize(f"{spec.name}: encoding", features=features_per_voxel, most_voxels=most)
        self._decoding = CallSize(
            f"{spec.name}: decoding", voxels_of_value=voxels_of_value, features=features_per_voxel, most_voxels=most
        )
        self.weights_source = source
        self.weights_sha256 = state_dict_sha256(module.state_dict())
        self._module = place(module.eval().requires_grad_(False), device, dtype)

    @property
    def device(self) -> torch.device:
        return next(self._module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._module.parameters()).dtype

    @property
    def tf32(self) -> bool:
        return self.device.type == "cuda" and self.dtype == torch.float32 and tf32_is_wanted()

    @torch.no_grad()
    def encode(self, volume: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        self.check_volume(volume)
        with self._computing(*volume.shape[2:]):
            volume = volume.to(self.device, self.dtype)
            if generator is not None or self.spec.independent_slices:  # one draw covers the whole batch
                return self._encode(volume, generator)
            return self._encoding.over(lambda volumes: self._encode(volumes, None), volume)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        if latent.ndim != 5 or latent.shape[1] != self.spec.latent_channels:
            raise ValueError(
                f"{self.spec.name}: expected (B, {self.spec.latent_channels}, d, h, w), got {tuple(latent.shape)}"
            )
        inplane = (side * self.spec.inplane_stride for side in latent.shape[3:])
        with self._computing(self.spec.slices_of(latent.shape[2]), *inplane):
            latent = latent.to(self.device, self.dtype)
            return self._decode(latent) if self.spec.independent_slices else self._decoding.over(self._decode, latent)

    @contextmanager
    def _computing(self, slices: int, rows: int, columns: int) -> Iterator[None]:
        """Compute in the module's precision, on a window of this size.

        Lack of memory becomes ``TooLittleMemory``, which reports the smallest call and the remedies.
        """
        dtype = str(self.dtype).removeprefix("torch.")
        least = self._least_slices(slices)
        remedies = [] if self.dtype.itemsize < torch.float32.itemsize else ["`precision=bfloat16`"]
        remedies += ["a smaller `window_slices`"] if least > self.spec.slice_stride else []
        lack = (
            f"{self.spec.name}: {self.device} has too little free memory for {least} slice{'s' * (least > 1)} of "
            f"{rows} x {columns} pixels in {dtype}; use {', '.join([*remedies, '`device=cpu`'])}"
        )
        with memory_explained(lack), torch.autocast(self.device.type, enabled=False), tf32(self.tf32):
            yield

    def _least_slices(self, slices: int) -> int:
        """Smallest number of slices that one call must take of a window with ``slices`` slices."""
        return 1 if self.spec.independent_slices else slices

    @abstractmethod
    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(B, 1, D, H, W) to (B, latent_channels, d, h, w)."""

    @abstractmethod
    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, latent_channels, d, h, w) to (B, 1, D, H, W) float32."""


def place(module: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Move the module to its device, with weights in the memory layout that the device needs."""
    # not diffusers' own `to`, which warns about modules to keep in float32 even if there are none
    nn.Module.to(module, device, dtype)
    if torch.device(device).type == "mps":
        lay_out_plainly(module)
    return module


def lay_out_plainly(module: nn.Module) -> None:
    """Make all weights contiguous except those of ``depth_outermost``: MPS silently misreads other layouts."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.ndim < 5 or not weight[:, :, 0].is_contiguous():
            weight.data = weight.data.contiguous()


def depth_outermost(weight: torch.Tensor) -> torch.Tensor:
    """A 3D kernel (C_out, C_in, d, h, w) with contiguous ``[:, :, i]``, for planar convolutions."""
    return weight.movedim(2, 0).contiguous().movedim(0, 2)


def drawn(mean: torch.Tensor, std: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The mode of a normal distribution, or a sample from it if a generator is given."""
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean + std * noise.to(mean.device)


def slices_as_batch(volume: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, 1, D, H, W) to (B * D, channels, H, W) with equal channels."""
    batch, _, slices, height, width = volume.shape
    return volume.reshape(batch * slices, 1, height, width).expand(-1, channels, -1, -1)


def batch_as_slices(images: torch.Tensor, batch: int) -> torch.Tensor:
    """(B * D, C, H, W) to (B, C, D, H, W)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def grey(images: torch.Tensor, *, dim: int = 1) -> torch.Tensor:
    """The mean over the colour channels, kept as one channel, float32."""
    return images.float().mean(dim, keepdim=True)


def silu_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write SiLU of ``x`` to ``out``, which may be a part of a tensor.

    torch.compile breaks its graph at an ``out`` that is not contiguous, but fuses a copy with the previous operation.
    """
    if torch.compiler.is_compiling():
        out.copy_(functional.silu(x))
    else:
        torch.ops.aten.silu.out(x, out=out)


def lerp_into(start: torch.Tensor, end: torch.Tensor, weight: float, out: torch.Tensor) -> None:
    """Write ``torch.lerp`` to ``out``, as in ``silu_into``."""
    if torch.compiler.is_compiling():
        out.copy_(torch.lerp(start, end, weight))
    else:
        torch.lerp(start, end, weight, out=out)
