import pickle
from functools import partial
from pathlib import Path

import blosc2
import numpy as np
import pytest
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.training.views import BlendedArray, ViewDataset, default_view_name, find_view, find_views, view_folder


@pytest.fixture(scope="module")
def brighter(planned):
    """A clone of the planned dataset with a view that is 60 HU brighter: (dataset, data folder, view folder)."""
    from datasets_for_tests import clone_of

    dataset = clone_of(planned)
    folder = make_view(dataset, BrighterVAE(), configurations=["3d_fullres"])["3d_fullres"]
    return dataset, dataset.preprocessed / "nnUNetPlans_3d_fullres", folder


def inner_dataset(data_folder):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    return nnUNetDatasetBlosc2(str(data_folder))


@pytest.mark.slow
def test_probability_zero_and_one_give_raw_and_view_without_drawing(brighter):
    _, data_folder, folder = brighter
    inner = inner_dataset(data_folder)
    case = inner.identifiers[0]
    raw = inner.load_case(case)
    view = blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:]
    state = np.random.get_state()[1].copy()
    assert np.array_equal(ViewDataset(inner, {folder: 1}, probability=0).load_case(case)[0][:], raw[0][:])
    data, seg, seg_prev, properties = ViewDataset(inner, {folder: 1}, probability=1)[case]
    assert np.array_equal(data[:], view)
    assert np.array_equal(seg[:], raw[1][:])
    assert seg_prev is None
    assert properties.keys() == raw[3].keys()
    assert np.array_equal(np.random.get_state()[1], state)


def test_the_view_comes_as_often_as_asked(brighter):
    _, data_folder, folder = brighter
    dataset = ViewDataset(inner_dataset(data_folder), {folder: 1}, probability=0.3)
    np.random.seed(0)
    opened = sum(dataset._draw_view() for _ in range(4000)) / 4000
    assert opened == pytest.approx(0.3, abs=0.03)


def test_a_blended_sample_lies_between_raw_and_view(brighter):
    _, data_folder, folder = brighter
    inner = inner_dataset(data_folder)
    case = inner.identifiers[0]
    raw = inner.load_case(case)[0][:]
    view = blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:]
    dataset = ViewDataset(inner, {folder: 1}, probability=1, blend=(0.25, 0.75))
    weights = []
    for _ in range(20):
        data = dataset.load_case(case)[0]
        region = (slice(None), slice(3, 9), slice(10, 30), slice(5, 25))
        part = data[region]
        changed = np.abs(view - raw)[region] > 0.1
        ratio = ((part - raw[region]) / (view - raw)[region].clip(1e-9))[changed]
        assert ratio.max() - ratio.min() < 1e-3
        weights.append(ratio.mean())
        np.testing.assert_array_equal(data[:][region], part)
    assert 0.25 <= min(weights) < 0.4
    assert 0.6 < max(weights) <= 0.75


def test_nnunets_crop_takes_a_blended_array_as_it_takes_a_plain_one():
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

    rng = np.random.default_rng(0)
    raw, view = rng.normal(size=(2, 1, 6, 7, 8)).astype(np.float32)
    blended = BlendedArray(raw, view, 0.5)
    plain = raw + np.float32(0.5) * (view - raw)
    for box in ([[1, 4], [2, 6], [0, 8]], [[-2, 4], [2, 9], [5, 12]], [[4, 9], [-3, 1], [2, 5]]):
        expected = crop_and_pad_nd(plain, box, 0)
        found = crop_and_pad_nd(blended, box, 0)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_the_dataset_survives_pickling_and_hands_out_the_same(brighter):
    _, data_folder, folder = brighter
    dataset = ViewDataset(inner_dataset(data_folder), {folder: 1}, probability=1)
    case = dataset.identifiers[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.load_case(case)[0][:], dataset.load_case(case)[0][:])


@pytest.mark.parametrize(("probability", "blend"), [(1.5, (1, 1)), (-0.1, (1, 1)), (0.5, (0.8, 0.2)), (0.5, (0, 1.2))])
def test_impossible_probabilities_are_refused(brighter, probability, blend):
    _, data_folder, folder = brighter
    with pytest.raises(UserError, match="must be in"):
        ViewDataset(inner_dataset(data_folder), {folder: 1}, probability=probability, blend=blend)


@pytest.mark.slow
def test_the_only_view_is_found_and_several_need_the_variable(clone, monkeypatch):
    data_folder = clone.preprocessed / "nnUNetPlans_3d_fullres"
    with pytest.raises(UserError, match=r"no reconstructed view.*fvae-preprocess 7"):
        find_view(data_folder, partial(command_line, "fvae-preprocess", 7))
    make_view(clone, view="one", configurations=["3d_fullres"])
    assert find_view(data_folder, str) == "one"
    make_view(clone, view="two", configurations=["3d_fullres"])
    with pytest.raises(UserError, match=r"views one, two; choose one: export nnUNet_fvae_view=one"):
        find_view(data_folder, str)
    monkeypatch.setenv("nnUNet_fvae_view", "two")
    assert find_view(data_folder, str) == "two"
    monkeypatch.setenv("nnUNet_fvae_view", "three")
    with pytest.raises(
        UserError, match=r"asks for the view 'three'.*existing views: one, two.*: export nnUNet_fvae_view=one$"
    ):
        find_view(data_folder, partial(command_line, "fvae-preprocess", 7))
    monkeypatch.setenv("nnUNet_fvae_view", "wan2.1")
    with pytest.raises(
        UserError, match=r"existing views: one, two\. Make it .*: fvae-preprocess 7 --vae wan2\.1 --view wan2\.1$"
    ):
        find_view(data_folder, partial(command_line, "fvae-preprocess", 7))
    monkeypatch.setenv("nnUNet_fvae_view", "control-tv")
    with pytest.raises(UserError, match=r"preprocess 7 --vae control:tv --view control-tv, with the strength"):
        find_view(data_folder, partial(command_line, "fvae-preprocess", 7))


def test_names_of_views(tmp_path):
    assert default_view_name("wan2.1") == "wan2.1"
    assert default_view_name("diffusers:stabilityai/sd-vae-ft-mse") == "diffusers-stabilityai-sd-vae-ft-mse"
    assert view_folder(tmp_path / "nnUNetPlans_2d", "wan2.1") == tmp_path / "nnUNetPlans_2d__fvae_wan2.1"
    for name in ("", "a/b", "..", "with space"):
        with pytest.raises(UserError, match="the name of a view"):
            view_folder(tmp_path / "nnUNetPlans_2d", name)


def test_each_sample_draws_one_of_several_views_as_often_as_its_weight_says(brighter, tmp_path):
    _, data_folder, folder = brighter
    inner = inner_dataset(data_folder)
    case = inner.identifiers[0]
    other = tmp_path / "darker"
    other.mkdir()
    blosc2.asarray(np.asarray(inner.load_case(case)[0][:]) - 5, urlpath=str(other / f"{case}.b2nd"), mode="w")
    dataset = ViewDataset(inner, {folder: 3, other: 1}, probability=0.8)
    np.random.seed(0)
    drawn = [Path(str(dataset.load_case(case)[0].urlpath)).parent for _ in range(1000)]
    counts = {"view": drawn.count(folder), "darker": drawn.count(other), "raw": drawn.count(data_folder)}
    # five standard deviations of a binomial count of 1000
    assert abs(counts["view"] - 600) < 78 and abs(counts["darker"] - 200) < 64 and abs(counts["raw"] - 200) < 64
    np.random.seed(1)
    first = [str(pickle.loads(pickle.dumps(dataset)).load_case(case)[0].urlpath) for _ in range(5)]
    np.random.seed(1)
    assert first == [str(dataset.load_case(case)[0].urlpath) for _ in range(5)]


def test_views_are_named_with_weights(tmp_path, monkeypatch):
    data_folder = tmp_path / "nnUNetPlans_3d_fullres"
    for name in ("one", "two"):
        folder = view_folder(data_folder, name)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert find_views(data_folder, str, "two") == {"two": 1}
    assert find_views(data_folder, str, "two:2.5, one") == {"two": 2.5, "one": 1}
    monkeypatch.setenv("nnUNet_fvae_view", "one,two:3")
    assert find_views(data_folder, str) == {"one": 1, "two": 3}
    with pytest.raises(UserError, match="only one view can be used here, not one, two"):
        find_view(data_folder, str)
    with pytest.raises(UserError, match=r"asks for the view 'three'.*existing views: one, two"):
        find_views(data_folder, str, "one,three:2")
    for wrong in ("one:0", "one:-1", "one:many", "one,one", "one,", "one:nan", "one:inf"):
        with pytest.raises(UserError, match="NAME or NAME:WEIGHT"):
            find_views(data_folder, str, wrong)
