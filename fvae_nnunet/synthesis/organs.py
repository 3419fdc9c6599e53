"""Where the organ of a case comes from: the dataset's labels, a folder of masks, or a threshold in HU.

All volumes here are axial: (z, y, x) = (body axis, front-back, left-right), see ``orientation.axial_order``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.image_files import Geometry, find_images, read_volume

FORMS = "label:NAME[,NAME], folder:PATH, folder:PATH:VALUE[,VALUE], lungs, body or none"

BODY_ABOVE_HU = -500.0
"""Half way between air (-1000 HU) and water (0 HU): where a blurred skin surface lies."""

LUNG_BELOW_HU = -400.0
"""Between aerated lung (about -850 HU) and soft tissue (about 40 HU), as in most threshold methods for chest CT."""

LUNG_SHARE_OF_BODY = 0.01
"""Smaller pieces of air inside the body are bowel gas and the like."""

SECOND_LUNG_SHARE = 0.2
"""A second piece counts as the other lung if it has at least this share of the first one's volume."""

LUNG_CLOSING_MM = 6.0
"""Radius of the ball that closes each lung over vessels and over nodules at the pleura."""

GEOMETRY_TOLERANCE = 1e-3
"""Masks were often written by programs that keep the header in float32: mm for origin and spacing, 1 for cosines."""

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = [[False, True, False], [True, True, True], [False, True, False]]


@dataclass(frozen=True)
class OrganSource:
    """Where the organ mask of each case comes from.

    Attributes:
        kind: ``label``, ``folder``, ``lungs``, ``body`` or ``none``.
        names: of the labels, for ``label``.
        values: of the labels, or of the masks in the folder; empty for a folder: all but 0.
        folder: of the masks.
        files: case -> its mask, for ``folder``.
    """

    kind: str
    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    folder: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        text: str | None,
        *,
        label_values: Mapping[str, tuple[int, ...]],
        lesion_name: str,
        cases: Iterable[str],
    ) -> OrganSource:
        """Understand what a user gives.

        Args:
            text: one of the forms in ``FORMS``; None: all labels but the lesion's.
            label_values: name -> values of each foreground label or region of the dataset, the lesion's included.
            lesion_name: the lesion's label, which is no organ.
            cases: those that a folder must hold masks of.

        Raises:
            UserError: not one of these forms, no such label, or masks are missing.
        """
        others = [name for name in label_values if name != lesion_name]
        if text is None:
            if not others:
                raise UserError(
                    f"the dataset has no label but {lesion_name}, so it does not say where the organ is; give --organ "
                    f"lungs, --organ folder:PATH with a mask for each case (TotalSegmentator's, for instance), "
                    f"--organ body or --organ none"
                )
            text = "label:" + ",".join(others)
        if text in ("lungs", "body", "none"):
            return cls(text)
        kind, _, rest = text.partition(":")
        if kind == "label" and rest:
            names = tuple(name.strip() for name in rest.split(","))
            for name in names:
                if name not in others:
                    raise UserError(
                        f"--organ {text}: {name!r} is no label that can be the organ; there are: "
                        f"{', '.join(others) or 'none'}"
                    )
            lesion = label_values[lesion_name]
            values = sorted({value for name in names for value in label_values[name]} - set(lesion))
            return cls(kind, names, tuple(values))
        match = re.fullmatch(r"(.+?)(?::(\d+(?:,\d+)*))?", rest)
        if kind != "folder" or match is None:
            raise UserError(f"--organ {text!r} is not understood; it is {FORMS}")
        folder = Path(match[1]).expanduser().resolve()
        files = find_images(folder)
        missing = sorted(set(cases) - files.keys())
        if missing:
            raise UserError(
                f"--organ {text}: {folder} has no mask of {len(missing)} cases (first: {missing[0]}); a mask has the "
                f"case's name, such as {missing[0]}.nii.gz"
            )
        return cls(kind, (), tuple(int(value) for value in match[2].split(",")) if match[2] else (), folder, files)

    @property
    def text(self) -> str:
        """The form that ``parse`` understands as this source."""
        if self.kind == "label":
            return "label:" + ",".join(self.names)
        if self.kind == "folder":
            values = ":" + ",".join(map(str, self.values)) if self.values else ""
            return f"folder:{self.folder}{values}"
        return self.kind

    @property
    def recorded(self) -> str:
        """What of it decides a mask beside the files that it is made from, for a manifest: no folder's name."""
        return self.text.replace(str(self.folder), "", 1) if self.kind == "folder" else self.text

    def files_of(self, case: str) -> list[Path]:
        """The files, beside image and label, that the organ of this case is read from."""
        return [self.files[case]] if self.kind == "folder" else []

    def mask(
        self, case: str, volume_hu: np.ndarray, labels: np.ndarray, *, spacing_mm: tuple[float, ...], geometry: Geometry
    ) -> np.ndarray:
        """The organ of a case, without the lesion: bool (z, y, x), axial. All False for ``none``.

        Args:
            case: its name.
            volume_hu, labels: axial, of one shape.
            spacing_mm: (z, y, x), axial.
            geometry: of the image file.

        Raises:
            UserError: the mask cannot be read, has another geometry than the image, or holds no voxel.
        """
        if self.kind == "none":
            return np.zeros(volume_hu.shape, dtype=bool)
        if self.kind == "label":
            organ = np.isin(labels, self.values)
        elif self.kind == "folder":
            organ = self._read(case, volume_hu.shape, geometry)
        elif self.kind == "lungs":
            organ = lungs(volume_hu, spacing_mm=spacing_mm)
        else:
            organ = body(volume_hu)
        return organ

    def _read(self, case: str, shape: tuple[int, ...], geometry: Geometry) -> np.ndarray:
        path = self.files[case]
        mask, its_geometry = read_volume(path)
        mask = mask.transpose(geometry.axial_order)
        same = mask.shape == shape and all(
            np.allclose(getattr(geometry, what), getattr(its_geometry, what), atol=GEOMETRY_TOLERANCE)
            for what in ("spacing_mm", "origin_mm", "direction")
        )
        if not same:
            raise UserError(
                f"{path} does not lie as the image of {case}: {mask.shape} voxels, {its_geometry}; the image has "
                f"{shape} voxels, {geometry}. Resample the mask to the image"
            )
        return np.isin(mask, self.values) if self.values else mask != 0


def body(volume_hu: np.ndarray) -> np.ndarray:
    """The largest connected piece (by faces) above ``BODY_ABOVE_HU``, holes filled in each axial slice.

    Args:
        volume_hu: (z, y, x), axial.

    Returns:
        bool (z, y, x); all False where nothing is above.
    """
    from scipy import ndimage

    numbered, n = ndimage.label(volume_hu > BODY_ABOVE_HU)
    if n == 0:
        return np.zeros(volume_hu.shape, dtype=bool)
    voxels = np.bincount(numbered.ravel())
    voxels[0] = 0
    return _filled_in_plane(numbered == voxels.argmax())


def lungs(volume_hu: np.ndarray, *, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The one or two largest pieces of air inside the body, each closed over vessels and nodules.

    Airways that are connected with the lungs count as lung, and a lung that is consolidated or full of fluid is not
    found: a mask of a trained model is better than this one.

    Args:
        volume_hu: (z, y, x), axial.
        spacing_mm: (z, y, x).

    Returns:
        bool (z, y, x); all False where there is no air in the body, or only small pieces.
    """
    from scipy import ndimage

    from fvae_nnunet.evaluation.surface_dice import bounding_box

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
        box = tuple(
            slice(max(0, side.start - margin), side.stop + margin)
            for side, margin in zip(bounding_box(lung), margins, strict=True)
        )
        closed = _closed(lung[box], spacing_mm) & inside[box]
        found[box] |= _filled_in_plane(closed)
    return found


def _closed(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Closing with a ball of ``LUNG_CLOSING_MM``; beyond the border of the volume the mask goes on as at it."""
    from scipy import ndimage

    margins = [(int(np.ceil(LUNG_CLOSING_MM / step)) + 1,) * 2 for step in spacing_mm]
    padded = np.pad(mask, margins, mode="edge")
    grown = ndimage.distance_transform_edt(~padded, sampling=spacing_mm) <= LUNG_CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_mm) > LUNG_CLOSING_MM
    inner = tuple(slice(before, -after) for before, after in margins)
    return closed[inner] | mask


def _filled_in_plane(mask: np.ndarray) -> np.ndarray:
    """The mask (z, y, x) with its holes in each slice: background that reaches no edge of the slice."""
    from scipy import ndimage

    numbered, _ = ndimage.label(~mask, structure=_IN_PLANE)
    edges = [numbered[:, 0], numbered[:, -1], numbered[:, :, 0], numbered[:, :, -1]]
    outside = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    return ~np.isin(numbered, outside[outside > 0])
