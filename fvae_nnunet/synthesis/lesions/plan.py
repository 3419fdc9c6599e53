"""What a synthetic case is going to be: which case it is made from, and which lesions lie where in it.

Everything random here comes from the seed and the case's number, so a case does not depend on the others, on how many
there are, or on who makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.mask_files import find_masks, read_mask
from fvae_nnunet.synthesis.lesions.appearance import Appearance, AskedAppearance, draw_appearance
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
"""Each of another size of its range; a place for it is sought by so many tries:"""

PLACES_TRIED = 1000

SOURCES_TRIED = 5
"""Cases that are tried, where no lesion fits into the first."""

INSIDE_FRACTION_LUNG = 0.85
INSIDE_FRACTION = 0.80
"""MAISI asks 0.85 of lung tumours and 0.80 of pancreatic ones."""


@dataclass(frozen=True)
class PlanSettings:
    """What lesions are asked for.

    Attributes:
        sizes: of the lesions; None: as the dataset's real lesions.
        borrowed_share: of lesions with the shape of a real one or of a bank's, 0 to 1; the others are ellipsoids.
        lesions_per_case: least and greatest number.
        inside_fraction: of each lesion in the organ, at least.
        clearance_mm: to other lesions, real and synthetic.
        at_mm: the centre (x, y, z) of the lesion in the patient; None: anywhere.
        appearance: that is asked for.
        growth: for ``growth.plan_growth``, in the place of sizes: how many times its own diameter a lesion has, least
            and greatest.
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
                raise UserError(f"`{name}` is a share between 0 and 1, got {share:g}")
        if not 0 <= self.clearance_mm < float("inf"):
            raise UserError(f"`clearance_mm` must not be negative, got {self.clearance_mm:g}")
        if self.at_mm is not None and most > 1:
            raise UserError("`at_mm` is the place of one lesion; leave `lesions_per_case` out")
        if self.growth is not None and not 0 < self.growth[0] <= self.growth[1] < float("inf"):
            raise UserError(f"`growth` needs 0 < MIN <= MAX, got {self.growth[0]:g} {self.growth[1]:g}")

    def recorded(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Avoided:
    """A folder of masks of structures that no lesion may lie in, such as vessels: nonzero voxels of CASE.ending."""

    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path, cases: Sequence[str]) -> Avoided:
        """UserError where the folder has no mask of one of these cases."""
        return cls(find_masks(folder, cases))

    def read(self, source: SourceCase) -> np.ndarray:
        """The mask of a case, axial bool; UserError where it does not lie as the image does."""
        path, shape = self.files[source.case], source.volume_hu.shape
        mask: np.ndarray = read_mask(path, shape=shape, geometry=source.geometry, image=source.case) != 0
        return mask


def default_inside_fraction(organ: OrganSource) -> float:
    """The share that must lie in the organ unless the user gives one: more in lungs, by the organ's label or method.

    A folder of masks does not tell its organ.
    """
    return INSIDE_FRACTION_LUNG if "lung" in organ.recorded.lower() else INSIDE_FRACTION


def sources_of(number: int, cases: Sequence[str], seed: int) -> list[str]:
    """Which cases the synthetic case of this number may be made from: the first in which a lesion finds a place.

    The cases are gone through again and again, each time in another order; so they are used evenly. Where nothing fits,
    those that follow in this order are tried, `SOURCES_TRIED` in all.
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
    """Draw the lesions of a case and find their places, one after the other.

    Args:
        rng: decides everything random.
        dataset: where borrowed shapes come from.
        source: the case.
        settings: what is asked for.
        real: real lesions (``real_lesions.RealLesions.lesions``), for shapes, sizes and looks.
        bank: whose shapes are borrowed instead.
        avoid: bool, where no lesion may lie.

    Returns:
        One at least; fewer than were drawn where there is no place for more.

    Raises:
        NothingFits: not even for one.
    """
    organ = home_of_lesions(dataset, source)
    forbidden = never_lesion(dataset, source, avoid)
    forbidden |= too_close(source.any_lesion, source.spacing_mm, settings.clearance_mm)
    least, most = settings.lesions_per_case
    at = None
    if settings.at_mm is not None:
        at = index_of(settings.at_mm, source.geometry)[list(source.geometry.axial_order)]
        if (at < -0.5).any() or (at > np.array(source.volume_hu.shape) - 0.5).any():
            raise NothingFits(f"`at_mm={_in_words(settings.at_mm)}` lies outside the image")
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
    """Where lesions lie: bool, the organ, or the body where there is none."""
    return source.organ if dataset.organ.kind != "none" else body(source.volume_hu)


def never_lesion(dataset: SourceDataset, source: SourceCase, avoid: np.ndarray | None) -> np.ndarray:
    """Where no lesion may lie: bool, the voxels to avoid and those with the ignore label."""
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
    """The lesions of a case with what they shall look like, see ``draw_appearance``; ``alike``: each one's ``like``."""
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
    """A lesion, and the real lesion of the dataset that is the donor of its shape."""
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
    return replace(lesion, from_bank=donor is not None and like is None), like


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
    """A lesion of a diameter in ``range_mm`` in a place in the organ; see ``draw_lesion_shape`` and ``place``.

    Raises:
        NothingFits: none of `SHAPES_TRIED` shapes fits.
    """
    for attempt in range(SHAPES_TRIED):
        diameter_mm = float(rng.uniform(*range_mm))
        shape = draw_lesion_shape(rng, diameter_mm, spacing_mm, donor=donor)
        try:
            placement = place(
                rng, shape, organ, forbidden=forbidden, inside_fraction=inside_fraction, at=at, tries=PLACES_TRIED
            )
        except NothingFits as error:
            if attempt == SHAPES_TRIED - 1:
                raise NothingFits(
                    f"no lesion of {range_mm[0]:g} to {range_mm[1]:g} mm fits, {SHAPES_TRIED} were tried; the last: "
                    f"{error}"
                ) from error
        else:
            name = None if donor is None else donor.case
            return PlacedLesion(shape, placement, diameter_mm, name, appearance=appearance)
    raise AssertionError("the loop returns or raises")


def _in_words(position_mm: Sequence[float] | None) -> str:
    return " ".join(f"{value:g}" for value in position_mm or ())
