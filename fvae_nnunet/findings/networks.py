"""MONAI's 3D networks for the classification of findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = ("densenet121", "densenet169", "resnet10", "resnet18", "resnet34", "resnet50", "tiny")
"""Names of networks; ``tiny`` (about 50,000 parameters) is for first tries and tests."""

_SMALLEST = {"tiny": 16}
_SMALLEST_OTHERS = 32


def check_network(name: str, shape: tuple[int, int, int]) -> None:
    """Raise UserError if there is no network of this name, or volumes of this shape are too small for it."""
    if name not in NETWORKS:
        raise UserError(f"`network` must be one of {', '.join(NETWORKS)}, got {name}")
    if min(shape) < (smallest := _SMALLEST.get(name, _SMALLEST_OTHERS)):
        raise UserError(f"`network={name}` needs at least {smallest} voxels along each axis, got `shape` {shape}")


def build_network(name: str, *, findings: int, shape: tuple[int, int, int]) -> nn.Module:
    """Build a network (B, 1, D, H, W) -> (B, findings) logits, initialised from torch's generator.

    The ResNets have stride 2 in their first convolution, like the 2D ones of He et al. (2016); without it, as in
    MONAI's default, a CT does not fit into the memory of a GPU.

    Args:
        name: one of `NETWORKS`.
        findings: number of outputs.
        shape: shape of the volumes.

    Raises:
        UserError: as ``check_network``.
    """
    from monai.networks import nets

    check_network(name, shape)
    if name == "tiny":
        return nets.DenseNet(3, 1, findings, init_features=8, growth_rate=8, block_config=(2, 2, 2))
    builders: dict[str, Callable[..., Any]] = {known: getattr(nets, known) for known in NETWORKS[:-1]}
    if name.startswith("densenet"):
        return builders[name](spatial_dims=3, in_channels=1, out_channels=findings)
    return builders[name](spatial_dims=3, n_input_channels=1, num_classes=findings, conv1_t_stride=2)
