"""Quality control put to the test: it must accept ideal lesions, and reject those with a fault.

An ideal lesion is what a perfect model would make: a phantom's own lesion tissue (``phantoms.py``) in a shape of
``fvae-synthesize``, blurred as the phantom's scanner blurs, and put into the phantom as a model's lesion is: what the
VAE decodes with it minus what it decodes without, blended in. The same lesions are then spoilt. Limits come from the
phantoms' real lesions.

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
"""``fvae-synthesize --margin-mm``, its default."""

PLACED_AT_ONCE = 6
"""Lesions for which a place is sought in a phantom before the VAE sees it."""

SPOTS_MM = 2.0
"""Standard deviation of the Gaussian that makes spots of noise; they are some 5 mm wide."""

INSIDE_FRACTION = {"lung": 0.85, "pancreas": 0.6}
"""Of a lesion in the organ: for lungs the default of ``fvae-synthesize``. The phantoms' own tumours are wider than the
pancreas, and so fewer of their voxels lie in it."""


@dataclass(frozen=True)
class Phantom:
    """A phantom with what ``SourceCase`` has of a case, as far as quality control asks for it.

    Attributes:
        torso: what it is a scan of.
        kind: of ``phantoms.LABELS``.
        case: its name.
        volume_hu: int16 (z, y, x).
        organ, lesion, any_lesion: bool, the organ with the lesions.
        spacing_mm: (z, y, x).
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
    """An ideal lesion and what surrounds it; all arrays are those of a box around it, (z, y, x).

    Attributes:
        raw_hu: the phantom, int16.
        surroundings: bool, as ``real_lesions.surroundings_of``.
        lesion: bool.
        decoded_hu: what the lesion adds to the decoded volume, float32.
        spacing_mm: (z, y, x).
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
        """The box with a lesion blended in that adds so much to the decoded volume: int16."""
        nothing = np.zeros(self.raw_hu.shape, np.float32)
        return blend_lesion(self.raw_hu, decoded_hu, nothing, self.lesion, self.spacing_mm, MARGIN_MM)

    def smoothed(self, array: np.ndarray, sigma_mm: float) -> np.ndarray:
        return ndimage.gaussian_filter(array, sigma_mm / np.asarray(self.spacing_mm))


Fault = Callable[[np.random.Generator, IdealLesion], np.ndarray]
"""What the box holds with a spoilt lesion: int16 HU."""


def mottled(times: float) -> Fault:
    """The core's standard deviation so many times as large, by smooth spots."""

    def spoil(rng: np.random.Generator, of: IdealLesion) -> np.ndarray:
        core = lesion_core(of.lesion, of.spacing_mm)
        spots = of.smoothed(rng.standard_normal(of.lesion.shape), SPOTS_MM)
        spots *= np.sqrt(times**2 - 1) * of.inserted(of.decoded_hu)[core].std() / spots[core].std()
        return of.inserted(of.decoded_hu + spots - spots[core].mean())

    return spoil


def flickering(sd_hu: float) -> Fault:
    """Every slice brighter or darker."""
    return lambda rng, of: of.inserted(of.decoded_hu + rng.normal(0, sd_hu, len(of.lesion))[:, None, None])


def blurred(sigma_mm: float) -> Fault:
    """An edge that is more blurred than the scanner blurs it."""
    return lambda rng, of: of.inserted(of.smoothed(of.decoded_hu, sigma_mm))


def overshooting(share: float) -> Fault:
    """An edge with a halo on both sides."""
    return lambda rng, of: of.inserted(of.decoded_hu + share * (of.decoded_hu - of.smoothed(of.decoded_hu, 2.0)))


def shifted(by_hu: float) -> Fault:
    """Brighter or darker as a whole."""
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
    """Lesions of these sizes in one phantom, whose reconstruction is given: those for which there is a place, clear of
    each other."""
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
    """What quality control knows of the phantoms' own lesions."""
    return RealLesions(tuple(lesion for phantom in phantoms for lesion in lesions_of(phantom)), {})


def ideal_lesions(
    phantoms: Sequence[Phantom], vae: FrozenVAE, rng: np.random.Generator, n: int, diameters_mm: tuple[float, float]
) -> list[IdealLesion]:
    """So many, of sizes that are uniform in their logarithm, evenly over the phantoms."""
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
    """The reasons against a lesion that lies in its organ; none: it is accepted."""
    quality = lesion_quality(
        volume_hu, of.lesion, of.surroundings, of.spacing_mm, inside_fraction=1.0, found=None, limits=limits
    )
    return reasons_against([quality], limits)


def size_class(diameter_mm: float) -> str:
    """Of ``lesions.sizes.SIZE_RANGES_MM``; below the smallest, the smallest."""
    return next(name for name, (_, upper) in SIZE_RANGES_MM.items() if diameter_mm < upper)


def accepted_by_fault(
    ideal: Sequence[IdealLesion], limits: QualityLimits, rng: np.random.Generator, faults: dict[str, Fault] = FAULTS
) -> dict[str, dict[str, list[bool]]]:
    """Of each fault, by size class, whether each of the lesions is accepted."""
    table: dict[str, dict[str, list[bool]]] = {}
    for name, spoil in faults.items():
        by_size = table[name] = {size: [] for size in SIZE_RANGES_MM}
        for lesion in ideal:
            by_size[size_class(lesion.diameter_mm)].append(not judged(lesion, spoil(rng, lesion), limits))
    return table


def real_rejected(real: RealLesions) -> list[tuple[dict[str, Any], list[str]]]:
    """The real lesions that quality control would reject with limits from all other cases, and why."""
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
    parser.add_argument("--phantoms", type=int, default=12, help="of each kind and seed (12)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--dataset", nargs="+", default=[], help="instead: raw datasets whose real lesions are held against each other"
    )
    parser.add_argument("--organ", help="of the datasets, as fvae-synthesize takes it")
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
