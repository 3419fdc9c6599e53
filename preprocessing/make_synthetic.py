"""nnU-Net's own preprocessing of accepted synthetic cases, written beside the preprocessed data of their dataset."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import put_in_place, sha256_of_file
from fvae_nnunet.jobs.manifest import Manifest, begin_all, write_json
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.synthetic_folder import SyntheticCase, read_synthetic_cases, shape_donors
from fvae_nnunet.preprocessing.dataset import PreprocessedDataset
from fvae_nnunet.training.synthetic_dataset import (
    ACCEPTED_CASES,
    synthetic_data_folder,
    synthetic_files,
    synthetic_preprocessing_settings,
)


def find_synthetic_cases(dataset: PreprocessedDataset, synthetic_folder: Path) -> dict[str, SyntheticCase]:
    """Read the accepted cases of a folder by name, and check that they were made from cases of this dataset.

    Raises:
        UserError: it is not a folder of synthetic cases or has no accepted case, or a case has another dataset, an
            unknown source case, or a label that the dataset does not have.
    """
    found = {case.name: case for case in read_synthetic_cases(synthetic_folder)}
    if not found:
        raise UserError(
            f"{synthetic_folder} has no accepted case; {command_line('fvae-report', synthetic=synthetic_folder)} shows "
            "the reasons. Make more cases with fvae-synthesize"
        )
    labels = dataset.dataset_json["labels"]
    for name, case in found.items():
        record, lesion = case.record, case.record["label"]
        if record["dataset"] != dataset.name:
            raise UserError(
                f"{name} in {synthetic_folder} was made from {record['dataset']}, not from {dataset.name}; give the "
                "dataset from which the synthetic cases were made"
            )
        if record["source_case"] not in dataset.image_files:
            raise UserError(
                f"{name} in {synthetic_folder} was made from {record['source_case']}, which is not (or no longer) a "
                f"case of {dataset.name}; its fold is unknown, so it cannot be used"
            )
        if lesion["name"] not in labels:
            raise UserError(
                f"{name} in {synthetic_folder} has the lesion label {lesion['name']!r}, but the labels of "
                f"{dataset.name} are {', '.join(labels)}"
            )
    return found


def open_synthetic_data(
    dataset: PreprocessedDataset, synthetic_folder: Path, cases: dict[str, SyntheticCase], *, overwrite: bool = False
) -> dict[str, Path]:
    """Start the folder for each configuration, or check that it was made from the same folder with the same settings.

    Args:
        dataset: dataset whose plans are used.
        synthetic_folder: output folder of ``fvae-synthesize``.
        cases: all its accepted cases, from ``find_synthetic_cases``.
        overwrite: delete existing folders first.

    Raises:
        UserError: an existing folder was made from another folder or with other settings.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dataset.plans)
    models: list[dict[str, Any]] = []
    for case in cases.values():
        models += [model for model in [case.record["model"]] if model not in models]
    accepted = {"cases": {name: _made_from(case) for name, case in cases.items()}, "models": models}
    source = str(synthetic_folder.resolve())
    folders = {name: synthetic_data_folder(data_folder) for name, data_folder in dataset.data_folders.items()}
    manifests = {
        Manifest(folder): {
            "synthetic_folder": source,
            "preprocessing": synthetic_preprocessing_settings(
                dataset.plans, manager.get_configuration(name), dataset.dataset_json
            ),
        }
        for name, folder in folders.items()
    }
    begin_all("synthetic", manifests, {"parameters": {"synthetic": source}}, overwrite=overwrite)
    for folder in folders.values():
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
    """Preprocess each case for every configuration, and yield its outcome.

    A complete case that was made from the same files is skipped (its outcome has neither result nor error). The result
    of a case is the number of voxels of its new lesion for each configuration that was made.

    Args:
        dataset: dataset whose plans are used.
        synthetic: cases from ``find_synthetic_cases``.
        folders: folders from ``open_synthetic_data``.
        cases: names of a subset, requested one by one.
        workers: number of processes that preprocess; 0 for none.

    Raises:
        UserError: the disk is full or no worker can be started.
    """
    return run_cases(
        cases,
        read=partial(_pending, dataset, synthetic, folders),
        write=partial(_write_case, dataset, synthetic, folders),
        workers=workers,
        seconds=StageSeconds(),
    )


def _made_from(case: SyntheticCase) -> dict[str, Any]:
    return {"source_case": case.record["source_case"], "borrowed_from": shape_donors(case.record)}


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
    """Digests of the input files of a case, and the configurations for which it must be made; None if complete."""
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
