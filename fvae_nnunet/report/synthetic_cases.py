"""Load the folders of synthetic cases of a report, with the files of their source cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.files import read_dataset_json
from fvae_nnunet.nnunet.folders import dataset_name, nnunet_folder, training_files
from fvae_nnunet.nnunet.synthetic_folder import SyntheticCase, read_synthetic_cases
from fvae_nnunet.report.case_images import ct_channel


@dataclass(frozen=True)
class SourceFiles:
    """CT channel and segmentation of a source case."""

    image: Path
    label: Path


@dataclass(frozen=True)
class SyntheticSet:
    """A folder of synthetic cases.

    Attributes:
        folder: folder as given.
        accepted, rejected: its cases.
        shown: cases in pictures: the accepted ones, or the rejected ones if none was accepted; only those with a source
            case.
        sources: files of the source cases of shown cases, by name.
        channel: number of the CT channel.
    """

    folder: Path
    accepted: Sequence[SyntheticCase]
    rejected: Sequence[SyntheticCase]
    shown: Sequence[SyntheticCase]
    sources: dict[str, SourceFiles]
    channel: int

    @property
    def cases(self) -> list[SyntheticCase]:
        return [*self.accepted, *self.rejected]


def load_synthetic(folders: Sequence[Path]) -> list[SyntheticSet]:
    """Read the records of folders of ``fvae-synthesize``, and find the source cases in ``nnUNet_raw``.

    Raises:
        UserError: a folder does not hold synthetic cases, or a source case is not in ``nnUNet_raw``.
    """
    return [_load(folder) for folder in folders]


def lesions_of(case: SyntheticCase) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each lesion of a case, with the figures from its record and its quality control."""
    lesions = case.record["lesions"]
    qualities = case.record.get("quality", {}).get("lesions", [])
    for at, lesion in enumerate(lesions):
        name = case.name if len(lesions) == 1 else f"{case.name}, lesion {at + 1}"
        yield name, {**lesion, **(qualities[at] if at < len(qualities) else {})}


def largest_diameter_mm(case: SyntheticCase) -> float:
    return max((float(lesion["diameter_mm"]) for lesion in case.record["lesions"]), default=0.0)


def _load(folder: Path) -> SyntheticSet:
    accepted, rejected = (read_synthetic_cases(folder, accepted=side) for side in (True, False))
    if not accepted and not rejected:
        raise UserError(f"{folder} (`synthetic`) holds no synthetic case; create some with fvae-synthesize")
    shown = [case for case in accepted or rejected if case.record["source_case"] is not None]
    datasets = sorted({case.record["dataset"] for case in shown})
    files = {dataset: _training_files(dataset, folder) for dataset in datasets}
    channel = ct_channel(folder / "imagesTr")
    sources: dict[str, SourceFiles] = {}
    for case in shown:
        source = case.record["source_case"]
        found = files[case.record["dataset"]].get(source)
        if found is None:
            raise UserError(
                f"{case.name} in {folder} was made from {source}, which is not a training case of "
                f"{case.record['dataset']} in nnUNet_raw but is needed for its picture"
            )
        sources[source] = SourceFiles(Path(found["images"][channel]), Path(found["label"]))
    return SyntheticSet(folder, accepted, rejected, shown, sources, channel)


def _training_files(dataset: str, folder: Path) -> dict[str, dict[str, Any]]:
    """nnU-Net's list of the raw training cases of a dataset."""
    raw = nnunet_folder("nnUNet_raw") / dataset_name(dataset)
    if not (raw / "dataset.json").is_file():
        raise UserError(
            f"{raw / 'dataset.json'} is missing; the pictures of {folder} need the images of the source cases"
        )
    return training_files(raw, read_dataset_json(raw / "dataset.json"))
