"""Reading state dicts from files, comparing them with a model, and one digest for the same weights in any file."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from fvae_nnunet.errors import UserError

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")

StateDict = dict[str, torch.Tensor]


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a ``.safetensors`` file or of a state dict written by ``torch.save``, on the CPU.

    A pickled file is read with ``weights_only=True``: it cannot run code.

    Raises:
        UserError: the file is missing, of another kind, damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise UserError(f"weights: no such file: {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"weights: {path} is damaged or not a safetensors file: {error}") from error
    if path.suffix not in TORCH_ENDINGS:
        raise UserError(f"weights: {path} must end in .safetensors or {', '.join(TORCH_ENDINGS)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"weights: {path} is damaged or holds more than tensors: {first_line}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"weights: {path} is not a plain state dict (names to tensors)")
    return state


def first_difference(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """What keeps ``state`` from being loaded into a model with the state dict ``expected``; None if nothing."""
    for key, tensor in expected.items():
        if key not in state:
            return f"{key} is missing"
        if state[key].shape != tensor.shape:
            return f"{key} has size {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
    return next((f"{key} is not part of the model" for key in state if key not in expected), None)


def state_dict_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hex digest over the sorted keys, the shapes and the values as float32 (little endian).

    Weights stored as float16 or bfloat16 have the digest of the same values in float32; weights rounded when they were
    converted to a lower precision have another one, so hash before casting.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}\0{tuple(values.shape)}\0".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
