"""Load RadImageNet's ResNet-50 from the available files, which differ in names, layers and intensities.

=========================================  ============================  =====================================
file                                       network                       intensities (`network_inputs.SCALES`)
=========================================  ============================  =====================================
converted from Keras                       torchvision's names;          caffe, as Keras' ``preprocess_input``
(``RadImageNet-ResNet50_notop.pth``)       convolutions with bias,
                                           stride in the first 1x1
                                           convolution of a block,
                                           BatchNorm eps 1.001e-5
the authors' (``ResNet50.pt``)             torchvision's; names          signed, as their notebooks:
                                           ``backbone.0`` to             ``(image - 127.5) * 2 / 255``
                                           ``backbone.7``
any with torchvision's names, no bias      torchvision's                 signed
=========================================  ============================  =====================================

MAISI's FID 2.5D uses the first one. The kind of file is detected from its tensors. A classifier head (``fc``) is
dropped; features are the 2048 means over the last feature map.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.optional_packages import needed_for
from fvae_nnunet.vae.weights import StateDict, first_difference, read_state_dict

if TYPE_CHECKING:
    from torchvision.models import ResNet

KERAS_BATCHNORM_EPS = 1.001e-5
"""BatchNorm eps of `tf.keras.applications.ResNet50`."""

PREFIXES = ("module.", "model.", "resnet.", "encoder.", "backbone.", "model_state_dict.")
"""Prefixes that wrappers add to parameter names; they are removed."""

_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
"""Children of torchvision's ResNet in order, for names with their index in a Sequential."""


def load_radimagenet(path: Path, *, trust: bool = False) -> tuple[torch.nn.Module, str]:
    """Load the frozen network (B, 3, H, W) -> (B, 2048), float32, on the CPU; and the scale of its input.

    Raises:
        UserError: the file cannot be read or holds another network, or torchvision is not installed.
    """
    with needed_for("RadImageNet's ResNet-50"):
        from torchvision.models import resnet50
    state = torchvision_names(read_state_dict(path, trust=trust))
    network = resnet50(weights=None)
    from_keras = "conv1.bias" in state
    if from_keras:
        _as_in_keras(network)
    network.fc = torch.nn.Identity()
    expected = network.state_dict()
    for name, value in expected.items():
        # not in every file, and not used by a frozen network
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    difference = first_difference(expected, state)
    if difference is not None:
        raise UserError(f"{path} is not RadImageNet's ResNet-50: {difference}; a TorchScript file can be given instead")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False), "caffe" if from_keras else "signed"


def torchvision_names(state: StateDict) -> StateDict:
    """The tensors under torchvision's names, without wrapper prefixes and classifier head."""
    while prefix := _common_prefix(state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if all(re.match(r"\d+\.", name) for name in state):
        state = {_child_name(name): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(("fc.", "classifier.", "head."))}


def _common_prefix(state: StateDict) -> str | None:
    return next((prefix for prefix in PREFIXES if state and all(name.startswith(prefix) for name in state)), None)


def _child_name(name: str) -> str:
    number, _, rest = name.partition(".")
    return f"{_CHILDREN[int(number)]}.{rest}" if int(number) < len(_CHILDREN) else f"fc.{rest}"


def _as_in_keras(network: ResNet) -> None:
    """Change torchvision's ResNet-50 to the one of Keras, in place."""
    from torchvision.models.resnet import Bottleneck

    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = KERAS_BATCHNORM_EPS
        elif isinstance(module, torch.nn.Conv2d):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
