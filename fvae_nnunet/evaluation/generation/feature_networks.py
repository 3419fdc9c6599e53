"""Frozen feature networks from user files: TorchScript, or RadImageNet's ResNet-50 as a state dict."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvae_nnunet.device.memory import CallSize
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.network_inputs import (
    NetworkInput,
    SliceInput,
    VolumeInput,
    read_network_input,
)
from fvae_nnunet.evaluation.generation.radimagenet import load_radimagenet
from fvae_nnunet.files.recorded import sha256_of_file

CT_CLIP = "CT-CLIP"
RADIMAGENET = "RadImageNet"

SLICES_AT_ONCE = 16
"""Slices per batch; the features of a slice do not depend on the others."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network and its input.

    Attributes:
        name: name in tables, such as CT-CLIP.
        path: file of the network.
        sha256: digest of the file.
        input: preparation of an image.
        module: network on ``device``.
        device: torch device name.
        calls: number of slices per call, reduced if memory is short.
    """

    name: str
    path: Path
    sha256: str
    input: NetworkInput
    module: torch.nn.Module
    device: str
    calls: CallSize = field(default_factory=lambda: CallSize("features"), compare=False, repr=False)

    @property
    def sees_volumes(self) -> bool:
        """Whether it returns one vector per case instead of one per slice."""
        return isinstance(self.input, VolumeInput)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that determine its features, for records and cache keys."""
        return {"sha256": self.sha256, **self.input.settings}

    def features(self, prepared: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Part of the input -> float32 (rows, width); one row for a volume, or one for each slice of a plane.

        Outputs with more than two dimensions (B, width, ...) are averaged over the others.

        Raises:
            UserError: the network fails, or does not return a finite tensor (B, width).
        """
        return {part: self._rows(part, tensor) for part, tensor in prepared.items()}

    def _rows(self, part: str, tensor: torch.Tensor) -> np.ndarray:
        def of(start: int, stop: int) -> np.ndarray:
            seen = tensor[start:stop].to(self.device)
            if isinstance(self.input, SliceInput):
                seen = self.input.channels(seen)
            with torch.inference_mode():
                output = self.module(seen)
            return as_rows(output, stop - start, f"{self.name} ({self.path})")

        try:
            rows = self.calls.run(of, len(tensor), tensor[0].numel(), most=SLICES_AT_ONCE)
        except RuntimeError as error:
            raise UserError(
                f"{self.name} ({self.path}) failed on its {part} input {tuple(tensor.shape)}: {_last_line(error)}"
            ) from error
        return np.concatenate(rows)


def as_rows(output: Any, count: int, called: str) -> np.ndarray:
    """A network's output as float32 (count, width); UserError if it has another shape or is not finite."""
    if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != count:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(f"{called} must return a tensor ({count}, width), or one with more axes to average; got {got}")
    rows = output.float().flatten(2).mean(2) if output.ndim > 2 else output.float()
    if not torch.isfinite(rows).all():
        raise UserError(f"{called} returns values that are not finite")
    return rows.cpu().numpy()


def load_feature_networks(
    *,
    ct_clip: Path | None = None,
    radimagenet: Path | None = None,
    features: Mapping[str, Path] | None = None,
    slice_step: int | None = None,
    trust_weights: bool = False,
    device: str = "cpu",
) -> list[FeatureNetwork]:
    """Load the given networks, in this order.

    Args:
        ct_clip: TorchScript of CT-CLIP's vision part, (1, 1, 240, 480, 480) -> (1, 512).
        radimagenet: state dict or TorchScript of RadImageNet's ResNet-50.
        features: name -> TorchScript. `network_inputs.read_network_input` determines the input; default: as CT-CLIP.
        slice_step: replaces ``SliceInput.step``.
        trust_weights: run TorchScript, and read a pickled state dict that holds more than tensors.
        device: device to compute on.

    Raises:
        UserError: a file cannot be read or holds something else, or a name is used twice.
    """
    networks = []
    if ct_clip is not None:
        networks.append(_load(CT_CLIP, ct_clip, VolumeInput(), device, trust_weights))
    if radimagenet is not None:
        if is_torchscript(radimagenet):
            networks.append(_load(RADIMAGENET, radimagenet, SliceInput(), device, trust_weights))
        else:
            module, scale = load_radimagenet(radimagenet, trust=trust_weights)
            seen = read_network_input(radimagenet, SliceInput(scale=scale))
            sha256 = sha256_of_file(radimagenet)
            networks.append(FeatureNetwork(RADIMAGENET, radimagenet, sha256, seen, module.to(device), device))
    networks += [_load(name, path, VolumeInput(), device, trust_weights) for name, path in (features or {}).items()]
    names = [network.name for network in networks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"`features`: the name {', '.join(twice)} is already used; choose another")
    if slice_step is None:
        return networks
    return [
        replace(network, input=replace(network.input, step=slice_step))
        if isinstance(network.input, SliceInput)
        else network
        for network in networks
    ]


def _load(name: str, path: Path, default: NetworkInput, device: str, trust_weights: bool) -> FeatureNetwork:
    module = load_torchscript(path, device, trust_weights=trust_weights)
    return FeatureNetwork(name, path, sha256_of_file(path), read_network_input(path, default), module, device)


def load_torchscript(path: Path, device: str, *, trust_weights: bool) -> torch.nn.Module:
    """Load a TorchScript module in evaluation mode.

    Args:
        path: the file.
        device: torch device name.
        trust_weights: the user trusts its author: when run, it can read and write files (``torch.save``).

    Raises:
        UserError: no such file, not TorchScript, or not trusted.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if not is_torchscript(path):
        raise UserError(
            f"{path} is not a TorchScript file (torch.jit.save); docs/generation_quality.md describes how to write one"
        )
    if not trust_weights:
        raise UserError(
            f"{path} is TorchScript, a program that can read and write your files when it runs. If you trust its "
            "source, `trust_weights=True` runs it"
        )
    try:
        with warnings.catch_warnings():
            # torch 2.14 recommends torch.export for new files
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded as TorchScript: {_last_line(error)}") from error
    return module.eval()


def is_torchscript(path: Path) -> bool:
    """Whether a file has the layout of ``torch.jit.save`` (a zip archive with code), not of ``torch.save``."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)
