"""Compare a VAE with itself on the CPU, on devices known to silently return wrong values."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from fvae_nnunet.device.numerics import conv3d_fault
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE

LARGEST_ERROR = {torch.float32: 0.005, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Allowed relative root mean square difference from float32 on the CPU: rounding stays far below, and a kernel that
misreads its weights has an error of about 1."""


def check_device(vae: FrozenVAE, on_cpu: Callable[[], FrozenVAE]) -> None:
    """Code a small window on the device and on the CPU, if the device is known to be at risk; otherwise do nothing.

    MPS is always tested: its convolutions have silently returned wrong values for some layouts of weights and inputs
    (github.com/pytorch/pytorch issues 192212, 180984 and 197114). CUDA is tested in bfloat16 if ``conv3d_fault`` knows
    of a fault, with a warning, because a fault with large windows does not show in a small one.

    Args:
        vae: the VAE on its device.
        on_cpu: loads the same VAE in float32 on the CPU.

    Raises:
        UserError: the values differ from the CPU's.
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
            f"{vae.spec.name} on {vae.device} in {vae.precision} gives different values than on "
            f"the CPU (relative error {error:.2g}, torch {torch.__version__}); "
            f"{fault or 'use `device=cpu`, or another version of torch'}"
        )


def difference(vae: FrozenVAE, reference: FrozenVAE) -> float:
    """Relative root mean square difference between the reconstructions of a small window by both VAEs."""
    return relative_error(reconstructed_waves(vae), reconstructed_waves(reference))


def reconstructed_waves(vae: FrozenVAE) -> torch.Tensor:
    """Reconstruction of a small fixed window of waves: (1, 1, D, H, W), on the VAE's device.

    The input is in [-1, 1]. D is 5 slices, padded as the VAE needs; H and W are 4 times the in-plane stride.
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
    """Root mean square difference, relative to the root mean square of ``expected``."""
    expected = expected.cpu().double()
    return float((found.cpu().double() - expected).norm() / expected.norm())
