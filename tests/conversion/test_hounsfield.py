import numpy as np
import pytest
from conversion_for_tests import ORIGIN_MM, SHAPE, SPACING_MM, chest, metadata_row

from fvae_nnunet.conversion.headers import true_geometry
from fvae_nnunet.conversion.hounsfield import implausible, to_hu
from fvae_nnunet.conversion.tables import VolumeMetadata
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError

HU = chest()
RESCALE = (1.0, -1024.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TRUE = Geometry(SPACING_MM, ORIGIN_MM, IDENTITY)
BLANK = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))


def _padded(volume, value):
    """With the corners outside the circle of the reconstruction set to the scanner's padding."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    outside = ((y - 9.5) / 10) ** 2 + ((x - 11.5) / 12) ** 2 > 1
    padded = volume.copy()
    padded[:, outside] = value
    return padded


@pytest.mark.parametrize("rescale", [RESCALE, (1.0, -8192.0), (2.0, -1000.0), (1.0, 0.0), None])
def test_hu_stay_as_they_are_whatever_the_metadata_say(rescale):
    volume, rescaled = to_hu(HU, rescale)
    assert volume is HU and not rescaled


@pytest.mark.parametrize("rescale", [RESCALE, (1.0, -8192.0), (0.5, -1000.0)])
def test_stored_values_are_rescaled_once(rescale):
    slope, intercept = rescale
    volume, rescaled = to_hu((HU - intercept) / slope, rescale)
    assert rescaled
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(volume, HU)


@pytest.mark.parametrize("padding_hu", [-1024, -2048, -3024])
def test_padding_decides_nothing(padding_hu):
    padded = _padded(HU, padding_hu)
    assert to_hu(padded, RESCALE)[1] is False
    # stored, a padding of -2048 HU is -1024: it must not be taken for air, nor air at 24 for tissue
    assert to_hu(padded + 1024, RESCALE)[1] is True


def test_hu_cut_at_the_value_of_air_are_plausible():
    assert implausible(np.maximum(HU, -1000)) is None


def test_slope_and_intercept_applied_twice_are_refused():
    with pytest.raises(UserError, match=r"the values are not HU as they are .* soft tissue"):
        to_hu(HU - 1024, RESCALE)


def test_a_wrong_slope_or_intercept_is_refused():
    with pytest.raises(UserError, match="its metadata has slope 1 and intercept 0"):
        to_hu(HU + 1024, (1.0, 0.0))
    with pytest.raises(UserError, match="nor with slope 3 and intercept -1024"):
        to_hu(HU + 1024, (3.0, -1024.0))
    with pytest.raises(UserError, match="no metadata"):
        to_hu(HU + 1024, None)


def test_what_looks_right_both_ways_is_refused():
    with pytest.raises(UserError, match="look like HU both as they are and with slope 1 and intercept -10"):
        to_hu(HU, (1.0, -10.0))


def test_the_user_can_decide():
    assert to_hu(HU - 1024, RESCALE, mode="hu")[0][0, 0, 0] == HU[0, 0, 0] - 1024
    np.testing.assert_array_equal(to_hu(HU, RESCALE, mode="stored")[0], HU - 1024)
    with pytest.raises(UserError, match="`metadata`"):
        to_hu(HU, None, mode="stored")


def test_uniform_and_empty_volumes_are_implausible():
    assert "soft tissue" in implausible(np.full(SHAPE, -1000))
    assert "air" in implausible(np.zeros(SHAPE))
    assert "no voxels" in implausible(np.zeros((0, 4, 4)))


def _metadata(**changes):
    return VolumeMetadata("m.csv, line 2", metadata_row("train_1_a_1.nii.gz", **changes))


def test_a_blank_header_takes_the_geometry_of_the_metadata():
    geometry, source = true_geometry(BLANK, SHAPE, _metadata())
    assert source == "metadata"
    assert geometry == TRUE


def test_a_header_that_agrees_with_the_metadata_is_kept_to_the_digit():
    header = Geometry((0.70001, 0.70001, 1.5), (1.0, 2.0, 3.0), BLANK.direction)
    assert true_geometry(header, SHAPE, _metadata()) == (header, "header")
    assert true_geometry(header, SHAPE, None) == (header, "header")


def test_a_header_that_contradicts_the_metadata_is_refused_unless_the_user_decides():
    header = Geometry((0.7, 0.7, 3.0), ORIGIN_MM, IDENTITY)
    with pytest.raises(UserError, match=r"0\.7 0\.7 3 mm \(x y z\), but m\.csv, line 2 says 0\.7 0\.7 1\.5 mm"):
        true_geometry(header, SHAPE, _metadata())
    assert true_geometry(header, SHAPE, _metadata(), mode="header") == (header, "header")
    assert true_geometry(header, SHAPE, _metadata(), mode="metadata") == (TRUE, "metadata")


def test_a_blank_header_without_metadata_is_refused():
    with pytest.raises(UserError, match="its header is blank"):
        true_geometry(BLANK, SHAPE, None)
    assert true_geometry(BLANK, SHAPE, None, mode="header") == (BLANK, "header")
    with pytest.raises(UserError, match="it has no metadata; give"):
        true_geometry(TRUE, SHAPE, None, mode="metadata")


def test_metadata_of_an_image_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"slices have \(20, 24\) voxels, but m\.csv, line 2 says \(24, 20\)"):
        true_geometry(BLANK, SHAPE, _metadata(Rows="24", Columns="20"))
