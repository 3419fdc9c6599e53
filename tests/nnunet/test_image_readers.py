"""Images that only nibabel reads, and readers that turn them, from fvae-reconstruct to fvae-evaluate."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from identity_vae import IdentityVAE
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from fvae_nnunet.cli import evaluate, reconstruct
from fvae_nnunet.ct.files import find_images
from fvae_nnunet.ct.orientation import axial_order_of_nnunet
from fvae_nnunet.jobs.pipeline import StageSeconds
from fvae_nnunet.reconstruction.folder import reconstruct_folder
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16

SAGITTAL = np.array([[0, 0, 3.0, -50], [-0.8, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 0, 1]])
SHEARED = np.array([[-0.8, 0, 0, 10], [0, -0.8, 0.5, 20], [0, 0, 3.0, -300], [0, 0, 0, 1]])


class ShiftingVAE(IdentityVAE):
    """Moves every slice to one side and back to front: what it makes depends on how the volume is turned."""

    def decode(self, latent):
        return torch.roll(latent.float(), (2, 1), dims=(-1, -2))


def save(path, array_xyz, affine):
    """With the affine in the sform alone, as a tilted gantry needs it."""
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(array_xyz, None)
    image.set_sform(affine, 1)
    image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    nibabel.save(image, path)


@pytest.mark.parametrize(
    ("reader", "affine"),
    [("NibabelIO", SAGITTAL), ("NibabelIO", SHEARED), ("NibabelIOWithReorient", SAGITTAL),
     ("NibabelIOWithReorient", SHEARED), ("SimpleITKIOWithReorient", SAGITTAL)],
)  # fmt: skip
def test_a_folder_is_reconstructed_as_fvae_preprocess_sees_it_through_the_same_reader(tmp_path, reader, affine):
    volume_hu = np.random.default_rng(0).integers(-900, 900, (16, 24, 8)).astype(np.int16)
    save(tmp_path / "in" / "case_0000.nii.gz", volume_hu, affine)
    settings = ReconstructionSettings.for_vae(ShiftingVAE().spec, hu_window=(-1000, 1000))
    outcomes = reconstruct_folder(
        find_images(tmp_path / "in"), tmp_path / "out", ShiftingVAE(),
        settings=settings, workers=0, seconds=StageSeconds(), made_with={}, reader=reader,
    )  # fmt: skip
    assert [outcome.error for outcome in outcomes] == [None]
    nnunets = recursive_find_reader_writer_by_name(reader)()
    raw, properties = nnunets.read_images([str(tmp_path / "in" / "case_0000.nii.gz")])
    view, view_properties = nnunets.read_images([str(tmp_path / "out" / "case_0000.nii.gz")])
    expected = reconstruct_to_int16(ShiftingVAE(), raw[0], settings, axis_order=axial_order_of_nnunet(properties))
    assert not np.array_equal(expected, raw[0])
    assert np.array_equal(view[0], expected)
    assert str(view_properties) == str(properties)
    assert np.array_equal(nibabel.load(tmp_path / "out" / "case_0000.nii.gz").affine, affine.astype(np.float32))


def test_fvae_reconstruct_reads_sheared_images_and_obeys_the_dataset_json_above_them(tmp_path, capsys):
    volume_hu = np.random.default_rng(0).integers(-900, 900, (16, 24, 8)).astype(np.int16)
    save(tmp_path / "imagesTs" / "case_0000.nii.gz", volume_hu, SHEARED)
    command = ["-i", str(tmp_path / "imagesTs"), "--vae", "control:identity", "-np", "0"]
    assert reconstruct.main([*command, "-o", str(tmp_path / "plain")]) == 0
    assert np.array_equal(nibabel.load(tmp_path / "plain" / "case_0000.nii.gz").get_fdata(), volume_hu)
    manifest = "fvae_manifest/manifest.json"
    assert "reader" not in json.loads((tmp_path / "plain" / manifest).read_text())["settings"]
    (tmp_path / "dataset.json").write_text(json.dumps({"overwrite_image_reader_writer": "NibabelIOWithReorient"}))
    assert reconstruct.main([*command, "-o", str(tmp_path / "turned")]) == 0
    settings = json.loads((tmp_path / "turned" / manifest).read_text())["settings"]
    assert settings["reader"] == "NibabelIOWithReorient"
    assert np.array_equal(nibabel.load(tmp_path / "turned" / "case_0000.nii.gz").get_fdata(), volume_hu)
    (tmp_path / "dataset.json").write_text(json.dumps({"overwrite_image_reader_writer": "SimpleITKIO"}))
    assert reconstruct.main([*command, "-o", str(tmp_path / "refused")]) == 1
    assert "orthonormal" in capsys.readouterr().err


def test_hu_that_no_ct_has_are_said_with_numbers_and_recorded(tmp_path, capsys):
    volume_hu = np.random.default_rng(0).integers(-900, 900, (16, 24, 8)).astype(np.int32)
    volume_hu[0, 0, 0], volume_hu[1, 1, 1:3] = -1_000_000, 40_000
    save(tmp_path / "in" / "odd.nii.gz", volume_hu, SAGITTAL)
    padded_hu = np.where(volume_hu < -700, -3024, np.minimum(volume_hu, 30_000)).astype(np.int32)
    save(tmp_path / "in" / "padded.nii.gz", padded_hu, SAGITTAL)
    command = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--vae", "control:identity", "-np", "0"]
    assert reconstruct.main(command) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "odd: warning: HU from -1e+06 to 40000; 3 voxels outside the range of CT" in said[0]
    record = json.loads((tmp_path / "out" / "fvae_manifest" / "cases" / "odd.json").read_text())
    assert (record["lowest_hu"], record["highest_hu"], record["impossible_voxels"]) == (-1e6, 4e4, 3)


@pytest.mark.parametrize("reader", [None, "NibabelIO", "NibabelIOWithReorient"])
def test_fvae_evaluate_scores_sheared_label_maps_as_nnunet_writes_them(tmp_path, reader):
    reference = np.zeros((16, 24, 8), np.uint8)
    reference[4:12, 6:18, 2:6] = 1
    prediction = reference.copy()
    prediction[4:6] = 0
    save(tmp_path / "labelsTr" / "case.nii.gz", reference, SHEARED)
    (tmp_path / "predicted").mkdir()
    nnunets = recursive_find_reader_writer_by_name(reader or "NibabelIO")()
    _, properties = nnunets.read_seg(str(tmp_path / "labelsTr" / "case.nii.gz"))
    save(tmp_path / "made" / "case.nii.gz", prediction, SHEARED)
    as_read, _ = nnunets.read_seg(str(tmp_path / "made" / "case.nii.gz"))
    nnunets.write_seg(as_read[0], str(tmp_path / "predicted" / "case.nii.gz"), properties)
    content = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    content |= {"overwrite_image_reader_writer": reader} if reader else {}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert evaluate.main([str(tmp_path / "labelsTr"), str(tmp_path / "predicted"), "-np", "0"]) == 0
    summary = json.loads((tmp_path / "predicted" / "summary.json").read_text())
    assert summary["metric_per_case"][0]["metrics"]["1"]["Dice"] == pytest.approx(2 * 6 / (6 + 8))


def test_labels_that_are_nan_are_refused(tmp_path, capsys):
    labels = np.zeros((16, 24, 8), np.float32)
    labels[3, 3, 3] = np.nan
    for folder in ("labelsTr", "predicted"):
        save(tmp_path / folder / "case.nii.gz", labels, SAGITTAL)
    content = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert evaluate.main([str(tmp_path / "labelsTr"), str(tmp_path / "predicted"), "-np", "0"]) == 1
    assert "1 of 3072 voxels are not finite" in capsys.readouterr().err


def test_predictions_that_are_no_files_are_all_named(tmp_path, capsys):
    for folder in ("labelsTr", "predicted"):
        for case in ("link", "pipe", "whole"):
            save(tmp_path / folder / f"{case}.nii.gz", np.zeros((16, 24, 8), np.uint8), SAGITTAL)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"})
    )
    for case in ("link", "pipe"):
        (tmp_path / "predicted" / f"{case}.nii.gz").unlink()
    os.mkfifo(tmp_path / "predicted" / "pipe.nii.gz")
    (tmp_path / "predicted" / "link.nii.gz").symlink_to("/nowhere")
    command = [str(tmp_path / "labelsTr"), str(tmp_path / "predicted"), "-np", "0"]
    assert evaluate.main(command) == 1
    err = capsys.readouterr().err
    assert "pipe.nii.gz is a pipe" in err and "link.nii.gz is a broken link" in err
    for folder in ("labelsTr", "predicted"):
        (tmp_path / folder / "whole.nii.gz").rename(tmp_path / folder / "WHOLE.NII.GZ")
    assert evaluate.main(command) == 1
    assert "would be left out: WHOLE.NII.GZ" in capsys.readouterr().err


@pytest.mark.slow
def test_letters_that_the_locale_lacks_are_refused_with_the_way_out(tmp_path):
    save(tmp_path / "Pät_0000.nii.gz", np.zeros((8, 8, 8), np.int16), SAGITTAL)
    script = (
        "import sys; from fvae_nnunet.cli import reconstruct\n"
        "sys.exit(reconstruct.main(['-i', sys.argv[1], '-o', sys.argv[1] + '/out', '--vae', 'control:identity']))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert b"set PYTHONUTF8=1 or LC_ALL=C.UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr
