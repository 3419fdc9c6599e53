"""Sizes of drawn shapes against the volume of a ball, and what makes a shape: one piece, its axes, its seed."""

import numpy as np
import pytest
from scipy import ndimage

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.placement import NothingFits
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS, RealLesion, draw_lesion_shape, equivalent_diameter_mm
from fvae_nnunet.synthesis.lesions.sizes import DEFAULT_SHARES, SIZE_RANGES_MM, LesionSizes

ANISOTROPIC = (5.0, 0.7, 0.7)
TOUCHING = np.ones((3, 3, 3))


def a_banana(spacing_mm):
    """A bent tube of 12 mm across: no ellipsoid, with an empty middle."""
    axes = [np.arange(-30, 30, step) for step in spacing_mm]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    ring = np.hypot(np.hypot(y, x) - 15, z) < 6
    mask = ring & (y > -5)
    return RealLesion("donor", mask, spacing_mm)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ANISOTROPIC, (3.0, 2.0, 2.0)])
@pytest.mark.parametrize("diameter_mm", [8.0, 17.0, 40.0])
@pytest.mark.parametrize("borrowed", [False, True])
def test_shapes_have_the_diameter_that_was_asked_for(spacing_mm, diameter_mm, borrowed):
    rng = np.random.default_rng(0)
    donor = a_banana((4.0, 1.0, 1.0)) if borrowed else None
    for _ in range(3):
        shape = draw_lesion_shape(rng, diameter_mm, spacing_mm, donor=donor)
        volume_mm3 = shape.sum() * np.prod(spacing_mm)
        assert (volume_mm3 * 6 / np.pi) ** (1 / 3) == pytest.approx(diameter_mm, rel=0.1)
        assert ndimage.label(shape, TOUCHING)[1] == 1
        assert all(shape.any(axis=tuple({0, 1, 2} - {axis})).all() for axis in range(3)), "cropped to its box"


def test_extent_is_in_mm_not_in_voxels():
    shape = draw_lesion_shape(np.random.default_rng(1), 30, (5.0, 0.5, 0.5))
    z_mm, y_mm, x_mm = np.array(shape.shape) * (5.0, 0.5, 0.5)
    # semi-axes differ by 1.25 / 0.75 at most, and displacements are within some tenths of the diameter
    assert max(z_mm, y_mm, x_mm) / min(z_mm, y_mm, x_mm) < 2.5
    assert 20 < z_mm < 60


def test_an_ellipsoid_without_deformation_is_one(monkeypatch):
    monkeypatch.setattr("fvae_nnunet.synthesis.lesions.shapes.DEFORMATION", 0.0)
    shape = draw_lesion_shape(np.random.default_rng(2), 40, (1.0, 1.0, 1.0))
    points = np.argwhere(shape) - np.argwhere(shape).mean(axis=0)
    # a solid ellipsoid with semi-axes a has second moments a^2 / 5 along them, and volume 4/3 pi abc
    semi_axes = np.sqrt(5 * np.linalg.eigvalsh(points.T @ points / len(points)))
    assert 4 / 3 * np.pi * np.prod(semi_axes) == pytest.approx(shape.sum(), rel=0.01)
    assert 1 < semi_axes.max() / semi_axes.min() <= 1.25 / 0.75 * 1.01


def test_deformation_makes_it_less_of_an_ellipsoid():
    def volume_of_the_hull(shape):
        points = np.argwhere(shape) - np.argwhere(shape).mean(axis=0)
        covariance = points.T @ points / len(points)
        inside = np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points) <= 5
        return 1 - inside.mean()

    rng = np.random.default_rng(3)
    assert np.mean([volume_of_the_hull(draw_lesion_shape(rng, 30, (1, 1, 1))) for _ in range(5)]) > 0.03


def test_a_borrowed_shape_keeps_the_form_of_its_donor(monkeypatch):
    monkeypatch.setattr("fvae_nnunet.synthesis.lesions.shapes.DEFORMATION", 0.0)
    donor = a_banana((1.0, 1.0, 1.0))
    own = equivalent_diameter_mm(donor.mask.sum(), donor.spacing_mm)

    def moments(mask):
        points = np.argwhere(mask) - np.argwhere(mask).mean(axis=0)
        return np.linalg.eigvalsh(points.T @ points / len(points))

    # turned and twice as large: every length is doubled, so every second moment is fourfold
    shape = draw_lesion_shape(np.random.default_rng(4), 2 * own, (1.0, 1.0, 1.0), donor=donor)
    assert moments(shape) == pytest.approx(4 * moments(donor.mask), rel=0.03)
    # and it is really turned
    assert shape.shape != tuple(2 * n for n in donor.mask.shape)
    # without its donor's hollow it would be an ellipsoid
    assert not shape[tuple(np.rint(np.argwhere(shape).mean(axis=0)).astype(int))]


def test_the_spacing_of_the_donor_does_not_matter(monkeypatch):
    monkeypatch.setattr("fvae_nnunet.synthesis.lesions.shapes.DEFORMATION", 0.0)
    fine, coarse = (
        draw_lesion_shape(np.random.default_rng(5), 25, (1.0, 1.0, 1.0), donor=a_banana(spacing_mm))
        for spacing_mm in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    )
    grid = tuple(np.maximum(fine.shape, coarse.shape))
    a, b = (np.pad(mask, [(0, n - m) for n, m in zip(grid, mask.shape)]) for mask in (fine, coarse))
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85


def test_a_shape_depends_on_its_seed_alone():
    first, again, other = (draw_lesion_shape(np.random.default_rng(seed), 12, ANISOTROPIC) for seed in (6, 6, 7))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_too_small_for_the_voxels_is_an_error():
    with pytest.raises(UserError, match=r"5\.0 mm has 5 voxels of 3 x 2 x 2 mm; at least 8"):
        draw_lesion_shape(np.random.default_rng(0), 5, (3.0, 2.0, 2.0))


def drawn(sizes, n, *, spacing_mm=(1.0, 1.0, 1.0)):
    rng = np.random.default_rng(0)
    return np.array([rng.uniform(*sizes.draw_range(rng, spacing_mm)) for _ in range(n)])


def test_sizes_by_class_and_share():
    sizes = LesionSizes.parse(["small=3", "large=1"])
    assert sizes.shares == (0.75, 0.25)
    rng = np.random.default_rng(0)
    ranges = [sizes.draw_range(rng, (1.0, 1.0, 1.0)) for _ in range(2000)]
    # 1500 expected with a standard deviation of 19
    assert 1420 < ranges.count(SIZE_RANGES_MM["small"]) < 1580
    assert set(ranges) == {SIZE_RANGES_MM["small"], SIZE_RANGES_MM["large"]}
    assert LesionSizes.parse(None).shares == pytest.approx(tuple(DEFAULT_SHARES.values()))


@pytest.mark.parametrize(
    ("name", "quantiles_mm"),
    [("msd-lung", (4.4, 14.3, 21.1, 28.8, 53.6)), ("msd-pancreas", (13.1, 17.4, 22.2, 26.9, 41.9))],
)
def test_sizes_of_public_datasets_have_their_percentiles(name, quantiles_mm):
    diameters_mm = drawn(LesionSizes.parse([name]), 4000)
    assert diameters_mm.min() == pytest.approx(quantiles_mm[0], abs=0.1)
    assert diameters_mm.max() == pytest.approx(quantiles_mm[-1], abs=0.2)
    for percentile, quantile_mm in zip((25, 50, 75), quantiles_mm[1:4]):
        # of what lies from the 5th to the 95th; 4 standard errors of a share of 4000
        assert (diameters_mm < quantile_mm).mean() == pytest.approx((percentile - 5) / 90, abs=4 * 0.5 / 4000**0.5)
    # uniform between percentiles: half way in mm is half way in share
    assert (diameters_mm < (quantiles_mm[3] + quantiles_mm[4]) / 2).mean() == pytest.approx(80 / 90, abs=0.02)


def test_sizes_of_real_lesions():
    assert LesionSizes.parse(["real"]) is None
    real_mm = np.random.default_rng(3).lognormal(3, 0.4, 60)
    diameters_mm = drawn(LesionSizes.of_lesions(real_mm), 4000)
    assert real_mm.min() <= diameters_mm.min() and diameters_mm.max() <= real_mm.max()
    for percentile in (10, 30, 50, 70, 90):
        assert (diameters_mm < np.percentile(real_mm, percentile)).mean() == pytest.approx(percentile / 100, abs=0.032)
    assert set(drawn(LesionSizes.of_lesions([17.5]), 5)) == {17.5}


def test_a_long_donor_keeps_its_proportions():
    bar = RealLesion("bar", np.ones((40, 4, 4), bool), (1.0, 1.0, 1.0))
    own_mm = equivalent_diameter_mm(bar.mask.sum(), bar.spacing_mm)
    for seed in range(4):
        shape = draw_lesion_shape(np.random.default_rng(seed), own_mm, (1.0, 1.0, 1.0), donor=bar)
        points = np.argwhere(shape)
        lengths = np.sqrt(12 * np.linalg.eigvalsh(np.cov(points.T)))
        assert lengths[-1] == pytest.approx(40, rel=0.12)


def test_diameters_fill_the_range_that_the_voxels_allow():
    sizes = LesionSizes.of_range(5.0, 20.0)
    fine = drawn(sizes, 500)
    assert min(fine) == pytest.approx(5, abs=0.2)
    assert max(fine) == pytest.approx(20, abs=0.2)
    coarse = drawn(sizes, 500, spacing_mm=(8.0, 3.0, 3.0))
    assert min(coarse) >= equivalent_diameter_mm(MIN_VOXELS, (8.0, 3.0, 3.0))
    draw_lesion_shape(np.random.default_rng(0), min(coarse), (8.0, 3.0, 3.0))
    with pytest.raises(NothingFits, match="5 to 6 mm have fewer than 8 voxels"):
        drawn(LesionSizes.of_range(5.0, 6.0), 1, spacing_mm=(8.0, 3.0, 3.0))


def test_ranges_that_the_voxels_do_not_allow_leave_their_share_to_the_others():
    sizes = LesionSizes(((5.0, 9.0), (9.0, 14.0), (14.0, 20.0)), (0.5, 0.3, 0.2))
    # 8 voxels of 8 x 3 x 3 mm are a ball of 10.3 mm
    diameters_mm = drawn(sizes, 2000, spacing_mm=(8.0, 3.0, 3.0))
    assert min(diameters_mm) == pytest.approx(10.3, abs=0.1)
    assert (diameters_mm < 14).mean() == pytest.approx(0.6, abs=4 * 0.5 / 2000**0.5)


@pytest.mark.parametrize(
    "wanted",
    [["tiny=1"], ["small=0"], ["small=x"], ["small=1", "small=2"], ["small=nan"], ["msd-lung", "small"], ["real=1"]],
)
def test_wrong_shares_name_the_classes(wanted):
    with pytest.raises(UserError, match=r"`sizes=.*msd-lung, msd-pancreas and real alone.*small, medium, large"):
        LesionSizes.parse(wanted)


@pytest.mark.parametrize("limits", [(0, 5), (6, 5), (1, float("inf"))])
def test_a_range_that_is_none_is_refused(limits):
    with pytest.raises(UserError, match="`diameter_mm` needs 0 < MIN <= MAX"):
        LesionSizes.of_range(*limits)
