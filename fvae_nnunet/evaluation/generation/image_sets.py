"""Find the images of a folder: output of fvae-synthesize, a raw dataset of nnU-Net, or a plain folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fvae_nnunet.ct.files import find_images, image_ending
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.nnunet.case_reports import FILE_NAME as REPORTS_FILE
from fvae_nnunet.nnunet.report_texts import read_reports
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases

IMAGES_TR = "imagesTr"
_CHANNEL = re.compile(r"_(\d{4})$")

MOST_CHANNELS = 8
"""Files of more numbers than this under one name are images, not channels of a case."""


@dataclass(frozen=True)
class ImageCase:
    """One CT.

    Attributes:
        name: name of the case.
        images: channels in order; the first one is the CT to evaluate.
        source: case from which it was generated, if recorded.
        text: report or prompt, if any.
        label: label map, if any.
        structures: map of anatomical structures, as written by ``fvae-synthesize`` and ``fvae-convert``, if any.
    """

    name: str
    images: tuple[Path, ...]
    source: str | None = None
    text: str | None = None
    label: Path | None = None
    structures: Path | None = None


@dataclass(frozen=True)
class ImageSet:
    """The cases of a folder, by name.

    Attributes:
        folder: absolute path.
        kind: ``synthetic`` (fvae-synthesize), ``dataset`` (imagesTr of a raw dataset) or ``images``.
        cases: at least one case.
    """

    folder: Path
    kind: str
    cases: tuple[ImageCase, ...]


def read_image_set(folder: Path, *, reports: Path | None = None) -> ImageSet:
    """The images of a folder.

    These are the accepted cases of ``fvae-synthesize``, else ``imagesTr`` of a raw dataset, else the images in the
    folder itself. If all names end in a channel number, they are grouped by case.

    Args:
        folder: folder of the images.
        reports: texts of the cases, ``reports.json`` of a dataset or a file for `report_texts.read_reports`; default:
            the records of synthetic cases, or ``reports.json`` of the dataset.

    Raises:
        UserError: no such folder or images, damaged records or reports, or reports that name none of the cases.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    folder = folder.absolute()  # "." has no name, which is needed to find files beside images...
    if (folder / "records").is_dir():
        kind = "synthetic"
        cases = [
            ImageCase(
                case.name, case.images, case.record["source_case"], case.record.get("text"),
                label=case.label, structures=_mask("structures", case.name, case.images[0]),
            )
            for case in read_synthetic_cases(folder)
        ]  # fmt: skip
        if not cases:
            raise UserError(f"{folder} holds no accepted synthetic case; create some with fvae-synthesize")
    else:
        kind = "dataset" if (folder / IMAGES_TR).is_dir() else "images"
        images = folder / IMAGES_TR if kind == "dataset" else folder
        cases = [
            ImageCase(
                name, channels,
                label=_mask("labels", name, channels[0]), structures=_mask("structures", name, channels[0]),
            )
            for name, channels in _channels(images).items()
        ]  # fmt: skip
    texts = read_reports(reports) if reports is not None else _texts_of_dataset(folder) if kind != "synthetic" else {}
    if reports is not None and not any(case.name in texts for case in cases):
        raise UserError(f"{reports} has no text for any of the cases in {folder} ({cases[0].name}, ...)")
    with_texts = [ImageCase(**vars(case) | {"text": texts.get(case.name, case.text)}) for case in cases]
    return ImageSet(folder, kind, tuple(with_texts))


def _channels(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each case, by channel; each file is a case unless all names end like those of channels.

    Names such as gen_0000 to gen_0029 number images, not channels: a case has at most `MOST_CHANNELS`.
    """
    images = find_images(folder)
    channels: dict[str, dict[str, Path]] = {}
    for name, path in images.items():
        channels.setdefault(name[:-5], {})[name[-4:]] = path
    numbers_images = any(len(found) > MOST_CHANNELS for found in channels.values())
    if numbers_images or not all(_CHANNEL.search(name) for name in images):
        return {name: (path,) for name, path in images.items()}
    lacking = [name for name, found in channels.items() if "0000" not in found]
    if lacking:
        raise UserError(f"{folder}: channel 0000 (the CT) is missing for {some_of(lacking)}")
    return {name: tuple(found[number] for number in sorted(found)) for name, found in channels.items()}


def _mask(kind: str, case: str, image: Path) -> Path | None:
    """The case's mask in the folder of this kind beside that of the images: labelsTr or structuresTr for imagesTr."""
    images = image.parent
    if "images" not in images.name:
        return None
    path = images.with_name(images.name.replace("images", kind, 1)) / f"{case}{image_ending(image)}"
    return path if path.is_file() else None


def _texts_of_dataset(folder: Path) -> dict[str, str]:
    places = [folder / REPORTS_FILE] + [folder.parent / REPORTS_FILE] * folder.name.startswith("images")
    found = next((place for place in places if place.is_file()), None)
    return {} if found is None else read_reports(found)
