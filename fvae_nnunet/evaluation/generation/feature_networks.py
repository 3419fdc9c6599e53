"""Frozen feature networks from files that the user names: TorchScript, or RadImageNet's ResNet-50 as a state dict."""

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
"""Slices in a batch; the features of one do not depend on the others."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network and what it gets to see.

    Attributes:
        name: in tables, such as CT-CLIP.
        path: its file.
        sha256: of the file.
        input: how an image is prepared.
        module: on ``device``.
        device: torch's name of it.
        calls: slices of a call, fewer where memory lacks.
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
        """Whether it has one vector for a case, and not one for each of its slices."""
        return isinstance(self.input, VolumeInput)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its features, for records and cache keys."""
        return {"sha256": self.sha256, **self.input.settings}

    def features(self, prepared: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Part of the input -> float32 (rows, width); one row for a volume, one for each slice of a plane.

        What the network returns with more than two dimensions (B, width, ...) is averaged over the others.

        Raises:
            UserError: the network fails, or returns no finite tensor (B, width).
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
                f"{self.name} ({self.path}) fails on its {part} input {tuple(tensor.shape)}: {_last_line(error)}"
            ) from error
        return np.concatenate(rows)


def as_rows(output: Any, count: int, called: str) -> np.ndarray:
    """A network's output as float32 (count, width); UserError where it is none."""
    if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != count:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(f"{called} must return a tensor ({count}, width), or with more axes to average; got {got}")
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
    """The networks that are named, in this order.

    Args:
        ct_clip: TorchScript of CT-CLIP's vision part, (1, 1, 240, 480, 480) -> (1, 512).
        radimagenet: state dict or TorchScript of RadImageNet's ResNet-50.
        features: name -> TorchScript. `network_inputs.read_network_input` says what each gets; default: as CT-CLIP.
        slice_step: in the place of ``SliceInput.step``.
        trust_weights: run TorchScript, and read a pickled state dict that holds more than tensors.
        device: where they compute.

    Raises:
        UserError: a file cannot be read or holds something else, or a name twice.
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
        raise UserError(f"`features`: the name {', '.join(twice)} is taken; choose another")
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
    """A TorchScript module, frozen.

    Args:
        path: of the file.
        device: torch's name of where it computes.
        trust_weights: the user trusts its author: when it runs it can read and write files (``torch.save``).

    Raises:
        UserError: no such file, it is no TorchScript, or is not trusted.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file")
    if not is_torchscript(path):
        raise UserError(
            f"{path} is no TorchScript file (torch.jit.save); docs/generation_quality.md says how to write one"
        )
    if not trust_weights:
        raise UserError(
            f"{path} is TorchScript, a program that can read and write your files when it runs. If you trust where it "
            "comes from, `trust_weights=True` runs it"
        )
    try:
        with warnings.catch_warnings():
            # torch 2.14 recommends torch.export for what is written from now on
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
