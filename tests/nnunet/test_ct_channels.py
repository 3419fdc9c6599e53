"""Channels by their place, datasets by their id, as nnU-Net counts both."""

import shutil

import pytest
from datasets_for_tests import Dataset

from fvae_nnunet.cli import preprocess
from fvae_nnunet.conversion.nnunet_dataset import new_dataset_name
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet import registration
from fvae_nnunet.nnunet.ct_channels import channel_names, find_ct_channels, said_channels
from fvae_nnunet.nnunet.folders import dataset_argument, dataset_id, dataset_name
from fvae_nnunet.nnunet.trained_model import TrainedModel
from fvae_nnunet.report.case_images import ct_channel

NO_PLANS = {"configurations": {}}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"CT": "CT"}, [0]),
        ({"1": "CT"}, [0]),
        ({"CT": "CT", "PET": "CT"}, [0, 1]),
        ({"1": "PET", "2": "ct", "0": "MR"}, [1]),
    ],
)
def test_only_the_order_of_the_channels_counts(names, expected, tmp_path):
    for key in ("channel_names", "modality"):
        content = {key: names, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
        assert channel_names(content) == list(names.values())
        assert find_ct_channels(content, NO_PLANS) == expected
        (tmp_path / "dataset.json").write_text(str(content).replace("'", '"'))
        assert ct_channel(tmp_path) == expected[0]


def test_channels_that_are_asked_for_go_before_names_and_must_be_there():
    content = {"channel_names": {"CT": "CT", "PET": "CT", "late": "portal venous"}}
    assert find_ct_channels(content, NO_PLANS, [2, 0, 2]) == [0, 2]
    for unknown in (3, -1):
        with pytest.raises(UserError, match=rf"no channel {unknown}; .* 0 \(CT\), 1 \(CT\), 2 \(portal venous\)$"):
            find_ct_channels(content, NO_PLANS, [0, unknown])


def test_what_is_reconstructed_and_copied_is_said_also_of_one_channel():
    content = {"channel_names": {"a": "CT", "b": "PET", "c": "CT"}}
    assert said_channels(content, [0, 2]) == "channels reconstructed: 0 (CT), 2 (CT); copied: 1 (PET)"
    assert said_channels({"channel_names": {"CT": "CT"}}, [0]) == "channels reconstructed: 0 (CT); copied: none"


def test_a_model_predicts_with_the_channels_of_its_record_or_those_that_are_asked_for(tmp_path):
    def model(view):
        content = {"channel_names": {"a": "CT", "b": "CT"}, "file_ending": ".nii.gz"}
        return TrainedModel(tmp_path, (0,), "checkpoint_final.pth", content, NO_PLANS, "nnUNetTrainer", view, False)

    assert model({"ct_channels": [1]}).reconstructed_channels() == [1]
    assert model({"ct_channels": [1]}).reconstructed_channels([1]) == [1]
    with pytest.raises(UserError, match="view of the channels 1; leave it out"):
        model({"ct_channels": [1]}).reconstructed_channels([0])
    assert model(None).reconstructed_channels() == [0, 1]
    assert model(None).reconstructed_channels([0]) == [0]


def test_the_id_of_a_dataset_is_all_its_digits():
    for name, number in (("Dataset001_A", 1), ("Dataset999_A_1", 999), ("Dataset1001_Big", 1001)):
        assert dataset_id(name) == number
    assert new_dataset_name("1001_Big") == new_dataset_name("Dataset1001_Big") == "Dataset1001_Big"
    with pytest.raises(UserError, match="is not a dataset name"):
        dataset_id("Task07_Pancreas")


def test_a_dataset_is_printed_by_name_where_nnunet_would_confuse_its_id(monkeypatch, tmp_path):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "Dataset1001_Big").mkdir()
    assert dataset_argument("Dataset1001_Big") == "1001" and dataset_name("1001") == "Dataset1001_Big"
    (tmp_path / "Dataset100_Small").mkdir()
    assert dataset_argument("Dataset100_Small") == "Dataset100_Small" and dataset_name("100") == "Dataset100_Small"
    assert dataset_argument("Dataset1001_Big") == "1001"


@pytest.fixture
def big(planned):
    """A dataset with an id above 999 whose channel has a name for a key."""
    dataset = Dataset("Dataset1901_Big")
    shutil.copytree(planned.raw, dataset.raw)
    shutil.copytree(planned.preprocessed, dataset.preprocessed)
    dataset.write_plans(planned.plans | {"dataset_name": dataset.name})
    dataset.write_dataset_json(dataset.dataset_json | {"channel_names": {"CT": "CT"}})
    yield dataset
    for folder in (dataset.raw, dataset.preprocessed):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_dataset_above_999_with_named_channels_gets_its_view_and_its_own_commands(big, monkeypatch, capsys):
    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)
    options = ["-c", "2d", "--vae", "control:identity", "-np", "0"]
    assert preprocess.main([big.name, *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("channels reconstructed: 0 (CT); copied: none\n")
    assert "train with: nnUNetv2_train 1901 2d 0 -tr nnUNetTrainerFVAE" in out
    assert preprocess.main([big.id, *options]) == 0 and "5 already complete" in capsys.readouterr().out
    assert preprocess.main([big.id, *options, "--channels", "1"]) == 1
    assert "there is no channel 1; the channels are 0 (CT)" in capsys.readouterr().err
    assert preprocess.main([big.id, "-c", "3d_lowres", *options[2:]]) == 1
    shutil.rmtree(big.preprocessed / "nnUNetPlans_2d")
    assert preprocess.main([big.id, *options]) == 1
    assert "nnUNetv2_preprocess -d 1901 -plans_name nnUNetPlans -c 2d" in capsys.readouterr().err
