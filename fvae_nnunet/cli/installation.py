"""State of the installation as text, for fvae-setup and its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.vae import KnownVAE

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def device_lines() -> list[str]:
    """The device that torch would choose, and its known faults."""
    import torch

    from fvae_nnunet.device.numerics import conv3d_fault, has_bfloat16

    if not torch.cuda.is_available():
        return [f"{'mps' if torch.backends.mps.is_available() else 'cpu'}, {counted(os.cpu_count() or 1, 'core')}"]
    memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    bfloat16 = "bfloat16" if has_bfloat16("cuda") else "no native bfloat16"
    line = f"cuda, {torch.cuda.get_device_name(0)}, {memory_gib:.0f} GiB, {bfloat16}"
    return [line, *filter(None, [conv3d_fault()])]


def state_of_folder(variable: str) -> str:
    """Folder that one of nnU-Net's variables names, and whether it exists."""
    value = os.environ.get(variable)
    return "not set" if not value else value if Path(value).is_dir() else f"{value} (no such folder)"


def weights_of(vae: KnownVAE) -> str:
    """Where the weights of a VAE are, or where they come from."""
    from fvae_nnunet.vae import is_available_offline

    if is_available_offline(vae.name):
        return "on this machine"
    size = f", {vae.download_mb} MB" if vae.download_mb else ""
    return f"from the hub: {vae.hub_id}{size}" if vae.hub_id else f"with --weights{size}"
