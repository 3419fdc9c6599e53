"""The layout of a volume for a model: the class of every voxel, and the appearance of each lesion."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace

import numpy as np

from fvae_nnunet.ct.boxes import Box, grown
from fvae_nnunet.ct.lesions import numbered_lesions
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.model.grid import padded_behind

APPEARANCE = tuple(field.name for field in fields(Appearance))
"""The measures (``lesions.measures``) of a lesion that are conditions of a model."""


@dataclass(frozen=True)
class Layout:
    """Classes and lesions of a volume. All arrays are axial, (z, y, x), and have the same shape.

    Attributes:
        class_map: uint8; 0 background, then organs or structures, lesions last.
        lesion_numbers: uint16; 0: no lesion, otherwise the row of ``appearances_hu``, from 1.
        appearances_hu: float32 (n, 2), ``APPEARANCE`` of each lesion; NaN: unknown.
        spacing_mm: voxel size (z, y, x).
    """

    class_map: np.ndarray
    lesion_numbers: np.ndarray
    appearances_hu: np.ndarray
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(
        cls,
        class_map: np.ndarray,
        spacing_mm: tuple[float, float, float],
        *,
        organs: int,
        volume_hu: np.ndarray | None = None,
    ) -> Layout:
        """Create the layout of a class map in which the classes above ``organs`` are lesions.

        Connected lesions (26 neighbours) of at least ``MIN_VOXELS`` are measured in ``volume_hu``; the appearance of
        smaller ones is unknown, and without it that of all.
        """
        from scipy import ndimage

        from fvae_nnunet.synthesis.lesions.measures import lesion_core
        from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS
        from fvae_nnunet.synthesis.lesions.texture import core_texture

        numbered, n = numbered_lesions(class_map > organs)
        appearances_hu = np.full((n, len(APPEARANCE)), np.nan, dtype=np.float32)
        if volume_hu is not None:
            for number, box in enumerate(ndimage.find_objects(numbered), start=1):
                if np.count_nonzero(numbered[box] == number) < MIN_VOXELS:
                    continue
                around = grown(box, (1, 1, 1), class_map.shape)
                core = lesion_core(numbered[around] == number, spacing_mm)
                texture_hu = core_texture(volume_hu[around], core, spacing_mm)
                appearances_hu[number - 1] = volume_hu[around][core].mean(dtype=np.float64), texture_hu[core].std()
        return cls(class_map, numbered, appearances_hu, spacing_mm)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.class_map.shape

    def appearance(self, lesion: int, unknown: Appearance) -> Appearance:
        """The appearance of the lesion with this number (from 1); unknown values are taken from ``unknown``."""
        row = self.appearances_hu[lesion - 1]
        return Appearance(*np.where(np.isnan(row), astuple(unknown), row).tolist())

    def padded(self, shape: tuple[int, ...]) -> Layout:
        """The layout padded at the end to a shape: the last slice is repeated, in-plane with background."""
        class_map, numbers = (padded_behind(array, shape) for array in (self.class_map, self.lesion_numbers))
        return replace(self, class_map=class_map, lesion_numbers=numbers)

    def slices(self, run: slice) -> Layout:
        """The layout of some slices."""
        return replace(self, class_map=self.class_map[run], lesion_numbers=self.lesion_numbers[run])

    def with_lesion(self, box: Box, lesion: np.ndarray, lesion_class: int, appearance: Appearance) -> Layout:
        """The layout with an additional lesion.

        Args:
            box: place of the lesion.
            lesion: bool, of the shape of the box.
            lesion_class: class of the lesion in the class map.
            appearance: requested appearance.
        """
        class_map, numbers = self.class_map.copy(), self.lesion_numbers.copy()
        class_map[box][lesion], numbers[box][lesion] = lesion_class, len(self.appearances_hu) + 1
        row = np.array([astuple(appearance)], dtype=np.float32)
        appearances_hu = np.concatenate([self.appearances_hu, row])
        return replace(self, class_map=class_map, lesion_numbers=numbers, appearances_hu=appearances_hu)

    def without_lesion(self, box: Box, lesion: np.ndarray, classes: np.ndarray) -> Layout:
        """The layout with ``classes`` (n,) in the voxels of a removed lesion; other arguments: see ``with_lesion``."""
        class_map, numbers = self.class_map.copy(), self.lesion_numbers.copy()
        class_map[box][lesion], numbers[box][lesion] = classes, 0
        return replace(self, class_map=class_map, lesion_numbers=numbers)
