"""``--verify`` of commands that go on with what they made before, and the sample that a training checks."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from trainers_for_tests import trainer_of
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.cli import preprocess, reconstruct
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.jobs.verification import forget_damaged
from fvae_nnunet.nnunet import registration
from fvae_nnunet.trainers import nnUNetTrainerFVAE


def flip_a_bit(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


@pytest.fixture
def reconstructed(tmp_path):
    """Options of a finished fvae-reconstruct of three images."""
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        image = sitk.GetImageFromArray(rng.integers(-900, 900, size=(4, 8, 8)).astype(np.int16))
        sitk.WriteImage(image, str(tmp_path / "in" / f"{name}_0000.nii.gz"))
    options = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--vae", "control:identity", "-np", "0"]
    assert reconstruct.main(options) == 0
    return options


def test_damaged_images_are_named_and_made_again(reconstructed, tmp_path, capsys):
    output = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in output.glob("*.nii.gz")}
    flip_a_bit(output / "b_0000.nii.gz")
    (output / "c_0000.nii.gz").write_bytes(b"")
    capsys.readouterr()
    assert reconstruct.main([*reconstructed, "--verify"]) == 0
    said = capsys.readouterr()
    assert f"DAMAGED, will be made again: b_0000: {output / 'b_0000.nii.gz'} has changed" in said.err
    assert f"DAMAGED, will be made again: c_0000: {output / 'c_0000.nii.gz'} has 0 bytes" in said.err
    assert "a_0000" not in said.err
    assert "2 cases done" in said.out and "1 already complete" in said.out
    assert {path.name: path.read_bytes() for path in output.glob("*.nii.gz")} == whole
    assert reconstruct.main([*reconstructed, "--verify"]) == 0
    assert "files of 3 finished cases read, all as recorded" in capsys.readouterr().out


def test_verify_and_overwrite_exclude_each_other(reconstructed, capsys):
    assert reconstruct.main([*reconstructed, "--verify", "--overwrite"]) == 1
    assert "leave out one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_every_flipped_bit_of_a_view_is_found(planned, tmp_path):
    folder = make_view(planned, BrighterVAE(), view="bits", configurations=["3d_fullres"])["3d_fullres"]
    copy = shutil.copytree(folder, tmp_path / "view")
    shutil.rmtree(folder)
    (case, *_) = cases = Manifest(copy).cases
    path = copy / f"{case}.b2nd"
    record, whole = (copy / "cases" / f"{case}.json").read_bytes(), path.read_bytes()
    for bit in np.linspace(0, 8 * len(whole) - 1, 60).astype(int):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        (copy / "cases" / f"{case}.json").write_bytes(record)
        assert [line[: len(case)] for line in forget_damaged([Manifest(copy)], cases).damaged] == [case], bit


@pytest.mark.slow
def test_a_damaged_view_is_found_when_a_training_opens_it_and_its_command_repairs_it(clone, capsys, monkeypatch):
    # looking the trainers up takes seconds and is tested elsewhere
    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)
    options = [clone.id, "-c", "3d_fullres", "--vae", "control:identity", "-np", "0"]
    assert preprocess.main(options) == 0
    trainer = trainer_of(nnUNetTrainerFVAE, clone)
    trainer.get_tr_and_val_datasets()
    log = next(type(clone.results)(trainer.output_folder).glob("training_log*")).read_text()
    assert "digests of 4 of 4 cases checked: all as recorded" in log
    folder = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_control-identity"
    case = sorted(trainer.do_split()[0])[0]
    flip_a_bit(folder / f"{case}.b2nd", 0.9)
    with pytest.raises(UserError, match=rf"{case}\.b2nd has changed") as raised:
        trainer_of(nnUNetTrainerFVAE, clone).get_tr_and_val_datasets()
    command = str(raised.value).partition("again, use: fvae-preprocess ")[2].split()
    assert "--verify" in command
    assert preprocess.main(command) == 0
    assert f"DAMAGED, will be made again: {case}: " in capsys.readouterr().err
    trainer_of(nnUNetTrainerFVAE, clone).get_tr_and_val_datasets()
