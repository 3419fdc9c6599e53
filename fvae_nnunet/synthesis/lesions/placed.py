"""Placed lesions: new ones, and real ones that have grown or shrunk; and the segmentation that includes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvae_nnunet.ct.boxes import Box
from fvae_nnunet.nnunet.synthetic_folder import BANK
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.placement import Placement, position_of
from fvae_nnunet.synthesis.lesions.shapes import equivalent_diameter_mm
from fvae_nnunet.synthesis.sources.cases import SourceCase


@dataclass(frozen=True)
class ReplacedLesion:
    """A real lesion that is replaced by a larger or smaller version of itself.

    Attributes:
        box: place of the lesion in the volume.
        shape: bool, of the size of the box.
        classes, labels: values without the lesion for each of its voxels (n,), in class map and segmentation.
    """

    box: Box
    shape: np.ndarray
    classes: np.ndarray
    labels: np.ndarray

    def mask(self, volume_shape: Sequence[int]) -> np.ndarray:
        """The lesion in a volume of this shape, bool."""
        mask = np.zeros(volume_shape, dtype=bool)
        mask[self.box] = self.shape
        return mask


@dataclass(frozen=True)
class PlacedLesion:
    """A lesion at its place in a volume.

    Attributes:
        shape: bool, cropped to the lesion.
        placement: place of the shape.
        diameter_mm: requested equivalent diameter.
        donor: donor of the shape, a case or a file of a bank; None for an ellipsoid.
        from_bank: whether the donor is a file of a bank.
        appearance: requested appearance; None: left to the model.
        replaces: the real lesion that it replaces with another diameter; None for a new lesion.
    """

    shape: np.ndarray
    placement: Placement
    diameter_mm: float
    donor: str | None
    from_bank: bool = False
    appearance: Appearance | None = None
    replaces: ReplacedLesion | None = None

    @property
    def box(self) -> Box:
        return self.placement.box

    def mask(self, volume_shape: Sequence[int]) -> np.ndarray:
        """The lesion in a volume of this shape, bool."""
        mask = np.zeros(volume_shape, dtype=bool)
        mask[self.box] = self.shape
        return mask

    def changed(self, volume_shape: Sequence[int]) -> np.ndarray:
        """The lesion and what it replaces in a volume of this shape, bool."""
        mask = self.mask(volume_shape)
        return mask if self.replaces is None else mask | self.replaces.mask(volume_shape)

    @property
    def centre(self) -> np.ndarray:
        """Mean index of its voxels (z, y, x), axial."""
        return np.argwhere(self.shape).mean(axis=0) + [side.start for side in self.box]

    def recorded(self, source: SourceCase) -> dict[str, Any]:
        """The entry in the record of a case, see ``synthetic_folder``."""
        voxels = int(np.count_nonzero(self.shape))
        index = self.centre[np.argsort(source.geometry.axial_order)]
        before = 0 if self.replaces is None else int(np.count_nonzero(self.replaces.shape))
        return {
            "shape": self._kind,
            "borrowed_from": self.donor,
            "diameter_mm": round(equivalent_diameter_mm(voxels, source.spacing_mm), 2),
            "voxels": voxels,
            "centre_voxel": [round(float(value), 2) for value in index],
            "centre_mm": [round(float(value), 2) for value in position_of(index, source.geometry)],
            "inside_fraction": round(self.placement.inside_fraction, 4),
            "appearance": None if self.appearance is None else self.appearance.recorded(),
            "replaces": {"diameter_mm": round(equivalent_diameter_mm(before, source.spacing_mm), 2), "voxels": before}
            if before
            else None,
        }

    @property
    def _kind(self) -> str:
        if self.replaces is not None:
            return "own"
        return "ellipsoid" if self.donor is None else BANK if self.from_bank else "borrowed"


def labels_with(source: SourceCase, lesions: Sequence[PlacedLesion], lesion_value: int) -> np.ndarray:
    """The segmentation of a case with its planned lesions (z, y, x), in its own dtype."""
    labels = source.labels.copy()
    for lesion in lesions:
        if lesion.replaces is not None:
            labels[lesion.replaces.box][lesion.replaces.shape] = lesion.replaces.labels
        labels[lesion.box][lesion.shape] = lesion_value
    return labels
