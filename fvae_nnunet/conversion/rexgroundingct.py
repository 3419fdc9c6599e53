"""Read ReXGroundingCT, described findings of CT-RATE volumes with one mask each, as label maps of disease classes.

The published files (huggingface.co/datasets/rajpurkarlab/ReXGroundingCT): ``segmentations/train_1741_b_2.nii.gz``, one
4-dimensional mask per volume, and ``dataset.json`` (or ``MICCAI_challenge_dataset.json``) with the lists ``train``,
``val`` and ``test`` of::

    {"name": "train_1741_b_2.nii.gz", "findings": {"0": "Irregularly circumscribed ..."}, "entity_counts": {"0": 1},
     "shape": [512, 512, 238], "pixels": {"0": 15571}, "categories": {"0": "2b"}, "protocol": "protocol1"}

The masks of ``test`` are withheld. The volumes themselves are CT-RATE's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.tables import Table
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.case_reports import DiseaseMask
from fvae_nnunet.numbers_as_text import counted

SPLITS = ("train", "val")
"""Splits with published masks."""

CATEGORIES = {
    "1a": "bronchial_wall_thickening",
    "1b": "bronchiectasis",
    "1c": "emphysema",
    "1d": "septal_thickening",
    "1e": "micronodules",
    "1f": "other_non_focal",
    "2a": "linear_opacity",
    "2b": "atelectasis_consolidation",
    "2c": "ground_glass_opacity",
    "2d": "nodule_mass",
    "2e": "pleural_effusion_thickening",
    "2f": "honeycombing",
    "2g": "pneumothorax",
    "2h": "other_focal",
}
"""Categories 1 and 2 (lung, airways and pleura) of the authors' ``categorize.py``; classes 1 to 14 in this order."""

LABELS = {name: label for label, name in enumerate(CATEGORIES.values(), start=1)}


@dataclass(frozen=True)
class Finding:
    """One described finding: its text, category code and number of mask voxels (None: not given)."""

    text: str
    category: str
    voxels: int | None

    @property
    def name(self) -> str:
        return CATEGORIES[self.category]


@dataclass(frozen=True)
class GroundedCase:
    """The findings of a volume in the order of its masks, and its published split, ``train`` or ``val``."""

    split: str
    findings: tuple[Finding, ...]


@dataclass
class GroundedCases(Table[GroundedCase]):
    """The entries of ``dataset.json``.

    Attributes:
        published: volume -> the splits of ``SPLITS`` that list it, even if its entry is invalid.
        withheld: number of entries in ``test``; they are only searched for volumes that other splits list too.
    """

    published: dict[VolumeName, set[str]] = field(default_factory=dict)
    withheld: int = 0

    @property
    def in_training_and_val(self) -> set[VolumeName]:
        """The volumes of ``train``, valid or not, whose patients are also in ``val``."""
        in_val = {volume.patient for volume, splits in self.published.items() if "val" in splits}
        return {volume for volume, splits in self.published.items() if "val" not in splits and volume.patient in in_val}

    def refuse_second_entry(self, volume: VolumeName, place: str) -> None:
        """Mark a volume with two entries as invalid: which one is correct is unknown."""
        self.rows.pop(volume, None)
        self.wrong[volume] = f"{place}: {volume.case} has two entries"


def read_cases(path: Path) -> GroundedCases:
    """Read the entries of ``dataset.json`` by volume; the reasons of invalid ones are in ``wrong``.

    Raises:
        UserError: the file does not exist or is not ReXGroundingCT's list.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give ReXGroundingCT's dataset.json with `json_file`")
    content = read_json(path)
    lists = {name: content[name] for name in (*SPLITS, "test") if name in content} if isinstance(content, dict) else {}
    if not lists or not all(isinstance(entries, list) for entries in lists.values()):
        raise UserError(f"{path} has no lists train, val or test; is it ReXGroundingCT's dataset.json?")
    cases = GroundedCases(withheld=len(lists.get("test", [])))
    for split in SPLITS:
        for number, entry in enumerate(lists.get(split, [])):
            place, volume = f"{path.name}, {split} {number}", _volume(entry)
            if volume is None:
                cases.unassigned_rows.append(f"{place}: does not name a volume")
                continue
            if volume in cases.published:
                cases.refuse_second_entry(volume, place)
            else:
                try:
                    cases.rows[volume] = GroundedCase(split, tuple(_findings(entry)))
                except UserError as error:
                    cases.wrong[volume] = f"{place}: {volume.case}: {error}"
            cases.published.setdefault(volume, set()).add(split)
    for number, entry in enumerate(lists.get("test", [])):
        volume = _volume(entry)
        if volume is not None and volume in cases.published:
            cases.refuse_second_entry(volume, f"{path.name}, test {number}")
    return cases


def _volume(entry: object) -> VolumeName | None:
    return VolumeName.parse(str(entry.get("name"))) if isinstance(entry, dict) else None


def _findings(entry: Mapping[str, Any]) -> Iterator[Finding]:
    texts, categories, voxels = (entry.get(key) or {} for key in ("findings", "categories", "pixels"))
    if not all(isinstance(part, dict) for part in (texts, categories, voxels)):
        raise UserError("findings, categories and pixels must be objects")
    if sorted(texts) != sorted(str(index) for index in range(len(texts))):
        raise UserError(f"findings must be numbered 0 to {len(texts) - 1}, got {', '.join(sorted(texts))}")
    for index in map(str, range(len(texts))):
        category, count = categories.get(index), voxels.get(index)
        if category not in CATEGORIES:
            raise UserError(
                f"finding {index} has the category {category!r}; the categories are {', '.join(CATEGORIES)}"
            )
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
            raise UserError(f"finding {index}: pixels must be a whole number from 0 on, not {count!r}")
        yield Finding(" ".join(str(texts[index]).split()), category, count)


def find_mask(root: Path, volume: VolumeName) -> Path:
    """Find the mask file of a volume in ``segmentations``.

    Raises:
        UserError: the file does not exist.
    """
    folder = root / "segmentations"
    for path in (folder / volume.file_name, folder / "segmentations" / volume.file_name):
        if path.is_file():
            return path
    raise UserError(f"{folder} has no mask {volume.file_name}")


@dataclass(frozen=True)
class DiseaseMap:
    """The label map of a case, uint8 (z, y, x), its findings, and the number of voxels claimed by several findings."""

    labels: np.ndarray
    masks: tuple[DiseaseMask, ...]
    overlap_voxels: int


def read_disease_map(path: Path | None, case: GroundedCase, shape: tuple[int, ...]) -> DiseaseMap:
    """Merge the masks of a case into one label map.

    Where findings overlap, the one with fewer voxels wins (if equal, the first), so that a nodule inside a
    consolidation stays visible.

    The published files have shape (F, x, y, z), findings first; (x, y, z, F) and, for one finding, (x, y, z) are also
    accepted. Values above 0 belong to the finding (each value is one piece of it). The voxels are in the order of the
    image; the header, whose axes are not spatial, is ignored.

    Args:
        path: mask file; None for a case without findings, whose map is empty.
        case: findings of the case.
        shape: shape of the image (z, y, x).

    Raises:
        UserError: the shape differs from that of the image, the number of findings from that of the entry, or the
            voxel count of a finding from that of the entry.
    """
    import nibabel

    if path is None:
        return DiseaseMap(np.zeros(shape, dtype=np.uint8), (), 0)
    check_image_file(path)
    stored = np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    parts = _by_finding(path, stored, len(case.findings), shape[::-1])
    counts = [int(np.count_nonzero(part > 0)) for part in parts]
    for index, (finding, count) in enumerate(zip(case.findings, counts, strict=True)):
        if finding.voxels is not None and finding.voxels != count:
            raise UserError(
                f"{path}: the mask of finding {index} has {counted(count, 'voxel')}, its entry says {finding.voxels}"
            )
    labels = np.zeros(shape, dtype=np.uint8)
    claims = np.zeros(shape, dtype=np.uint8)
    for index in sorted(range(len(parts)), key=lambda index: (-counts[index], -index)):
        mask = parts[index].T > 0
        labels[mask] = LABELS[case.findings[index].name]
        claims += mask
    described = (
        DiseaseMask(LABELS[finding.name], finding.name, finding.text, count)
        for finding, count in zip(case.findings, counts, strict=True)
    )
    return DiseaseMap(labels, tuple(described), int((claims > 1).sum()))


def _by_finding(path: Path, stored: np.ndarray, findings: int, shape_xyz: tuple[int, ...]) -> list[np.ndarray]:
    """The mask of each finding (x, y, z)."""
    if stored.ndim == 3 and findings == 1:
        stored = stored[None]
    if stored.ndim == 4:
        for axis in (0, 3):
            if stored.shape[axis] == findings and stored.shape[:axis] + stored.shape[axis + 1 :] == shape_xyz:
                return list(np.moveaxis(stored, axis, 0))
    raise UserError(
        f"{path} has shape {stored.shape}; the image has {shape_xyz} voxels (x, y, z) and "
        f"{counted(findings, 'finding')}, so it must be {(findings, *shape_xyz)}"
    )
