"""Accepted synthetic cases through nnU-Net's own preprocessing, beside the preprocessed data of their dataset."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import put_in_place, sha256_of_file
from fvae_nnunet.jobs.manifest import Manifest, write_json
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.synthetic_folder import SyntheticCase, cases_borrowed_from, read_synthetic_cases
from fvae_nnunet.preprocessing.dataset import PreprocessedDataset
from fvae_nnunet.training.synthetic_dataset import (
    ACCEPTED_CASES,
    synthetic_data_folder,
    synthetic_files,
    synthetic_preprocessing_settings,
)


def find_synthetic_cases(dataset: PreprocessedDataset, synthetic_folder: Path) -> dict[str, SyntheticCase]:
    """The accepted cases of a folder by name, after checking that they were made from cases of this dataset.

    Raises:
        UserError: the folder is none of synthetic cases or holds no accepted one, or a case is of another dataset, of
            an unknown source case, or of a label that the dataset does not have.
    """
    found = {case.name: case for case in read_synthetic_cases(synthetic_folder)}
    if not found:
        raise UserError(
            f"{synthetic_folder} holds no accepted case; fvae-report --synthetic shows why, fvae-synthesize makes more"
        )
    labels = dataset.dataset_json["labels"]
    for name, case in found.items():
        record, lesion = case.record, case.record["label"]
        if record["dataset"] != dataset.name:
            raise UserError(
                f"{name} in {synthetic_folder} was made from {record['dataset']}, not from {dataset.name}; name the "
                "dataset that the synthetic cases were made from"
            )
        if record["source_case"] not in dataset.image_files:
            raise UserError(
                f"{name} in {synthetic_folder} was made from {record['source_case']}, which is no case of "
                f"{dataset.name} (any more); its fold is unknown, so it cannot be used"
            )
        if lesion["name"] not in labels:
            raise UserError(
                f"{name} in {synthetic_folder} has the lesion's label {lesion['name']!r}; the labels of "
                f"{dataset.name} are {', '.join(labels)}"
            )
    return found


def open_synthetic_data(
    dataset: PreprocessedDataset, synthetic_folder: Path, cases: dict[str, SyntheticCase], *, overwrite: bool = False
) -> dict[str, Path]:
    """The folder for each configuration, started or found to be made from the same folder with the same settings.

    Args:
        dataset: whose plans are used.
        synthetic_folder: of ``fvae-synthesize``.
        cases: all its accepted cases, from ``find_synthetic_cases``.
        overwrite: delete what is there first.

    Raises:
        UserError: what is there was made from another folder or with other settings.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dataset.plans)
    models: list[dict[str, Any]] = []
    for case in cases.values():
        models += [model for model in [case.record["model"]] if model not in models]
    accepted = {"cases": {name: _made_from(case) for name, case in cases.items()}, "models": models}
    source = str(synthetic_folder.resolve())
    folders = {name: synthetic_data_folder(data_folder) for name, data_folder in dataset.data_folders.items()}
    for name, folder in folders.items():
        manifest = Manifest(folder)
        if overwrite and manifest.path.exists():
            shutil.rmtree(folder)
        settings = {
            "synthetic_folder": source,
            "preprocessing": synthetic_preprocessing_settings(
                dataset.plans, manager.get_configuration(name), dataset.dataset_json
            ),
        }
        manifest.begin("synthetic", settings, {"options": f"--synthetic {shlex.quote(source)}"})
        write_json(folder / ACCEPTED_CASES, accepted)
    return folders


def preprocess_synthetic(
    dataset: PreprocessedDataset,
    synthetic: dict[str, SyntheticCase],
    folders: dict[str, Path],
    *,
    cases: Iterable[str],
    workers: int,
) -> Generator[Outcome, None, None]:
    """Preprocess each case for every configuration; yields what became of each.

    A case that is complete and was made from the same files is left alone (its outcome has neither result nor error).
    The result of a case is, for each configuration that was made, how many voxels of its new lesion are there.

    Args:
        dataset: whose plans are used.
        synthetic: from ``find_synthetic_cases``.
        folders: from ``open_synthetic_data``.
        cases: names, a subset, asked for one by one.
        workers: processes that preprocess; 0 for none.

    Raises:
        UserError: the disk is full or no worker can be started.
    """
    return run_cases(
        cases,
        read=partial(_pending, dataset, synthetic, folders),
        compute=lambda case, pending: pending,
        write=partial(_write_case, dataset, synthetic, folders),
        workers=workers,
        seconds=StageSeconds(),
    )


def _made_from(case: SyntheticCase) -> dict[str, Any]:
    return {"source_case": case.record["source_case"], "borrowed_from": cases_borrowed_from(case.record)}


def _inputs(dataset: PreprocessedDataset, case: SyntheticCase) -> dict[str, str]:
    source_label = dataset.label_files[case.record["source_case"]]
    return {
        **{path.name: sha256_of_file(path) for path in case.images},
        "label": sha256_of_file(case.label),
        "label of the source case": sha256_of_file(source_label),
    }


def _pending(
    dataset: PreprocessedDataset, synthetic: dict[str, SyntheticCase], folders: dict[str, Path], case: str
) -> tuple[dict[str, str], list[str]] | None:
    """Digests of what the case is made from, and the configurations for which it is to be made."""
    inputs = _inputs(dataset, synthetic[case])
    pending = [
        configuration
        for configuration, folder in folders.items()
        if not Manifest(folder).is_done(case, inputs=inputs, outputs=synthetic_files(folder, case))
    ]
    return (inputs, pending) if pending else None


def _write_case(
    dataset: PreprocessedDataset,
    synthetic: dict[str, SyntheticCase],
    folders: dict[str, Path],
    case: str,
    pending: tuple[dict[str, str], list[str]],
) -> dict[str, int]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fvae_nnunet.preprocessing.synthetic_preprocessor import SyntheticPreprocessor

    record, images, label = synthetic[case].record, synthetic[case].images, synthetic[case].label
    for path in (*images, label):
        check_image_file(path)
    manager = PlansManager(dataset.plans)
    inputs, configurations = pending
    own_lesion_voxels = {}
    for name in configurations:
        preprocessor = SyntheticPreprocessor(dataset.label_files[record["source_case"]], record["label"]["value"])
        targets = synthetic_files(folders[name], case)
        unfinished = folders[name] / f".{case}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            preprocessor.run_case_save(
                str(unfinished / case), [str(path) for path in images], str(label),
                manager, manager.get_configuration(name), dataset.dataset_json,
            )  # fmt: skip
            for target in targets:
                put_in_place(unfinished / target.name, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        own_lesion_voxels[name] = preprocessor.own_lesion_voxels
        Manifest(folders[name]).write_case(
            case,
            inputs=inputs,
            outputs=targets,
            results={"source_case": record["source_case"], "own_lesion_voxels": own_lesion_voxels[name]},
        )
    return own_lesion_voxels
