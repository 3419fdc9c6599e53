"""A VAE held against itself on the CPU, where the device or its libraries are known to give wrong values in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from fvae_nnunet.device.numerics import conv3d_fault
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE

LARGEST_ERROR = {torch.float32: 0.005, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Root mean square of the difference to the CPU's float32, relative to its own: rounding stays far below, and a kernel
that reads its weights wrongly is off by about 1."""


def check_device(vae: FrozenVAE, on_cpu: Callable[[], FrozenVAE]) -> None:
    """Nothing on the CPU and on sound CUDA devices; else a small window is coded here and on the CPU.

    On MPS always: its convolutions have given wrong values without an error for some layouts of weights and inputs
    (github.com/pytorch/pytorch issues 192212, 180984 and 197114). On CUDA in bfloat16 where ``conv3d_fault`` knows of
    one; that is also warned of, for a fault of large windows does not show in a small one.

    Args:
        vae: on its device.
        on_cpu: makes the same in float32 on the CPU.

    Raises:
        UserError: the values are not the CPU's.
    """
    fault = None
    if vae.device.type == "cuda" and vae.dtype == torch.bfloat16 and vae.spec.slice_stride > 1:
        fault = conv3d_fault()
        if fault is not None:
            warnings.warn(f"{vae.spec.name}: {fault}", stacklevel=2)
    if vae.device.type != "mps" and fault is None:
        return
    error = difference(vae, on_cpu())
    if not error <= LARGEST_ERROR[vae.dtype]:
        raise UserError(
            f"{vae.spec.name} on {vae.device} in {vae.precision} gives other values than on "
            f"the CPU (relative error {error:.2g}, torch {torch.__version__}); "
            f"{fault or 'use `device=cpu`, or another version of torch'}"
        )


def difference(vae: FrozenVAE, reference: FrozenVAE) -> float:
    """Relative root mean square of what differs in the reconstruction of a small window, against the reference's."""
    return relative_error(reconstructed_waves(vae), reconstructed_waves(reference))


def reconstructed_waves(vae: FrozenVAE) -> torch.Tensor:
    """The reconstruction of a small window of waves, always the same: (1, 1, D, H, W) in [-1, 1], on the VAE's device.

    D are 5 slices, H and W 4 times the in-plane stride, each padded as the VAE needs it.
    """
    side = 4 * vae.spec.inplane_stride
    z, y, x = torch.meshgrid(
        torch.linspace(0, 2, vae.spec.padded_slices(5)),
        torch.linspace(0, 9, side),
        torch.linspace(0, 7, side),
        indexing="ij",
    )
    return vae.decode(vae.encode((0.6 * torch.sin(x + z) * torch.cos(y) + 0.3 * torch.sin(5 * x * y))[None, None]))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of what differs, relative to that of ``expected``."""
    expected = expected.cpu().double()
    return float((found.cpu().double() - expected).norm() / expected.norm())
