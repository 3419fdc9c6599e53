"""Test of quality control: it must accept ideal lesions and reject lesions with a fault.

An ideal lesion is that of a perfect model: the phantom's own lesion tissue (``phantoms.py``) in a shape of
``fvae-synthesize``, blurred like the phantom's scanner, and inserted like the lesion of a model: the difference between
the decoded volumes with and without the lesion is blended in. The same lesions are then given faults. Limits come from
the phantoms' real lesions.

    python scripts/oracle_lesions.py --kind lung pancreas --lesions 60
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phantoms import LABELS, Torso, make_torso
from scipy import ndimage

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.ct.boxes import Box, box_around, grown
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.synthesis.lesions.insertion import blend_lesion
from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.lesions.placement import NothingFits, place, too_close
from fvae_nnunet.synthesis.lesions.quality import QualityLimits, lesion_quality, reasons_against
from fvae_nnunet.synthesis.lesions.real_lesions import RealLesions, lesions_of, surroundings_of
from fvae_nnunet.synthesis.lesions.shapes import draw_lesion_shape, equivalent_diameter_mm
from fvae_nnunet.synthesis.lesions.sizes import SIZE_RANGES_MM
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.synthesis.sources.organs import lungs
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.base import FrozenVAE

GRIDS = {"lung": ((32, 192, 192), (3.0, 1.0, 1.0)), "pancreas": ((32, 144, 144), (3.0, 1.3, 1.3))}
"""Voxels and spacing in mm (z, y, x) of the phantoms."""

MARGIN_MM = 5.0
"""Default of ``fvae-synthesize --margin-mm``."""

PLACED_AT_ONCE = 6
"""Number of lesions placed in a phantom before it is coded by the VAE."""

SPOTS_MM = 2.0
"""Standard deviation of the Gaussian that smooths noise to spots about 5 mm wide."""

INSIDE_FRACTION = {"lung": 0.85, "pancreas": 0.6}
"""Minimum share of a lesion in the organ; for lungs the default of ``fvae-synthesize``. The phantoms' tumours are wider
than the pancreas, so fewer of their voxels are inside it."""


@dataclass(frozen=True)
class Phantom:
    """A phantom with the attributes of ``SourceCase`` that quality control uses.

    Attributes:
        torso: torso of which it is a scan.
        kind: key of ``phantoms.LABELS``.
        case: name of the case.
        volume_hu: volume, int16 (z, y, x).
        organ, lesion, any_lesion: bool masks; the organ includes the lesions.
        spacing_mm: spacing (z, y, x).
    """

    torso: Torso
    kind: str
    case: str
    volume_hu: np.ndarray
    organ: np.ndarray
    lesion: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def any_lesion(self) -> np.ndarray:
        return self.lesion

    @classmethod
    def make(cls, kind: str, seed: int, number: int) -> Phantom:
        shape, spacing_mm = GRIDS[kind]
        torso = make_torso(kind, seed=[seed, number], shape=shape, spacing_mm=spacing_mm)
        volume_hu, lesion = torso.scanned(), torso.label == LABELS[kind]["tumour"]
        organ = lungs(volume_hu, spacing_mm=spacing_mm) if kind == "lung" else torso.label > 0
        return cls(torso, kind, f"phantom_{number:03d}", volume_hu, organ | lesion, lesion, spacing_mm)


@dataclass(frozen=True)
class IdealLesion:
    """An ideal lesion and its surroundings; all arrays cover a box around it, (z, y, x).

    Attributes:
        raw_hu: phantom, int16.
        surroundings: bool mask, as in ``real_lesions.surroundings_of``.
        lesion: bool mask.
        decoded_hu: difference that the lesion makes to the decoded volume, float32.
        spacing_mm: spacing (z, y, x).
    """

    raw_hu: np.ndarray
    surroundings: np.ndarray
    lesion: np.ndarray
    decoded_hu: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def diameter_mm(self) -> float:
        return equivalent_diameter_mm(np.count_nonzero(self.lesion), self.spacing_mm)

    def inserted(self, decoded_hu: np.ndarray) -> np.ndarray:
        """Box with a blended lesion that makes this difference to the decoded volume, int16."""
        nothing = np.zeros(self.raw_hu.shape, np.float32)
        return blend_lesion(self.raw_hu, decoded_hu, nothing, self.lesion, self.spacing_mm, MARGIN_MM)

    def smoothed(self, array: np.ndarray, sigma_mm: float) -> np.ndarray:
        return ndimage.gaussian_filter(array, sigma_mm / np.asarray(self.spacing_mm))


Fault = Callable[[np.random.Generator, IdealLesion], np.ndarray]
"""Returns the box with a faulty lesion, int16 HU."""


def mottled(times: float) -> Fault:
    """Smooth spots that multiply the standard deviation of the core by a factor."""

    def spoil(rng: np.random.Generator, of: IdealLesion) -> np.ndarray:
        core = lesion_core(of.lesion, of.spacing_mm)
        spots = of.smoothed(rng.standard_normal(of.lesion.shape), SPOTS_MM)
        spots *= np.sqrt(times**2 - 1) * of.inserted(of.decoded_hu)[core].std() / spots[core].std()
        return of.inserted(of.decoded_hu + spots - spots[core].mean())

    return spoil


def flickering(sd_hu: float) -> Fault:
    """Random brightness of every slice."""
    return lambda rng, of: of.inserted(of.decoded_hu + rng.normal(0, sd_hu, len(of.lesion))[:, None, None])


def blurred(sigma_mm: float) -> Fault:
    """Edge that is blurrier than that of the scanner."""
    return lambda rng, of: of.inserted(of.smoothed(of.decoded_hu, sigma_mm))


def overshooting(share: float) -> Fault:
    """Edge with a halo on both sides."""
    return lambda rng, of: of.inserted(of.decoded_hu + share * (of.decoded_hu - of.smoothed(of.decoded_hu, 2.0)))


def shifted(by_hu: float) -> Fault:
    """Lesion that is brighter or darker as a whole."""
    return lambda rng, of: of.inserted(of.decoded_hu + by_hu * of.smoothed(of.lesion.astype(float), 1.0))


FAULTS: dict[str, Fault] = {
    "none": lambda rng, of: of.inserted(of.decoded_hu),
    "core SD x 1.5": mottled(1.5),
    "core SD x 2": mottled(2.0),
    "core SD x 3": mottled(3.0),
    "slices flicker by 20 HU": flickering(20.0),
    "edge blurred by 3 mm": blurred(3.0),
    "edge overshoots by its height": overshooting(1.0),
    "40 HU brighter": shifted(40.0),
    "40 HU darker": shifted(-40.0),
}


def insert_ideal_lesions(
    phantom: Phantom,
    vae: FrozenVAE,
    rng: np.random.Generator,
    diameters_mm: Sequence[float],
    *,
    reconstructed_hu: np.ndarray,
) -> Iterator[IdealLesion]:
    """Insert lesions of these sizes into one phantom with a given reconstruction, if a place is found, without
    overlap."""
    placed: list[tuple[Box, np.ndarray]] = []
    occupied = phantom.lesion.copy()
    ideal_hu = np.zeros(phantom.volume_hu.shape, np.float32)
    for diameter_mm in diameters_mm:
        shape = draw_lesion_shape(rng, diameter_mm, phantom.spacing_mm)
        forbidden = too_close(occupied, phantom.spacing_mm, 2 * MARGIN_MM)
        try:
            box = place(
                rng,
                shape,
                phantom.organ,
                forbidden=forbidden,
                inside_fraction=INSIDE_FRACTION[phantom.kind],
                tries=2000,
            ).box
        except NothingFits:
            continue
        occupied[box] |= shape
        placed.append((box, shape))
        mask = np.zeros_like(occupied)
        mask[box] = shape
        tissue = phantom.torso.lesion_tissue() - phantom.torso.hu
        ideal_hu += phantom.torso.blurred(np.where(mask, tissue, 0).astype(np.float32))
    if not placed:
        return
    decoded_hu = reconstruct_volume(vae, phantom.volume_hu + ideal_hu) - reconstructed_hu
    for box, shape in placed:
        mask = np.zeros_like(occupied)
        mask[box] = shape
        around = grown(box_around(mask, MARGIN_MM, phantom.spacing_mm), (4, 8, 8), mask.shape)
        surroundings = surroundings_of(phantom)[around] & ~mask[around]
        yield IdealLesion(phantom.volume_hu[around], surroundings, mask[around], decoded_hu[around], phantom.spacing_mm)


def real_lesions(phantoms: Sequence[Phantom]) -> RealLesions:
    """Real lesions of the phantoms, as measured for quality control."""
    return RealLesions(tuple(lesion for phantom in phantoms for lesion in lesions_of(phantom)), {})


def ideal_lesions(
    phantoms: Sequence[Phantom], vae: FrozenVAE, rng: np.random.Generator, n: int, diameters_mm: tuple[float, float]
) -> list[IdealLesion]:
    """Ideal lesions with log-uniform sizes, distributed evenly over the phantoms."""
    reconstructed_hu = {phantom.case: reconstruct_volume(vae, phantom.volume_hu) for phantom in phantoms}
    found: list[IdealLesion] = []
    while len(found) < n:
        for phantom in phantoms:
            if len(found) < n:
                sizes = np.exp(rng.uniform(*np.log(diameters_mm), PLACED_AT_ONCE))
                without_hu = reconstructed_hu[phantom.case]
                found += insert_ideal_lesions(phantom, vae, rng, sizes, reconstructed_hu=without_hu)
    return found[:n]


def judged(of: IdealLesion, volume_hu: np.ndarray, limits: QualityLimits) -> list[str]:
    """Reasons to reject a lesion inside its organ; empty if it is accepted."""
    quality = lesion_quality(
        volume_hu, of.lesion, of.surroundings, of.spacing_mm, inside_fraction=1.0, found=None, limits=limits
    )
    return reasons_against([quality], limits)


def size_class(diameter_mm: float) -> str:
    """Size class of ``lesions.sizes.SIZE_RANGES_MM``; the smallest class for even smaller diameters."""
    return next(name for name, (_, upper) in SIZE_RANGES_MM.items() if diameter_mm < upper)


def accepted_by_fault(
    ideal: Sequence[IdealLesion], limits: QualityLimits, rng: np.random.Generator, faults: dict[str, Fault] = FAULTS
) -> dict[str, dict[str, list[bool]]]:
    """Whether each lesion is accepted, by fault and size class."""
    table: dict[str, dict[str, list[bool]]] = {}
    for name, spoil in faults.items():
        by_size = table[name] = {size: [] for size in SIZE_RANGES_MM}
        for lesion in ideal:
            by_size[size_class(lesion.diameter_mm)].append(not judged(lesion, spoil(rng, lesion), limits))
    return table


def real_rejected(real: RealLesions) -> list[tuple[dict[str, Any], list[str]]]:
    """Real lesions that quality control would reject with limits from all other cases, with the reasons."""
    rejected = []
    for lesion in real.lesions:
        others = tuple(other for other in real.lesions if other["case"] != lesion["case"])
        limits = QualityLimits(RealLesions(others, {}), inside_fraction=0, found_share=0)
        allowed = limits.of_size(lesion["diameter_mm"], lesion["depth_mm"]).recorded()
        reasons = reasons_against([lesion | {"inside_fraction": 1.0, "found_share": None, "limits": allowed}], limits)
        if reasons:
            rejected.append((lesion, reasons))
    return rejected


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="oracle_lesions.py"
    )
    parser.add_argument("--kind", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--lesions", type=int, default=60, help="ideal lesions of each kind and seed (60)")
    parser.add_argument("--phantoms", type=int, default=12, help="phantoms of each kind and seed (12)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--dataset", nargs="+", default=[], help="instead: raw datasets whose real lesions are compared with each other"
    )
    parser.add_argument("--organ", help="source of the organ in the datasets, as for fvae-synthesize")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    for dataset in args.dataset:
        opened = open_source_dataset(dataset, organ=args.organ)
        real = RealLesions(tuple(lesion for case in opened.cases for lesion in lesions_of(opened.read(case))), {})
        rejected = real_rejected(real)
        print(f"{opened.name}: {len(rejected)} of {len(real.lesions)} real lesions rejected")
        for lesion, reasons in rejected:
            print(f"  {lesion['case']}, {lesion['diameter_mm']:.0f} mm: {'; '.join(reasons)}")
    if args.dataset:
        return 0
    print(
        "| phantoms, seed | fault | "
        + " | ".join(SIZE_RANGES_MM)
        + " | all |\n"
        + "|---" * (len(SIZE_RANGES_MM) + 3)
        + "|"
    )
    for kind in args.kind:
        for seed in args.seed:
            phantoms = [Phantom.make(kind, seed, number) for number in range(args.phantoms)]
            real = real_lesions(phantoms)
            rng = np.random.default_rng(seed)
            sizes = [lesion["diameter_mm"] for lesion in real.lesions]
            ideal = ideal_lesions(phantoms, load_vae("tiny"), rng, args.lesions, (min(sizes), max(sizes)))
            limits = QualityLimits(real, inside_fraction=0, found_share=0)
            for fault, by_size in accepted_by_fault(ideal, limits, rng).items():
                columns = [*by_size.values(), [one for of_size in by_size.values() for one in of_size]]
                shares = [f"{sum(ones)}/{len(ones)}" if ones else "" for ones in columns]
                print(f"| {kind}, {seed} | {fault} | " + " | ".join(shares) + " |", flush=True)
            rejected = len(real_rejected(real))
            print(f"| {kind}, {seed} | real, limits from other cases | | | | {len(sizes) - rejected}/{len(sizes)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
