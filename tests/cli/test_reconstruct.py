"""The options that say how a volume is reconstructed, through the command; and its memory over many cases."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ivvae_for_tests import tiny_state as ivvae_state
from tiny_models import original_wan_state_dict, tiny_wan

from fvae_nnunet.cli import reconstruct, setup
from fvae_nnunet.command_lines import options_of
from fvae_nnunet.vae import known_vaes, load_vae


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image, longer than a window of Wan."""
    folder = tmp_path_factory.mktemp("images")
    volume_hu = np.random.default_rng(0).integers(-1100, 1200, size=(69, 16, 24)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(volume_hu), str(folder / "case_0000.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "Wan2.1_VAE.pth"
    torch.save(original_wan_state_dict(tiny_wan()), path)
    return path


def view_hu(images: Path, wan: Path, output: Path, *options: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The reconstructed volume (z, y, x) and the settings in its manifest."""
    fixed = ["-i", str(images), "-o", str(output), "--vae", "wan2.1", "--weights", str(wan), "-np", "0"]
    assert reconstruct.main([*fixed, *options]) == 0
    (manifest,) = output.rglob("manifest.json")
    view = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "case_0000.nii.gz")))
    return view, json.loads(manifest.read_text())["settings"]


def test_overwriting_spares_images_of_another_origin(images: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "raw"
    other.mkdir()
    (other / "case_0000.nii.gz").write_bytes(b"a raw image")
    command = ["-i", str(images), "-o", str(other), "--vae", "control:gaussian", "--strength", "1", "-np", "0"]
    for options in ([], ["--overwrite"]):
        assert reconstruct.main([*command, *options]) == 1
        assert "case_0000.nii.gz, which was not made by fvae-reconstruct" in capsys.readouterr().err
    assert (other / "case_0000.nii.gz").read_bytes() == b"a raw image"
    (other / "case_0000.nii.gz").unlink()
    for options in ([], ["--overwrite"]):
        assert reconstruct.main([*command, *options]) == 0


@pytest.mark.slow
def test_schemes_reach_the_voxels_and_the_manifest(images: Path, wan: Path, tmp_path: Path) -> None:
    views = {}
    for scheme in ("windows", "paper", "stream"):
        views[scheme], settings = view_hu(images, wan, tmp_path / scheme, "--scheme", scheme)
        assert settings["scheme"] == scheme
        assert settings["overlap_slices"] == (16 if scheme == "windows" else 0)
        assert settings["precision"] == "float32"
    # only the second window knows a past: everything before it is the same in all schemes but for rounding
    assert np.abs(views["windows"][:49].astype(int) - views["stream"][:49]).max() <= 1
    for one, other in (("windows", "paper"), ("windows", "stream"), ("paper", "stream")):
        assert np.abs(views[one][65:].astype(int) - views[other][65:]).max() > 1


@pytest.mark.slow
def test_passes_reach_the_voxels_and_the_manifest_and_their_printed_options_make_the_same(
    images: Path, wan: Path, tmp_path: Path
) -> None:
    plain, _ = view_hu(images, wan, tmp_path / "plain")
    asked = ["--windows", "bone", "soft", "--enlarge", "1.5", "--average", "2"]
    view, settings = view_hu(images, wan, tmp_path / "view", *asked)
    assert settings["hu_window"] == [-1000, 2000] and settings["inner_windows"] == [[-200, 300], [150, 2000]]
    assert (settings["enlarge"], settings["average"]) == (1.5, 2)
    assert not np.array_equal(view, plain)
    (manifest,) = (tmp_path / "view").rglob("manifest.json")
    options = options_of(json.loads(manifest.read_text())["made_with"]["parameters"])
    fixed = ["-i", str(images), "-o", str(tmp_path / "again"), "-np", "0"]
    assert reconstruct.main([*fixed, *options]) == 0
    again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "again" / "case_0000.nii.gz")))
    assert np.array_equal(again, view)
    by_size, settings = view_hu(images, wan, tmp_path / "size", "--pixel-mm", "0.5", "--scheme", "stream")
    enlarged, _ = view_hu(images, wan, tmp_path / "enlarged", "--enlarge", "2", "--scheme", "stream")
    assert settings["pixel_mm"] == 0.5 and np.array_equal(by_size, enlarged), "the image has pixels of 1 mm"


@pytest.mark.slow
def test_truncation_is_at_most_one_hu_from_rounding_and_toward_zero(images: Path, wan: Path, tmp_path: Path) -> None:
    rounded, _ = view_hu(images, wan, tmp_path / "rounded", "--scheme", "paper")
    cut, settings = view_hu(images, wan, tmp_path / "cut", "--scheme", "paper", "--truncate")
    assert settings["truncate"] is True
    steps = np.abs(rounded.astype(int)) - np.abs(cut.astype(int))
    assert set(np.unique(steps)) == {0, 1}
    assert 0.4 < steps.mean() < 0.6


@pytest.mark.slow
def test_posterior_is_drawn_with_the_seed(images: Path, wan: Path, tmp_path: Path) -> None:
    mode, _ = view_hu(images, wan, tmp_path / "mode")
    first, settings = view_hu(images, wan, tmp_path / "first", "--sample-posterior", "1")
    again, _ = view_hu(images, wan, tmp_path / "again", "--sample-posterior", "1")
    other, _ = view_hu(images, wan, tmp_path / "other", "--sample-posterior", "2")
    assert settings["posterior_seed"] == 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, mode)


@pytest.mark.slow
def test_precision_is_recorded_and_close(images: Path, wan: Path, tmp_path: Path) -> None:
    exact, _ = view_hu(images, wan, tmp_path / "exact")
    half, settings = view_hu(images, wan, tmp_path / "half", "--precision", "bfloat16")
    assert settings["precision"] == "bfloat16"
    difference = half.astype(float) - exact
    assert 0 < np.sqrt(np.mean(difference**2)) < 0.1 * exact.std()


@pytest.mark.slow
def test_two_devices_make_the_same_bytes(images: Path, wan: Path, tmp_path: Path) -> None:
    view_hu(images, wan, tmp_path / "one")
    view_hu(images, wan, tmp_path / "two", "--devices", "cpu", "cpu")
    name = "case_0000.nii.gz"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_paper_scheme_says_where_its_script_draws(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(ivvae_state(), tmp_path / "ivvae.pth")
    fixed = ["-i", str(images), "--vae", "iv-vae", "--weights", str(tmp_path / "ivvae.pth"), "--scheme", "paper"]
    fixed += ["-np", "0", "--precision", "float32"]
    for name, options in (("mode", []), ("drawn", ["--sample-posterior", "3"])):
        assert reconstruct.main([*fixed, "-o", str(tmp_path / name), *options]) == 0
        said = "add --sample-posterior SEED" in capsys.readouterr().out
        assert said is (name == "mode")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "paper", "--overlap", "8"], "--scheme paper has no overlap"),
        (["--scheme", "stream", "--overlap", "8"], "--scheme stream has no overlap"),
        (["--truncate"], "requires --scheme paper"),
        (["--scheme", "paper", "--hu-window", "-160", "240"], "HU window -1000 1000"),
        (["--vae", "tiny", "--scheme", "paper"], "no script for tiny"),
        (["--vae", "cv-vae"], "--vae-code"),
        (["--vae", "wan2.2"], "looks like wan2.1"),
        (["-device", "cpu", "--devices", "cpu"], "are mutually exclusive"),
        (["--windows", "soft", "--hu-window", "-1000", "1000"], "--windows and --hu-window are mutually exclusive"),
        (["--hu-window", "-200", "300", "--hu-window", "-1000", "1000"], "the first one must span all others"),
        (["--average", "9"], "1 to 8 slice orientations"),
        (["--enlarge", "2", "--pixel-mm", "1"], "excludes --enlarge"),
        (["--vae", "control:identity", "--average", "2"], "filters the image as it is"),
    ],
)
def test_options_that_do_not_go_together_are_one_message(
    options: list[str], message: str, images: Path, wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [] if {"tiny", "control:identity"} & set(options) else ["--weights", str(wan)]
    fixed = ["-i", str(images), "-o", str(tmp_path / "out"), "-np", "0", "--vae", "wan2.1", *weights]
    assert reconstruct.main([*fixed, *options]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_setup_explains_every_vae(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["--vaes"]) == 0
    blocks = capsys.readouterr().out.replace("\n    ", " ").replace("\n  ", "; ").splitlines()
    for vae in known_vaes():
        (text,) = (block for block in blocks if block.startswith(f"{vae.name}: "))
        for fact in (vae.window, vae.values, vae.licence, vae.weights, vae.code or ""):
            assert fact in text, vae.name
        assert ("--vae-code" in text) is (vae.code is not None)


MANY_CASES = """
import ctypes, os, sys
import numpy as np, torch
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.vae import load_vae

torch.set_num_threads(1)
vae = load_vae(sys.argv[1], weights=sys.argv[2] or None)
settings = ReconstructionSettings.for_vae(vae.spec)
rng = np.random.default_rng(0)

def resident_mib():
    ctypes.CDLL(None).malloc_trim(0)  # give back what is freed: it is fragmentation, not growth
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

resident = []
for case in range(50):
    shape = (4 + case % 2, 16 * (4 + case % 3), 64)  # six shapes: torch keeps its plans of each for the CPU
    reconstruct_volume(vae, rng.integers(-1000, 1000, size=shape).astype(np.int16), settings)
    resident.append(resident_mib())
print(resident[-1] - resident[13])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="measures memory by glibc and /proc")
@pytest.mark.parametrize("name", ["tiny", "wan2.1"])
def test_memory_does_not_grow_over_50_cases(name: str, wan: Path) -> None:
    """A leak of one float32 volume a case (0.09 MiB on average) would add 3 MiB over 36 cases."""
    weights = str(wan) if name == "wan2.1" else ""
    command = [sys.executable, "-c", MANY_CASES, name, weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=sys.prefix)
    assert float(done.stdout.split()[-1]) < 1.5


def test_two_backends_in_one_process_give_what_each_gives_alone(wan: Path) -> None:
    volume = torch.rand((1, 1, 5, 16, 24), generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone = {}
    for name, weights in (("wan2.1", wan), ("tiny", None)):
        vae = load_vae(name, weights=weights)
        alone[name] = vae.decode(vae.encode(volume))
    first, second = load_vae("wan2.1", weights=wan), load_vae("tiny")
    latents = second.encode(volume), first.encode(volume)
    assert torch.equal(second.decode(latents[0]), alone["tiny"])
    assert torch.equal(first.decode(latents[1]), alone["wan2.1"])
