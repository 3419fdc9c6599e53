"""Many structures and several lesions as the classes of a model: reading, packing, training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from structures_for_tests import CLASSES, SHAPE, blocks, write_structures_dataset

from fvae_nnunet.cli import train_ldm
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.nnunet.report_texts import read_reports
from fvae_nnunet.synthesis.lesions.real_lesions import surroundings_of
from fvae_nnunet.synthesis.model.folder import read_model
from fvae_nnunet.synthesis.model.mask_conditions import class_shares
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.synthesis.training.latent_cache import cache_folder, latents_path
from fvae_nnunet.vae.base import VAESpec

WAN_LIKE = VAESpec("cells", 8, 4, 4, 1, 9, causal=True)


def expected_classes(labels):
    structures, _ = blocks()
    classes = np.select([structures == value for value in (10, 13, 51)], [1, 2, 3], 0)
    return np.select([labels == 1, labels == 2], [5, 6], classes)


def test_structures_and_lesions_are_classes_in_the_order_of_their_values():
    dataset = open_source_dataset(write_structures_dataset().name, organ="structures")
    assert dataset.class_names == CLASSES and dataset.lesions == {"nodule": 1, "effusion": 2}
    assert dataset.organ.text == dataset.organ.recorded == "structures" and dataset.lesion_name is None
    case, (structures, labels) = dataset.read("case_1"), blocks()
    assert case.class_map.dtype == np.uint8 and np.array_equal(case.class_map, expected_classes(labels))
    assert np.array_equal(case.any_lesion, labels > 0) and np.array_equal(case.organ, (structures > 0) | (labels > 0))
    assert {"organ case_1.nii.gz", "organ structures.json", "label case_1.nii.gz"} < case.digests.keys()
    without = dataset.read("case_1", lesions=False)
    assert np.array_equal(without.class_map, expected_classes(0 * labels)) and not without.labels.any()


def test_one_lesion_is_put_into_chosen_structures():
    dataset = open_source_dataset(write_structures_dataset().name, organ="structures").with_lesion("effusion")
    assert (dataset.lesion_value, dataset.lesion_class) == (2, 6)
    case, (structures, labels) = dataset.read("case_1"), blocks()
    assert np.array_equal(case.lesion, labels == 2)
    with pytest.raises(UserError, match="knows no 'cyst'; it knows nodule, effusion"):
        dataset.with_lesion("cyst")
    within = dataset.organ.within(["lung_right"])
    assert np.array_equal(within.where(case.class_map), structures == 13)
    assert within.recorded == "structures:lung_right"
    with pytest.raises(UserError, match="unknown structure 'liver'"):
        dataset.organ.within(["liver"])


def test_a_lesion_is_compared_with_structures_free_of_all_lesions():
    dataset = open_source_dataset(write_structures_dataset().name, organ="structures").with_lesion("nodule")
    around, (structures, labels) = surroundings_of(dataset.read("case_1")), blocks()
    assert np.array_equal(around, (structures > 0) & (labels == 0)) and (labels == 2).any()


@pytest.mark.slow
def test_a_models_classes_are_found_by_name(tmp_path):
    dataset = open_source_dataset(write_structures_dataset().name, organ="structures")

    def settings(*names, lesions=2):
        from types import SimpleNamespace

        return SimpleNamespace(class_names=names, lesions=lesions)

    found = dataset.for_model(settings("heart", "spleen", "lung_left", "nodule", "effusion"), tmp_path)
    structures, labels = blocks()
    classes = np.select([structures == 51, structures == 10], [1, 3], 0)
    expected = np.select([labels == 1, labels == 2], [4, 5], classes)
    assert np.array_equal(found.read("case_1").class_map, expected)
    assert found.organ.structures.unknown == ("lung_right", "aorta")
    with pytest.raises(UserError, match="none of the model's structures"):
        dataset.for_model(settings("liver", "nodule", "effusion"), tmp_path)
    with pytest.raises(UserError, match="was trained on organ, nodule, effusion"):
        open_source_dataset(dataset.name, organ="none").for_model(settings("organ", "nodule", "effusion"), tmp_path)


def test_a_dataset_without_segmentations_has_structures_alone():
    dataset = open_source_dataset(write_structures_dataset(labelled=False).name, organ="structures")
    assert dataset.class_names == CLASSES[:4] and dataset.lesions == {}
    case = dataset.read("case_1")
    assert np.array_equal(case.class_map, expected_classes(np.zeros(SHAPE))) and not case.any_lesion.any()
    with pytest.raises(UserError, match="knows no lesion that could be inserted"):
        dataset.check_lesion()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"heart": 51, "lung_left": 10}, "holds the value 13, which .* does not name"),
        ({"heart": 51, "lung_left": 51}, "heart and lung_left have the same value 51"),
        ({"heart": 255}, "from 1 to 254, not 255"),
        ([], "must be an object"),
        ({"nodule": 51, "a": 10, "b": 13}, "nodule is both a structure and a lesion"),
    ],
)
def test_wrong_names_of_structures_are_refused(content, message):
    dataset = write_structures_dataset(1)
    (dataset.raw / "structuresTr" / "structures.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_source_dataset(dataset.name, organ="structures").read("case_0")


def test_missing_structures_are_named(tmp_path):
    dataset = write_structures_dataset(2)
    (dataset.raw / "structuresTr" / "case_1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no mask for 1 case \(first: case_1\)"):
        open_source_dataset(dataset.name, organ="structures")


@pytest.mark.parametrize(("classes", "shape"), [(2, (1, 5, 8, 16)), (139, (2, 9, 16, 24)), (254, (1, 1, 8, 8))])
def test_packed_shares_are_those_of_counting_each_class(classes, shape):
    """Against the mean of each class's indicator over each cell, computed cell by cell."""
    rng = np.random.default_rng(0)
    # blocks of a few classes, so that cells hold one class, two, or many
    coarse = rng.integers(0, classes + 1, (shape[0], shape[1], shape[2] // 4, shape[3] // 4))
    maps = coarse.repeat(4, 2).repeat(4, 3).astype(np.uint8)
    maps[:, :, :8, :8] = rng.integers(0, classes + 1, (shape[0], shape[1], 8, 8))
    packed = class_shares(torch.from_numpy(maps), WAN_LIKE, classes=classes)
    dense = packed.dense(classes).numpy()
    starts = [0, *range(1, shape[1], 4)]
    assert dense.shape == (shape[0], classes + 1, len(starts), shape[2] // 8, shape[3] // 8)
    most = 0
    for place in np.ndindex(shape[0], len(starts), shape[2] // 8, shape[3] // 8):
        batch, frame, row, column = place
        stop = 1 if frame == 0 else starts[frame] + 4
        cell = maps[batch, starts[frame] : stop, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        expected = np.bincount(cell.ravel(), minlength=classes + 1) / cell.size
        assert np.array_equal(dense[batch, :, frame, row, column], expected)  # powers of two: exact in float16
        most = max(most, np.count_nonzero(expected))
    assert packed.classes.shape[1] == most


def command(dataset, *options):
    small = ("--batch", "2", "--window-batch", "2", "--window-slices", "4", "-np", "0", "--samples-every", "0")
    steps = ("--stage1-steps", "2", "--stage2-steps", "1")
    return [dataset.name, "--vae", "tiny", "--size", "tiny", "-device", "cpu", *small, *steps, *options]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["onehot", "vae"])
def test_training_on_structures_and_diseases(encoding, capsys):
    dataset = write_structures_dataset()
    assert train_ldm.main(command(dataset, "--organ", "structures", "--mask-encoding", encoding)) == 0
    assert "2 with" not in capsys.readouterr().out
    settings, training = read_model(nnunet_folder("nnUNet_results") / dataset.name / "fvae_ldm__tiny")
    assert settings.class_names == CLASSES and settings.lesions == 2 and settings.organ == "structures"
    assert settings.lesion_names == ("nodule", "effusion") and training["lesions"] == ["nodule", "effusion"]
    source = open_source_dataset(dataset.name, organ="structures")
    tensors = load_file(latents_path(cache_folder(source, f"tiny_{encoding}"), "case_1"))
    assert ("classes" in tensors) == (encoding == "onehot") and ("condition" in tensors) == (encoding == "vae")
    # the share of lesion of any class, in cells of 8 x 8 pixels
    lesion = (blocks()[1] > 0).reshape(8, 3, 8, 4, 8).mean((2, 4))
    np.testing.assert_array_equal(tensors["lesion"][0, :, :3, :4], lesion.astype(np.float16))


@pytest.mark.slow
def test_training_without_lesions(capsys):
    dataset = write_structures_dataset(labelled=False)
    assert train_ldm.main(command(dataset, "--organ", "structures")) == 0
    settings, _ = read_model(nnunet_folder("nnUNet_results") / dataset.name / "fvae_ldm__tiny")
    assert settings.lesions == 0 and settings.class_names == CLASSES[:4] and settings.lesion_names == ()


def test_reports_of_a_converted_dataset_are_read():
    dataset = write_structures_dataset(2)
    path = dataset.raw / "reports.json"
    assert read_reports(path) == {"case_0": "a nodule", "case_1": "a nodule"}
    content = json.loads(path.read_text())
    del content["cases"]["case_0"]["report"]
    path.write_text(json.dumps(content))
    assert read_reports(path) == {"case_1": "a nodule"}
