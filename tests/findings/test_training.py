"""The training of a findings classifier: its parts by arithmetic, and whole on chests whose findings can be seen."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from findings_for_tests import FINDINGS, SHAPE, SPACING_MM, TINY, chest, write_findings_dataset, write_synthetic_folder

from fvae_nnunet.cli import evaluate_classifier, train_classifier
from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.augmentation import Augmentation
from fvae_nnunet.findings.networks import NETWORKS, build_network
from fvae_nnunet.findings.training import forget_damaged_network, masked_loss, train, window
from fvae_nnunet.findings.training_settings import TrainingSettings, positive_weights
from fvae_nnunet.findings.volumes import Grid

NAN = float("nan")


def settings(**changes) -> TrainingSettings:
    values = {
        "network": "tiny", "grid": Grid(SHAPE, SPACING_MM), "hu_window": (-1000.0, 1000.0), "findings": FINDINGS[:2],
        "steps": 6, "batch": 3, "learning_rate": 1e-2, "positive_weight": "none", "precision": "float32", "seed": 0,
    }  # fmt: skip
    return TrainingSettings(**values | changes)


def test_loss_is_the_mean_over_known_labels():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    loss = masked_loss(logits, labels, torch.tensor([3.0, 1.0]))
    # -3 log s(0), -log s(1), -log s(0.5)
    expected = (3 * math.log(2) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-0.5))) / 3
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert logits.grad[0, 1] == 0 and torch.isfinite(logits.grad).all()
    nothing = masked_loss(logits, torch.full((2, 2), NAN), torch.ones(2))
    assert float(nothing.detach()) == 0


def test_balanced_weights_are_negative_by_positive_cases_within_limits():
    labels = np.zeros((100, 4), dtype=np.float32)
    labels[:25, 0], labels[:1, 1], labels[:80, 3] = 1, 1, 1
    labels[50:, 0] = NAN
    assert positive_weights(labels, "balanced") == pytest.approx([1.0, 20.0, 1.0, 0.25])
    assert positive_weights(labels, "none") == pytest.approx([1.0] * 4)


def test_every_case_is_drawn_once_before_any_comes_again():
    drawn = [place for step in range(7) for place in settings().drawn(step, 7)]
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14] and settings(seed=1).drawn(0, 7) != settings().drawn(0, 7)
    assert Counter(settings(batch=5).drawn(0, 2)).most_common()[0][1] == 3


def test_learning_rate_rises_and_falls_to_nearly_nothing():
    rates = [settings(steps=1000).learning_rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-2 / 50) and rates[49] == rates[50] == pytest.approx(1e-2)
    assert rates[525] == pytest.approx(5e-3) and rates[-1] < 1e-6 and all(np.diff(rates[50:]) < 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps`"),
        ({"batch": 1}, "`batch` at least 2"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"network": "resnet18"}, "needs at least 32 voxels"),
        ({"network": "vgg"}, "`network` must be one of densenet121"),
        ({"hu_window": (0.0, 0.0)}, "lower < upper"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


@pytest.mark.parametrize("name", ["tiny", "resnet10"])
def test_networks_give_a_logit_for_each_finding(name):
    network = build_network(name, findings=3, shape=(32, 32, 32))
    assert network(torch.zeros(2, 1, 32, 32, 32)).shape == (2, 3)


def test_all_networks_can_be_built():
    with torch.device("meta"):
        for name in NETWORKS:
            assert any(
                weight.shape[0] == 18 for weight in build_network(name, findings=18, shape=(32,) * 3).parameters()
            )


def test_window_clips_and_maps_hu():
    volume = np.array([-2000, -1000, 0, 500, 3000], dtype=np.int16).reshape(1, 1, 5)
    assert window([volume], settings(), "cpu").flatten().tolist() == [-1, -1, 0, 0.5, 1]


def tissue_centre(volume: torch.Tensor) -> torch.Tensor:
    """Of soft tissue in the middle slices, (y, x)."""
    return torch.nonzero(volume[0, 4:12] > -0.3)[:, 1:].double().mean(dim=0)


def test_augmentation_is_decided_by_its_seed_and_modest():
    volume = window([chest(True, False, 0)], settings(), "cpu")[0]
    augmentation = Augmentation(SHAPE, "cpu")
    changed = [augmentation(volume, seed) for seed in range(8)]
    assert torch.equal(augmentation(volume, 3), changed[3])
    assert len({float(one.sum()) for one in changed}) > 4
    for one in changed:
        assert one.shape == volume.shape and type(one) is torch.Tensor
        # a shift by 5 % of 32 voxels, and what the turn makes of a thin volume
        moved = [abs(float(a - b)) for a, b in zip(tissue_centre(one), tissue_centre(volume))]
        assert max(moved) < 0.05 * 32 + 0.8
        assert (one[0, 4:12].mean() - volume[0, 4:12].mean()).abs() < 0.3


def trained(folder, *, stop_after=None, **changes):
    """Train on six chests; with ``stop_after`` it is interrupted there."""
    volumes = {f"case_{number}": chest(bool(number % 2), number > 2, number) for number in range(6)}
    labels = np.array([[number % 2, number > 2] for number in range(6)], dtype=np.float32)
    folder.mkdir(exist_ok=True)

    def on_step(done, loss):
        if stop_after is not None and done == stop_after:
            raise KeyboardInterrupt

    return train(
        settings(**changes), keys=sorted(volumes), labels=labels, load=volumes.__getitem__, output=folder, device="cpu",
        save_every=2, on_step=on_step,
    )  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path):
    trained(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "interrupted", stop_after=5)
    assert not (tmp_path / "interrupted" / "network.safetensors").exists()
    trained(tmp_path / "interrupted")
    files = ("network.safetensors", "progress.csv", "progress.png", "cases/network.json")
    made = (path for path in (tmp_path / "interrupted").rglob("*") if path.is_file())
    assert sorted(path.relative_to(tmp_path / "interrupted").as_posix() for path in made) == sorted(files)
    for name in files:
        assert (tmp_path / "interrupted" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, capsys):
    trained(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "damaged", stop_after=5)
    checkpoints = sorted((tmp_path / "damaged").glob("checkpoint*.pt"))
    assert [path.name for path in checkpoints] == ["checkpoint_0000002.pt", "checkpoint_0000004.pt"]
    _flip_a_bit(checkpoints[1])
    trained(tmp_path / "damaged")
    assert f"damaged checkpoint, ignored: {checkpoints[1]} has changed" in capsys.readouterr().out
    network = [tmp_path / folder / "network.safetensors" for folder in ("damaged", "undisturbed")]
    assert network[0].read_bytes() == network[1].read_bytes()
    assert not list((tmp_path / "damaged").glob("checkpoint*"))


def test_without_a_whole_checkpoint_the_training_stops(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "damaged", stop_after=5)
    for path in (tmp_path / "damaged").glob("checkpoint*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        trained(tmp_path / "damaged")


def test_a_damaged_network_is_refused_and_made_again_on_request(tmp_path):
    trained(tmp_path / "model")
    path = tmp_path / "model" / "network.safetensors"
    whole = path.read_bytes()
    assert forget_damaged_network(tmp_path / "model") == []
    _flip_a_bit(path)
    with pytest.raises(UserError, match=r"network\.safetensors has changed since it was written"):
        trained(tmp_path / "model")
    assert len(forget_damaged_network(tmp_path / "model")) == 1 and not path.exists()
    trained(tmp_path / "model")
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(UserError, match=r"network\.safetensors is missing, though it was trained; .* `verify`"):
        trained(tmp_path / "model")
    forget_damaged_network(tmp_path / "model")
    trained(tmp_path / "model")
    assert path.read_bytes() == whole


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(UserError, match="use a lower `learning_rate`"):
        trained(tmp_path / "model", learning_rate=1e30)
    assert not (tmp_path / "model" / "network.safetensors").exists()


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "nnUNet_raw" / "Dataset040_TINY"
    reports = write_findings_dataset(raw)
    source = {"source_case": "p001_0", "model": {"dataset": raw.name, "training_cases": ["p001_0"]}}
    write_synthetic_folder(
        tmp_path / "synthetic", raw.name, {f"synthetic_{number}": source for number in range(6)}
    )  # fmt: skip
    return reports


@pytest.mark.slow
def test_from_the_dataset_to_the_comparison(dataset, tmp_path, capsys):
    options = [*TINY, "--steps", "40", "--lr", "1e-2", "--save-every", "20"]
    results = tmp_path / "nnUNet_results" / "Dataset040_TINY"
    assert train_classifier.main(["40", "--test", *options]) == 0
    assert "cannot be learnt, as all training cases have the same value: Hiatal hernia" in capsys.readouterr().out
    real = results / "fvae_classifier__tiny"
    manifest = json.loads((real / "manifest.json").read_text())
    assert manifest["settings"]["training_cases"] == 40 and manifest["settings"]["fold"] is None
    with (real / "predictions_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == sorted(
        case for case, report in dataset.cases.items() if report.split == "test"
    )

    before = (real / "network.safetensors").stat().st_mtime_ns, (real / "predictions_test.csv").read_bytes()
    assert train_classifier.main(["40", "--test", *options]) == 0  # only predicts
    assert before == ((real / "network.safetensors").stat().st_mtime_ns, (real / "predictions_test.csv").read_bytes())
    assert train_classifier.main(["40", *options, "--seed", "1"]) == 1
    assert "seed: 0, now 1" in capsys.readouterr().err

    assert train_classifier.main(["40", "--test", "--synthetic", "synthetic", *options]) == 0
    assert "40 real and 6 synthetic training cases" in capsys.readouterr().out
    mixed = results / "fvae_classifier__tiny__synthetic"
    assert evaluate_classifier.main(["40", str(real), str(mixed), "--names", "real", "mixed", "-o", "out/c.json"]) == 0
    comparison = json.loads((tmp_path / "out" / "c.json").read_text())
    assert comparison["cases"] == 16 and comparison["patients"] == 12
    nodule, effusion, hernia = comparison["findings"]
    for finding in (nodule, effusion):
        assert [entry["auc"] > 0.85 for entry in finding["models"]] == [True, True], finding
    assert hernia["reason"] == "no positive case among 16" and math.isnan(hernia["models"][0]["auc"])
    assert (tmp_path / "out" / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_training_gives_the_same_bytes_and_names_no_folder_of_the_machine(dataset, tmp_path):
    outputs = [tmp_path / "one" / "a", tmp_path / "elsewhere" / "two" / "b"]
    for output in outputs:
        options = [*TINY, "--steps", "3", "--save-every", "2", "-o", str(output), "--synthetic", "synthetic"]
        assert train_classifier.main(["40", "--test", *options]) == 0
    one, other = (
        {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    )
    assert one == other and "network.safetensors" in one and "predictions_test.csv" in one
    assert all(str(tmp_path).encode() not in content for content in one.values())


def test_a_fold_is_validated_and_leaves_its_synthetic_cases_out(dataset, tmp_path, capsys):
    from fvae_nnunet.findings.cases import split_cases

    held = next(
        fold
        for fold in range(5)
        if "p001_0" in {case.key for case in split_cases("Dataset040_TINY", dataset, fold=fold).validation}
    )
    options = [*TINY, "--steps", "2", "--fold", str(held)]
    assert train_classifier.main(["40", *options, "--synthetic", "synthetic", "--allow-seen"]) == 1
    assert "6 cases: made from a case of a patient who is held out" in capsys.readouterr().err
    assert train_classifier.main(["40", *options]) == 0
    output = capsys.readouterr().out
    assert "validation: mean AUC" in output and "of 2 findings" in output
    model = tmp_path / "nnUNet_results" / "Dataset040_TINY" / f"fvae_classifier__tiny__fold{held}"
    made_with = json.loads((model / "manifest.json").read_text())["made_with"]
    assert not {case[:4] for case in made_with["training_cases"]} & {case[:4] for case in made_with["validation_cases"]}
    # other labels are other training data
    path = tmp_path / "nnUNet_raw" / "Dataset040_TINY" / "reports.json"
    content = json.loads(path.read_text())
    case = made_with["training_cases"][0]
    content["cases"][case]["findings"][FINDINGS[2]] = 1
    path.write_text(json.dumps(content))
    assert train_classifier.main(["40", *options]) == 1
    assert "training_sha256" in capsys.readouterr().err
    assert train_classifier.main(["40", *options, "--overwrite"]) == 0
    image = next((tmp_path / "nnUNet_raw" / "Dataset040_TINY" / "imagesTs").iterdir())
    image.write_bytes(image.read_bytes()[:-100])
    assert train_classifier.main(["40", *options, "--test", "--overwrite"]) == 1
    assert (model / "network.safetensors").is_file(), "a model is kept until the next training can begin"


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_folder_of_others_is_left_as_it_is(dataset, tmp_path, capsys, options):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "progress.csv").write_text("mine")
    assert train_classifier.main(["40", *TINY, "--steps", "2", "-o", str(theirs), *options]) == 1
    assert "theirs holds progress.csv, which was not made by fvae-train-classifier" in capsys.readouterr().err
    assert [path.name for path in theirs.iterdir()] == ["progress.csv"]
    assert (theirs / "progress.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--findings", "Nodul"], "no finding 'Nodul': reports.json has Lung nodule"),
        (["--findings", FINDINGS[0], FINDINGS[0]], "a finding twice"),
        (["--allow-seen"], "--allow-seen has no effect without --synthetic"),
        (["--fold", "5"], "has the folds 0 to 4"),
        (["--synthetic", "nowhere"], "is not a folder of synthetic cases"),
        (["--network", "densenet121"], "needs at least 32 voxels"),
        (["--save-every", "0"], "--save-every must be at least 1"),
    ],
)
def test_impossible_options_are_one_clear_error(dataset, capsys, options, message):
    assert train_classifier.main(["40", *TINY, *options]) == 1
    assert message in capsys.readouterr().err
