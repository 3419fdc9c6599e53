"""Weights on a GPU that is not there."""

from __future__ import annotations

import torch
from fake_gpu import skip_without_fake_cuda
from torch import nn


def put_on_gpu(module: nn.Module) -> None:
    """Fake weights on a GPU that is not there."""
    skip_without_fake_cuda()
    for part in module.modules():
        for weights in (part._parameters, part._buffers):
            for name, weight in weights.items():
                if weight is not None:
                    fake = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="cuda")
                    weights[name] = nn.Parameter(fake, requires_grad=False) if weights is part._parameters else fake
