import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from datasets_for_tests import Dataset

from fvae_nnunet.cli import preprocess, reconstruct
from fvae_nnunet.errors import UserError

COMMANDS = (
    "setup",
    "reconstruct",
    "preprocess",
    "evaluate",
    "evaluate-reconstruction",
    "predict",
    "report",
    "show-batch",
)


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory):
    """``--vae`` for a small random AutoencoderKL in a local diffusers folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "small-vae"
    AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


@pytest.fixture
def images(tmp_path):
    """A folder with an axial, a coronal-first and a single-slice image in three formats."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape, code in (
        ("a_0000.nii.gz", (5, 16, 24), "LPS"),
        ("b.nrrd", (7, 9, 11), "LIP"),
        ("c.mha", (1, 8, 8), "LPS"),
    ):
        image = sitk.GetImageFromArray(rng.integers(-1100, 1200, size=shape).astype(np.int16))
        image.SetSpacing((0.7, 0.9, 2.5))
        image.SetOrigin((1.0, -20.0, 300.0))
        sitk.WriteImage(sitk.DICOMOrient(image, code), str(folder / name))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_because_nothing_heavy_is_imported(command):
    script = (
        f"import sys\nfrom fvae_nnunet.cli.{command.replace('-', '_')} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print({'torch', 'diffusers', 'monai', 'SimpleITK', 'nnunetv2', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=sys.prefix)
    assert f"usage: fvae-{command}" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_every_command_is_installed():
    for command in COMMANDS:
        path = Path(sys.executable).with_name(f"fvae-{command}")
        assert subprocess.run([path, "--nonsense"], capture_output=True, check=False).returncode == 2


def test_reconstruct_keeps_name_format_and_geometry_and_writes_int16_in_the_window(images, small_vae, tmp_path, capsys):
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "out"), "--vae", small_vae, "-np", "0"]) == 0
    for source in images.iterdir():
        raw, view = sitk.ReadImage(str(source)), sitk.ReadImage(str(tmp_path / "out" / source.name))
        assert view.GetPixelID() == sitk.sitkInt16
        assert view.GetSize() == raw.GetSize()
        for question in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(view, question)(), getattr(raw, question)(), atol=1e-6)
        values = sitk.GetArrayFromImage(view)
        assert values.min() >= -1000
        assert values.max() <= 1000
        assert values.std() > 0
    out = capsys.readouterr().out
    assert "a_0000: PSNR" in out
    assert "3 cases done (mean PSNR" in out


def test_a_stored_orientation_does_not_change_the_reconstruction(images, small_vae, tmp_path):
    turned = tmp_path / "turned"
    turned.mkdir()
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(images / "b.nrrd")), "PSL"), str(turned / "b.nrrd"))
    for folder in (images, turned):
        assert reconstruct.main(["-i", str(folder), "-o", f"{folder}_view", "--vae", small_vae, "-np", "0"]) == 0
    views = [sitk.DICOMOrient(sitk.ReadImage(f"{folder}_view/b.nrrd"), "LPS") for folder in (images, turned)]
    # "LIP" and "PSL" run through the body in opposite directions; an image VAE does not see that
    assert np.array_equal(*map(sitk.GetArrayFromImage, views))


def test_finished_images_are_skipped_and_other_settings_refused(images, small_vae, tmp_path, capsys):
    arguments = ["-i", str(images), "-o", str(tmp_path / "out"), "--vae", small_vae, "-np", "0"]
    assert reconstruct.main(arguments) == 0
    first = contents(tmp_path / "out")
    (tmp_path / "out" / "b.nrrd").write_bytes(first["b.nrrd"][:-10])
    assert reconstruct.main(arguments) == 0
    assert "2 already complete" in capsys.readouterr().out
    assert contents(tmp_path / "out") == first
    assert reconstruct.main([*arguments, "--hu-window", "-160", "240"]) == 1
    assert "hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]" in capsys.readouterr().err
    assert contents(tmp_path / "out") == first
    assert reconstruct.main([*arguments, "--hu-window", "-160", "240", "--overwrite"]) == 0
    assert contents(tmp_path / "out") != first


def test_a_corrupt_image_is_named_and_the_others_are_done(images, small_vae, tmp_path, capsys):
    (images / "broken.nii.gz").write_bytes((images / "a_0000.nii.gz").read_bytes()[:40])
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "out"), "--vae", small_vae, "-np", "0"]) == 1
    err = capsys.readouterr().err
    assert "broken: FAILED" in err
    assert "1 of 4 cases failed: broken" in err
    assert sorted(contents(tmp_path / "out")) == ["a_0000.nii.gz", "b.nrrd", "c.mha"]


def test_parts_together_make_what_one_call_makes(images, small_vae, tmp_path):
    arguments = ["-i", str(images), "--vae", small_vae, "-np", "0"]
    assert reconstruct.main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    for part in ("0", "1"):
        assert reconstruct.main([*arguments, "-o", str(tmp_path / "parts"), "-num_parts", "2", "-part_id", part]) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--vae", "wan3"], "unknown VAE 'wan3'"),
        (["--hu-window", "240", "-160"], "lower < upper"),
        (["--overlap", "9", "--window-slices", "8"], "overlap must be between"),
        (["-num_parts", "2", "-part_id", "2"], "-part_id must be at least 0"),
        (["--sample-posterior", "-5"], "--sample-posterior) must be at least 0, got -5"),
        (["-np", "-1"], "-np must not be negative"),
        (["-num_parts", "2", "--overwrite"], "without -num_parts"),
    ],
)
def test_impossible_options_are_one_message_and_status_1(images, small_vae, tmp_path, capsys, extra, message):
    arguments = ["-i", str(images), "-o", str(tmp_path / "out"), "-np", "0", "--vae", small_vae]
    assert reconstruct.main([*arguments, *extra]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_the_input_folder_and_foreign_files_are_not_overwritten(images, small_vae, tmp_path, capsys):
    before = contents(images)
    assert reconstruct.main(["-i", str(images), "-o", str(images), "--vae", small_vae, "-np", "0"]) == 1
    assert contents(images) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.nrrd").write_text("mine")
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "out"), "--vae", small_vae, "-np", "0"]) == 1
    assert "b.nrrd, which was not made by fvae-reconstruct" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {"b.nrrd": b"mine"}


def test_no_gpu_is_said(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reconstruct.main(["-i", str(images), "-o", str(tmp_path / "out"), "-device", "cuda"]) == 1
    assert "no CUDA GPU" in capsys.readouterr().err


def preprocess_arguments(dataset, small_vae, *extra):
    return [dataset.id, "-c", "3d_fullres", "--vae", small_vae, "--view", "small", *extra]


@pytest.fixture
def registered(monkeypatch):
    """nnU-Net finds the trainers; looking them up takes seconds and is tested elsewhere."""
    from fvae_nnunet.nnunet import registration

    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)


@pytest.mark.slow
def test_preprocess_ends_with_a_summary_and_the_training_command(clone, small_vae, registered, capsys):
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 0
    out = capsys.readouterr().out
    folder = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_small"
    assert "5 cases done (mean PSNR" in out
    assert "0 already complete" in out
    assert f"in {folder}" in out
    assert out.endswith(f"train with: nnUNetv2_train {clone.id} 3d_fullres 0 -tr nnUNetTrainerFVAE\n")
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 0
    assert "0 cases done, 5 already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_the_training_command_comes_with_the_last_part_only(clone, small_vae, registered, capsys):
    for part, ending in ((0, "; 2 of 5 cases still missing\n"), (1, " 3d_fullres 0 -tr nnUNetTrainerFVAE\n")):
        parts = ["-num_parts", "2", "-part_id", str(part)]
        assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0", *parts)) == 0
        out = capsys.readouterr().out
        assert out.endswith(ending)
        assert ("train with" in out) is (part == 1)


@pytest.mark.slow
def test_preprocess_equals_reconstructing_the_folder_and_preprocessing_that(clone, small_vae, registered):
    import blosc2

    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 0
    from datasets_for_tests import clone_of

    other = clone_of(clone)
    view = other.raw / "imagesTr_view"
    assert reconstruct.main(["-i", str(other.raw / "imagesTr"), "-o", str(view), "--vae", small_vae, "-np", "0"]) == 0
    (other.raw / "imagesTr").rename(other.raw / "imagesTr_raw")
    view.rename(other.raw / "imagesTr")
    other.preprocess("3d_fullres")
    for path in (clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_small").glob("*.b2nd"):
        two_step = blosc2.open(str(other.preprocessed / "nnUNetPlans_3d_fullres" / path.name), mode="r")[:]
        assert np.array_equal(blosc2.open(str(path), mode="r")[:], two_step)


@pytest.mark.slow
def test_preprocess_names_a_corrupt_image_and_ends_with_status_1(clone, small_vae, capsys):
    image = sorted((clone.raw / "imagesTr").iterdir())[2]
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 1
    captured = capsys.readouterr()
    case = image.name.removesuffix("_0000.nii.gz")
    assert f"{case}: FAILED" in captured.err
    assert "4 cases done" in captured.out
    assert "train with" not in captured.out
    image.write_bytes(whole)


@pytest.mark.slow
def test_preprocess_says_that_the_window_clips_the_foreground(clone, small_vae, registered, capsys):
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0", "--hu-window", "0", "50")) == 0
    assert "the view clips it to 0 to 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pancreas"], "neither a dataset id"),
        (["898"], "no dataset 898"),
        (["901", "-plans_name", "nnUNetPlansOther"], "existing plans: nnUNetPlans. Choose one with -p"),
        (["901", "-c", "3d_lowres"], "configurations: 2d, 3d_fullres"),
        (["901", "--view", "a/b"], "the name of a view must"),
    ],
)
def test_preprocess_refuses_wrong_names(planned, small_vae, capsys, arguments, message):
    assert preprocess.main([*arguments, "--vae", small_vae]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_preprocess_says_which_variable_is_missing(planned, small_vae, capsys, monkeypatch, variable):
    monkeypatch.delenv(variable)
    assert preprocess.main(["901", "--vae", small_vae]) == 1
    assert f"export {variable}=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_leaves_no_half_case(clone, small_vae, capsys, monkeypatch):
    write_bytes = Path.write_bytes
    room = [2]

    def limited(self, content):
        if self.name.endswith(".b2nd"):
            room[0] -= 1
            if room[0] < 0:
                write_bytes(self, content[: len(content) // 2])
                raise OSError(28, "No space left on device", str(self))
        return write_bytes(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", limited)
        assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 1
    assert "no space left on the disk" in capsys.readouterr().err
    folder = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_small"
    assert len(list(folder.glob("*.b2nd"))) == len(list((folder / "cases").glob("*.json"))) == 2
    assert not list(folder.glob(".*"))


def test_a_folder_that_must_not_be_written_is_named(clone, small_vae, capsys, monkeypatch):
    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 1
    assert re.search("nnUNetPlans_3d_fullres__fvae_small.*: Permission denied", capsys.readouterr().err)


@pytest.mark.slow
def test_preprocess_prints_the_way_out_where_nnunets_folder_is_read_only(clone, small_vae, capsys, monkeypatch):
    from fvae_nnunet.nnunet import registration

    def refuse():
        raise UserError("cannot be written. Install nnU-Net in an environment of your own")

    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda: False)
    monkeypatch.setattr(registration, "has_external_trainers", lambda: False)
    monkeypatch.setattr(registration, "register", refuse)
    assert preprocess.main(preprocess_arguments(clone, small_vae, "-np", "0")) == 0
    assert "cannot be written. Install nnU-Net in an environment of your own" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small tmpfs needs root on Linux")
def test_reconstruct_on_a_really_full_disk(images, small_vae, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", out], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let the test mount a tmpfs")
    try:
        rng = np.random.default_rng(0)
        for path in images.iterdir():
            path.unlink()
        sitk.WriteImage(
            sitk.GetImageFromArray(rng.integers(-900, 900, (40, 64, 64)).astype(np.int16)), str(images / "a.nii.gz")
        )
        assert reconstruct.main(["-i", str(images), "-o", str(out), "--vae", small_vae, "-np", "0"]) == 1
        err = capsys.readouterr().err
        assert "no space left on the disk" in err
        assert not (out / "a.nii.gz").exists()
        assert not list(out.glob(".*"))
    finally:
        subprocess.run(["umount", out], check=True)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_run_goes_on_with_the_same_bytes_and_leaves_no_worker(clone, small_vae, registered):
    from datasets_for_tests import clone_of

    undisturbed = clone_of(clone)
    assert preprocess.main(preprocess_arguments(undisturbed, small_vae, "-np", "1")) == 0

    script = (
        "import sys, time, fvae_nnunet.preprocessing.make_views as m\n"
        "from fvae_nnunet.cli.preprocess import main\n"
        "once = m.reconstruct_to_int16\n"
        "m.reconstruct_to_int16 = lambda *a, **k: (time.sleep(0.7), once(*a, **k))[1]\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    folder = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_small"
    arguments = preprocess_arguments(clone, small_vae, "-np", "1")
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=sys.prefix)
    deadline = time.monotonic() + 120
    while not list(folder.glob("cases/*.json")):
        assert run.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children_of(run.pid)
    assert workers
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {path.stem for path in folder.glob("cases/*.json")}
    assert 1 <= len(done) < 5
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)

    stamps = {case: (folder / f"{case}.b2nd").stat().st_mtime_ns for case in done}
    assert preprocess.main(arguments) == 0
    assert stamps == {case: (folder / f"{case}.b2nd").stat().st_mtime_ns for case in done}
    reference = undisturbed.preprocessed / folder.name
    files = {path.relative_to(reference) for path in reference.rglob("*") if path.is_file()}
    assert files == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for file in files:
        assert (folder / file).read_bytes() == (reference / file).read_bytes(), file


@pytest.mark.slow
def test_a_dataset_given_by_name_is_the_one_given_by_id(clone, small_vae, registered, capsys):
    assert isinstance(clone, Dataset)
    arguments = preprocess_arguments(clone, small_vae, "-np", "0")
    assert preprocess.main(arguments) == 0
    assert preprocess.main([clone.name, *arguments[1:]]) == 0
    assert "5 already complete" in capsys.readouterr().out
