"""Find a raw dataset for synthesis and check that it is suitable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvae_nnunet.ct.files import SINGLE_FILE_ENDINGS
from fvae_nnunet.ct.hounsfield import check_foreground_hu
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.ct_channels import channel_names, find_ct_channels
from fvae_nnunet.nnunet.files import find_plans, read_dataset_json, read_plans
from fvae_nnunet.nnunet.folders import dataset_name, nnunet_folder, training_files
from fvae_nnunet.nnunet.folds import training_cases
from fvae_nnunet.nnunet.lesion_labels import NO_LESIONS, lesion_labels
from fvae_nnunet.nnunet.structures import MOST_CLASSES
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.sources.cases import SourceDataset
from fvae_nnunet.synthesis.sources.organs import OrganSource


def open_source_dataset(
    id_or_name: str,
    *,
    organ: str | None = None,
    lesions: Sequence[str] | None = None,
    fold: int | None = None,
    plans_name: str = "nnUNetPlans",
    channels: Sequence[int] | None = None,
    hu_as_is: bool = False,
) -> SourceDataset:
    """Find a raw dataset and check that lesions can be learnt from it and inserted into it.

    Args:
        id_or_name: id or name of the dataset, as in nnU-Net's commands.
        organ: source of the organ, see ``organs.FORMS``; None: all labels except those of lesions.
        lesions: names of the lesion labels, see ``lesion_labels``.
        fold: keep only the training cases of this fold of nnU-Net's splits_final.json or, if this file does not exist
            yet, of the split that nnU-Net will make; None: all training cases.
        plans_name: identifier of the plans, which decide which channel is CT if dataset.json does not.
        channels: index of the CT channel; None: the channel named CT.
        hu_as_is: also accept images that cannot be in HU (``hounsfield``).

    Raises:
        UserError: something is missing, unknown or not supported.
    """
    from fvae_nnunet.nnunet.labels import LabelScheme

    name = dataset_name(id_or_name)
    raw = nnunet_folder("nnUNet_raw") / name
    if not (raw / "dataset.json").is_file():
        raise UserError(f"{raw / 'dataset.json'} is missing; synthesis starts from the raw dataset")
    dataset_json = read_dataset_json(raw / "dataset.json")
    only_background = list(dataset_json["labels"]) == ["background"]
    scheme = (
        LabelScheme({}, (0,), None, dataset_json["file_ending"])
        if only_background
        else LabelScheme.read(raw / "dataset.json")
    )
    if scheme.file_ending not in SINGLE_FILE_ENDINGS:
        raise UserError(
            f"{raw}: images in the format {scheme.file_ending} are not supported; convert them to one of "
            f"{', '.join(SINGLE_FILE_ENDINGS)}"
        )
    label_values = {name: (label,) if isinstance(label, int) else label for label, name in scheme.names.items()}
    chosen = lesion_labels(raw, label_values, lesions)
    files = training_files(raw, dataset_json)
    cases = sorted(files) if fold is None else training_cases(name, sorted(files), fold)
    label_files = {case: Path(files[case]["label"]) for case in cases}
    source = OrganSource.parse(organ, label_values=label_values, lesion_names=chosen, cases=cases, raw_folder=raw)
    missing = [path for path in label_files.values() if not path.is_file()]
    if missing and (chosen or source.kind == "label"):
        raise UserError(
            f"{len(missing)} of {counted(len(cases), 'case')} of {raw} without segmentation (first: {missing[0]}); to "
            f"work without segmentations, give `lesions='{NO_LESIONS}'` and an `organ` that is no label"
        )
    both = set(source.class_names) & chosen.keys()
    if both or len(source.class_names) + len(chosen) > MOST_CLASSES:
        wrong = (
            f"{min(both)} is both a structure and a lesion; rename one of them"
            if both
            else f"there are more than {MOST_CLASSES} classes of structures and lesions, which is not supported"
        )
        raise UserError(f"{raw}: {wrong}")
    return SourceDataset(
        name=name,
        raw_folder=raw,
        dataset_json=dataset_json,
        image_files={case: [Path(path) for path in files[case]["images"]] for case in cases},
        label_files=label_files,
        ct_channel=_ct_channel(name, dataset_json, plans_name, channels, hu_as_is),
        organ=source,
        lesions=chosen,
        lesion_name=next(iter(chosen)) if len(chosen) == 1 else None,
        known_labels=scheme.known_labels,
        hu_as_is=hu_as_is,
    )


def _ct_channel(
    name: str, dataset_json: dict[str, Any], plans_name: str, wanted: Sequence[int] | None, hu_as_is: bool
) -> int:
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    planned = plans_name != "nnUNetPlans" or (preprocessed / f"{plans_name}.json").is_file()
    plans = read_plans(find_plans(preprocessed, plans_name)) if planned else {"configurations": {}}
    channels = find_ct_channels(dataset_json, plans, wanted)
    if len(channels) > 1:
        raise UserError(
            f"{name} has {len(channels)} CT channels ({', '.join(map(str, channels))}); synthesising a lesion "
            "consistently in several channels is not supported. If only one of them is CT in HU, choose it with "
            f"`channels={channels[0]}`"
        )
    if not hu_as_is:
        check_foreground_hu(plans, channel_names(dataset_json), channels)
    return channels[0]
