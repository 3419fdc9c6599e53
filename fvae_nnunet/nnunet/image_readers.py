"""Choice of nnU-Net's image reader for a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.files.checked_json import read_json

READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
"""Readers of volumes that ``ct.files`` reproduces."""


def reader_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str | None:
    """Reader named in the plans, else in ``dataset.json``; None if neither names one."""
    for named in (plans.get("image_reader_writer"), dataset_json.get("overwrite_image_reader_writer")):
        if named and named != "None":
            return str(named)
    return None


def reader_beside(dataset_json: Path) -> str | None:
    """Reader according to a ``dataset.json`` and the ``plans.json`` beside it, if there is one.

    None if no reader is named, or one that is not in ``READERS``.
    """
    plans = dataset_json.with_name("plans.json")
    named = reader_of(read_json(plans, dict) if plans.is_file() else {}, read_json(dataset_json, dict))
    return named if named in READERS else None
