"""Small safetensors files that contain their own digest, for caches whose entries have no record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    import torch


def save_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return a safetensors file as bytes; its metadata ``sha256`` is the digest of the same file without metadata."""
    from safetensors.torch import save

    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(content, metadata={"sha256": hashlib.sha256(save(content)).hexdigest()})


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of ``save_tensors``; the tensors are on the CPU.

    Raises:
        UserError: the file is not a safetensors file, or has changed since it was written.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    try:
        with safe_open(str(path), framework="pt") as file:
            recorded = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and run the command again") from error
    if recorded != hashlib.sha256(save(tensors)).hexdigest():
        raise UserError(f"{path} has changed since it was written (sha256); remove it and run the command again")
    return tensors
