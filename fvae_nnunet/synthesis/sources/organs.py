"""Sources of a case's organ mask: labels of the dataset, masks of the organ or of many structures, or HU thresholds.

All volumes here are axial: (z, y, x) = (body axis, front-back, left-right), see ``orientation.axial_order``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.boxes import bounding_box, grown
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.mask_files import find_masks, read_mask
from fvae_nnunet.nnunet.structures import NAMES_FILE, TRAINING_FOLDER, Structures

FORMS = "structures, structures:FOLDER, label:NAME[,NAME], folder:PATH, folder:PATH:VALUE[,VALUE], lungs, body or none"

BODY_ABOVE_HU = -500.0
"""Half-way between air (-1000 HU) and water (0 HU), the value at a blurred skin surface."""

LUNG_BELOW_HU = -400.0
"""Between aerated lung (about -850 HU) and soft tissue (about 40 HU), as in most chest CT threshold methods."""

LUNG_SHARE_OF_BODY = 0.01
"""Smallest share of the body that counts as a lung; smaller pieces of air are bowel gas and similar."""

SECOND_LUNG_SHARE = 0.2
"""Smallest volume of a second piece, relative to the first one, that counts as the other lung."""

LUNG_CLOSING_MM = 6.0
"""Radius of the ball that closes each lung over vessels and over nodules at the pleura."""

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = [[False, True, False], [True, True, True], [False, True, False]]


@dataclass(frozen=True)
class OrganSource:
    """The source of the organ mask of each case.

    Attributes:
        kind: ``label``, ``folder``, ``structures``, ``lungs``, ``body`` or ``none``.
        names: for ``label``, names of the labels; for ``structures``, names of those that receive lesions, empty: all.
        values: values of the labels, or of the masks in the folder; empty for a folder: all except 0.
        folder: folder of the masks.
        files: for ``folder``, case -> its mask.
        structures: for ``structures``; each structure is a separate class.
        is_own: whether the structures are in the dataset's own folder.
    """

    kind: str
    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    folder: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    structures: Structures | None = None
    is_own: bool = False

    @classmethod
    def parse(
        cls,
        text: str | None,
        *,
        label_values: Mapping[str, tuple[int, ...]],
        lesion_names: Collection[str],
        cases: Iterable[str],
        raw_folder: Path,
    ) -> OrganSource:
        """Parse the text that a user gives.

        Args:
            text: one of the forms in ``FORMS``; None: all labels except those of lesions.
            label_values: name -> values of each foreground label or region of the dataset, including lesions.
            lesion_names: labels of lesions, which cannot be the organ.
            cases: cases for which a folder must have masks.
            raw_folder: raw folder of the dataset, which may contain structures.

        Raises:
            UserError: the text has none of these forms, a label does not exist, or masks are missing.
        """
        others = [name for name in label_values if name not in lesion_names]
        if text is None:
            if not others:
                raise UserError(
                    f"the dataset has no label except {', '.join(lesion_names) or 'background'}, so it does not define "
                    "the organ; give `organ='lungs'`, `organ='folder:PATH'` with a mask for each case (for example "
                    f"from TotalSegmentator), `organ='structures'` with masks of many structures in {TRAINING_FOLDER}, "
                    "`organ='body'` or `organ='none'`"
                )
            text = "label:" + ",".join(others)
        if text in ("lungs", "body", "none"):
            return cls(text)
        kind, _, rest = text.partition(":")
        if text == "structures" or (kind == "structures" and rest):
            folder = Path(rest).expanduser().resolve() if rest else raw_folder / TRAINING_FOLDER
            return cls("structures", structures=Structures.open(folder, cases), is_own=not rest)
        if kind == "label" and rest:
            names = tuple(name.strip() for name in rest.split(","))
            for name in names:
                if name not in others:
                    raise UserError(
                        f"`organ={text}`: {name!r} is not a label that can be the organ; available: "
                        f"{', '.join(others) or 'none'}"
                    )
            lesion = {value for name in lesion_names for value in label_values[name]}
            values = sorted({value for name in names for value in label_values[name]} - lesion)
            return cls(kind, names, tuple(values))
        match = re.fullmatch(r"(.+?)(?::(\d+(?:,\d+)*))?", rest)
        if kind != "folder" or match is None:
            raise UserError(f"`organ={text}` is not valid; give {FORMS}")
        folder = Path(match[1]).expanduser().resolve()
        of_organ = tuple(int(value) for value in match[2].split(",")) if match[2] else ()
        return cls(kind, (), of_organ, folder, find_masks(folder, cases))

    @property
    def text(self) -> str:
        """The text from which ``parse`` creates this source."""
        if self.kind == "label":
            return "label:" + ",".join(self.names)
        if self.kind == "folder":
            values = ":" + ",".join(map(str, self.values)) if self.values else ""
            return f"folder:{self.folder}{values}"
        if self.structures is not None and not self.is_own:
            return f"structures:{self.structures.folder}"
        return self.kind

    @property
    def recorded(self) -> str:
        """The part of ``text`` that affects masks, for a manifest; without folders, whose files are recorded."""
        if self.kind == "structures":
            return ":".join(["structures", *filter(None, [",".join(self.names)])])
        return self.text.replace(str(self.folder), "", 1) if self.kind == "folder" else self.text

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in ``class_map``, starting with class 1."""
        if self.structures is not None:
            return self.structures.names
        return () if self.kind == "none" else ("organ",)

    def within(self, names: Iterable[str]) -> OrganSource:
        """The same classes, with lesions only in these structures.

        Raises:
            UserError: the source has no structures, or one of these does not exist.
        """
        names = tuple(names)
        if self.structures is None:
            raise UserError(f"`place_in` requires structures, but `organ={self.text}` has none")
        for name in names:
            if name not in self.structures.names:
                raise UserError(f"`place_in`: unknown structure {name!r}; available: {', '.join(self.class_names)}")
        return replace(self, names=names)

    def files_of(self, case: str) -> list[Path]:
        """The files, in addition to image and label, from which the organ of this case is read."""
        if self.structures is not None:
            return [self.structures.files[case], self.structures.folder / NAMES_FILE]
        return [self.files[case]] if self.kind == "folder" else []

    def class_map(self, case: str, volume_hu: np.ndarray, labels: np.ndarray, *, geometry: Geometry) -> np.ndarray:
        """The classes of a case without its lesions: uint8 (z, y, x), axial; all 0 for ``none``.

        Args:
            case: name of the case.
            volume_hu, labels: axial arrays of the same shape.
            geometry: geometry of the image file.

        Raises:
            UserError: the mask cannot be read, its geometry differs from that of the image, or it has an unknown value.
        """
        if self.kind == "none":
            return np.zeros(volume_hu.shape, dtype=np.uint8)
        if self.kind == "label":
            return np.isin(labels, self.values).astype(np.uint8)
        if self.kind == "lungs":
            return lungs(volume_hu, spacing_mm=geometry.axial_spacing_mm).astype(np.uint8)
        if self.kind == "body":
            return body(volume_hu).astype(np.uint8)
        path = self.files_of(case)[0]
        mask = read_mask(path, shape=volume_hu.shape, geometry=geometry, image=case)
        if self.structures is not None:
            return self.structures.class_map(mask, path)
        return (np.isin(mask, self.values) if self.values else mask != 0).astype(np.uint8)

    def where(self, class_map: np.ndarray) -> np.ndarray:
        """The organ in a class map, without lesions: bool. Of structures those that lesions are put into."""
        if not self.names or self.structures is None:
            return class_map > 0
        return np.isin(class_map, [self.structures.names.index(name) + 1 for name in self.names])


def body(volume_hu: np.ndarray) -> np.ndarray:
    """Segment the body: the largest face-connected component above ``BODY_ABOVE_HU``, with holes filled in each slice.

    Args:
        volume_hu: (z, y, x), axial.

    Returns:
        bool (z, y, x); all False if no voxel is above the threshold.
    """
    from scipy import ndimage

    numbered, n = ndimage.label(volume_hu > BODY_ABOVE_HU)
    if n == 0:
        return np.zeros(volume_hu.shape, dtype=bool)
    voxels = np.bincount(numbered.ravel())
    voxels[0] = 0
    return _filled_in_plane(numbered == voxels.argmax())


def lungs(volume_hu: np.ndarray, *, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Segment the lungs: the one or two largest pieces of air inside the body, each closed over vessels and nodules.

    Airways connected to the lungs are included, and a lung that is consolidated or filled with fluid is missed: the
    mask of a trained model is better.

    Args:
        volume_hu: (z, y, x), axial.
        spacing_mm: (z, y, x).

    Returns:
        bool (z, y, x); all False without air in the body, or with small pieces only.
    """
    from scipy import ndimage

    inside = body(volume_hu)
    numbered, _ = ndimage.label(inside & (volume_hu < LUNG_BELOW_HU))
    voxels = np.bincount(numbered.ravel())
    voxels[0] = 0
    found = np.zeros(volume_hu.shape, dtype=bool)
    largest = np.argsort(voxels)[::-1][:2]
    least = max(LUNG_SHARE_OF_BODY * inside.sum(), SECOND_LUNG_SHARE * voxels[largest[0]], 1)
    margins = np.ceil(LUNG_CLOSING_MM / np.asarray(spacing_mm)).astype(int) + 1
    for piece in largest[voxels[largest] >= least]:
        lung = numbered == piece
        box = grown(bounding_box(lung), margins, lung.shape)
        closed = _closed(lung[box], spacing_mm) & inside[box]
        found[box] |= _filled_in_plane(closed)
    return found


def _closed(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Closing with a ball of ``LUNG_CLOSING_MM``; beyond the border of the volume its edge values are repeated."""
    from scipy import ndimage

    margins = [(int(np.ceil(LUNG_CLOSING_MM / step)) + 1,) * 2 for step in spacing_mm]
    padded = np.pad(mask, margins, mode="edge")
    grown = ndimage.distance_transform_edt(~padded, sampling=spacing_mm) <= LUNG_CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_mm) > LUNG_CLOSING_MM
    inner = tuple(slice(before, -after) for before, after in margins)
    return closed[inner] | mask


def _filled_in_plane(mask: np.ndarray) -> np.ndarray:
    """The mask (z, y, x) with holes filled in each slice: background that does not reach an edge of the slice."""
    from scipy import ndimage

    numbered, _ = ndimage.label(~mask, structure=_IN_PLANE)
    edges = [numbered[:, 0], numbered[:, -1], numbered[:, :, 0], numbered[:, :, -1]]
    outside = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    return ~np.isin(numbered, outside[outside > 0])
