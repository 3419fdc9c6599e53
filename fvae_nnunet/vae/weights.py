"""Read state dicts from files, compare them with a model, and compute a digest independent of the file format."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fvae_nnunet.errors import UserError

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")

StateDict = dict[str, torch.Tensor]
Network = TypeVar("Network", bound=nn.Module)


def read_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a ``.safetensors`` file or a file written by ``torch.save``, to the CPU.

    Pickled files are read with ``weights_only=True`` (tensors, plain Python values and ``argparse.Namespace``), so that
    they cannot run code.

    Args:
        path: the file.
        trust: read a pickled file without this protection; it can then run any code.

    Raises:
        UserError: the file is missing, of another kind, damaged, or holds more than plain values.
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
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"weights: {path} is damaged or holds more than tensors: {first_line}. If you trust its source, "
            "`trust_weights=True` reads it anyway; it can then run its author's code"
        ) from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"weights: {path} holds objects whose class is not installed: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"weights: {path} holds no named values")
    return content


def read_state_dict(path: Path, *, trust: bool = False) -> StateDict:
    """The tensors of a checkpoint: of the file itself, or of its entry ``state_dict``; see ``read_checkpoint``.

    Raises:
        UserError: as ``read_checkpoint``, or it holds anything but named tensors.
    """
    return state_dict_of(read_checkpoint(path, trust=trust), path)


def state_dict_of(content: dict[str, Any], path: Path, entries: Sequence[str] = ("state_dict",)) -> StateDict:
    """The tensors of a file's content: of the first of these entries that it has, or of the content itself.

    Raises:
        UserError: there are no tensors, or other values.
    """
    state = next((content[entry] for entry in entries if entry in content), content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        names = " or ".join(f"'{entry}'" for entry in entries)
        raise UserError(f"weights: {path} is not a state dict (names to tensors) and does not hold one as {names}")
    return state


def first_difference(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """First reason why ``state`` does not fit a model with the state dict ``expected``; None if it fits."""
    for key, tensor in expected.items():
        if key not in state:
            return f"{key} is missing"
        if state[key].shape != tensor.shape:
            return f"{key} has size {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
    return next((f"{key} is not part of the model" for key in state if key not in expected), None)


def filled(build: Callable[[], Network], state: Mapping[str, torch.Tensor], misfit: str) -> Network:
    """The network built by ``build``, with these weights in float32.

    Args:
        build: called with torch's device set to ``meta``, so that the replaced weights take no memory.
        state: the weights.
        misfit: beginning of the message, before the difference, if the weights do not exactly fit the network.

    Raises:
        UserError: the weights do not fit.
    """
    with torch.device("meta"):
        network = build()
    difference = first_difference(network.state_dict(), state)
    if difference is not None:
        raise UserError(f"{misfit}: {difference}")
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return network


def state_dict_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of the sorted keys, the shapes and the values as float32 (little endian).

    Weights stored as float16 or bfloat16 have the same digest as these values in float32. Rounding in a conversion to
    lower precision changes the digest, so hash before casting.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}\0{tuple(values.shape)}\0".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
