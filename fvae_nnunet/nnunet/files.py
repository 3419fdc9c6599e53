"""Reading of nnU-Net's own JSON files, with checks of the entries that are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import Rule, check_shape, read_json
from fvae_nnunet.nnunet.folders import dataset_id

_POSITIVE = Rule("a number above 0", lambda value: not isinstance(value, bool) and 0 < value < float("inf"))
_CONFIGURATION = {
    "data_identifier": str,
    "preprocessor_name": str,
    "spacing": [_POSITIVE],
    "normalization_schemes": [str],
    "use_mask_for_norm": [bool],
    "resampling_fn_data": str,
    "resampling_fn_data_kwargs": dict,
}
_PLANS = {
    "configurations": {"*": {"inherits_from?": str}},
    "transpose_forward": [int],
    "foreground_intensity_properties_per_channel": {"*": {"percentile_00_5": float, "percentile_99_5": float}},
}


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a ``dataset.json`` of nnU-Net v2, of a raw or preprocessed dataset, predictions or a model.

    Raises:
        UserError: it cannot be read, or lacks the channels, labels or file ending.
    """
    remedy = "Correct it as described in nnU-Net's documentation/dataset_format.md, or restore it from a copy"
    shape = {"labels": dict, "file_ending": str, "channel_names?": {"*": str}, "modality?": {"*": str}}
    content: dict[str, Any] = read_json(path, shape, remedy=remedy)
    if "channel_names" not in content and "modality" not in content:
        raise UserError(f"{path} is damaged or incomplete: it lacks channel_names. {remedy}")
    return content


def read_plans(path: Path) -> dict[str, Any]:
    """Read plans of nnU-Net v2, of a preprocessed dataset or a model.

    Raises:
        UserError: they cannot be read, or lack an entry that affects the preprocessing of images.
    """
    remedy = "nnU-Net wrote it; restore it from a copy"
    if path.name != "plans.json":
        remedy += ", or plan the dataset again with nnUNetv2_plan_experiment"
    plans: dict[str, Any] = read_json(path, _PLANS, remedy=remedy)
    configurations = plans["configurations"]
    for name in configurations:
        configuration, seen = dict(configurations[name]), {name}
        while (parent := configuration.pop("inherits_from", None)) is not None:
            if parent not in configurations or parent in seen:
                raise UserError(f"{path}: {name} inherits from {parent}, which is missing or circular. {remedy}")
            seen.add(parent)
            configuration = configurations[parent] | configuration
        if "data_identifier" in configuration:
            content, shape = ({"configurations": {name: part}} for part in (configuration, _CONFIGURATION))
            check_shape(path, content, shape, remedy=remedy)
    return plans


def find_plans(preprocessed: Path, plans_name: str) -> Path:
    """Path of the plans file in a folder of preprocessed data.

    Raises:
        UserError: there is none of this name; the message lists the existing ones, or the command to run.
    """
    path = preprocessed / f"{plans_name}.json"
    if path.is_file():
        return path
    others = ("dataset", "dataset_fingerprint", "splits_final")
    names = sorted(other.stem for other in preprocessed.glob("*.json") if other.stem not in others)
    if names:
        raise UserError(f"{path} is missing; existing plans: {', '.join(names)}. Choose one with `plans_name`")
    command = f"nnUNetv2_plan_and_preprocess -d {dataset_id(preprocessed.name)}"
    raise UserError(f"{path} is missing; run first: {command}")


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Read ``splits_final.json``, folds ``{"train": [case, ...], "val": [case, ...]}``; UserError if it is invalid."""
    remedy = "Restore it from a copy; if it is removed, new folds are made"
    splits: list[dict[str, list[str]]] = read_json(path, [{"train": [str], "val": [str]}], remedy=remedy)
    return splits
