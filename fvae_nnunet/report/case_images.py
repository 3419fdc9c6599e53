"""The image folders of a report: raw images and views by case, and their assignment to results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fvae_nnunet.ct.files import find_images, image_ending
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest
from fvae_nnunet.nnunet.ct_channels import channel_names, is_called_ct
from fvae_nnunet.nnunet.files import read_dataset_json
from fvae_nnunet.nnunet.folders import folders_above
from fvae_nnunet.report.results import Results


@dataclass(frozen=True)
class View:
    """A folder of reconstructions.

    Attributes:
        name, folder: name and folder as given.
        manifest: content of its ``manifest.json``, or None if there is none.
        records: case -> record in the manifest.
        images: image files in HU by name; empty for a view of preprocessed data.
        channel: number of the CT channel in the names of images.
        of_results: indices of the results with which it is shown; empty for preprocessed data.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any] | None
    records: Mapping[str, Mapping[str, Any]]
    images: Mapping[str, Path]
    channel: int
    of_results: Sequence[int] = ()

    @property
    def is_preprocessed(self) -> bool:
        return not self.images

    def image_of(self, case: str) -> Path | None:
        return image_of_case(self.images, case, self.channel)

    def is_made_from(self, case: str, raw: Path, raw_sha256: str) -> bool:
        """Whether this case is complete and was made from this image, by the manifest; True without manifest."""
        image = self.image_of(case)
        if self.manifest is None or image is None:
            return self.manifest is None
        made_as = image.name.removesuffix(image_ending(image))
        manifest = Manifest(self.folder / MANIFEST_FOLDER)
        return manifest.is_done(made_as, inputs={raw.name: raw_sha256}, outputs=[image])


def image_of_case(images: Mapping[str, Path], case: str, channel: int) -> Path | None:
    """The image named ``case_0000`` (with the channel's number) or ``case``, if any."""
    return images.get(f"{case}_{channel:04d}", images.get(case))


def images_of_results(folders: Sequence[Path], results: Sequence[Results]) -> list[dict[str, Path]]:
    """Raw CT images of the cases of each results file.

    Args:
        folders: one folder for all results, or one for each in their order.
        results: results whose cases are needed.

    Raises:
        UserError: another number of folders, a folder without images, or missing cases.
    """
    if len(folders) not in (1, len(results)):
        raise UserError(
            f"`images` needs one folder for all `results`, or one for each of the {len(results)} in their order, "
            f"got {len(folders)}"
        )
    problems, found = [], []
    for folder, of in zip(list(folders) * (len(results) if len(folders) == 1 else 1), results, strict=True):
        channel, images = ct_channel(folder), find_images(folder)
        of_cases = {case: image_of_case(images, case, channel) for case in of.cases}
        found.append({case: image for case, image in of_cases.items() if image is not None})
        problems += _lacks(f"{folder} (`images`)", found[-1], of)
    if problems:
        raise UserError("\n  ".join(problems))
    return found


def load_views(given: Sequence[tuple[str, Path]], results: Sequence[Results], channels: Sequence[int]) -> list[View]:
    """Load views by name and folder.

    If a name is given once for each of the results, its folders are assigned in their order; if it is given once, the
    folder is assigned to the results whose cases it holds. A view of preprocessed data (a manifest directly in its
    folder) is assigned to none.

    Args:
        given: name and folder of each view.
        results: results with which views are shown.
        channels: number of the CT channel in the names of images, one for all results, or one for each. The first one
            counts for a view whose name is given once.

    Raises:
        UserError: all problems, one line each: no such folder, no view, missing cases, a name that is given another
            number of times.
    """
    problems: list[str] = []
    views: list[View] = []
    names = [name for name, _ in given]
    for place, (name, folder) in enumerate(given):
        times = names.count(name)
        if times not in (1, len(results)):
            problems.append(f"`views={name}` is given {times} times; give it once, or once for each of the `results`")
            continue
        at_name = names[:place].count(name)
        try:
            view = _view(name, folder, channels[at_name if len(channels) > 1 else 0])
        except UserError as error:
            problems.append(str(error))
            continue
        wanted = [at_name] if times > 1 else list(range(len(results)))
        held = [at for at in wanted if times > 1 or any(map(view.image_of, results[at].cases))]
        if not view.is_preprocessed:
            for at in held or wanted:
                problems += _lacks(f"{folder} (`views={name}`)", view, results[at])
            view = replace(view, of_results=held)
        views.append(view)
    if problems:
        raise UserError("\n  ".join(dict.fromkeys(problems)))
    return views


def ct_channel(folder: Path) -> int:
    """The first channel named CT in dataset.json above or in a folder of images; 0 if there is none."""
    for place in (*folders_above(folder), folder):
        if (place / "dataset.json").is_file():
            names = channel_names(read_dataset_json(place / "dataset.json"))
            return next((channel for channel, name in enumerate(names) if is_called_ct(name)), 0)
    return 0


def unique_names(given: Sequence[tuple[str, Path]]) -> list[str]:
    """The names, with the path appended to those that occur more than once."""
    names = [name for name, _ in given]
    return [name if names.count(name) == 1 else f"{name} ({path})" for name, path in given]


def _view(name: str, folder: Path, channel: int) -> View:
    if not folder.is_dir():
        raise UserError(f"{folder} (`views={name}`) is not a folder")
    preprocessed = Manifest(folder)
    if preprocessed.path.is_file():
        return View(name, folder, preprocessed.read(), _records(folder), {}, channel)
    beside = folder / MANIFEST_FOLDER
    records = _records(beside)
    ending = f"_{channel:04d}"
    if all(image.endswith(ending) for image in records):
        records = {image.removesuffix(ending): record for image, record in records.items()}
    return View(name, folder, Manifest(beside).read(), records, find_images(folder), channel)


def _records(folder: Path) -> dict[str, Mapping[str, Any]]:
    manifest = Manifest(folder)
    return {case: manifest.read_case(case) or {} for case in manifest.cases}


def _lacks(folder: str, images: Mapping[str, Path] | View, results: Results) -> list[str]:
    image_of = images.image_of if isinstance(images, View) else images.get
    missing = [case for case in results.cases if image_of(case) is None]
    if not missing:
        return []
    return [f"{folder} lacks {len(missing)} of the {len(results.cases)} cases of {results.path}: {', '.join(missing)}"]
