"""Synthetic CT phantoms with a low-contrast tumour, and datasets of them in nnU-Net's raw format.

A phantom is a section of a torso in Hounsfield units: air, fat, muscle, lungs with vessels, ribs, spine, aorta, liver,
bowel, and the organ of interest. Edges are blurred by a point spread function, then noise with the ramp-like in-plane
spectrum of filtered back projection is added. Phantoms are for trying out the software and for tests; they do not
replace patients.

    python scripts/phantoms.py nnUNet_raw/Dataset900_PhantomPancreas --kind pancreas --n-train 12 --n-test 3
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.ct.intensity import as_stored_by_scanners
from fvae_nnunet.errors import UserError

Triple = Sequence[float] | np.ndarray

LABELS = {
    "pancreas": {"background": 0, "pancreas": 1, "tumour": 2},
    "lung": {"background": 0, "tumour": 1},
}
"""Kind of phantom -> nnU-Net's `labels` entry."""

LESION_PLACES = {"pancreas": ("--inside-fraction", "0.5"), "lung": ()}
"""Kind of phantom -> options of ``fvae-synthesize``: the tumours of the pancreas are wider than the organ."""

MIN_SHAPE = (12, 32, 32)
"""Smallest shape (z, y, x) in which the organs fit."""

AIR_HU, FAT_HU, MUSCLE_HU, LUNG_HU, BLOOD_HU = -1000, -100, 55, -850, 150
PSF_SIGMA_MM = (1.2, 0.9, 0.9)
"""Standard deviation (z, y, x) of the Gaussian that models slice profile and in-plane resolution."""


def make_phantom(
    kind: str,
    *,
    seed: int | Sequence[int],
    shape: tuple[int, int, int] = (48, 96, 96),
    spacing_mm: tuple[float, float, float] = (3.0, 2.0, 2.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Make one phantom and its segmentation.

    Args:
        kind: "pancreas" (curved organ of about 90 HU with a tumour 30 to 45 HU darker; 0 background, 1 pancreas,
            2 tumour) or "lung" (soft-tissue nodules in the lungs; 0 background, 1 tumour).
        seed: random seed; equal arguments give equal arrays.
        shape: voxels (z, y, x), at least `MIN_SHAPE`. The anatomy is scaled to the field of view.
        spacing_mm: voxel size (z, y, x).

    Returns:
        Volume in HU, int16, within [-1024, 3071], and label map, uint8, both (z, y, x) with z rising to the head, y to
        the back and x to the patient's left. Every label of `LABELS[kind]` occurs.

    Raises:
        UserError: unknown kind, or an invalid shape, spacing or seed.
    """
    torso = make_torso(kind, seed=seed, shape=shape, spacing_mm=spacing_mm)
    return torso.scanned(), torso.label


def make_torso(
    kind: str,
    *,
    seed: int | Sequence[int],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> Torso:
    """Make the torso that ``make_phantom`` scans; same arguments and errors."""
    if kind not in LABELS:
        raise UserError(f"unknown kind of phantom {kind!r}; known: {', '.join(LABELS)}")
    if len(shape) != 3 or any(n < least for n, least in zip(shape, MIN_SHAPE, strict=True)):
        raise UserError(f"a phantom needs a shape (z, y, x) of at least {MIN_SHAPE}, got {tuple(shape)}")
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise UserError(f"spacing_mm must be three positive numbers (z, y, x), got {tuple(spacing_mm)}")
    entropy = np.atleast_1d(seed).tolist()
    if min(entropy) < 0:
        raise UserError(f"a seed must not be negative, got {seed}")
    rng = np.random.default_rng([list(LABELS).index(kind), *entropy])
    torso = Torso(rng, shape, spacing_mm)
    torso.add_body()
    torso.add_lungs(whole_length=kind == "lung")
    if kind == "pancreas":
        torso.add_abdomen()
        torso.add_pancreas_with_tumour()
    else:
        torso.add_heart()
        torso.add_nodules()
    return torso


class Torso:
    """A torso under construction. Lengths are in units of half the smaller in-plane field of view, centred, (z, y, x).

    Attributes:
        hu: HU without blur and noise, float32.
        label: label map, uint8.
        spacing_mm: spacing (z, y, x).
        lesion_tissue: draws the HU of a lesion of this kind, (z, y, x), with its texture.
    """

    lesion_tissue: Callable[[], np.ndarray]

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> None:
        self.rng, self.shape, self.spacing_mm = rng, shape, spacing_mm
        self.unit_mm = min(shape[1] * spacing_mm[1], shape[2] * spacing_mm[2]) / 2
        self.voxel = np.asarray(spacing_mm) / self.unit_mm
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, self.voxel, strict=True)]
        self.z, self.y, self.x = np.ix_(*[axis.astype(np.float32) for axis in axes])
        self.half_length = shape[0] * self.voxel[0] / 2
        self.hu = np.full(shape, AIR_HU, np.float32)
        self.label = np.zeros(shape, np.uint8)
        self.body_axes = (rng.uniform(0.62, 0.74), rng.uniform(0.84, 0.94))
        self.spine_y = self.body_axes[0] - rng.uniform(0.26, 0.30)

    def smooth_field(self, length: float) -> np.ndarray:
        """Gaussian random field of unit variance, correlation length in units of the torso; (z, y, x)."""
        sigma = np.maximum(length / self.voxel, 0.5)
        step = np.maximum((sigma / 1.5).astype(int), 1)
        coarse_shape = [int(np.ceil(n / s)) + 2 for n, s in zip(self.shape, step, strict=True)]
        field = ndimage.gaussian_filter(self.rng.standard_normal(coarse_shape, np.float32), sigma / step, mode="wrap")
        if step.max() > 1:
            for axis, (n, s) in enumerate(zip(self.shape, step, strict=True)):
                position = np.arange(n) / s
                low = position.astype(int)
                weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
                field = field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight
        field = field[tuple(slice(n) for n in self.shape)]
        return (field - field.mean()) / field.std()

    def ellipsoid(self, centre: Triple, radii: Triple) -> np.ndarray:
        """Squared normalised radius, below 1 inside; centre and radii (z, y, x)."""
        (cz, cy, cx), (rz, ry, rx) = centre, radii
        return ((self.z - cz) / rz) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.x - cx) / rx) ** 2

    def add_body(self) -> None:
        """Skin and fat, muscular wall, fat inside, spine, ribs and aorta."""
        ry, rx = self.body_axes
        radius = np.sqrt((self.y / ry) ** 2 + (self.x / rx) ** 2) + 0.015 * self.smooth_field(0.5)
        fat_layer = self.rng.uniform(0.06, 0.12)
        streaks = self.smooth_field(0.06)
        self.hu[radius < 1] = MUSCLE_HU - 30
        self.hu = np.where(radius < 0.98, FAT_HU + 8 * streaks, self.hu)
        self.wall = radius < 1 - fat_layer
        self.hu = np.where(self.wall, MUSCLE_HU + 12 * streaks - 60 * (streaks > 1.8), self.hu)
        self.inside = radius < 1 - fat_layer - 0.1
        self.hu = np.where(self.inside, FAT_HU + 10 * streaks, self.hu)

        tilt = np.arctan2(self.y, self.x)
        band = np.sin(2 * np.pi * self.z / 0.33 - 1.6 * np.cos(tilt) + self.rng.uniform(0, 6))
        ribs = (np.abs(radius - (1 - fat_layer - 0.055)) < 0.03) & (band > 0.45) & (self.y > -0.75 * ry)
        self.hu[ribs] = 420

        disc = np.sin(2 * np.pi * self.z / 0.36 + self.rng.uniform(0, 6)) > 0.75
        vertebra = ((self.y - self.spine_y) / 0.125) ** 2 + (self.x / 0.16) ** 2
        arch_y = self.spine_y + 0.18
        arch = ((self.y - arch_y) / 0.1) ** 2 + (self.x / 0.12) ** 2
        process = (np.abs(self.x) < 0.03) & (self.y > arch_y) & (self.y < arch_y + 0.17) & ~disc
        psoas = ((self.y - self.spine_y - 0.02) / 0.13) ** 2 + ((np.abs(self.x) - 0.27) / 0.12) ** 2 < 1
        bone = np.where(vertebra < 0.72, 210 + 35 * streaks, 520)
        self.hu = np.where(psoas & self.wall, MUSCLE_HU + 10 * streaks, self.hu)
        self.hu = np.where(arch < 1, 480, self.hu)
        self.hu = np.where((vertebra < 1) & ~disc, bone, np.where((vertebra < 1) & disc, 85.0, self.hu))
        self.hu = np.where(arch < 0.35, 30, self.hu)
        self.hu[np.broadcast_to(process, self.shape)] = 430
        aorta = ((self.y - self.spine_y + 0.19) / 0.065) ** 2 + ((self.x - 0.08) / 0.065) ** 2
        self.hu = np.where(aorta < 1, BLOOD_HU, self.hu)
        self.kept = np.broadcast_to((vertebra < 1.1) | (arch < 1) | (aorta < 1.3), self.shape)

    def add_lungs(self, *, whole_length: bool) -> None:
        """Two lungs with vessels, along the whole volume or only as bases above the diaphragm."""
        ry, rx = self.body_axes
        self.lungs = np.zeros(self.shape, bool)
        for side in (-1, 1):
            centre_x = side * 0.46 * rx
            if whole_length:
                cross = ((self.y + 0.05) / (0.66 * ry)) ** 2 + ((self.x - centre_x) / (0.36 * rx)) ** 2
                self.lungs |= cross + 0.15 * (self.z / self.half_length) ** 2 < 1
            else:
                dome = self.rng.uniform(0.42, 0.58) * self.half_length
                centre = (self.half_length * 1.1, 0.0, centre_x)
                self.lungs |= self.ellipsoid(centre, (self.half_length * 1.1 - dome, 0.66 * ry, 0.36 * rx)) < 1
        self.lungs &= self.inside & ~self.kept
        self.hu = np.where(self.lungs, LUNG_HU + 25 * self.smooth_field(0.12), self.hu)
        # the zero sets of two independent smooth fields intersect in curves, which serve as vessels
        curve = np.hypot(self.smooth_field(0.16), self.smooth_field(0.16))
        self.hu[self.lungs & (curve < 0.14)] = 40

    def add_heart(self) -> None:
        radius = self.ellipsoid((-0.3 * self.half_length, -0.12, 0.1), (0.9 * self.half_length, 0.3, 0.33))
        heart = (radius + 0.05 * self.smooth_field(0.2) < 1) & self.inside & ~self.kept
        self.lungs &= ~heart
        self.hu = np.where(heart, np.where(radius < 0.5, BLOOD_HU, 80) + 5 * self.smooth_field(0.1), self.hu)

    def add_abdomen(self) -> None:
        """Bowel loops, liver on the patient's right, kidneys; lungs and spine are not overwritten."""
        free = self.inside & ~self.kept & ~self.lungs
        bowel = np.abs(self.smooth_field(0.11))
        in_front = self.y < self.spine_y - 0.35
        self.hu = np.where(free & in_front & (bowel < 0.55), 35 + 30 * bowel, self.hu)
        self.hu = np.where(free & in_front & (bowel < 0.1), -40, self.hu)
        size = self.rng.uniform(0.9, 1.1)
        liver = self.ellipsoid(
            (0.35 * self.half_length, -0.1, -0.52), (0.85 * self.half_length, 0.46 * size, 0.36 * size)
        )
        liver_hu = 105 + 4 * self.smooth_field(0.1) + 45 * (np.abs(self.smooth_field(0.12)) < 0.05)
        self.hu = np.where(free & (liver + 0.05 * self.smooth_field(0.2) < 1), liver_hu, self.hu)
        for side in (-1, 1):
            centre = (self.rng.uniform(-0.5, -0.2) * self.half_length, self.spine_y - 0.03, side * 0.5)
            kidney = self.ellipsoid(centre, (0.55 * self.half_length, 0.13, 0.13))
            self.hu = np.where(free & (kidney < 1), np.where(kidney < 0.2, 20, 165), self.hu)

    def add_pancreas_with_tumour(self) -> None:
        """A tapering tube in fat, from the head on the right past the spine to the tail on the left, with a tumour."""
        rng, reach = self.rng, min(self.half_length, 0.75)
        t = np.linspace(0, 1, 28)
        shift = rng.uniform(-0.05, 0.05, 3) * (reach / 0.75, 1, 1)
        rise, bow = rng.uniform(0.12, 0.28) * reach, rng.uniform(0.14, 0.22)
        middle_y = self.spine_y - 0.34
        path = np.stack(
            [
                -0.2 * reach + rise * (t - 0.3) + 0.1 * reach * np.sin(5 * t),
                middle_y - bow * np.sin(np.pi * t) + 0.1 + 0.08 * t,
                -0.3 + 0.72 * t,
            ],
            axis=1,
        )
        path += shift
        width = rng.uniform(0.085, 0.11) * (1.25 - 0.55 * t + 0.1 * np.sin(9 * t + rng.uniform(0, 6)))
        width = np.maximum(width, 1.5 * self.voxel[1:].max())
        lumps = 1 + 0.1 * self.smooth_field(0.07)
        tube = self._distance_to_tube(path, width) / lumps

        at = int(rng.integers(3, 23))
        small = rng.random() < 0.15
        size = rng.uniform(0.06, 0.075) if small else rng.uniform(0.11, 0.17)
        radii = np.maximum(size * rng.uniform(0.9, 1.15, 3), 1.25 * self.voxel)
        offset = rng.uniform(-0.3, 0.3, 3) * width[at]
        tumour = self.ellipsoid(path[at] + offset, radii) / lumps**2 < 1

        allowed = self.inside & ~self.kept & ~self.lungs
        tumour &= allowed
        organ = (tube < 1) & allowed & ~tumour
        around = (np.minimum(tube, 2) < 1.35) & allowed
        self.hu = np.where(around, FAT_HU + 8 * self.smooth_field(0.08), self.hu)
        organ_hu = rng.normal(90, 4)
        texture = self.smooth_field(0.05)
        self.hu = np.where(organ, organ_hu + 6 * texture, self.hu)
        self.lesion_tissue = lambda: organ_hu - rng.uniform(30, 45) + 4 * texture
        self.hu = np.where(tumour, self.lesion_tissue(), self.hu)
        self.label[organ] = 1
        self.label[tumour] = 2

    def _distance_to_tube(self, path: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Distance to the nearest of the balls in units of its radius; path (n, 3) as z, y, x, width (n,)."""
        nearest = np.full(self.shape, np.inf, np.float32)
        for centre, radius in zip(path, width, strict=True):
            np.minimum(nearest, self.ellipsoid(centre, (radius, radius, radius)), out=nearest)
        return np.sqrt(nearest)

    def add_nodules(self) -> None:
        """One to three soft-tissue nodules with their centres inside the lungs."""
        rng = self.rng
        self.lesion_tissue = lambda: rng.normal(35, 8) + 6 * self.smooth_field(0.05)
        depth = ndimage.distance_transform_edt(self.lungs, sampling=self.voxel)
        lumps = 1 + 0.1 * self.smooth_field(0.07)
        for number in range(int(rng.integers(1, 4))):
            small = number > 0 and rng.random() < 0.4
            size = rng.uniform(0.045, 0.06) if small else rng.uniform(0.08, 0.14)
            radii = np.maximum(size * rng.uniform(0.9, 1.15, 3), 1.25 * self.voxel)
            places = np.argwhere(depth > min(0.7 * size, 0.6 * depth.max()))
            centre = (places[rng.integers(len(places))] - (np.array(self.shape) - 1) / 2) * self.voxel
            nodule = (self.ellipsoid(centre, radii) / lumps**2 < 1) & self.lungs
            self.hu = np.where(nodule, self.lesion_tissue(), self.hu)
            self.label[nodule] = 1

    def scanned(self) -> np.ndarray:
        """Volume as from a scanner: blurred, noisy, int16 HU."""
        noisy = self.blurred(self.hu) + self.rng.uniform(15, 20) * self._scanner_noise()
        return as_stored_by_scanners(noisy)

    def clean(self) -> np.ndarray:
        """Volume as from a scanner without noise, int16 HU."""
        return as_stored_by_scanners(self.blurred(self.hu))

    def blurred(self, hu: np.ndarray) -> np.ndarray:
        """HU (z, y, x) blurred by the scanner's resolution."""
        return ndimage.gaussian_filter(hu, np.asarray(PSF_SIGMA_MM) / self.spacing_mm, mode="nearest")

    def _scanner_noise(self) -> np.ndarray:
        """Noise of unit variance, (z, y, x); its in-plane power rises with frequency up to the kernel's roll-off."""
        white = self.rng.standard_normal(self.shape, np.float32)
        white = ndimage.gaussian_filter1d(white, 0.5, axis=0, mode="wrap")
        frequency = np.hypot(
            np.fft.fftfreq(self.shape[1], self.spacing_mm[1])[:, None],
            np.fft.rfftfreq(self.shape[2], self.spacing_mm[2])[None],
        )
        nyquist = 0.5 / max(self.spacing_mm[1:])
        kernel = np.sqrt(frequency) * np.exp(-((frequency / (0.6 * nyquist)) ** 2))
        noise = np.fft.irfft2(np.fft.rfft2(white) * kernel, s=self.shape[1:])
        return (noise / noise.std()).astype(np.float32)


def write_phantom_dataset(
    folder: str | Path,
    kind: str,
    *,
    n_train: int,
    n_test: int,
    seed: int,
    shape: tuple[int, int, int] = (48, 96, 96),
    spacing_mm: tuple[float, float, float] = (3.0, 2.0, 2.0),
    file_ending: str = ".nii.gz",
    clean: bool = False,
) -> Path:
    """Write a dataset of phantoms in nnU-Net's raw format: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json.

    `folder` is the folder of the dataset, by convention named DatasetNNN_Name. It must be empty or not exist, and
    appears only when it is complete. Cases are named `phantom_000` and so on, training cases first. shape and
    spacing_mm are (z, y, x), `file_ending` is one that SimpleITK writes (".nii.gz", ".nrrd", ".mha"). With `clean`, the
    folders cleanTr and cleanTs, which nnU-Net ignores, hold the images without noise. Returns `folder`.
    """
    folder = Path(folder)
    if kind not in LABELS:
        raise UserError(f"unknown kind of phantom {kind!r}; known: {', '.join(LABELS)}")
    if n_train < 1 or n_test < 0:
        raise UserError(f"a dataset needs at least one training case and no negative count, got {n_train} and {n_test}")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it or name another folder")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for index in range(n_train + n_test):
        torso = make_torso(kind, seed=(seed, index), shape=shape, spacing_mm=spacing_mm)
        part, name = ("Tr" if index < n_train else "Ts"), f"phantom_{index:03d}"
        # supine, head first: array axes and patient axes agree; the table height differs between scans
        rng = np.random.default_rng([seed, index])
        size_mm = np.asarray(shape[::-1]) * spacing_mm[::-1]
        origin_mm = -size_mm / 2 + rng.uniform((-8, -30, -900), (8, 10, -300)).round(2)
        arrays = [
            (torso.scanned(), f"images{part}", f"{name}_0000{file_ending}"),
            (torso.label, f"labels{part}", f"{name}{file_ending}"),
        ]
        if clean:
            arrays.append((torso.clean(), f"clean{part}", f"{name}_0000{file_ending}"))
        for array, subfolder, file_name in arrays:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing([float(step) for step in spacing_mm[::-1]])
            image.SetOrigin([float(at) for at in origin_mm])
            (unfinished / subfolder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(unfinished / subfolder / file_name), useCompression=True)
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS[kind],
        "numTraining": n_train,
        "file_ending": file_ending,
        "name": folder.name,
        "description": f"synthetic CT phantoms ({kind}), seed {seed}; no patient data",
    }
    (unfinished / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="phantoms.py"
    )
    parser.add_argument("folder", help="the dataset's folder, e.g. nnUNet_raw/Dataset900_PhantomPancreas")
    parser.add_argument("--kind", choices=list(LABELS), default="pancreas")
    parser.add_argument("--n-train", type=int, default=12, help="training cases (12)")
    parser.add_argument("--n-test", type=int, default=3, help="test cases (3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(3.0, 2.0, 2.0), metavar=("Z", "Y", "X"), help="mm (3 2 2)"
    )
    parser.add_argument("--clean", action="store_true", help="also write the images without noise (cleanTr, cleanTs)")
    parser.add_argument("--file-ending", default=".nii.gz", choices=[".nii.gz", ".nrrd", ".mha"])
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    folder = write_phantom_dataset(
        args.folder,
        args.kind,
        n_train=args.n_train,
        n_test=args.n_test,
        seed=args.seed,
        shape=tuple(args.shape),
        spacing_mm=tuple(args.spacing),
        file_ending=args.file_ending,
        clean=args.clean,
    )
    print(f"{args.n_train} training and {args.n_test} test phantoms ({args.kind}) in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
