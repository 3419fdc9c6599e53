"""Numerical precision of a device: native bfloat16, TF32 in place of float32, and faulty convolutions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

TF32_VARIABLE = "nnUNet_fvae_tf32"
"""``1``, ``true`` or ``t``: float32 VAEs may compute their convolutions and products in TF32 on NVIDIA GPUs."""


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a CUDA device has native bfloat16 (Ampere and later); by default torch counts emulation as support."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def fastest_precision(device: str | torch.device) -> str:
    """``bfloat16`` if the device has it, else ``float32``: the default of training, synthesis and classification."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def tf32_is_wanted() -> bool:
    return os.environ.get(TF32_VARIABLE, "").lower() in ("1", "true", "t")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 (10 bits of mantissa) for float32 within the block; afterwards the setting is restored.

    By default torch allows it in convolutions, which changes a reconstruction by 0.27 HU (RMS, Wan 2.1).
    """
    flags = ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"))
    before = []
    for place, name in flags:
        with suppress(RuntimeError):  # torch 2.9 and later, if the process has set the newer flags individually
            before.append((place, name, getattr(place, name)))
            setattr(place, name, allowed)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def device_class(device: torch.device) -> str:
    """Kind of device without its index: ``cpu``, ``mps`` or ``cuda, NVIDIA H200``."""
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def conv3d_fault() -> str | None:
    """Known fault of 3D convolutions in bfloat16 on CUDA with the installed versions, with a remedy; else None.

    github.com/pytorch/pytorch issues 163539 (wrong values for large outputs with cuDNN 9.8 to 9.12) and 166643 (torch
    2.9 and later avoid cuDNN below 9.15, which takes 3 to 17 times the memory).
    """
    cudnn = torch.backends.cudnn.version()
    if cudnn is None or not 90800 <= cudnn < 91500:
        return None
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release >= (2, 9):
        what = "take several times the memory"
    elif cudnn < 91300:
        what = "can be wrong"
    else:
        return None
    package = f"nvidia-cudnn-cu{(torch.version.cuda or '12').split('.')[0]}>=9.15"
    return (
        f"with torch {torch.__version__} and cuDNN {cudnn // 10000}.{cudnn // 100 % 100}, 3D convolutions in bfloat16 "
        f"{what}; pip install -U '{package}', or compute in float32"
    )
