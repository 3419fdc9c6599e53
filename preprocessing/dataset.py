"""Configurations, channels and cases of a preprocessed dataset, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.ct_channels import find_ct_channels
from fvae_nnunet.nnunet.files import find_plans, read_dataset_json, read_plans
from fvae_nnunet.nnunet.folders import dataset_id, dataset_name, nnunet_folder, training_files
from fvae_nnunet.numbers_as_text import counted


@dataclass(frozen=True)
class PreprocessedDataset:
    """A dataset that nnU-Net has planned and preprocessed.

    Attributes:
        name: full name, ``DatasetNNN_Something``.
        plans_name: identifier of the plans, such as ``nnUNetPlans``.
        plans: content of the plans file.
        dataset_json: content of the raw dataset's ``dataset.json``.
        data_folders: configuration -> nnU-Net's folder of preprocessed data.
        image_files: case -> files of its channels, in order.
        label_files: case -> file of its segmentation.
        ct_channels: channels to reconstruct.
    """

    name: str
    plans_name: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    data_folders: dict[str, Path]
    image_files: dict[str, list[Path]]
    label_files: dict[str, Path]
    ct_channels: list[int]

    @property
    def cases(self) -> list[str]:
        return sorted(self.image_files)

    @property
    def view_bytes(self) -> int:
        """Approximate size on disk of a view of all these configurations: that of nnU-Net's own images."""
        return sum(
            (folder / f"{case}.b2nd").stat().st_size for folder in self.data_folders.values() for case in self.cases
        )


def open_preprocessed_dataset(
    id_or_name: str,
    *,
    plans_name: str = "nnUNetPlans",
    configurations: list[str] | None = None,
    channels: list[int] | None = None,
) -> PreprocessedDataset:
    """Find a preprocessed dataset and check that its view can be made.

    Args:
        id_or_name: id or name of the dataset, as in nnU-Net's commands.
        plans_name: identifier of the plans.
        configurations: names of the configurations; None for all that are preprocessed.
        channels: channels to reconstruct; None for those named CT.

    Raises:
        UserError: something is missing, unknown or not supported; the message says what to run.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    name = dataset_name(id_or_name)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    raw = nnunet_folder("nnUNet_raw") / name
    plans_path = find_plans(preprocessed, plans_name)
    if not (raw / "dataset.json").is_file():
        raise UserError(f"{raw / 'dataset.json'} is missing; the raw dataset is required to reconstruct its images")
    plans, dataset_json = read_plans(plans_path), read_dataset_json(raw / "dataset.json")
    manager = PlansManager(plans)

    known = [
        name
        for name in manager.available_configurations
        if manager.get_configuration(name).configuration.get("data_identifier")
    ]
    for wanted in configurations or []:
        if wanted not in known:
            raise UserError(f"{plans_path} has no configuration {wanted!r}; configurations: {', '.join(known)}")
    folders = {name: preprocessed / manager.get_configuration(name).data_identifier for name in configurations or known}
    preprocess = partial(command_line, "nnUNetv2_preprocess", d=dataset_id(name), plans_name=plans_name)
    for configuration, folder in folders.items():
        if configurations and not folder.is_dir():
            raise UserError(f"{folder} is missing; run first: {preprocess(c=configuration)}")
    by_folder = {folder: configuration for configuration, folder in reversed(folders.items()) if folder.is_dir()}
    folders = {configuration: folder for folder, configuration in reversed(by_folder.items())}
    if not folders:
        raise UserError(f"no configuration of {plans_path} is preprocessed; run first: {preprocess()}")
    for configuration, folder in folders.items():
        used = manager.get_configuration(configuration).configuration["preprocessor_name"]
        if used != "DefaultPreprocessor":
            raise UserError(
                f"{configuration} is preprocessed by {used}; only nnU-Net's DefaultPreprocessor is supported"
            )
        if not any(folder.glob("*.b2nd")) and any(folder.glob("*.npz")):
            raise UserError(f"{folder} holds .npz of an older nnU-Net; run again: {preprocess(c=configuration)}")

    files = training_files(raw, dataset_json)
    unprocessed = [
        f"{case} ({configuration})"
        for configuration, folder in folders.items()
        for case in sorted(files)
        if not all((folder / f"{case}{end}").is_file() for end in (".b2nd", "_seg.b2nd", ".pkl"))
    ]
    if unprocessed:
        raise UserError(
            f"{counted(len(unprocessed), 'case')} of {raw} not preprocessed, first {unprocessed[0]}; run again: "
            f"{preprocess(c=list(folders))}"
        )
    for configuration, folder in folders.items():
        orphans = sorted(
            {path.name[:-5] for path in folder.glob("*.b2nd")} - files.keys() - {f"{case}_seg" for case in files}
        )
        if orphans:
            raise UserError(
                f"{counted(len(orphans), 'case')} in {folder} without a raw image in {raw} (first: {orphans[0]}); "
                f"restore the images, or delete the folder and run again: {preprocess(c=configuration)}"
            )
    return PreprocessedDataset(
        name=name,
        plans_name=plans_name,
        plans=plans,
        dataset_json=dataset_json,
        data_folders=folders,
        image_files={str(case): [Path(path) for path in files[case]["images"]] for case in files},
        label_files={str(case): Path(files[case]["label"]) for case in files},
        ct_channels=find_ct_channels(dataset_json, plans, channels),
    )
