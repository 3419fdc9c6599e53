"""The 3D networks of MONAI that classify findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = ("densenet121", "densenet169", "resnet10", "resnet18", "resnet34", "resnet50", "tiny")
"""By name; ``tiny`` (about 50,000 parameters) is for trying out and tests."""

_SMALLEST = {"tiny": 16}
_SMALLEST_OTHERS = 32


def check_network(name: str, shape: tuple[int, int, int]) -> None:
    """UserError where there is no network of this name, or it has too many halvings for volumes of this shape."""
    if name not in NETWORKS:
        raise UserError(f"`network` knows {', '.join(NETWORKS)}, got {name}")
    if min(shape) < (smallest := _SMALLEST.get(name, _SMALLEST_OTHERS)):
        raise UserError(f"`network={name}` needs at least {smallest} voxels along each axis, got `shape` {shape}")


def build_network(name: str, *, findings: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network (B, 1, D, H, W) -> (B, findings) logits, freshly initialised from torch's generator.

    The ResNets have stride 2 in their first convolution, as the 2D ones of He et al. (2016) have; without it, MONAI's
    default, a CT does not fit into a GPU.

    Args:
        name: of `NETWORKS`.
        findings: outputs.
        shape: of the volumes.

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
