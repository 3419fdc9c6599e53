"""Let real lesions grow or shrink in place: generate the second scan of a patient from the first.

A lesion keeps its shape; tissue that it no longer covers becomes that of its surroundings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fvae_nnunet.ct.boxes import Box, grown
from fvae_nnunet.ct.lesions import numbered_lesions
from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted, number
from fvae_nnunet.synthesis.lesions.placed import PlacedLesion, ReplacedLesion
from fvae_nnunet.synthesis.lesions.placement import NothingFits, Placement, too_close
from fvae_nnunet.synthesis.lesions.plan import (
    SHAPES_TRIED,
    PlanSettings,
    home_of_lesions,
    never_lesion,
    with_appearances,
)
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, equivalent_diameter_mm, scaled_in_place
from fvae_nnunet.synthesis.lesions.sizes import LesionSizes
from fvae_nnunet.synthesis.sources.cases import SourceCase, SourceDataset

_NEAR_MM = 20.0
"""Search distance around a lesion for the tissue that replaces it."""


def plan_growth(
    rng: np.random.Generator,
    dataset: SourceDataset,
    source: SourceCase,
    settings: PlanSettings,
    *,
    real: Sequence[dict[str, Any]],
    avoid: np.ndarray | None,
) -> list[PlacedLesion]:
    """Draw the lesions of a case that change, and their new diameters.

    The share in the organ and the clearance are required as in ``lesions.plan.plan_lesions``; the clearance applies to
    the voxels that a lesion gains. For each lesion ``SHAPES_TRIED`` diameters are tried, then the next lesion.

    Args:
        rng: source of all random draws.
        dataset: dataset of the case.
        source: the case.
        settings: requested lesions.
        real: real lesions (``real_lesions.RealLesions.lesions``), including those of this case.
        avoid: bool, voxels into which no lesion may grow.

    Returns:
        At least one lesion; fewer than drawn if the case does not have enough that can change.

    Raises:
        NothingFits: no lesion can change.
    """
    from scipy import ndimage

    own = [lesion for lesion in real if lesion["case"] == source.case]
    if not own:
        raise NothingFits(f"{source.case} has no lesion of {MIN_VOXELS} voxels or more that could grow or shrink")
    numbered, _ = numbered_lesions(source.lesion)
    boxes = ndimage.find_objects(numbered)
    organ, closed = home_of_lesions(dataset, source), never_lesion(dataset, source, avoid)
    lesions, said = source.any_lesion, ""
    placed: list[PlacedLesion] = []
    alike: list[dict[str, Any]] = []
    wanted = int(rng.integers(settings.lesions_per_case[0], settings.lesions_per_case[1] + 1))
    for index in rng.permutation(len(own)):
        box = boxes[own[index]["number"] - 1]
        old = replaced(dataset, source, box, numbered[box] == own[index]["number"])
        others = lesions.copy()
        others[box][old.shape] = False
        diameter_mm = equivalent_diameter_mm(own[index]["voxels"], source.spacing_mm)
        sizes = settings.sizes or LesionSizes.of_lesions([lesion["diameter_mm"] for lesion in real])
        if settings.growth is not None:
            sizes = LesionSizes.of_range(*(factor * diameter_mm for factor in settings.growth))
        try:
            new = _changed(rng, source, settings, sizes, old, organ, closed, others)
        except UserError as error:
            said = f"the last one, of {number(diameter_mm, 'mm')} mm: {error}"
            continue
        lesions = others
        lesions[new.box][new.shape] = True
        placed.append(new)
        alike.append(own[index])
        if len(placed) == wanted:
            break
    if not placed:
        raise NothingFits(f"{source.case}: none of its {counted(len(own), 'lesion')} can change as requested; {said}")
    return with_appearances(rng, source, settings.appearance, real, placed, alike)


def _changed(
    rng: np.random.Generator,
    source: SourceCase,
    settings: PlanSettings,
    sizes: LesionSizes,
    old: ReplacedLesion,
    organ: np.ndarray,
    closed: np.ndarray,
    others: np.ndarray,
) -> PlacedLesion:
    """The lesion with another diameter; UserError if none of the drawn diameters is possible."""
    spacing_mm = source.spacing_mm
    range_mm = sizes.draw_range(rng, spacing_mm)
    before = old.mask(organ.shape)
    for attempt in range(SHAPES_TRIED):
        diameter_mm = float(rng.uniform(*range_mm))
        try:
            shape, starts = scaled_in_place(old.shape, spacing_mm, diameter_mm)
            box = _box_of(shape, [side.start + start for side, start in zip(old.box, starts, strict=True)], organ.shape)
            inside = float(np.count_nonzero((organ | before)[box] & shape) / np.count_nonzero(shape))
            if inside < settings.inside_fraction:
                raise NothingFits(
                    f"{number(inside, 'share')} of it would be in the organ (required: {settings.inside_fraction:g})"
                )
            around = grown(box, np.ceil(settings.clearance_mm / np.asarray(spacing_mm)), organ.shape)
            near = too_close(others[around], spacing_mm, settings.clearance_mm)[_within(box, around)]
            if ((near | closed[box]) & shape & ~before[box]).any():
                raise NothingFits("it would be too close to a lesion or in a structure to avoid")
        except UserError as error:
            if attempt == SHAPES_TRIED - 1:
                raise NothingFits(f"with a diameter of {number(diameter_mm, 'mm')} mm {error}") from error
        else:
            return PlacedLesion(shape, Placement(box, inside), diameter_mm, None, replaces=old)
    raise AssertionError("the loop returns or raises")


def _box_of(shape: np.ndarray, starts: Sequence[int], volume_shape: Sequence[int]) -> Box:
    z, y, x = (slice(start, start + n) for start, n in zip(starts, shape.shape, strict=True))
    if min(starts) < 0 or any(side.stop > n for side, n in zip((z, y, x), volume_shape, strict=True)):
        raise NothingFits("it would extend beyond the volume")
    return z, y, x


def _within(box: Box, around: Box) -> Box:
    """A box inside another one, relative to the start of that one."""
    z, y, x = (slice(side.start - of.start, side.stop - of.start) for side, of in zip(box, around, strict=True))
    return z, y, x


def replaced(dataset: SourceDataset, source: SourceCase, box: Box, shape: np.ndarray) -> ReplacedLesion:
    """A lesion of a case with what replaces it: the organ, or the nearest of several organs (labels, structures).

    Args:
        dataset: dataset of the case.
        source: the case.
        box, shape: the lesion, see ``ReplacedLesion``.
    """
    lesions = set(dataset.lesions.values())
    if dataset.organ.kind == "label":
        labels: Collection[int] = dataset.organ.values
    else:
        labels = set(dataset.known_labels) - lesions - {dataset.dataset_json["labels"].get("ignore")}
    around = grown(box, np.ceil(_NEAR_MM / np.asarray(source.spacing_mm)), source.labels.shape)
    mask = np.zeros([side.stop - side.start for side in around], dtype=bool)
    mask[_within(box, around)] = shape
    organs = range(1, source.organ_classes + 1)
    return ReplacedLesion(
        box,
        shape,
        classes=_nearest(source.class_map[around], organs, mask, source.spacing_mm),
        labels=_nearest(source.labels[around], labels, mask, source.spacing_mm),
    )


def _nearest(
    values: np.ndarray, allowed: Collection[int], mask: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """For each voxel of a mask (n,), the value of the nearest voxel with an allowed value; 0 if there is none."""
    from scipy import ndimage

    if len(allowed) == 1:
        return np.full(np.count_nonzero(mask), next(iter(allowed)), dtype=values.dtype)
    found = np.isin(values, list(allowed))
    if not found.any():
        return np.zeros(np.count_nonzero(mask), dtype=values.dtype)
    nearest = ndimage.distance_transform_edt(~found, sampling=spacing_mm, return_distances=False, return_indices=True)
    return values[tuple(index[mask] for index in nearest)]
