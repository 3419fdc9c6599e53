"""Volumes on the classifier's grid, and the cache that keeps them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import SimpleITK as sitk
from findings_for_tests import write_image

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.cases import Case
from fvae_nnunet.findings.volumes import Grid, VolumeCache, read_on_grid
from fvae_nnunet.jobs.manifest import Manifest


def ramp_mm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """HU that tell every place in the patient (mm) and direction from every other."""
    return 2.0 * x + 3.0 * y - 5.0 * z


def write_ramp(path, *, size, spacing_mm, origin_mm, direction) -> sitk.Image:
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin_mm)
    image.SetDirection(direction)
    index = np.stack(np.meshgrid(*(np.arange(side) for side in size), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis((index * spacing_mm) @ np.reshape(direction, (3, 3)).T + origin_mm, -1, 0)
    filled = sitk.GetImageFromArray(np.ascontiguousarray(ramp_mm(x, y, z).transpose(2, 1, 0)).astype(np.float32))
    filled.CopyInformation(image)
    sitk.WriteImage(filled, str(path))
    return filled


@pytest.mark.parametrize(
    "direction",
    [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, -1, 0)],
    ids=["LPS", "RAS", "coronal slices"],
)
def test_every_voxel_has_the_value_of_its_place_in_the_patient(tmp_path, direction):
    image = write_ramp(
        tmp_path / "ramp.nii.gz", size=(40, 44, 48), spacing_mm=(1.0, 1.5, 0.8), origin_mm=(7.0, -20.0, 3.0),
        direction=direction,
    )  # fmt: skip
    grid = Grid((5, 6, 4), (3.0, 2.0, 2.5))
    volume = read_on_grid(tmp_path / "ramp.nii.gz", grid)
    middle = image.TransformContinuousIndexToPhysicalPoint([19.5, 21.5, 23.5])
    places = [
        (np.arange(side) - (side - 1) / 2) * mm + at
        for side, mm, at in zip(grid.shape, grid.spacing_mm, middle[::-1])
    ]  # fmt: skip
    z, y, x = np.meshgrid(*places, indexing="ij")
    assert volume.dtype == np.int16 and volume.shape == grid.shape
    assert np.abs(volume - ramp_mm(x, y, z)).max() <= 1  # rounding, and the recursive filter's thousandth


def test_detail_finer_than_the_grid_does_not_alias(tmp_path):
    stripes = np.where(np.arange(80) % 2, 500, -500)[:, None, None] * np.ones((1, 8, 8))
    image = sitk.GetImageFromArray(stripes.astype(np.int16))  # 1 mm
    sitk.WriteImage(image, str(tmp_path / "stripes.nii.gz"))
    fine = read_on_grid(tmp_path / "stripes.nii.gz", Grid((12, 4, 4), (1.0, 1.0, 1.0)))
    assert set(np.unique(fine)) == {-500, 500}
    # five slices of 4 mm lie on the middles of voxels: without the filter each would be 500 or -500
    coarse = read_on_grid(tmp_path / "stripes.nii.gz", Grid((6, 4, 4), (4.0, 1.0, 1.0)))
    assert np.abs(coarse[1:-1]).max() <= 1


def test_what_lies_outside_the_image_is_air(tmp_path):
    write_image(tmp_path / "small.nii.gz", np.full((4, 4, 4), 40, dtype=np.int16))
    volume = read_on_grid(tmp_path / "small.nii.gz", Grid((8, 8, 8), (6.0, 4.0, 4.0)))
    expected = np.full((8, 8, 8), -1024)
    expected[2:6, 2:6, 2:6] = 40
    assert np.array_equal(volume, expected)


def cases_in(folder, number: int = 3) -> list[Case]:
    cases = [Case(f"case_{one}", folder / f"case_{one}.nii.gz", {}) for one in range(number)]
    for one, case in enumerate(cases):
        write_image(case.image, np.full((4, 4, 4), 10 * one, dtype=np.int16))
    return cases


def made(cache: VolumeCache, cases: list[Case]) -> dict[str, int]:
    return {case.key: (cache.folder / f"{case.key}.npy").stat().st_mtime_ns for case in cases}


def test_only_what_changed_is_made_again(tmp_path):
    cases, cache = cases_in(tmp_path), VolumeCache(tmp_path / "cache", Grid((2, 2, 2), (6.0, 4.0, 4.0)))
    done = []
    cache.complete(cases, workers=0, on_case=lambda: done.append(1))
    assert len(done) == 3 and [int(cache.load(case.key).max()) for case in cases] == [0, 10, 20]
    before = made(cache, cases)
    os.utime(cases[0].image)  # touched, not changed
    digest = cache.digest("case_1")
    write_image(cases[1].image, np.full((4, 4, 4), 77, dtype=np.int16))
    (cache.folder / "case_2.npy").write_bytes(b"cut short")
    cache.complete(cases, workers=0)
    after = made(cache, cases)
    assert [after[case.key] == before[case.key] for case in cases] == [True, False, False]
    assert [int(cache.load(case.key).max()) for case in cases] == [0, 77, 20]
    assert cache.digest("case_1") != digest


def test_a_touched_image_does_not_make_a_damaged_volume_whole(tmp_path):
    cases, cache = cases_in(tmp_path), VolumeCache(tmp_path / "cache", Grid((2, 2, 2), (6.0, 4.0, 4.0)))
    cache.complete(cases, workers=0)
    path = cache.folder / "case_0.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(cases[0].image, (1, 1))
    cache.complete(cases, workers=0)
    assert list(Manifest(cache.folder).damage("case_0")) == [path]


def test_unreadable_images_are_all_named_and_the_others_done(tmp_path):
    cases, cache = cases_in(tmp_path), VolumeCache(tmp_path / "cache", Grid((2, 2, 2), (6.0, 4.0, 4.0)))
    cases[0].image.write_bytes(b"no image")
    whole = cases[2].image.read_bytes()
    cases[2].image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 of 3 images cannot be used(.|\n)*case_0: (.|\n)*case_2: "):
        cache.complete(cases, workers=0)
    assert int(cache.load("case_1").max()) == 10


def test_a_cache_has_one_grid(tmp_path):
    cases = cases_in(tmp_path, 1)
    VolumeCache(tmp_path / "cache", Grid((2, 2, 2), (6.0, 4.0, 4.0))).complete(cases, workers=0)
    with pytest.raises(UserError, match="spacing_mm"):
        VolumeCache(tmp_path / "cache", Grid((2, 2, 2), (3.0, 4.0, 4.0))).complete(cases, workers=0)
    with pytest.raises(UserError, match="three positive numbers"):
        Grid((2, 2, 0), (3.0, 4.0, 4.0))
