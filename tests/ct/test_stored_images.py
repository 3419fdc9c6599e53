"""Files that are not what their name or their header says: refused in one sentence, or read as nnU-Net reads them."""

import gzip
import os
import re
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from fvae_nnunet.ct.files import find_files, find_images, read_header, read_volume
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_file
from fvae_nnunet.files.recorded import sha256_of_file

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def floats(shape=(4, 5, 6)):
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


def written(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    return path


def patched(path, values):
    """A .nii with float32 numbers put into its header at these offsets."""
    nibabel.save(nibabel.Nifti1Image(floats(), AFFINE), path)
    content = bytearray(path.read_bytes())
    for offset, value in values.items():
        content[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [True, False])
def test_voxels_that_are_not_finite_are_counted(tmp_path, ending, compressed):
    array = floats()
    array[0, 0, :2], array[3, 4, 5] = np.nan, -np.inf
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    with pytest.raises(UserError, match=rf"ct\{ending}: 3 of 120 voxels are not finite"):
        read_volume(path)
    check_image_file(path, voxels_too=False)


def test_big_endian_and_double_voxels_are_looked_at_too(tmp_path):
    array = floats().astype(">f8")
    array[1, 1, 1] = np.inf
    nibabel.save(nibabel.Nifti1Image(array, AFFINE, nibabel.Nifti1Header(endianness=">")), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="1 of 120 voxels"):
        check_image_file(tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti2Image(array, AFFINE), tmp_path / "b.nii")
    with pytest.raises(UserError, match="1 of 120 voxels"):
        check_image_file(tmp_path / "b.nii")


PIXDIM, SLOPE, INTERCEPT, QUATERN, SROW = 76, 112, 116, 256, 280


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({PIXDIM + 4: 0}, "spacing of 0, 1, 3 mm"),
        ({PIXDIM + 8: -1}, "spacing of 1, -1, 3 mm"),
        ({PIXDIM + 12: np.nan}, "spacing of 1, 1, nan mm"),
        ({PIXDIM + 12: np.inf}, "spacing of 1, 1, inf mm"),
        ({SLOPE: np.nan}, "scl_slope nan"),
        ({SLOPE: 1, INTERCEPT: np.inf}, "scl_inter inf"),
        ({SROW + 4: np.nan}, "affine"),
        ({SROW + 40: 0}, "affine"),
    ],
)
def test_geometry_and_scaling_that_are_no_numbers_are_refused(tmp_path, values, said):
    path = patched(tmp_path / "ct.nii", values)
    for read in (read_volume, read_header):
        with pytest.raises(UserError, match=said) as refused:
            read(path)
        assert str(path) in str(refused.value)


def test_a_quaternion_is_looked_at_where_it_counts(tmp_path):
    path = patched(tmp_path / "ct.nii", {QUATERN: np.nan})
    content = bytearray(path.read_bytes())
    read_volume(path)
    content[252:254] = np.int16(1).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match="qform"):
        read_volume(path)


def test_a_nifti_header_whose_voxels_are_in_an_img_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(floats(), AFFINE), tmp_path / "ct.hdr")
    (tmp_path / "ct.hdr").rename(tmp_path / "ct.nii")
    with pytest.raises(UserError, match=r"voxels are in another file \(ct\.img\)"):
        read_volume(tmp_path / "ct.nii")


@pytest.mark.parametrize(
    ("ending", "field", "damaged"),
    [
        (".mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 0 1 0 0 0 nan"),
        (".mha", b"Offset = 0 0 0", b"Offset = 0 inf 0"),
        (".nrrd", b"space origin: (0,0,0)", b"space origin: (nan,nan,nan)"),
        (".nrrd", b"(0,0,1)", b"(nan,nan,nan)"),
    ],
)
def test_an_image_in_no_place_is_refused(tmp_path, ending, field, damaged):
    path = written(tmp_path / f"ct{ending}", floats())
    assert field in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(field, damaged))
    for read in (read_volume, read_header):
        with pytest.raises(UserError, match=r"its header says .* correct it"):
            read(path)


@pytest.mark.parametrize("spacing", ["0 1 1", "nan 1 1", "1 -1 1"])
def test_spacings_of_metaimages_and_nrrd(tmp_path, spacing):
    mha, nrrd = (written(tmp_path / f"ct{ending}", floats()) for ending in (".mha", ".nrrd"))
    mha.write_bytes(mha.read_bytes().replace(b"ElementSpacing = 1 1 1", f"ElementSpacing = {spacing}".encode()))
    directions = b"space directions: (1,0,0) (0,1,0) (0,0,1)"
    assert directions in nrrd.read_bytes()
    nrrd.write_bytes(nrrd.read_bytes().replace(directions, f"spacings: {spacing}".encode()))
    for path in (mha, nrrd):
        with pytest.raises(UserError, match="has a spacing of"):
            read_volume(path)


@pytest.mark.parametrize("packing", ["raw", "gzip"])
def test_a_nrrd_cut_short_is_refused_in_every_encoding(tmp_path, packing):
    array = floats()
    pack = {"raw": bytes, "gzip": gzip.compress}[packing]
    head = f"NRRD0004\ntype: float\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: {packing}\n\n".encode()
    data = pack(array.tobytes())
    (tmp_path / "ct.nrrd").write_bytes(head + data)
    assert np.array_equal(read_volume(tmp_path / "ct.nrrd")[0], array)
    (tmp_path / "ct.nrrd").write_bytes(head + data[: len(data) // 2])
    with pytest.raises(UserError, match=r"truncated|cannot be read"):
        check_image_file(tmp_path / "ct.nrrd")


def test_a_compressed_metaimage_cut_short_is_refused_before_simpleitk_sees_it(tmp_path, monkeypatch):
    path = written(tmp_path / "ct.mha", np.arange(12000, dtype=np.int16).reshape(20, 20, 30))
    whole = path.read_bytes()
    check_image_file(path)
    start = whole.index(b"LOCAL\n") + len(b"LOCAL\n")
    path.write_bytes(whole[: (start + len(whole)) // 2])
    with pytest.raises(UserError, match="truncated"):
        check_image_file(path)
    # a stream that ends well, too early
    path.write_bytes(whole[:start] + zlib.compress(bytes(100)))
    with pytest.raises(UserError, match="truncated: it has 100 of the 24000 bytes of voxels"):
        check_image_file(path)


def test_headers_that_point_to_other_files_are_refused(tmp_path):
    array = floats()
    (tmp_path / "secret.raw").write_bytes(array.tobytes())
    whole = written(tmp_path / "a.mha", array).read_bytes()
    head = whole[: whole.index(b"ElementDataFile")].replace(b"CompressedData = True", b"CompressedData = False")
    nrrd = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n"
    headers = {
        "a.mha": head + b"ElementDataFile = secret.raw\n",
        "b.mha": head + b"ElementDataFile : secret.raw\n",
        "c.mha": head + f"ElementDataFile = {tmp_path}/secret.raw\n".encode(),
        "h.mha": head + b"ElementDataFile also = secret.raw\nElementDataFile = LOCAL\n",
        "d.mha": head + b"ElementDataFile = LIST\nsecret.raw\n",
        "e.nrrd": nrrd + b"data file: secret.raw\n",
        "f.nrrd": nrrd + b"datafile: secret.raw\n\n",
        "g.nrrd": nrrd + b"data file: LIST\nsecret.raw\n",
    }
    for name, content in headers.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_volume, read_header):
            with pytest.raises(UserError, match="voxels are in another file"):
                read(tmp_path / name)


def test_names_that_lie_about_the_format_are_found_out(tmp_path):
    whole = written(tmp_path / "a.nii.gz", floats()).read_bytes()
    (tmp_path / "a.nii").write_bytes(whole)
    with pytest.raises(UserError, match=re.escape("rename it to end in .nii.gz")):
        read_volume(tmp_path / "a.nii")
    for name in ("b.mha", "b.nrrd"):
        (tmp_path / name).write_bytes(whole)
        with pytest.raises(UserError, match="despite its name"):
            read_volume(tmp_path / name)
    (tmp_path / "b.nii.gz").write_bytes(b"\n" * 2000)
    with pytest.raises(UserError, match="it is not a NIfTI file"):
        read_volume(tmp_path / "b.nii.gz")
    for name in ("b.mha", "b.nrrd", "b.nii", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match="cannot be read"):
            read_volume(tmp_path / name)


def test_what_gzip_leaves_alone_is_left_alone_and_plain_files_are_read(tmp_path):
    array = floats()
    whole = written(tmp_path / "whole.nii.gz", array).read_bytes()
    plain = gzip.decompress(whole)
    members = gzip.compress(plain[:500]) + gzip.compress(plain[500:])
    for content in (whole + b"garbage", whole + bytes(70), whole + b"\x1f", plain, plain + b"more", members):
        (tmp_path / "ct.nii.gz").write_bytes(content)
        assert np.array_equal(read_volume(tmp_path / "ct.nii.gz")[0], array)
    (tmp_path / "ct.nii.gz").write_bytes(plain[:-1])
    with pytest.raises(UserError, match="truncated: it has 479 of the 480 bytes of voxels"):
        read_volume(tmp_path / "ct.nii.gz")
    (tmp_path / "ct.nii.gz").write_bytes(plain)
    with pytest.raises(UserError, match="gzip it"):
        read_volume(tmp_path / "ct.nii.gz", reader="NibabelIO")


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    said = {"pipe": "is a pipe", "folder": "is a folder", "link": "a broken link", "device": "device"}
    assert list(find_images(tmp_path)) == sorted(said)
    for name, words in said.items():
        for read in (read_volume, read_header, sha256_of_file):
            with pytest.raises(UserError, match=rf"{name}\.nii\.gz.* {words}"):
                read(tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match="is missing"):
        check_file(tmp_path / "nothing.nii.gz")


def test_capital_endings_are_named_not_passed_over(tmp_path):
    written(tmp_path / "small.nii.gz", floats())
    (tmp_path / "small.nii.gz").rename(tmp_path / "LARGE.NII.GZ")
    assert list(find_images(tmp_path)) == ["LARGE"]
    with pytest.raises(UserError, match="ends in capitals"):
        read_volume(tmp_path / "LARGE.NII.GZ")
    with pytest.raises(UserError, match=r"do not end in \.nii\.gz and would be left out: LARGE\.NII\.GZ"):
        find_files(tmp_path, ".nii.gz")


def test_files_of_one_ending(tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", ".c.nii.gz", "summary.json", "b.npz"):
        (tmp_path / name).touch()
    assert find_files(tmp_path, ".nii.gz") == {name: tmp_path / f"{name}.nii.gz" for name in ("a", "b")}
    (tmp_path / "b.nrrd").touch()
    with pytest.raises(UserError, match=r"left out: b\.nrrd"):
        find_files(tmp_path, ".nii.gz")
    (tmp_path / "b.nrrd").rename(tmp_path / "scan.dcm")
    with pytest.raises(UserError, match=r"scan\.dcm: images in this format"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_files(tmp_path / "nowhere", ".nii")


def test_names_that_are_no_utf8_are_refused_before_anything_is_opened(tmp_path):
    name = os.fsdecode(b"P\xe4t_0000.nii.gz")
    (tmp_path / name).touch()
    for search in (find_images, lambda folder: find_files(folder, ".nii.gz")):
        with pytest.raises(UserError, match=r"P\\xe4t_0000\.nii\.gz: this name is not valid UTF-8; rename it"):
            search(tmp_path)
    for read in (read_volume, read_header, sha256_of_file):
        with pytest.raises(UserError, match="not valid UTF-8"):
            read(tmp_path / name)
