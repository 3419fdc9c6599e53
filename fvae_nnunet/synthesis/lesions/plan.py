"""Plan a synthetic case: its source case, and the shapes, places and appearance of its lesions.

All random draws depend only on the seed and the number of the case, so a case does not depend on the others, on their
number, or on the process that generates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.mask_files import find_masks, read_mask
from fvae_nnunet.synthesis.lesions.appearance import Appearance, AskedAppearance, draw_appearance, nearest_in_size
from fvae_nnunet.synthesis.lesions.measures import surroundings_hu
from fvae_nnunet.synthesis.lesions.placed import PlacedLesion
from fvae_nnunet.synthesis.lesions.placement import NothingFits, index_of, place, too_close
from fvae_nnunet.synthesis.lesions.real_lesions import borrow, surroundings_of
from fvae_nnunet.synthesis.lesions.shape_bank import ShapeBank
from fvae_nnunet.synthesis.lesions.shapes import RealLesion, draw_lesion_shape
from fvae_nnunet.synthesis.lesions.sizes import LesionSizes
from fvae_nnunet.synthesis.sources.cases import SourceCase, SourceDataset
from fvae_nnunet.synthesis.sources.organs import OrganSource, body

SHAPES_TRIED = 5
"""Number of shapes tried for a lesion, each with a new diameter from its range."""

PLACES_TRIED = 1000
"""Number of places tried for each shape."""

SOURCES_TRIED = 5
"""Number of source cases tried until a lesion fits."""

INSIDE_FRACTION_LUNG = 0.85
INSIDE_FRACTION = 0.80
"""MAISI requires 0.85 for lung tumours and 0.80 for pancreatic tumours."""


@dataclass(frozen=True)
class PlanSettings:
    """The requested lesions.

    Attributes:
        sizes: sizes of the lesions; None: those of the dataset's real lesions.
        borrowed_share: share of lesions with the shape of a real lesion or one of a bank, 0 to 1; the others are
            ellipsoids.
        lesions_per_case: minimum and maximum number of lesions.
        inside_fraction: minimum share of each lesion in the organ.
        clearance_mm: distance to other lesions, real and synthetic.
        at_mm: centre (x, y, z) of the lesion in the patient; None: anywhere.
        appearance: requested brightness.
        growth: for ``growth.plan_growth``, instead of sizes: minimum and maximum factor on a lesion's own diameter.
    """

    sizes: LesionSizes | None
    borrowed_share: float
    lesions_per_case: tuple[int, int]
    inside_fraction: float
    clearance_mm: float
    at_mm: tuple[float, float, float] | None = None
    appearance: AskedAppearance = field(default_factory=AskedAppearance)
    growth: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        least, most = self.lesions_per_case
        if not 1 <= least <= most:
            raise UserError(f"`lesions_per_case` needs 1 <= MIN <= MAX, got {least} {most}")
        for name in ("inside_fraction", "borrowed_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise UserError(f"`{name}` must be a share between 0 and 1, got {share:g}")
        if not 0 <= self.clearance_mm < float("inf"):
            raise UserError(f"`clearance_mm` must not be negative, got {self.clearance_mm:g}")
        if self.at_mm is not None and most > 1:
            raise UserError("`at_mm` is the place of a single lesion; omit `lesions_per_case`")
        if self.growth is not None and not 0 < self.growth[0] <= self.growth[1] < float("inf"):
            raise UserError(f"`growth` needs 0 < MIN <= MAX, got {self.growth[0]:g} {self.growth[1]:g}")

    def recorded(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Avoided:
    """A folder of masks of structures to avoid, such as vessels: no lesion may cover nonzero voxels of CASE.ending."""

    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path, cases: Sequence[str]) -> Avoided:
        """Find the masks of these cases; UserError if one is missing."""
        return cls(find_masks(folder, cases))

    def read(self, source: SourceCase) -> np.ndarray:
        """Read the mask of a case, axial bool; UserError if its geometry differs from that of the image."""
        path, shape = self.files[source.case], source.volume_hu.shape
        mask: np.ndarray = read_mask(path, shape=shape, geometry=source.geometry, image=source.case) != 0
        return mask


def default_inside_fraction(organ: OrganSource) -> float:
    """The default share of a lesion that must be in the organ: higher for lungs, judged by the organ's label or method.

    The organ of a folder of masks is unknown.
    """
    return INSIDE_FRACTION_LUNG if "lung" in organ.recorded.lower() else INSIDE_FRACTION


def sources_of(number: int, cases: Sequence[str], seed: int) -> list[str]:
    """The candidate source cases of a synthetic case; the first one in which a lesion fits is used.

    Every pass over the cases has another order, so that they are used evenly. If nothing fits, the cases that follow in
    this order are tried, ``SOURCES_TRIED`` in total.
    """
    passed, index = divmod(number, len(cases))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, passed)))
    order = np.roll(rng.permutation(len(cases)), -index)
    return [cases[at] for at in order[:SOURCES_TRIED]]


def plan_lesions(
    rng: np.random.Generator,
    dataset: SourceDataset,
    source: SourceCase,
    settings: PlanSettings,
    *,
    real: Sequence[dict[str, Any]],
    bank: ShapeBank | None = None,
    avoid: np.ndarray | None,
) -> list[PlacedLesion]:
    """Draw the lesions of a case and find a place for each, one after the other.

    Args:
        rng: source of all random draws.
        dataset: dataset with the donors of borrowed shapes.
        source: the case.
        settings: requested lesions.
        real: real lesions (``real_lesions.RealLesions.lesions``), for shapes, sizes and appearance.
        bank: bank from which shapes are borrowed instead.
        avoid: bool, voxels that no lesion may cover.

    Returns:
        At least one lesion; fewer than drawn if there is no place for more.

    Raises:
        NothingFits: no lesion fits.
    """
    organ = home_of_lesions(dataset, source)
    forbidden = never_lesion(dataset, source, avoid)
    forbidden |= too_close(source.any_lesion, source.spacing_mm, settings.clearance_mm)
    least, most = settings.lesions_per_case
    at = None
    if settings.at_mm is not None:
        at = index_of(settings.at_mm, source.geometry)[list(source.geometry.axial_order)]
        if (at < -0.5).any() or (at > np.array(source.volume_hu.shape) - 0.5).any():
            raise NothingFits(f"`at_mm={_in_words(settings.at_mm)}` is outside the image")
    placed: list[PlacedLesion] = []
    alike: list[dict[str, Any] | None] = []
    for _ in range(int(rng.integers(least, most + 1))):
        try:
            lesion, like = _place_one(rng, dataset, source, settings, real, bank, organ, forbidden, at)
        except NothingFits:
            if not placed:
                raise
            break
        placed.append(lesion)
        alike.append(like)
        forbidden |= too_close(lesion.mask(organ.shape), source.spacing_mm, settings.clearance_mm)
    return with_appearances(rng, source, settings.appearance, real, placed, alike)


def home_of_lesions(dataset: SourceDataset, source: SourceCase) -> np.ndarray:
    """The voxels in which lesions are placed, bool: the organ, or the body for the organ source ``none``."""
    return source.organ if dataset.organ.kind != "none" else body(source.volume_hu)


def never_lesion(dataset: SourceDataset, source: SourceCase, avoid: np.ndarray | None) -> np.ndarray:
    """The voxels that no lesion may cover, bool: those to avoid and those with the ignore label."""
    never = np.zeros_like(source.lesion) if avoid is None else avoid.copy()
    ignored = dataset.dataset_json["labels"].get("ignore")
    if ignored is not None:
        never |= source.labels == ignored
    return never


def with_appearances(
    rng: np.random.Generator,
    source: SourceCase,
    asked: AskedAppearance,
    real: Sequence[dict[str, Any]],
    lesions: Sequence[PlacedLesion],
    alike: Sequence[dict[str, Any] | None],
) -> list[PlacedLesion]:
    """The lesions of a case with drawn appearance, see ``draw_appearance``; ``alike`` has the ``like`` of each."""
    around = surroundings_of(source, lesions)
    drawn = []
    for lesion, like in zip(lesions, alike, strict=True):
        around_hu = surroundings_hu(source.volume_hu, lesion.mask(around.shape), around, source.spacing_mm)
        appearance = draw_appearance(rng, asked, real, like=like, diameter_mm=lesion.diameter_mm, around_hu=around_hu)
        drawn.append(replace(lesion, appearance=appearance))
    return drawn


def _place_one(
    rng: np.random.Generator,
    dataset: SourceDataset,
    source: SourceCase,
    settings: PlanSettings,
    real: Sequence[dict[str, Any]],
    bank: ShapeBank | None,
    organ: np.ndarray,
    forbidden: np.ndarray,
    at: np.ndarray | None,
) -> tuple[PlacedLesion, dict[str, Any] | None]:
    """A lesion, and the real lesion to imitate: the one that lent its shape, unless others are nearer in size, because
    the core of a small lesion is blurred; None: any of those."""
    sizes = settings.sizes or LesionSizes.of_lesions([lesion["diameter_mm"] for lesion in real])
    range_mm = sizes.draw_range(rng, source.spacing_mm)
    donor, like = None, None
    if rng.random() < settings.borrowed_share:
        if bank is None:
            like = real[int(rng.integers(len(real)))]
            donor = borrow(dataset, like)
        else:
            donor = bank.draw(rng)
    try:
        lesion = shaped_and_placed(
            rng, range_mm, source.spacing_mm, organ, forbidden, settings.inside_fraction, donor=donor, at=at
        )
    except NothingFits as error:
        where = "" if at is None else f" at {_in_words(settings.at_mm)}"
        raise NothingFits(f"{source.case}{where}: {error}") from error
    lesion = replace(lesion, from_bank=donor is not None and like is None)
    is_alike = any(one is like for one in nearest_in_size(real, lesion.diameter_mm))
    return lesion, like if is_alike else None


def shaped_and_placed(
    rng: np.random.Generator,
    range_mm: tuple[float, float],
    spacing_mm: tuple[float, float, float],
    organ: np.ndarray,
    forbidden: np.ndarray,
    inside_fraction: float,
    *,
    donor: RealLesion | None = None,
    at: np.ndarray | None = None,
    appearance: Appearance | None = None,
) -> PlacedLesion:
    """A lesion with a diameter in ``range_mm``, placed in the organ; see ``draw_lesion_shape`` and ``place``.

    Raises:
        NothingFits: none of ``SHAPES_TRIED`` shapes fits.
    """
    for attempt in range(SHAPES_TRIED):
        diameter_mm = float(rng.uniform(*range_mm))
        try:
            shape = draw_lesion_shape(rng, diameter_mm, spacing_mm, donor=donor)
            placement = place(
                rng, shape, organ, forbidden=forbidden, inside_fraction=inside_fraction, at=at, tries=PLACES_TRIED
            )
        except NothingFits as error:
            if attempt == SHAPES_TRIED - 1:
                raise NothingFits(
                    f"no lesion of {range_mm[0]:g} to {range_mm[1]:g} mm fits, {SHAPES_TRIED} were tried; the last "
                    f"one: {error}"
                ) from error
        else:
            name = None if donor is None else donor.case
            return PlacedLesion(shape, placement, diameter_mm, name, appearance=appearance)
    raise AssertionError("the loop returns or raises")


def _in_words(position_mm: Sequence[float] | None) -> str:
    return " ".join(f"{value:g}" for value in position_mm or ())
