"""Boundary shift and sharpness, against edges whose place and width are known in closed form."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage, special

from fvae_nnunet.evaluation.reconstruction.boundary import MAX_POINTS, EdgePair, _surface

SHAPE = (20, 40, 44)
SPACINGS_MM = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.5, 1.1)]


def depth_mm(spacing_mm, normal, shape=SHAPE):
    """Signed distance of voxels from an oblique plane through the middle of the volume, mm; normal (z, y, x)."""
    normal = np.asarray(normal) / np.linalg.norm(normal)
    centred = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(shape, spacing_mm)]
    return sum(component * axis for component, axis in zip(normal, np.meshgrid(*centred, indexing="ij")))


def edge_hu(distance_mm, blur_mm, inside_hu=60.0, outside_hu=-100.0):
    """An edge at distance 0 blurred by a Gaussian: what lies at negative distances is inside."""
    return outside_hu + (inside_hu - outside_hu) * 0.5 * special.erfc(distance_mm / (np.sqrt(2) * blur_mm))


def measured(raw_hu, view_hu, mask, spacing_mm, region=None):
    region = np.zeros(raw_hu.shape, bool) if region is None else region
    return EdgePair(raw_hu, view_hu, spacing_mm=spacing_mm, region=region).shift_at(mask)


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("normal", [(0, 0, 1), (1, 0, 0), (1, 2, -2)])
@pytest.mark.parametrize("shift_voxels", [0.3, -0.75])
def test_a_shift_by_less_than_a_voxel_is_found(spacing_mm, normal, shift_voxels):
    distance_mm = depth_mm(spacing_mm, normal)
    direction = np.asarray(normal) / np.linalg.norm(normal)
    voxel_mm = 1 / np.linalg.norm(direction / spacing_mm)
    shift_mm = shift_voxels * voxel_mm
    raw_hu = edge_hu(distance_mm, 0.8 * voxel_mm)
    found = measured(raw_hu, edge_hu(distance_mm - shift_mm, 0.8 * voxel_mm), distance_mm < 0, spacing_mm)
    assert found.edge_points > 0.5 * found.surface_points > 100
    assert found.lost_points == 0
    assert found.shift_median_mm == pytest.approx(shift_mm, abs=0.1 * voxel_mm)
    assert found.shift_abs_median_mm == pytest.approx(abs(shift_mm), abs=0.1 * voxel_mm)
    assert found.shift_abs_p95_mm == pytest.approx(abs(shift_mm), abs=0.1 * voxel_mm)
    assert found.sharpness_ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_a_volume_moved_by_interpolation_moves_its_boundary(spacing_mm):
    distance_mm = depth_mm(spacing_mm, (0, 0, 1))
    raw_hu = edge_hu(distance_mm, spacing_mm[2])
    view_hu = ndimage.shift(raw_hu, (0, 0, 0.4), order=3, mode="nearest")
    found = measured(raw_hu, view_hu, distance_mm < 0, spacing_mm)
    assert found.shift_median_mm == pytest.approx(0.4 * spacing_mm[2], abs=0.1 * spacing_mm[2])


@pytest.mark.parametrize("inside_hu, outside_hu", [(60, -100), (-100, 60)])
def test_outwards_is_positive_for_bright_and_dark_labels(inside_hu, outside_hu):
    z, y, x = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (32, 40, 44)], indexing="ij")
    spacing_mm = (1.2, 0.8, 0.8)
    radius_mm = np.sqrt(sum((axis * edge) ** 2 for axis, edge in zip((z, y, x), spacing_mm)))
    raw_hu, view_hu = (edge_hu(radius_mm - size, 0.8, inside_hu, outside_hu) for size in (10.0, 10.3))
    found = measured(raw_hu, view_hu, radius_mm < 10, spacing_mm)
    assert found.shift_median_mm == pytest.approx(0.3, abs=0.05)
    assert measured(view_hu, raw_hu, radius_mm < 10, spacing_mm).shift_median_mm == pytest.approx(-0.3, abs=0.05)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("normal", [(0, 1, 0), (1, 2, -2)])
def test_blur_leaves_a_symmetric_edge_in_place_and_takes_its_sharpness(spacing_mm, normal):
    """Variances of Gaussians add: that of the edge, that of the measurement (a voxel), that of the view's blur."""
    distance_mm = depth_mm(spacing_mm, normal)
    direction = np.asarray(normal) / np.linalg.norm(normal)
    voxel_mm = 1 / np.linalg.norm(direction / spacing_mm)
    edge_mm = 0.6 * voxel_mm
    raw_hu = edge_hu(distance_mm, edge_mm)
    view_hu = ndimage.gaussian_filter(raw_hu, 1.2, mode="nearest")
    found = measured(raw_hu, view_hu, distance_mm < 0, spacing_mm)
    assert abs(found.shift_median_mm) < 0.05 * voxel_mm
    assert found.shift_abs_median_mm < 0.05 * voxel_mm
    one_voxel_mm2 = np.square(direction * spacing_mm).sum()
    expected = np.sqrt((edge_mm**2 + one_voxel_mm2) / (edge_mm**2 + (1 + 1.2**2) * one_voxel_mm2))
    assert found.sharpness_ratio == pytest.approx(expected, rel=0.05)


SOLID_FIELD_MM = (20.0, 22.4, 22.4)


@lru_cache
def solid(kind, thickness_mm, spacing_mm, centre_mm=(2.4, 0.21, -0.17), samples_per_mm=4):
    """Part of each voxel that a solid fills: a sphere, a sheet across y or a vessel along z; its blur of 0.6 mm too."""
    grids = []
    for field_mm, edge_mm, middle_mm in zip(SOLID_FIELD_MM, spacing_mm, centre_mm):
        parts = round(samples_per_mm * edge_mm)
        count = round(field_mm / edge_mm) * parts
        grids.append(((np.arange(count) + 0.5) * edge_mm / parts - field_mm / 2 - middle_mm, parts))
    z, y, x = np.ix_(*[grid.astype(np.float32) for grid, _ in grids])
    axes = {"sphere": (z, y, x), "sheet": (y,), "vessel": (y, x)}[kind]
    outwards_mm = np.sqrt(sum(axis**2 for axis in axes)) - thickness_mm / 2
    filled = np.clip(0.5 - outwards_mm * samples_per_mm, 0, 1)
    filled = np.broadcast_to(filled, [len(grid) for grid, _ in grids])
    pairs = [length for grid, parts in grids for length in (len(grid) // parts, parts)]
    filled = filled.reshape(pairs).mean((1, 3, 5))
    return filled, ndimage.gaussian_filter(filled, [0, *(0.6 / edge for edge in spacing_mm[1:])], mode="nearest")


@pytest.mark.slow
@pytest.mark.parametrize("slice_mm", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["sphere", "sheet", "vessel"])
@pytest.mark.parametrize(
    "thickness_mm, least_mm, most_mm",
    [(1.5, 0.02, 0.25), (2, 0.04, 0.25), (2.8, 0.1, 0.3), (4, 0.19, 0.34), (6, 0.26, 0.34), (12, 0.26, 0.34)],
)
def test_thin_structures_shift_to_the_right_side(kind, thickness_mm, least_mm, most_mm, slice_mm):
    """Exact partial volumes, 0.3 mm on each side; what blur leaves of it in thin ones: the docstring of the module."""
    spacing_mm = (slice_mm, 0.7, 0.7)
    filled, raw = solid(kind, thickness_mm, spacing_mm)
    if not (filled >= 0.5).any():
        pytest.skip("a ball of 1.5 or 2 mm fills no half of a voxel of 5 mm")
    for growth_mm in (0.3, -0.3):
        _, view = solid(kind, thickness_mm + 2 * growth_mm, spacing_mm)
        for contrast_hu in (100, -100):
            found = measured(contrast_hu * raw, contrast_hu * view, filled >= 0.5, spacing_mm)
            assert found.edge_points > 0.8 * found.surface_points
            assert least_mm < found.shift_median_mm * np.sign(growth_mm) < most_mm


@pytest.mark.parametrize("neighbour_hu", [100, 400])
@pytest.mark.parametrize("gap_mm", [1.5, 3])
@pytest.mark.parametrize("moves_too", [False, True])
def test_a_neighbour_that_is_as_bright_or_brighter_is_no_edge_of_the_structure(neighbour_hu, gap_mm, moves_too):
    spacing_mm, thickness_mm = (5.0, 0.7, 0.7), 2.8
    beside_mm = (2.4, 0.21 + thickness_mm / 2 + gap_mm + 2, -0.17)
    filled, raw = solid("vessel", thickness_mm, spacing_mm)
    _, beside = solid("vessel", 4, spacing_mm, beside_mm)
    for growth_mm in (0.3, -0.3):
        _, view = solid("vessel", thickness_mm + 2 * growth_mm, spacing_mm)
        _, then = solid("vessel", 4 + 2 * growth_mm * moves_too, spacing_mm, beside_mm)
        raw_hu, view_hu = -50 + 100 * raw + neighbour_hu * beside, -50 + 100 * view + neighbour_hu * then
        found = measured(raw_hu, view_hu, filled >= 0.5, spacing_mm)
        assert found.shift_median_mm == pytest.approx(0.63 * growth_mm, abs=0.06)


def test_a_structure_between_a_darker_and_a_brighter_one_has_edges_of_both_senses():
    spacing_mm = (5.0, 0.7, 0.7)
    filled, raw = solid("vessel", 6, spacing_mm)
    y_mm = (np.arange(32) - 15.5)[:, None] * 0.7
    background_hu = 10 + 110 * special.erf(y_mm / 1.2)
    for growth_mm in (0.3, -0.3):
        _, view = solid("vessel", 6 + 2 * growth_mm, spacing_mm)
        raw_hu, view_hu = (background_hu + (50 - background_hu) * part for part in (raw, view))
        found = measured(raw_hu, view_hu, filled >= 0.5, spacing_mm)
        assert found.edge_points > 0.95 * found.surface_points
        assert found.shift_median_mm == pytest.approx(growth_mm, abs=0.04)


def test_noise_does_not_turn_the_sign_of_a_thin_vessels_shift():
    spacing_mm, rng = (1.0, 0.7, 0.7), np.random.default_rng(0)
    filled, raw = solid("vessel", 2.8, spacing_mm)
    region = np.zeros(raw.shape, bool)
    region[:, :6] = True
    for growth_mm in (0.3, -0.3):
        _, view = solid("vessel", 2.8 + 2 * growth_mm, spacing_mm)
        raw_hu, view_hu = (-50 + 100 * part + rng.normal(0, 15, raw.shape) for part in (raw, view))
        found = measured(raw_hu, view_hu, filled >= 0.5, spacing_mm, region)
        assert found.edge_points > 0.5 * found.surface_points
        assert found.shift_median_mm == pytest.approx(0.63 * growth_mm, abs=0.08)


def test_the_same_volume_has_no_shift_at_all():
    distance_mm = depth_mm((3, 0.8, 0.8), (1, 2, -2))
    raw_hu = edge_hu(distance_mm, 1.0) + np.random.default_rng(0).normal(0, 15, SHAPE)
    found = measured(raw_hu, raw_hu, distance_mm < 0, (3, 0.8, 0.8), np.abs(distance_mm - 10) < 3)
    assert (found.shift_median_mm, found.shift_abs_p95_mm, found.sharpness_ratio) == (0, 0, 1)


def test_noise_that_the_view_removes_neither_moves_nor_blunts_the_edge_much():
    spacing_mm = (1.0, 1.0, 1.0)
    distance_mm = depth_mm(spacing_mm, (1, 2, -2))
    clean_hu = edge_hu(distance_mm, 0.8)
    raw_hu = clean_hu + np.random.default_rng(0).normal(0, 15, SHAPE)
    found = measured(raw_hu, clean_hu, distance_mm < 0, spacing_mm, distance_mm < -5)
    assert found.edge_points > 0.5 * found.surface_points
    assert abs(found.shift_median_mm) < 0.05
    assert found.sharpness_ratio == pytest.approx(1, abs=0.05)


def test_a_contour_that_is_2_mm_off_finds_the_same_edge():
    spacing_mm = (3.0, 0.8, 0.8)
    distance_mm = depth_mm(spacing_mm, (0, 1, 0))
    raw_hu, view_hu = edge_hu(distance_mm, 0.8), edge_hu(distance_mm - 0.2, 0.8)
    for off_mm in (-2, 2):
        found = measured(raw_hu, view_hu, distance_mm < off_mm, spacing_mm)
        assert found.shift_median_mm == pytest.approx(0.2, abs=0.04)


def test_noise_without_an_edge_is_no_edge():
    raw_hu = 60 + np.random.default_rng(0).normal(0, 15, SHAPE)
    distance_mm = depth_mm((1, 1, 1), (1, 2, -2))
    found = measured(raw_hu, raw_hu, distance_mm < 0, (1, 1, 1), np.ones(SHAPE, bool))
    assert found.surface_points > 500
    assert found.edge_points < 0.01 * found.surface_points
    flat = measured(np.zeros(SHAPE), np.zeros(SHAPE), distance_mm < 0, (1, 1, 1))
    assert (flat.edge_points, flat.lost_points) == (0, 0)
    assert np.isnan([flat.shift_median_mm, flat.shift_abs_p95_mm, flat.sharpness_ratio]).all()


def test_edges_that_the_view_lost_are_counted_and_tell_no_shift():
    distance_mm = depth_mm((1, 1, 1), (0, 0, 1))
    raw_hu = edge_hu(distance_mm, 0.8)
    view_hu = edge_hu(distance_mm - 0.3, 0.8)
    view_hu[:, :10] = -20
    found = measured(raw_hu, view_hu, distance_mm < 0, (1, 1, 1))
    assert found.lost_points == pytest.approx(found.edge_points / 4, rel=0.1)
    assert found.shift_abs_p95_mm == pytest.approx(0.3, abs=0.1)


def test_points_are_spread_evenly_over_the_area():
    """Sheets of 3 x 0.5 mm voxels: a box of 12 x 10 x 10 mm has 2 faces of 100 mm² and 4 of 120 mm²."""
    mask = np.zeros((12, 40, 40), bool)
    mask[4:8, 10:30, 10:30] = True
    points, normals = _surface(mask, np.array([3.0, 0.5, 0.5]))
    assert (points[:, 0] < 3 * 3.5 + 0.1).mean() == pytest.approx(100 / 680, rel=0.1)
    from_centre = points - [3 * 5.5, 0.5 * 19.5, 0.5 * 19.5]
    in_the_middle_of_a_face = (np.abs(from_centre[:, 0]) > 5.9) & (np.abs(from_centre[:, 1:]) < 2).all(1)
    assert np.abs(normals[in_the_middle_of_a_face, 0]).min() > 0.95
    assert (np.sum(from_centre * normals, axis=1) > 0).all()
    assert len(_surface(np.pad(np.ones((40, 70, 70), bool), 5), np.ones(3))[0]) == MAX_POINTS


def test_masks_without_a_surface_have_no_figures():
    volume = edge_hu(depth_mm((1, 1, 1), (0, 0, 1)), 0.8)
    for mask in (np.zeros(SHAPE, bool), np.ones(SHAPE, bool)):
        found = measured(volume, volume, mask, (1, 1, 1))
        assert found.surface_points == 0
        assert np.isnan(found.shift_median_mm)
    one_slice = measured(volume[:1], volume[:1], np.ones((1, *SHAPE[1:]), bool), (5, 1, 1))
    assert one_slice.surface_points == 0


def test_the_border_of_the_volume_is_no_surface():
    distance_mm = depth_mm((1, 1, 1), (0, 0, 1))
    points, _ = _surface(distance_mm < 0, np.ones(3))
    assert np.allclose(points[:, 2], 21.5)
