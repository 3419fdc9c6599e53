"""Where lesions go: inside fraction, clearance and positions, against brute force on grids that expose swapped axes."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.distance import cdist

from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.synthesis.lesions.placement import NothingFits, index_of, place, position_of, too_close
from fvae_nnunet.synthesis.lesions.shapes import draw_lesion_shape

SPACING_MM = (5.0, 0.7, 0.7)
OBLIQUE = tuple(
    np.array([[0.0, 0.0, 1.0], [0.8, -0.6, 0.0], [0.6, 0.8, 0.0]]).ravel().tolist()
)  # columns: image axes; no axis where it would be without


def an_organ(shape=(20, 90, 90)):
    organ = np.zeros(shape, bool)
    organ[3:15, 10:70, 20:60] = True
    return organ


def test_inside_fraction_and_clearance_on_an_anisotropic_grid():
    rng = np.random.default_rng(0)
    organ = an_organ()
    lesions = np.zeros_like(organ)
    lesions[8, 38:42, 38:42] = True
    forbidden = too_close(lesions, SPACING_MM, 6.0)
    for _ in range(40):
        shape = draw_lesion_shape(rng, 12.0, SPACING_MM)
        placement = place(rng, shape, organ, forbidden=forbidden, inside_fraction=0.8, tries=500)
        new = np.zeros_like(organ)
        new[placement.box] = shape
        assert new.sum() == shape.sum()
        assert (new & organ).sum() / new.sum() == placement.inside_fraction >= 0.8
        distances = cdist(np.argwhere(new) * SPACING_MM, np.argwhere(lesions) * SPACING_MM)
        assert distances.min() >= 6.0


def test_too_close_is_a_distance_in_mm():
    lesions = np.zeros((9, 40, 40), bool)
    lesions[4, 20, 20] = lesions[0, 0, 0] = True
    near = too_close(lesions, SPACING_MM, 5.1)
    everywhere = np.argwhere(np.ones_like(lesions)) * SPACING_MM
    distances = cdist(everywhere, np.argwhere(lesions) * SPACING_MM).min(axis=1).reshape(lesions.shape)
    assert np.array_equal(near, distances < 5.1)
    assert np.array_equal(too_close(lesions, SPACING_MM, 0), lesions)
    assert not too_close(np.zeros_like(lesions), SPACING_MM, 5).any()


def test_places_are_spread_over_the_whole_organ():
    rng = np.random.default_rng(1)
    organ, shape = an_organ(), np.ones((1, 3, 3), bool)
    nothing = np.zeros_like(organ)
    boxes = [place(rng, shape, organ, forbidden=nothing, inside_fraction=1, tries=100).box for _ in range(400)]
    centres = np.array([[(side.start + side.stop - 1) / 2 for side in box] for box in boxes])
    # the mean of 400 uniform draws is within 4 standard errors of the middle
    extent = np.array([12, 58, 38])
    assert np.all(np.abs(centres.mean(axis=0) - [8.5, 39.5, 39.5]) < 4 * extent / np.sqrt(12 * 400))
    assert np.all(centres.min(axis=0) <= [3, 13, 23])
    assert np.all(centres.max(axis=0) >= [14, 66, 56])


def test_at_is_the_only_place_that_is_tried():
    rng = np.random.default_rng(2)
    organ, shape = an_organ(), draw_lesion_shape(rng, 10.0, SPACING_MM)
    free = np.zeros_like(organ)
    placement = place(rng, shape, organ, forbidden=free, inside_fraction=0.8, at=(9.0, 30.25, 40.0), tries=1)
    new = np.zeros_like(organ)
    new[placement.box] = shape
    assert np.abs(np.argwhere(new).mean(axis=0) - (9.0, 30.25, 40.0)).max() <= 0.5
    with pytest.raises(NothingFits, match=r"tried: 1\): at most 0\.\d\d of it was in the organ \(required: 0\.8\)"):
        place(rng, shape, organ, forbidden=free, inside_fraction=0.8, at=(9.0, 11.0, 22.0), tries=1)
    with pytest.raises(NothingFits, match="1 extended beyond the volume"):
        place(rng, shape, organ, forbidden=free, inside_fraction=0.0, at=(0.0, 0.0, 0.0), tries=1)


def test_what_is_in_the_way_is_counted():
    rng = np.random.default_rng(3)
    organ = an_organ()
    with pytest.raises(NothingFits, match=r"at most 1\.00 .* 50 with enough in the organ were too close"):
        place(rng, np.ones((1, 1, 1), bool), organ, forbidden=organ.copy(), inside_fraction=0.8, tries=50)


def test_empty_organs_and_small_volumes_are_errors():
    rng = np.random.default_rng(4)
    empty = np.zeros((4, 8, 8), bool)
    with pytest.raises(NothingFits, match="the organ is empty"):
        place(rng, np.ones((1, 1, 1), bool), empty, forbidden=empty, inside_fraction=0.8, tries=5)
    with pytest.raises(NothingFits, match="5 x 2 x 2 voxels does not fit into a volume of 4 x 8 x 8"):
        place(rng, np.ones((5, 2, 2), bool), ~empty, forbidden=empty, inside_fraction=0.8, tries=5)


def test_positions_are_those_of_simpleitk():
    image = sitk.Image(30, 20, 10, sitk.sitkUInt8)
    image.SetSpacing((0.7, 0.8, 5.0))
    image.SetOrigin((-100.0, 33.0, 7.5))
    image.SetDirection(OBLIQUE)
    geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    expected = image.TransformContinuousIndexToPhysicalPoint((12.25, 3.0, 8.0))
    assert position_of((8.0, 3.0, 12.25), geometry) == pytest.approx(expected)
    assert index_of(expected, geometry) == pytest.approx((8.0, 3.0, 12.25))
