"""Synthetic cases beside nnU-Net's preprocessed data: their folder, their checks, and their dataset class.

The synthetic cases of the data folder ``nnUNetPlans_3d_fullres`` are in the sibling folder
``nnUNetPlans_3d_fullres__fvae_synthetic``, which nnU-Net never scans. It holds ``<case>.b2nd``, ``<case>_seg.b2nd`` and
``<case>.pkl`` in nnU-Net's preprocessed format, a manifest (see ``manifest``; each record also names the
``source_case``), and ``accepted_cases.json``, which lists the cases::

    {"cases": {"synthetic_0000": {"source_case": "pancreas_001", "borrowed_from": ["pancreas_007"]}, ...},
     "models": [{...}]}

``cases`` gives for each accepted case its source case and the cases whose lesion shapes it borrows; ``models`` are the
distinct ``model`` entries of the records (see ``nnunet.synthetic_folder``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.training.views import (
    MADE_FOR_PLANS,
    SYNTHETIC_NAME,
    DatasetAround,
    preprocessing_settings,
    refuse_other_plans,
    sibling_folder,
)

ACCEPTED_CASES = "accepted_cases.json"
_ACCEPTED = {"cases": {"*": {"source_case": str, "borrowed_from": [str]}}, "models": [dict]}


def synthetic_data_folder(data_folder: Path) -> Path:
    """Folder of the synthetic cases for nnU-Net's preprocessed ``data_folder``."""
    return sibling_folder(data_folder, SYNTHETIC_NAME)


def synthetic_files(folder: Path, case: str) -> list[Path]:
    """Files of a preprocessed case: image, segmentation, properties."""
    return [folder / f"{case}{end}" for end in (".b2nd", "_seg.b2nd", ".pkl")]


def synthetic_preprocessing_settings(
    plans: dict[str, Any], configuration: Any, dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of nnU-Net that affect image, segmentation and properties of a preprocessed case, as JSON values.

    Args:
        plans: content of the plans file.
        configuration: nnU-Net's ConfigurationManager.
        dataset_json: content of dataset.json.
    """
    return {
        **preprocessing_settings(plans, configuration),
        "resampling_fn_seg": configuration.configuration["resampling_fn_seg"],
        "resampling_fn_seg_kwargs": configuration.configuration["resampling_fn_seg_kwargs"],
        "labels": dataset_json["labels"],
        "regions_class_order": dataset_json.get("regions_class_order"),
    }


@dataclass(frozen=True)
class SyntheticData:
    """A complete set of preprocessed synthetic cases.

    Attributes:
        folder: folder of the cases.
        source_cases: name -> source case.
        donors: name -> cases whose lesion shapes it borrows.
        models: diffusion models that made the cases, as in their records.
        settings: settings of the preprocessing, with the folder of the original cases.
    """

    folder: Path
    source_cases: dict[str, str]
    donors: dict[str, list[str]]
    models: list[dict[str, Any]]
    settings: dict[str, Any]

    def made_from(self, cases: Collection[str]) -> dict[str, str]:
        """Synthetic cases derived only from these cases: both their source case and all donors of shapes."""
        known = set(cases)
        return {
            name: source for name, source in self.source_cases.items() if known.issuperset({source, *self.donors[name]})
        }

    def seen_by_models(self, cases: Collection[str]) -> list[str]:
        """Those of these cases on which a diffusion model was trained."""
        seen = {case for model in self.models for case in model.get("training_cases") or ()}
        return sorted(seen & set(cases))


def check_synthetic(
    data_folder: Path, preprocessing: dict[str, Any], preprocess: Callable[..., str], way_to: str
) -> SyntheticData:
    """Open the synthetic cases beside a data folder, and check that they are complete and fit the plans.

    Args:
        data_folder: nnU-Net's preprocessed data.
        preprocessing: ``synthetic_preprocessing_settings`` of the plans in use.
        preprocess: returns the command that preprocesses synthetic cases with the given parameters, for messages.
        way_to: what to do if there are none, the end of the message.

    Raises:
        UserError: there are none, they were made for other plans, or cases are missing or incomplete.
    """
    folder = synthetic_data_folder(data_folder)
    manifest = Manifest(folder)
    content = manifest.read(MADE_FOR_PLANS)
    if content is None or not (folder / ACCEPTED_CASES).is_file():
        raise UserError(f"{data_folder} has no synthetic cases beside it. {way_to}")
    make_again = partial(preprocess, **content["made_with"]["parameters"])
    refuse_other_plans(content, preprocessing, f"the synthetic cases in {folder} were preprocessed", make_again)
    accepted = read_json(folder / ACCEPTED_CASES, _ACCEPTED)
    missing = [case for case in sorted(accepted["cases"]) if not manifest.is_whole(case, synthetic_files(folder, case))]
    if missing:
        raise UserError(
            f"in {folder}, {len(missing)} of {len(accepted['cases'])} synthetic cases are missing or incomplete "
            f"(first: {missing[0]}). Complete them with: {make_again()}"
        )
    return SyntheticData(
        folder,
        {name: case["source_case"] for name, case in accepted["cases"].items()},
        {name: case["borrowed_from"] for name, case in accepted["cases"].items()},
        accepted["models"],
        content["settings"],
    )


class SyntheticDataset(DatasetAround):
    """nnU-Net's dataset that randomly returns a synthetic case instead of the requested case.

    A synthetic case has its own segmentation and properties, so foreground is sampled from its own lesion. All
    synthetic cases are equally likely. Random numbers come from ``np.random``, which nnU-Net seeds in every worker.
    Picklable: no array stays open. nnU-Net's batches name the requested case; ``name_of`` gives the synthetic case of
    an array.

    Args:
        inner: nnU-Net's dataset, or a ``ViewDataset`` of it.
        synthetic: nnU-Net's dataset of the preprocessed synthetic cases.
        source_cases: synthetic case -> its source case.
        probability: probability of a synthetic case, in [0, 1].
    """

    def __init__(self, inner: Any, synthetic: Any, source_cases: Mapping[str, str], *, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"synthetic_probability must be in [0, 1], got {probability}")
        super().__init__(inner)
        self.synthetic = synthetic
        self.source_cases = dict(source_cases)
        self.probability = probability

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load (data, seg, seg_prev, properties) of this case, or of a synthetic case, which has seg_prev None."""
        if np.random.uniform() >= self.probability:  # noqa: NPY002
            return self.inner.load_case(identifier)
        names = self.synthetic.identifiers
        return self.synthetic.load_case(names[np.random.randint(len(names))])  # noqa: NPY002

    def name_of(self, data: Any) -> str | None:
        """Name of the synthetic case to which an array of ``load_case`` belongs; None for other arrays."""
        path = Path(str(getattr(data, "urlpath", "")))
        return path.stem if path.parent == Path(self.synthetic.source_folder) else None
