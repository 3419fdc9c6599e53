import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.ct.orientation import axial_order, axial_order_of_nnunet, direction_of_nnunet
from fvae_nnunet.pictures.planes import sides_of


def volume_in_orientation(code):
    """An image whose grey values are 100 z + 10 y + x in patient axes (foot-head, front-back, left-right)."""
    z, y, x = np.meshgrid(np.arange(4), np.arange(5), np.arange(6), indexing="ij")
    image = sitk.GetImageFromArray((100 * z + 10 * y + x).astype(np.int16))
    return sitk.DICOMOrient(image, code)


CODES = ["".join(axis) for axes in itertools.permutations(["LR", "AP", "SI"]) for axis in itertools.product(*axes)]


@pytest.mark.parametrize("code", CODES)
def test_all_48_orientations_give_axial_slices(code):
    image = volume_in_orientation(code)
    axial = sitk.GetArrayFromImage(image).transpose(axial_order(np.asarray(image.GetDirection())))
    assert axial.shape == (4, 5, 6)
    assert abs(int(axial[1, 0, 0]) - int(axial[0, 0, 0])) == 100
    assert abs(int(axial[0, 1, 0]) - int(axial[0, 0, 0])) == 10
    assert abs(int(axial[0, 0, 1]) - int(axial[0, 0, 0])) == 1
    # grey values rise to the head, to the back and to the patient's left
    course = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection()).axial_direction
    signs = [np.sign(int(axial[neighbour]) - int(axial[0, 0, 0])) for neighbour in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    np.testing.assert_allclose(course, np.eye(3)[:, ::-1] * signs, atol=1e-6)
    left_to_right = ("R", "L") if signs[2] > 0 else ("L", "R")
    top_to_bottom = ("A", "P") if signs[1] > 0 else ("P", "A")
    assert sides_of(course[:, 1], course[:, 2]) == (*left_to_right, *top_to_bottom)


@pytest.mark.parametrize(("degrees", "expected"), [(0, (0, 1, 2)), (30, (0, 1, 2)), (60, (1, 0, 2)), (90, (1, 0, 2))])
def test_an_oblique_volume_takes_the_nearest_axis(degrees, expected):
    # tilted about the left-right axis: beyond 45 degrees the image's y axis is the one along the body
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    assert axial_order(direction) == expected


def test_nnunet_readers_agree_with_simpleitk(tmp_path):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    path = tmp_path / "coronal.nii.gz"
    image = volume_in_orientation("LIP")
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(path))
    for reader in (SimpleITKIO(), NibabelIO(), NibabelIOWithReorient()):
        data, properties = reader.read_images([str(path)])
        axial = data[0].transpose(axial_order_of_nnunet(properties))
        assert axial.shape == (4, 5, 6), type(reader).__name__
        turned = "WithReorient" in type(reader).__name__
        expected = sitk.DICOMOrient(image, "RAS") if turned else image
        direction = np.reshape(expected.GetDirection(), (3, 3))
        np.testing.assert_allclose(direction_of_nnunet(properties), direction, atol=1e-6)


def test_images_without_direction_keep_their_order():
    assert axial_order_of_nnunet({"spacing": [1, 1, 1]}) == (0, 1, 2)
    assert axial_order_of_nnunet({"sitk_stuff": {"direction": (1, 0, 0, 1)}}) == (0, 1, 2)
    assert direction_of_nnunet({"spacing": [1, 1, 1]}) is None
