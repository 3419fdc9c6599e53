"""Which of nnU-Net's readers the images of a dataset are read with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.files.checked_json import read_json

READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
"""Readers of volumes whose way of reading ``ct.files`` knows."""


def reader_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str | None:
    """The reader that plans name, else the one that a ``dataset.json`` asks for; None where neither does."""
    for named in (plans.get("image_reader_writer"), dataset_json.get("overwrite_image_reader_writer")):
        if named and named != "None":
            return str(named)
    return None


def reader_beside(dataset_json: Path) -> str | None:
    """``reader_of`` a ``dataset.json`` and the ``plans.json`` beside it, if there is one.

    None also for a reader that is not one of ``READERS``.
    """
    plans = dataset_json.with_name("plans.json")
    named = reader_of(read_json(plans, dict) if plans.is_file() else {}, read_json(dataset_json, dict))
    return named if named in READERS else None
