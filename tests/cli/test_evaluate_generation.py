"""fvae-evaluate-generation as a user runs it, on tiny networks whose features a test can compute itself."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from generation_for_tests import (
    SLICES,
    VOLUME,
    MeanAndSpread,
    TextLength,
    hu_volume,
    save_script,
    write_image,
    write_synthetic,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from prediction_for_tests import save_model

from fvae_nnunet.cli import evaluate_generation
from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.evaluation.generation import evaluation
from fvae_nnunet.evaluation.generation.distances import frechet_distance
from fvae_nnunet.evaluation.generation.picture import components

TEXTS = ["mass", "no mass", "mass", "no", "no mass"]


@pytest.fixture
def folders(tmp_path):
    """Six real images, five generated of which the first is a training case, four training cases, and networks."""
    real = {f"r{n}": hu_volume(n) for n in range(6)}
    train = {f"t{n}": hu_volume(20 + n) for n in range(4)}
    fake = {f"s{n}": hu_volume(30 + n, mean=150) for n in range(5)} | {"s0": train["t0"]}
    for name, volumes in (("real", real), ("train", train)):
        for case, volume in volumes.items():
            write_image(tmp_path / name / f"{case}.nii.gz", volume)
    records = {f"s{n}": {"source_case": f"r{n}", "text": text} for n, text in enumerate(TEXTS)}
    write_synthetic(tmp_path / "fake", fake, records)
    save_script(MeanAndSpread(), tmp_path / "ct_clip.pt", VOLUME)
    save_script(MeanAndSpread(), tmp_path / "slices.pt", SLICES)
    save_script(TextLength(), tmp_path / "text.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mass", "no"]))
    return tmp_path


def run(folders, *options, real="real", fake="fake", trust=True):
    words = [str(folders / real), str(folders / fake), "-np", "0", "-device", "cpu", "--resamples", "20", *options]
    words += ["--trust-weights"] if trust else []
    return evaluate_generation.main([str(word) for word in words])


def results(folders):
    return json.loads((folders / "fake" / "generation_quality" / "generation.json").read_text())


def expected_features(folders, cases):
    rows = []
    for case in cases:
        array = read_volume(folders / case)[0] / 1000
        rows.append([array.mean(), (array**2).mean()])
    return np.array(rows)


def everything(folders):
    shutil.copytree(folders / "fake" / "labelsTr", folders / "found")
    return [
        "--train", folders / "train", "--ct-clip", folders / "ct_clip.pt", "--radimagenet", folders / "slices.pt",
        "--text-encoder", folders / "text.pt", "--tokenizer", folders, "--segmentations", folders / "found",
    ]  # fmt: skip


@pytest.mark.slow
def test_everything_at_once(folders, capsys):
    assert run(folders, *everything(folders)) == 0
    table, content = capsys.readouterr().out, results(folders)
    assert content["metrics"] == list(evaluation.METRICS) and content["kind"] == "generation_quality"
    real = expected_features(folders, [f"real/r{n}.nii.gz" for n in range(6)])
    fake = expected_features(folders, [f"fake/imagesTr/s{n}_0000.nii.gz" for n in range(5)])
    fvd = next(entry for entry in content["distances"] if entry["metric"] == "fvd")
    moments = [array for rows in (real, fake) for array in (rows.mean(0), np.cov(rows, rowvar=False))]
    assert fvd["value"] == pytest.approx(frechet_distance(*moments), rel=1e-4)
    assert (fvd["width"], fvd["cases_real"], fvd["cases_fake"], fvd["rank_real"]) == (2, 6, 5, 2)
    assert [(entry["metric"], entry["network"], entry["part"]) for entry in content["distances"]] == [
        ("fvd", "CT-CLIP", "volume"),
        ("kid", "CT-CLIP", "volume"),
        *((metric, "RadImageNet", part)
          for part in ("axial", "coronal", "sagittal") for metric in ("fid2.5d", "kid")),
    ]  # fmt: skip

    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (real, fake)]
    pairs = (units[0][:5] * units[1]).sum(1)
    assert content["cosines"]["image_image"]["mean"] == pytest.approx(pairs.mean(), rel=1e-4)
    texts = np.array([[len(text.split()) + 2, 1] for text in TEXTS], float)
    with_texts = (units[1] * texts / np.linalg.norm(texts, axis=1, keepdims=True)).sum(1)
    assert content["cosines"]["text_image"]["mean"] == pytest.approx(with_texts.mean(), rel=1e-4)
    assert content["cosines"]["text_real"] is None

    assert content["masks"]["structures"]["tumour"]["dice"] == 1.0
    memorisation = content["memorisation"]
    assert memorisation["cases"][0]["case"] == "s0" and memorisation["cases"][0]["training_case"] == "t0"
    assert memorisation["cases"][0]["cosine"] == pytest.approx(1.0) and memorisation["n_real"] == 6
    assert content["networks"]["CT-CLIP"]["shape"] == [4, 6, 6] and len(content["networks"]["text"]["sha256"]) == 64
    assert any("too few to trust" in warning for warning in content["warnings"])

    for words in (
        "FVD, CT-CLIP",
        "FID 2.5D, RadImageNet, mean of planes",
        "CT-CLIP, text-image",
        "tumour",
        "6 (24 slices)",
    ):
        assert words in table
    folder = folders / "fake" / "generation_quality"
    assert (folder / "generation.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "generation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"s{n}" for n in range(5)]
    assert rows[0]["nearest_training_case"] == "t0" and float(rows[1]["dice tumour"]) == 1.0
    assert float(rows[2]["image_image_cosine"]) == pytest.approx(pairs[2], rel=1e-4)


def test_a_second_run_takes_the_features_from_the_cache_and_writes_the_same(folders, monkeypatch):
    options = ["--ct-clip", folders / "ct_clip.pt", "--cache", folders / "cache"]
    assert run(folders, *options) == 0
    path = folders / "fake" / "generation_quality" / "generation.json"
    first = path.read_bytes()
    monkeypatch.setattr(
        "fvae_nnunet.evaluation.generation.feature_networks.FeatureNetwork.features",
        lambda *_: pytest.fail("computed again"),
    )
    assert run(folders, *options) == 0
    assert path.read_bytes() == first and len(list((folders / "cache").iterdir())) == 11


def test_only_what_was_asked_for_is_computed(folders):
    assert run(folders, "--features", f"mine={folders / 'slices.pt'}", "--metrics", "kid") == 0
    content = results(folders)
    assert {(entry["metric"], entry["network"]) for entry in content["distances"]} == {("kid", "mine")}
    assert content["cosines"] is content["masks"] is content["memorisation"] is None


def test_real_images_that_were_trained_on_are_told(folders, capsys):
    shutil.copy(folders / "train" / "t1.nii.gz", folders / "real" / "again.nii.gz")
    options = ["--ct-clip", folders / "ct_clip.pt", "--train", folders / "train", "--metrics", "memorisation"]
    assert run(folders, *options) == 0
    assert results(folders)["memorisation"]["real_in_training"] == ["again"]
    assert "1 of 7 real images are also training images" in capsys.readouterr().out


def test_a_model_of_nnunet_segments_what_was_generated(folders, planned, capsys):
    model = save_model(nnUNetTrainer, planned)
    images = {case: planned.raw / "imagesTr" / f"{case}_0000.nii.gz" for case in ("phantom_000", "phantom_001")}
    for folder, file in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folders / "phantoms" / folder).mkdir(parents=True)
        for case in images:
            shutil.copy(planned.raw / folder / f"{case}{file}", folders / "phantoms" / folder)
    shutil.copy(planned.raw / "dataset.json", folders / "phantoms")
    assert run(folders, "--segmenter", model, "-o", folders / "out", fake="phantoms") == 0
    content = json.loads((folders / "out" / "generation.json").read_text())
    assert set(content["masks"]["structures"]) == {"pancreas", "tumour"}
    mask = read_volume(folders / "phantoms" / "labelsTr" / "phantom_000.nii.gz")[0] == 2
    found = read_volume(folders / "out" / "segmentations" / "phantom_000.nii.gz")[0] == 2
    dice = 2 * (mask & found).sum() / (mask.sum() + found.sum())
    assert content["masks"]["cases"]["phantom_000"]["tumour"]["dice"] == pytest.approx(dice)
    assert found.any()

    written = (folders / "out" / "segmentations" / "phantom_000.nii.gz").stat().st_mtime_ns
    assert run(folders, "--segmenter", model, "-o", folders / "out", fake="phantoms") == 0
    assert (folders / "out" / "segmentations" / "phantom_000.nii.gz").stat().st_mtime_ns == written
    assert "picture" not in capsys.readouterr().out, "there are no features to draw"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no metric can be computed: fvd needs --ct-clip"),
        (["--metrics", "fvd", "masks"], "fvd needs --ct-clip, or --features with a network for volumes; masks needs"),
        (["--metrics", "fid2.5d", "--ct-clip", "ct_clip.pt"], "fid2.5d needs --radimagenet"),
        (["--ct-clip", "ct_clip.pt", "--metrics", "memorisation"], "memorisation needs --train"),
        (["--features", "ct_clip.pt"], "takes NAME=PATH"),
        (["--features", "a=ct_clip.pt", "a=slices.pt"], "gives a name twice: a=ct_clip.pt a=slices.pt"),
        (["--tokenizer", "folder"], "requires --text-encoder"),
        (["--text-encoder", "text.pt"], "requires --ct-clip"),
        (["--groups", "groups.json"], "--groups requires"),
        (["--ct-clip", "none.pt"], "no such file: none.pt"),
        (["--segmentations", "found", "--segmenter", "model"], "exclude each other"),
        (["--segmenter", "real"], "has no fold_"),
        (["--segmentations", "none"], "none is not a folder"),
        (["--ct-clip", "ct_clip.pt", "--resamples", "0"], "--resamples must be positive"),
        (["--ct-clip", "ct_clip.pt", "-np", "-1"], "-np must not be negative"),
        (["--ct-clip", "ct_clip.pt", "--reports", "vocab.txt"], "must end in .json or .csv"),
    ],
)
def test_what_cannot_be_done_is_said(folders, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folders)
    assert run(folders, *options) == 1
    assert message in capsys.readouterr().err
    assert not (folders / "fake" / "generation_quality" / "generation.json").exists()


def test_missing_packages_are_named_before_anything_is_computed(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert run(folders, "--ct-clip", folders / "ct_clip.pt") == 1
    assert "fvae-evaluate-generation needs torchmetrics; run: pip install torchmetrics" in capsys.readouterr().err


def test_torchscript_needs_consent(folders, capsys):
    text = ["--text-encoder", folders / "text.pt", "--tokenizer", folders]
    for options in (["--features", f"mine={folders / 'slices.pt'}"], [*text, "--ct-clip", folders / "ct_clip.pt"]):
        assert run(folders, *options, trust=False) == 1
        assert "is TorchScript, a program that can read and write your files" in capsys.readouterr().err


def test_real_and_generated_must_be_two_folders(folders, capsys):
    assert run(folders, "--ct-clip", folders / "ct_clip.pt", fake="real") == 1
    assert "give two folders" in capsys.readouterr().err


def test_the_picture_shows_the_leading_components_of_all_sets_together():
    line = np.array([[-3.0, 1.0], [3.0, 1.0]])
    (first, second), shares = components([line, np.array([[0.0, 2.0], [0.0, 0.0]])])
    assert np.allclose(first, [[-3, 0], [3, 0]]) and np.allclose(second, [[0, 1], [0, -1]])
    assert shares == pytest.approx([18 / 20, 2 / 20])
    (alone,), shares = components([np.ones((2, 1))])
    assert alone.tolist() == [[0, 0], [0, 0]] and shares.tolist() == [0, 0]


def test_the_command_offers_the_metrics_that_there_are():
    assert evaluate_generation.METRICS == evaluation.METRICS
