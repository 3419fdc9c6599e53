"""fvae-evaluate-reconstruction: figures by arithmetic and against scikit-image, folders, files, pictures."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fvae_nnunet.cli.evaluate_reconstruction import main
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.folder import evaluate_view_folder
from fvae_nnunet.evaluation.reconstruction.quality import evaluate_view, ssim_3d
from fvae_nnunet.evaluation.reconstruction.seams import seam_score
from fvae_nnunet.evaluation.reconstruction.summary import format_table, summarise
from fvae_nnunet.evaluation.statistics import bootstrap_interval
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest

WINDOW_HU = (-1000.0, 1000.0)
SPACING_MM = (2.0, 1.0, 1.0)


def evaluated(raw_hu, view_hu, **options):
    options = {"spacing_mm": SPACING_MM, "hu_window": WINDOW_HU} | options
    return evaluate_view(np.asarray(raw_hu), np.asarray(view_hu), **options)


def ball(seed, shape=(12, 32, 32)):
    """A bright ball in fat between lungs, with noise, and its label; (z, y, x), int16 HU, well inside the window."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[(np.arange(n) - n / 2) * edge for n, edge in zip(shape, SPACING_MM)], indexing="ij")
    label = z**2 + y**2 + x**2 < 8**2
    clean = np.select([label, np.abs(x) < 13], [60.0, -100.0], -900.0)
    return np.rint(clean + rng.normal(0, 10, shape)).astype(np.int16), label.astype(np.uint8)


# figures of one volume


def test_soft_tissue_is_the_same_in_every_window_and_not_padding():
    """A body in padding, whose view is 10 HU brighter in it."""
    raw_hu = np.zeros((8, 40, 40), dtype=np.int16)
    body = (slice(None), slice(8, 32), slice(8, 32))
    raw_hu[body] = np.rint(50 + np.random.default_rng(0).normal(0, 5, (8, 24, 24)))
    view_hu = raw_hu.copy()
    view_hu[body] += 10
    for hu_window in (WINDOW_HU, (-150, 250), (0, 120)):
        found = evaluated(raw_hu, view_hu, hu_window=hu_window)
        assert found["volume"]["soft_mae_hu"] == pytest.approx(10, abs=0.01)
        assert found["tissues"]["soft tissue"]["voxels"] == 8 * 24 * 24
        assert found["volume"]["noise_raw_hu"] == pytest.approx(5, rel=0.15)


def test_errors_follow_from_arithmetic():
    raw_hu = np.array([-3000, -800, -100, 50, 160, 2000])[:, None, None]
    view_hu = np.array([-990, -780, -110, 54, 160, 900])[:, None, None]
    found = evaluated(raw_hu, view_hu, hu_window=WINDOW_HU)
    differences = np.array([10, 20, -10, 4, 0, -100])
    assert found["volume"]["mse_hu2"] == pytest.approx(np.mean(differences**2))
    assert found["volume"]["mse_normalised"] == pytest.approx(np.mean((differences / 2000) ** 2))
    assert found["volume"]["psnr_db"] == pytest.approx(10 * np.log10(2000**2 / np.mean(differences**2)))
    assert found["volume"]["mae_hu"] == pytest.approx(24)
    assert found["volume"]["bias_hu"] == pytest.approx(-76 / 6)
    assert found["tissues"] == {
        "air": {"voxels": 1, "mae_hu": 10, "bias_hu": 10},
        "lung": {"voxels": 1, "mae_hu": 20, "bias_hu": 20},
        "fat": {"voxels": 1, "mae_hu": 10, "bias_hu": -10},
        "soft tissue": {"voxels": 1, "mae_hu": 4, "bias_hu": 4},
        "bone": {"voxels": 1, "mae_hu": 100, "bias_hu": -100},
    }


def test_tissues_are_those_of_the_raw_volume_with_the_lower_end_inside():
    raw_hu = np.array([-950, -501, -500, -190, -31, -30, 149, 150, 199, 200]).reshape(10, 1, 1)
    tissues = evaluated(raw_hu, np.full_like(raw_hu, 60))["tissues"]
    assert {name: figures["voxels"] for name, figures in tissues.items()} == {
        "air": 0, "lung": 2, "fat": 2, "soft tissue": 2, "bone": 1,
    }  # fmt: skip
    assert np.isnan([tissues["air"]["mae_hu"], tissues["air"]["bias_hu"]]).all()


def test_errors_in_soft_tissue_at_its_edges_and_of_what_is_coarse():
    raw_hu = np.full((2, 24, 40), -1000)
    raw_hu[:, :, 8:24], raw_hu[:, :, 24:] = -100, 100
    coarse = evaluated(raw_hu, raw_hu + np.where(raw_hu > -200, 8, 100))["volume"]
    assert coarse["soft_mae_hu"] == coarse["soft_edges_mae_hu"] == 8
    assert 8 < coarse["soft_coarse_mae_hu"] < 20, "some of the air's 100 HU reaches over"
    chequered = np.where(np.indices(raw_hu.shape).sum(axis=0) % 2, 8, -8)
    fine = evaluated(raw_hu, raw_hu + chequered)["volume"]
    assert fine["soft_mae_hu"] == fine["soft_edges_mae_hu"] == 8 and fine["soft_coarse_mae_hu"] < 0.5
    # the step of 200 HU has 70 HU per pixel beside it and 26 a pixel further on, that to the air 317 and 117
    moved = raw_hu.copy()
    moved[:, :, 23:25] += 16
    edges = evaluated(raw_hu, moved)["volume"]
    assert edges["soft_mae_hu"] == pytest.approx(16 * 2 / 32)
    assert edges["soft_edges_mae_hu"] == pytest.approx(16 * 2 / 6)
    air = evaluated(np.full((2, 8, 8), -1000), np.full((2, 8, 8), -990))["volume"]
    assert np.isnan([air["soft_mae_hu"], air["soft_edges_mae_hu"], air["soft_coarse_mae_hu"]]).all()


def test_psnr_and_ssim_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    raw_hu = rng.normal(0, 300, (75, 14, 12))
    view_hu = raw_hu + rng.normal(0, 60, raw_hu.shape)
    clipped = [np.clip(volume, *WINDOW_HU) for volume in (raw_hu, view_hu)]
    found = evaluated(raw_hu, view_hu)["volume"]
    assert found["ssim"] == pytest.approx(structural_similarity(*clipped, data_range=2000), rel=1e-5)
    assert found["psnr_db"] == pytest.approx(peak_signal_noise_ratio(*clipped, data_range=2000), rel=1e-5)
    assert np.isnan(ssim_3d(clipped[0][:6], clipped[1][:6], data_range=2000))


def test_an_equal_view_is_perfect_and_values_outside_the_window_are_no_error():
    raw_hu = ball(0)[0]
    raw_hu[0, 0, 0] = 3000
    found = evaluated(raw_hu, np.clip(raw_hu, *WINDOW_HU))["volume"]
    assert (found["psnr_db"], found["ssim"], found["mae_hu"]) == (math.inf, 1, 0)
    assert found["noise_ratio"] == 1
    assert np.isnan(found["seam_score"])


def test_noise_before_and_after():
    rng = np.random.default_rng(0)
    found = evaluated(60 + rng.normal(0, 20, (4, 64, 64)), 60 + rng.normal(0, 5, (4, 64, 64)))["volume"]
    assert found["noise_raw_hu"] == pytest.approx(20, rel=0.05)
    assert found["noise_view_hu"] == pytest.approx(5, rel=0.05)
    assert found["noise_ratio"] == found["noise_view_hu"] / found["noise_raw_hu"]
    without = evaluated(np.full((4, 8, 8), -1000), np.full((4, 8, 8), -990))["volume"]
    assert np.isnan([without["noise_raw_hu"], without["noise_ratio"]]).all()


def test_labels_and_regions_have_errors_and_boundaries():
    raw_hu, segmentation = ball(0)
    segmentation[segmentation > 0] = np.where(np.indices(raw_hu.shape)[0][segmentation > 0] < 6, 1, 2)
    view_hu = np.where(segmentation == 2, raw_hu + 7, raw_hu)
    labels = evaluated(raw_hu, view_hu, segmentation=segmentation, labels=[2, (1, 2), 3])["labels"]
    voxels = {value: int((segmentation == value).sum()) for value in (1, 2)}
    assert list(labels) == ["2", "(1, 2)", "3"]
    assert (labels["2"]["voxels"], labels["2"]["mae_hu"], labels["2"]["bias_hu"]) == (voxels[2], 7, 7)
    assert labels["(1, 2)"]["bias_hu"] == pytest.approx(7 * voxels[2] / (voxels[1] + voxels[2]))
    assert labels["(1, 2)"]["edge_points"] > 300
    assert abs(labels["(1, 2)"]["shift_median_mm"]) < 0.1
    assert labels["3"]["voxels"] == labels["3"]["surface_points"] == 0
    assert np.isnan(labels["3"]["mae_hu"])


def test_the_seam_score_is_taken_where_windows_begin():
    raw_hu = ball(0)[0]
    view_hu = raw_hu + np.random.default_rng(1).normal(0, 5, raw_hu.shape)
    view_hu[5:] += 30
    score = evaluated(raw_hu, view_hu, borders=[5, 10])["volume"]["seam_score"]
    clipped = [np.clip(volume.astype(np.float32), *WINDOW_HU) for volume in (raw_hu, view_hu)]
    assert score == pytest.approx(seam_score(*clipped, [5, 10]))
    assert score > 2
    assert np.isnan(evaluated(raw_hu, view_hu, borders=range(1, 12))["volume"]["seam_score"])


def test_what_cannot_be_measured_is_refused():
    volume = np.zeros((3, 4, 5))
    for arguments, options, message in (
        ((volume, volume[1:]), {}, "equal shape"),
        ((volume[0], volume[0]), {}, "equal shape"),
        ((volume, volume), {"segmentation": volume[1:]}, "segmentation"),
        ((volume, volume), {"spacing_mm": (1, 0, 1)}, "spacing"),
        ((volume, volume), {"hu_window": (1, 1)}, "window"),
        ((volume, np.full_like(volume, np.nan)), {}, "the view holds values that are not finite"),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(*arguments, **options)


# folders


def write(path, array, *, spacing_mm=SPACING_MM, origin_mm=(0.0, 0.0, 0.0), code="LPS"):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin(origin_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(path))


@pytest.fixture
def folders(tmp_path):
    """Three cases with their views, 0, 2 and 4 HU too high, and labels; the last case's label is empty."""
    for number in range(3):
        raw_hu, label = ball(number)
        write(tmp_path / "raw" / f"case_{number}_0000.nii.gz", raw_hu)
        write(tmp_path / "view" / f"case_{number}_0000.nii.gz", raw_hu + np.int16(2 * number))
        write(tmp_path / "labels" / f"case_{number}.nii.gz", label * np.uint8(number < 2))
    content = {"labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def evaluated_folders(folders, **options):
    return evaluate_view_folder(folders / "raw", folders / "view", **options)


def without_paths(results):
    return [{key: case[key] for key in ("case", "volume", "tissues", "labels")} for case in results["cases"]]


def test_cases_are_matched_and_summarised(folders):
    results = evaluated_folders(folders, label_folder=folders / "labels")
    assert [case["case"] for case in results["cases"]] == ["case_0", "case_1", "case_2"]
    assert [case["volume"]["mae_hu"] for case in results["cases"]] == [0, 2, 4]
    assert results["labels"] == [{"key": "1", "name": "tumour", "value": 1}]
    interval = bootstrap_interval([0, 2, 4], seed=0)
    assert 0 <= interval.low < 2 < interval.high <= 4
    assert results["summary"]["volume"]["mae_hu"] == {
        "mean": 2, "low": interval.low, "high": interval.high, "sd": 2, "min": 0, "max": 4, "n": 3,
    }  # fmt: skip
    assert results["summary"]["labels"]["1"]["mae_hu"] == {
        "mean": 1, "low": 0, "high": 2, "sd": pytest.approx(math.sqrt(2)), "min": 0, "max": 2, "n": 2,
    }  # fmt: skip
    assert results["summary"]["tissues"]["bone"]["mae_hu"]["n"] == 0
    psnr = results["summary"]["volume"]["psnr_db"]
    assert psnr["max"] == math.inf
    assert np.isnan(psnr["sd"])
    assert results["cases"][0]["shape"] == [12, 32, 32]
    assert results["cases"][0]["spacing_mm"] == pytest.approx([2, 1, 1])


@pytest.mark.slow
def test_plain_names_other_formats_and_processes_change_nothing(folders):
    expected = without_paths(evaluated_folders(folders, label_folder=folders / "labels"))
    for path in list((folders / "view").glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image, str(path.with_name(path.name.replace("_0000.nii.gz", ".mha"))))
        path.unlink()
    found = evaluated_folders(folders, label_folder=folders / "labels", processes=2)
    assert json.dumps(without_paths(found)) == json.dumps(expected)


def test_slices_are_axial_however_the_file_stores_them(folders):
    expected = evaluated_folders(folders, label_folder=folders / "labels", windows=(5, 0))
    for path in folders.glob("*/*.nii.gz"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.DICOMOrient(image, "SPL"), str(path))
    found = evaluated_folders(folders, label_folder=folders / "labels", windows=(5, 0))
    for before, after in zip(expected["cases"], found["cases"]):
        assert after["shape"] == before["shape"]
        assert after["spacing_mm"] == pytest.approx(before["spacing_mm"])
        for figure in ("mae_hu", "noise_raw_hu", "ssim", "seam_score"):
            assert after["volume"][figure] == pytest.approx(before["volume"][figure], rel=1e-5, nan_ok=True)


def test_window_and_borders_are_those_of_the_views_manifest(folders):
    settings = {"scheme": "windows", "hu_window": [-160.0, 240.0], "window_slices": 5, "overlap_slices": 2}
    Manifest(folders / "view" / MANIFEST_FOLDER).begin("reconstruction", settings, {})
    results = evaluated_folders(folders)
    assert results["settings"]["hu_window"] == [-160, 240]
    assert results["settings"]["windows"] == {"window_slices": 5, "overlap_slices": 2}
    assert results["view_settings"] == settings
    given = evaluated_folders(folders, hu_window=WINDOW_HU, windows=(6, 0))
    assert given["settings"]["hu_window"] == [-1000, 1000]
    assert given["settings"]["windows"] == {"window_slices": 6, "overlap_slices": 0}
    # a constant shift changes nowhere; a jump at slice 3, where the second window begins, is seen
    view_hu = ball(2)[0].astype(float)
    view_hu[3:] += 4
    view_hu[:, 0, 0] += np.arange(12)
    write(folders / "view" / "case_2_0000.nii.gz", np.rint(view_hu).astype(np.int16))
    assert evaluated_folders(folders)["cases"][2]["volume"]["seam_score"] > 3


def test_a_view_made_in_one_pass_has_no_seams(folders):
    settings = {"scheme": "stream", "hu_window": [-1000.0, 1000.0], "window_slices": 5, "overlap_slices": 0}
    Manifest(folders / "view" / MANIFEST_FOLDER).begin("reconstruction", settings, {})
    results = evaluated_folders(folders)
    assert results["settings"]["windows"] is None
    assert np.isnan(results["cases"][0]["volume"]["seam_score"])


def test_without_dataset_json_every_value_is_a_label(folders):
    (folders / "dataset.json").unlink()
    write(folders / "labels" / "case_1.nii.gz", ball(1)[1] * np.uint8(7))
    results = evaluated_folders(folders, label_folder=folders / "labels")
    assert [label["name"] for label in results["labels"]] == ["1", "7"]
    assert [case["labels"]["7"]["voxels"] > 0 for case in results["cases"]] == [False, True, False]
    write(folders / "labels" / "case_1.nii.gz", ball(1)[0])
    with pytest.raises(UserError, match="is not a label map"):
        evaluated_folders(folders, label_folder=folders / "labels")


def test_everything_that_is_wrong_is_one_error(folders):
    (folders / "view" / "case_0_0000.nii.gz").rename(folders / "view" / "other_0000.nii.gz")
    write(folders / "view" / "case_1_0000.nii.gz", ball(1)[0], spacing_mm=(2, 1, 1.5))
    write(folders / "labels" / "case_2.nii.gz", ball(2)[1] * np.uint8(9))
    (folders / "labels" / "case_0.nii.gz").unlink()
    raw = folders / "raw" / "case_2_0000.nii.gz"
    raw.write_bytes(raw.read_bytes()[:-200])
    with pytest.raises(UserError) as error:
        evaluated_folders(folders, label_folder=folders / "labels")
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    assert "(view) lacks 1 raw case: case_0" in lines[1]
    assert "(labels) lacks 1 raw case: case_0" in lines[2]
    assert "holds cases that" in lines[3] and lines[3].endswith("other")
    assert lines[4].startswith("  case_1: raw image and view differ in spacing")
    assert "case_2_0000.nii.gz cannot be read" in lines[5]
    assert "not in dataset.json: 9" in lines[6]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"processes": -1}, "negative"),
        ({"hu_window": (5, 5)}, "HU window"),
        ({"windows": (8, 5)}, "overlap"),
        ({"dataset_json": "dataset.json"}, "`label_folder`"),
    ],
)
def test_options_that_cannot_be_are_refused(folders, options, message):
    with pytest.raises(UserError, match=message):
        evaluated_folders(folders, **options)


def test_a_folder_is_not_compared_with_itself(folders):
    with pytest.raises(UserError, match="two folders"):
        evaluate_view_folder(folders / "raw", folders / "raw")


# command


@pytest.mark.slow
def test_command_writes_table_json_csv_and_pictures(folders, capsys):
    arguments = [str(folders / "raw"), str(folders / "view"), "--labels", str(folders / "labels"), "-np", "0"]
    assert main([*arguments, "--pictures", "2"]) == 0
    results = json.loads((folders / "view" / "reconstruction_quality.json").read_text())
    assert results["schema"] == 1
    assert results["settings"]["tissues_hu"]["air"] == [None, -950]
    with (folders / "view" / "reconstruction_quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["case_0", "case_1", "case_2"]
    assert [float(row["mae_hu"]) for row in rows] == [0, 2, 4]
    assert [float(row["tissue fat bias_hu"]) for row in rows] == [0, 2, 4]
    assert float(rows[1]["label tumour sharpness_ratio"]) == pytest.approx(1, abs=0.01)
    pictures = folders / "view" / "reconstruction_quality_pictures"
    assert [path.name for path in sorted(pictures.iterdir())] == ["case_0.png", "case_2.png"]
    assert main([*arguments, "--pictures", "1"]) == 0
    assert len(list(pictures.iterdir())) == 1, "pictures of the run before are removed"
    printed = capsys.readouterr().out
    assert "label tumour" in printed
    interval = bootstrap_interval([0, 2, 4], seed=0)
    assert " ".join(next(line for line in printed.splitlines() if "MAE (HU)" in line).split()) == (
        f"MAE (HU) 2.0 {interval.low:.1f} to {interval.high:.1f} 0.0 4.0 3"
    )


def test_command_ends_with_status_1_and_writes_nothing_when_it_fails(folders, capsys):
    (folders / "view" / "case_0_0000.nii.gz").unlink()
    assert main([str(folders / "raw"), str(folders / "view"), "-o", str(folders / "out" / "q.json"), "-np", "0"]) == 1
    assert "case_0" in capsys.readouterr().err
    assert not (folders / "out").exists()
    assert main([str(folders / "raw"), str(folders / "view"), "-o", "q.txt"]) == 1
    assert main([str(folders / "raw"), str(folders / "view"), "--overlap", "2"]) == 1
    assert main([str(folders / "raw"), str(folders / "view"), "--pictures", "-1"]) == 1


def test_help_is_quick_because_nothing_heavy_is_imported():
    script = (
        "import sys\nfrom fvae_nnunet.cli.evaluate_reconstruction import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print({'torch', 'diffusers', 'monai', 'SimpleITK', 'nnunetv2', 'scipy', 'skimage'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: fvae-evaluate-reconstruction" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_a_label_counts_only_in_cases_that_have_it():
    def case(voxels, points, mae_hu):
        return {
            "volume": {"mae_hu": 1.0},
            "tissues": {},
            "labels": {"1": {"voxels": voxels, "mae_hu": mae_hu, "edge_points": points}},
        }

    found = summarise([case(100, 0, 2.0), case(200, 30, 4.0), case(0, 0, math.nan)])["labels"]["1"]
    assert {figure: (of["mean"], of["min"], of["n"]) for figure, of in found.items()} == {
        "voxels": (150, 100, 2), "mae_hu": (3, 2, 2), "edge_points": (15, 0, 2),
    }  # fmt: skip


def test_the_table_says_where_a_tissue_occurs_in_no_case():
    case = {"volume": {"mae_hu": 1.0}, "tissues": {"bone": {"voxels": 0, "mae_hu": math.nan}}, "labels": {}}
    results = {
        "cases": [case],
        "labels": [],
        "settings": {"hu_window": [-1000.0, 1000.0]},
        "summary": summarise([case]),
    }
    lines = format_table(results).splitlines()
    assert lines[2].split() == ["MAE", "(HU)", "1.0", "n/a", "1.0", "1.0", "1"]
    assert lines[3].split() == ["bone", "in", "no", "case"]
