"""nnUNetTrainerFVAESynth: synthetic cases in training batches with their probability, none in validation."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_for_tests import clone_of
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from synthetic_for_tests import MODEL, ball_in, preprocess, write_synthetic_folder
from trainers_for_tests import batches, reproducible, trainer_of  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.errors import UserError
from fvae_nnunet.trainers import nnUNetTrainerFVAE, nnUNetTrainerFVAESynth, nnUNetTrainerFVAESynthRaw
from fvae_nnunet.training.synthetic_dataset import SyntheticDataset
from fvae_nnunet.training.views import ViewDataset

CASES = [f"phantom_{number:03d}" for number in range(5)]


class Never(nnUNetTrainerFVAESynth):
    synthetic_probability = 0.0


class NeverRaw(nnUNetTrainerFVAESynthRaw):
    synthetic_probability = 0.0


class Always(nnUNetTrainerFVAESynthRaw):
    synthetic_probability = 1.0


@pytest.fixture(scope="module")
def synthetic(planned, tmp_path_factory):
    """A dataset with a synthetic case of each of its cases, synthetic_0000 of phantom_000 and so on. Not to change."""
    dataset = clone_of(planned)
    folder = tmp_path_factory.mktemp("synthetic") / "of_all"
    write_synthetic_folder(folder, dataset, CASES)
    preprocess(dataset, folder)
    return dataset


def value_of_lesion(dataset):
    """What nnU-Net makes of the HU of the new lesions: clipped to the percentile and normalised."""
    foreground = dataset.plans["foreground_intensity_properties_per_channel"]["0"]
    return (foreground["percentile_99_5"] - foreground["mean"]) / foreground["std"]


def log_of(trainer):
    return Path(trainer.log_file).read_text()


@pytest.mark.slow
def test_the_share_of_synthetic_samples_is_the_probability_and_each_case_is_as_likely(synthetic):
    training, _ = trainer_of(nnUNetTrainerFVAESynthRaw, synthetic).get_tr_and_val_datasets()
    np.random.seed(0)
    drawn = [training.name_of(training.load_case(training.identifiers[0])[0]) for _ in range(2000)]
    names = [name for name in drawn if name is not None]
    # four standard deviations of a binomial share around 0.3
    assert abs(len(names) / 2000 - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert len(training.synthetic.identifiers) == 4
    for name in training.synthetic.identifiers:
        assert abs(names.count(name) / len(names) - 0.25) < 4 * (0.25 * 0.75 / len(names)) ** 0.5
    assert nnUNetTrainerFVAESynth.synthetic_probability == 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "base"), [(Never, nnUNetTrainerFVAE), (NeverRaw, nnUNetTrainer)])
def test_with_probability_zero_the_batches_are_those_without_synthetic_cases_to_the_bit(clone, ours, base):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    for our, other in zip(batches(ours, clone), batches(base, clone), strict=True):
        assert torch.equal(our["data"], other["data"])
        assert all(torch.equal(a, b) for a, b in zip(our["target"], other["target"], strict=True))
        assert list(our["keys"]) == list(other["keys"])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_synthetic_cases_are_in_training_batches_and_never_in_those_of_validation(synthetic, configuration):
    bright = value_of_lesion(synthetic)
    ours = batches(Always, synthetic, configuration, augmented=False)
    nnunets = batches(nnUNetTrainer, synthetic, configuration, augmented=False)
    shown = 0
    for our in ours[:3]:
        target = our["target"][0] if isinstance(our["target"], list) else our["target"]
        found = (our["data"] > bright - 1e-3) & (target == 2)
        shown += int(found.flatten(1).any(1).sum())
    assert shown >= 3, "of all samples a third is centred on foreground, and the patch holds most of the image"
    for our, nnunet in zip(ours[3:], nnunets[3:], strict=True):
        assert our["data"].shape == nnunet["data"].shape
        target = our["target"][0] if isinstance(our["target"], list) else our["target"]
        assert not ((our["data"] > bright - 1e-3) & (target == 2)).any()
    trainer = trainer_of(Always, synthetic, configuration)
    _, validation = trainer.get_tr_and_val_datasets()
    assert not isinstance(validation, SyntheticDataset)


def test_patches_that_must_hold_foreground_are_centred_on_the_new_lesion(synthetic):
    """Beside organ and new lesion, every phantom has a tumour of its own; none of these patches is centred there."""
    training, _ = trainer_of(Always, synthetic).get_tr_and_val_datasets()
    manager = trainer_of(Always, synthetic).label_manager
    loader = nnUNetDataLoader(training, 1, (3, 3, 3), (3, 3, 3), manager, 1.0)
    ball, _ = ball_in((24, 48, 48), (3, 2, 2))
    np.random.seed(0)
    own, organ = 0, 0
    for _ in range(60):
        data, seg, _, properties = training.load_case(training.identifiers[0])
        low, high = loader.get_bbox(data.shape[1:], True, properties["class_locations"])
        centre = [(a + b) // 2 for a, b in zip(low, high)]
        label = int(seg[:][(0, *centre)])
        assert label in (1, 2)
        own, organ = own + (label == 2), organ + (label == 1)
        assert label != 2 or ball[tuple(centre)], centre
    assert own > 15 and organ > 15, "each class is as likely"


def test_synthetic_cases_of_validation_cases_are_left_out_and_counted(synthetic):
    trainer = trainer_of(nnUNetTrainerFVAESynthRaw, synthetic)
    training, validation = trainer.get_tr_and_val_datasets()
    (held_out,) = validation.identifiers
    expected = [f"synthetic_{number:04d}" for number, case in enumerate(CASES) if case != held_out]
    assert training.synthetic.identifiers == expected
    assert all(training.source_cases[name] in training.identifiers for name in expected)
    log = log_of(trainer)
    assert (
        "4 synthetic cases from 4 source cases" in log
        and "drawn with probability 0.3, not in validation; 1 left" in log
    )
    everything = trainer_of(nnUNetTrainerFVAESynthRaw, synthetic, fold="all")
    assert len(everything.get_tr_and_val_datasets()[0].synthetic.identifiers) == 5
    assert "WARNING" not in log + log_of(everything)


def test_a_shape_borrowed_from_a_validation_case_is_left_out_and_leaking_models_are_warned_of(clone, tmp_path):
    trainer = trainer_of(nnUNetTrainer, clone)
    training, (held_out, *_) = trainer.do_split()
    folder = tmp_path / "synthetic"
    leaking = MODEL | {"folder": str(tmp_path / "ldm"), "training_cases": [held_out, training[0]]}
    write_synthetic_folder(folder, clone, training[:1], model=leaking, borrowed_from=training[1])
    write_synthetic_folder(folder, clone, training[:1], first=1, borrowed_from=held_out)
    preprocess(clone, folder, configurations=["3d_fullres"])
    trainer = trainer_of(nnUNetTrainerFVAESynthRaw, clone)
    assert trainer.get_tr_and_val_datasets()[0].synthetic.identifiers == ["synthetic_0000"]
    log = log_of(trainer)
    assert "because their image or a lesion shape is not from a training case of fold 0" in log
    assert f"WARNING: the diffusion model was trained on 1 validation case of this fold (first: {held_out})" in log
    assert f"fvae-train-ldm {clone.id} --fold 0" in log
    assert trainer.synthetic_settings["validation_cases_seen_by_model"] == [held_out]
    assert "digests of 1 of 1 case checked: all as recorded" in log
    # a checkpoint is given to others
    record = trainer.training_record()
    assert record["synthetic"]["synthetic_folder"] == "synthetic" and str(tmp_path) not in json.dumps(record)


def test_without_any_usable_case_training_stops(clone, tmp_path):
    held_out = trainer_of(nnUNetTrainer, clone).do_split()[1]
    write_synthetic_folder(tmp_path / "synthetic", clone, held_out)
    preprocess(clone, tmp_path / "synthetic", configurations=["3d_fullres"])
    with pytest.raises(
        UserError, match=r"none of the 1 synthetic cases .* only from training cases of fold 0; .* --ldm .* --fold 0"
    ):
        trainer_of(nnUNetTrainerFVAESynthRaw, clone).get_tr_and_val_datasets()


@pytest.mark.slow
def test_real_samples_are_raw_or_view_and_synthetic_ones_as_they_are(clone, tmp_path):
    write_synthetic_folder(tmp_path / "synthetic", clone, CASES)
    preprocess(clone, tmp_path / "synthetic", configurations=["3d_fullres"])
    with pytest.raises(UserError, match="has no reconstructed view"):
        trainer_of(nnUNetTrainerFVAESynth, clone).get_tr_and_val_datasets()
    view = make_view(clone, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    training, _ = trainer_of(nnUNetTrainerFVAESynth, clone).get_tr_and_val_datasets()
    assert isinstance(training.inner, ViewDataset)
    np.random.seed(0)
    folders = [Path(training.load_case(training.identifiers[0])[0].urlpath).parent.name for _ in range(600)]
    shares = {name: folders.count(name) / 600 for name in folders}
    expected = {view.name: 0.35, "nnUNetPlans_3d_fullres": 0.35, "nnUNetPlans_3d_fullres__fvae_synthetic": 0.3}
    assert shares.keys() == expected.keys()
    assert all(abs(shares[name] - expected[name]) < 0.08 for name in expected)


def test_the_dataset_can_be_sent_to_other_processes(synthetic):
    training, _ = trainer_of(Always, synthetic).get_tr_and_val_datasets()
    again = pickle.loads(pickle.dumps(training))
    assert again.name_of(again.load_case(again.identifiers[0])[0]) in again.synthetic.identifiers


@pytest.mark.slow
def test_what_is_missing_incomplete_or_of_other_plans_stops_with_the_command(clone, tmp_path):
    def error(base=nnUNetTrainerFVAESynthRaw):
        with pytest.raises(UserError) as raised:
            trainer_of(base, clone).get_tr_and_val_datasets()
        return str(raised.value)

    command = f"fvae-preprocess {clone.id} -c 3d_fullres -p nnUNetPlans --synthetic"
    message = error()
    assert f"fvae-train-ldm {clone.id} --fold 0 && fvae-synthesize {clone.id} --ldm " in message
    assert f"{command} " in message and f"fvae_synthetic/{clone.name}" in message
    folder = tmp_path / "with a space"
    write_synthetic_folder(folder, clone, CASES)
    made = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    array = made / "synthetic_0002.b2nd"
    whole = array.read_bytes()
    array.write_bytes(whole[:-1])
    message = error()
    assert "1 of 5 synthetic cases are missing or incomplete (first: synthetic_0002)" in message
    assert message.endswith(f"Complete them with: {command} '{folder}'")
    array.write_bytes(whole)
    (made / "cases" / "synthetic_0004.json").unlink()
    assert "(first: synthetic_0004)" in error()
    plans = clone.plans
    plans["configurations"]["3d_fullres"]["resampling_fn_seg_kwargs"]["order"] = 0
    clone.write_plans(plans)
    message = error()
    assert "preprocessed for other plans" in message and "resampling_fn_seg_kwargs.order: 1, now 0" in message
    assert message.endswith("--overwrite")
    with pytest.raises(UserError, match=r"must be in \[0, 1\], got 1\.5"):
        SyntheticDataset(None, None, {}, probability=1.5)


def test_a_cascade_is_refused_with_the_reason(clone):
    clone.write_cascade_plans()
    with pytest.raises(
        UserError, match=r"needs the segmentation of the previous stage .* which synthetic cases do not have"
    ):
        trainer_of(nnUNetTrainerFVAESynthRaw, clone, "3d_cascade_fullres").get_tr_and_val_datasets()
    trainer_of(NeverRaw, clone, "3d_cascade_fullres").get_tr_and_val_datasets()


@pytest.mark.slow
def test_training_and_validation_record_what_was_used(synthetic, monkeypatch):
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    seen = []

    class Predictor(module.nnUNetPredictor):
        def predict_sliding_window_return_logits(self, data):
            seen.append(data.numpy())
            return super().predict_sliding_window_return_logits(data)

    monkeypatch.setattr(module, "nnUNetPredictor", Predictor)
    trainer = trainer_of(nnUNetTrainerFVAESynthRaw, synthetic)
    trainer.run_training()
    trainer.perform_actual_validation()
    (held_out,) = trainer.do_split()[1]
    import blosc2

    data_folder = synthetic.preprocessed / "nnUNetPlans_3d_fullres"
    (validated,) = seen
    assert np.array_equal(validated, blosc2.open(str(data_folder / f"{held_out}.b2nd"), mode="r")[:])
    output = Path(trainer.output_folder)
    assert output.parent.name == "nnUNetTrainerFVAESynthRaw__nnUNetPlans__3d_fullres"
    assert (output / "validation" / "summary.json").is_file()
    checkpoint = torch.load(output / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    record = checkpoint["fvae_nnunet"]
    assert record["trainer"] == "nnUNetTrainerFVAESynthRaw" and record["view"] is None
    assert record["synthetic"]["probability"] == 0.3 and len(record["synthetic"]["cases"]) == 4
    assert record["synthetic"]["models"] == [{key: MODEL[key] for key in MODEL if key != "training_cases"}]
