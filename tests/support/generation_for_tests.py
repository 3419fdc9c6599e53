"""Tiny feature networks as TorchScript, and images to look at with them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

VOLUME = {"input": "volume", "shape": [4, 6, 6], "spacing_mm": [2.0, 1.0, 1.0], "order": "zyx"}
SLICES = {"input": "slices", "shape": [4, 6, 8], "spacing_mm": [2.0, 1.0, 1.0], "share": 1.0, "scale": "unit"}
GRID_MM = (2.0, 1.0, 1.0)


class MeanAndSpread(torch.nn.Module):
    """(B, ...) -> (B, 2): mean and mean square, so that a test knows the features of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.stack([flat.mean(1), (flat * flat).mean(1)], 1)


class TextLength(torch.nn.Module):
    """(1, T) ids and mask -> (1, 2): the number of tokens, and 1."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([mask.sum(1).float(), torch.ones(ids.shape[0])], 1)


def save_script(module: torch.nn.Module, path: Path, settings: dict | None = None) -> Path:
    """TorchScript, with the settings of its input beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(str(path))
    if settings is not None:
        path.with_suffix(".json").write_text(json.dumps(settings))
    return path


def write_image(path: Path, array: np.ndarray, spacing_mm=GRID_MM) -> Path:
    """int16, or uint8 as it is; array and spacing (z, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array if array.dtype == np.uint8 else array.astype(np.int16))
    image.SetSpacing(tuple(spacing_mm[::-1]))
    sitk.WriteImage(image, str(path))
    return path


def hu_volume(seed: int, *, mean: float = 0.0, shape=(4, 6, 6)) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).normal(mean, 100 + 10 * seed, shape)).clip(-900, 900)


def write_synthetic(root: Path, volumes: dict[str, np.ndarray], records: dict[str, dict] | None = None) -> Path:
    """A folder as fvae-synthesize leaves it, with a label map of one tumour cube in each case."""
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    (root / "records").mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": len(volumes)}))
    for case, volume in volumes.items():
        write_image(root / "imagesTr" / f"{case}_0000.nii.gz", volume)
        label = np.zeros(volume.shape, np.uint8)
        label[1:3, 1:3, 1:3] = 1
        write_image(root / "labelsTr" / f"{case}.nii.gz", label)
        record = {
            "case": case,
            "dataset": "Dataset001_X",
            "source_case": "none",
            "lesions": [],
            "label": {},
            "model": {},
        }
        (root / "records" / f"{case}.json").write_text(json.dumps(record | (records or {}).get(case, {})))
    return root
