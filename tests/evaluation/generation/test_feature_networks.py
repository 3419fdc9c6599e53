"""What feature networks get, RadImageNet's files in their layouts, TorchScript, and the cache of features."""

import functools
import json

import numpy as np
import pytest
import torch
from generation_for_tests import GRID_MM, SLICES, VOLUME, MeanAndSpread, hu_volume, save_script, write_image
from torch.nn import functional

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.feature_networks import (
    FeatureNetwork,
    is_torchscript,
    load_feature_networks,
)
from fvae_nnunet.evaluation.generation.features import CaseFeatures, cache_key, extract_features
from fvae_nnunet.evaluation.generation.image_sets import read_image_set
from fvae_nnunet.evaluation.generation.network_inputs import (
    SliceInput,
    VolumeInput,
    on_grid,
    read_network_input,
)
from fvae_nnunet.evaluation.generation.radimagenet import load_radimagenet, torchvision_names

UNIT_MM = (1.0, 1.0, 1.0)
WINDOW = (-1000.0, 1000.0)


def grid(volume, shape, spacing_mm=UNIT_MM, grid_mm=UNIT_MM):
    return on_grid(np.asarray(volume, np.float32), spacing_mm, shape, grid_mm, WINDOW).numpy()


def test_hu_are_clipped_and_divided_by_1000_as_ct_clip_has_it():
    assert grid([[[-3000, -1000, -500, 0, 250, 1000, 3000]]], (1, 1, 7)).ravel().tolist() == [
        -1, -1, -0.5, 0, 0.25, 1, 1,
    ]  # fmt: skip


def test_volumes_are_cropped_and_padded_around_their_middle():
    assert grid([[[100, 200, 300, 400, 500]]], (1, 1, 2)).ravel().tolist() == pytest.approx([0.2, 0.3])
    assert grid([[[100, 200]]], (1, 1, 5)).ravel().tolist() == pytest.approx([-1, 0.1, 0.2, -1, -1])


def test_a_ramp_keeps_its_slope_in_mm_and_no_voxel_is_lost_to_rounding():
    ramp = np.broadcast_to(np.arange(30, dtype=np.float32) * 10, (2, 3, 30))
    half = grid(ramp, (2, 3, 15), grid_mm=(1.0, 1.0, 2.0))
    assert np.allclose(half[0, 0], (np.arange(15) * 20 + 5) / 1000)
    same = grid(np.zeros((30, 30, 30)), (30, 30, 30), (0.7, 0.7, 0.7), (0.7, 0.7, 0.7))
    assert (same == 0).all()
    assert (grid(np.zeros((1, 1, 30)), (1, 1, 31), (1, 1, 0.7), (1, 1, 0.1 * 7)) == 0).sum() == 30


def test_axes_reach_the_network_in_the_order_that_it_wants():
    volume = np.zeros((2, 3, 4), np.int16)
    volume[1, 2, 0] = 500
    for order, where in (("zyx", (1, 2, 0)), ("zxy", (1, 0, 2))):
        prepared = VolumeInput((2, 3, 4), UNIT_MM, WINDOW, order).prepare(volume, UNIT_MM)["volume"]
        assert prepared.shape[:2] == (1, 1)
        assert prepared[0, 0][where] == 0.5 and (prepared != 0).sum() == 1


def test_slices_of_three_planes_stand_upright():
    volume = np.full((3, 4, 5), -1000, np.int16)
    volume[2, 1, 3] = 1000  # near the head
    planes = SliceInput((3, 4, 5), UNIT_MM, share=1.0).prepare(volume, UNIT_MM)
    assert {name: tuple(stack.shape) for name, stack in planes.items()} == {
        "axial": (3, 4, 5), "coronal": (4, 3, 5), "sagittal": (5, 3, 4),
    }  # fmt: skip
    found = {name: tuple(int(n) for n in stack.nonzero()[0]) for name, stack in planes.items()}
    assert found == {"axial": (2, 1, 3), "coronal": (1, 0, 3), "sagittal": (3, 0, 1)}
    assert planes["axial"].max() == 1


@pytest.mark.parametrize(
    ("share", "step", "expected"),
    [(0.4, 1, [3, 4, 5, 6]), (1.0, 4, [0, 4, 8]), (0.4, 3, [3, 6]), (0.01, 1, [4])],
)
def test_slices_in_the_middle(share, step, expected):
    volume = np.arange(10)[:, None, None] * np.ones((1, 2, 2)) * 100
    axial = SliceInput((10, 2, 2), UNIT_MM, share=share, step=step).prepare(volume, UNIT_MM)["axial"]
    assert [round(float(one.mean()) * 20 - 10) for one in axial] == expected


def test_metal_changes_its_own_voxel_and_nothing_else():
    volume = hu_volume(0)
    with_metal = volume.copy()
    with_metal[2, 3, 3] = 20_000
    seen = SliceInput((4, 6, 6), GRID_MM, share=1.0)
    planes, others = seen.prepare(volume, GRID_MM), seen.prepare(with_metal, GRID_MM)
    assert all((planes[name] != others[name]).sum() == 1 for name in planes)


def test_scales_of_three_channels():
    grey = torch.full((1, 2, 2), 0.75)
    for scale, expected in (("caffe", [0.344, 0.294, 0.265]), ("signed", [0.5] * 3), ("unit", [0.75] * 3)):
        assert SliceInput(scale=scale).channels(grey)[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        grid([[[np.nan, 0]]], (1, 1, 2))


def test_a_settings_file_beside_the_network_overrides_the_defaults(tmp_path):
    path = tmp_path / "net.pt"
    assert read_network_input(path, VolumeInput()) == VolumeInput()
    path.with_suffix(".json").write_text(json.dumps({"shape": [8, 8, 8]}))
    assert read_network_input(path, VolumeInput()) == VolumeInput(shape=(8, 8, 8))
    path.with_suffix(".json").write_text(json.dumps(SLICES))
    assert read_network_input(path, VolumeInput()) == SliceInput((4, 6, 8), (2.0, 1.0, 1.0), share=1.0, scale="unit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object"),
        ({"input": "audio"}, "must be an object"),
        ({"colour": 1}, "unknown keys: colour"),
        ({"shape": [8, 8]}, "shape must be three"),
        ({"shape": 8}, "net.json"),
        ({"spacing_mm": [1, 0, 1]}, "spacing_mm must be three positive"),
        ({"hu_window": [5, 5]}, "lower < upper"),
        ({"order": "xyz"}, "order must be"),
        ({"input": "slices", "share": 0}, "share of slices"),
        ({"input": "slices", "step": 0}, "step between slices"),
        ({"input": "slices", "scale": "torch"}, "scale must be one of"),
    ],
)
def test_impossible_settings_are_named(tmp_path, content, message):
    path = tmp_path / "net.pt"
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_network_input(path, VolumeInput())


# -- RadImageNet


@functools.cache
def torchvision_resnet():
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet50(weights=None).eval()


IMAGE = torch.linspace(-1, 1, 3 * 40 * 40).reshape(1, 3, 40, 40)


def torchvision_features():
    network = torchvision_resnet()
    last = torch.nn.Sequential(*list(network.children())[:-2])(IMAGE)
    return last.mean((2, 3)).detach()


def authors_names(state):
    children = [name for name, _ in torchvision_resnet().named_children()]
    return {
        f"backbone.{children.index(name.split('.')[0])}.{name.partition('.')[2]}": value
        for name, value in state.items()
        if not name.startswith("fc.")
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchvision", "authors", "wrapped", "nested", "without counters"])
def test_authors_weights_give_the_features_of_torchvisions_network(tmp_path, form):
    state = torchvision_resnet().state_dict()
    if form == "authors":
        state = authors_names(state)
    elif form == "wrapped":
        state = {f"module.{name}": value for name, value in authors_names(state).items()}
    elif form == "nested":
        state = {"state_dict": {f"model.{name}": value for name, value in state.items()}}
    elif form == "without counters":
        state = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "ResNet50.pt")
    network, scale = load_radimagenet(tmp_path / "ResNet50.pt")
    assert scale == "signed"
    assert torch.allclose(network(IMAGE), torchvision_features(), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def keras_state():
    """torchvision's names with a bias for every convolution, as the conversion from Keras has them."""
    state = {name: value for name, value in torchvision_resnet().state_dict().items() if not name.startswith("fc.")}
    generator = torch.Generator().manual_seed(1)
    for name, value in list(state.items()):
        if value.ndim == 4:
            state[name.replace("weight", "bias")] = torch.randn(len(value), generator=generator) * 0.1
    return state


def keras_features(state, x):
    """ResNet-50 as Keras has it (v1), written out: stride in the first 1x1 convolution, eps 1.001e-5."""

    def convolve(x, name, stride=1, padding=0):
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def normalise(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{part}"] for part in names), eps=1.001e-5)

    x = normalise(convolve(x, "conv1", 2, 3), "bn1").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            stride = 2 if block == 0 and layer > 1 else 1
            y = normalise(convolve(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
            y = normalise(convolve(y, f"{at}.conv2", padding=1), f"{at}.bn2").relu()
            y = normalise(convolve(y, f"{at}.conv3"), f"{at}.bn3")
            if block == 0:
                x = normalise(convolve(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3))


def test_weights_from_keras_give_the_features_of_keras_network(tmp_path):
    state = keras_state()
    torch.save(state, tmp_path / "RadImageNet-ResNet50_notop.pth")
    network, scale = load_radimagenet(tmp_path / "RadImageNet-ResNet50_notop.pth")
    assert scale == "caffe"
    expected = keras_features(state, IMAGE)
    assert torch.allclose(network(IMAGE), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_other_networks_are_named_by_what_they_lack(tmp_path):
    state = torchvision_resnet().state_dict()
    del state["layer3.0.conv2.weight"]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"not RadImageNet's ResNet-50: layer3\.0\.conv2\.weight is missing"):
        load_radimagenet(tmp_path / "net.pt")
    assert torchvision_names({"backbone.8.x": torch.zeros(1), "backbone.9.weight": torch.ones(1)}) == {
        "avgpool.x": torch.zeros(1)
    }


# -- TorchScript


class Wrong(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "flat":
            return x.mean()[None]
        if self.kind == "nan":
            return x.flatten(1)[:, :2] / 0.0 * 0.0
        return torch.zeros(x.shape[0], 3) @ torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("kind", "message"), [("flat", "must return a tensor"), ("nan", "not finite"), ("breaks", "failed on its volume")]
)
def test_networks_that_give_no_features_are_named(tmp_path, kind, message):
    path = save_script(Wrong(kind), tmp_path / "net.pt", VOLUME)
    (network,) = load_feature_networks(features={"mine": path}, trust_weights=True)
    with pytest.raises(UserError, match=message) as error:
        network.features(network.input.prepare(hu_volume(0), GRID_MM))
    assert "mine" in str(error.value) and str(path) in str(error.value)


class Map(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_maps_are_averaged_and_slices_do_not_depend_on_batches(tmp_path, monkeypatch):
    path = save_script(Map(), tmp_path / "net.pt", SLICES)
    (network,) = load_feature_networks(radimagenet=path, trust_weights=True)
    prepared = network.input.prepare(hu_volume(1, shape=(4, 6, 8)), GRID_MM)
    found = network.features(prepared)
    assert {name: rows.shape for name, rows in found.items()} == {
        "axial": (4, 3), "coronal": (6, 3), "sagittal": (8, 3),
    }  # fmt: skip
    assert np.allclose(found["coronal"][:, 1], prepared["coronal"].mean((1, 2)), atol=1e-6)
    monkeypatch.setattr("fvae_nnunet.evaluation.generation.feature_networks.SLICES_AT_ONCE", 3)
    assert np.array_equal(found["sagittal"], network.features(prepared)["sagittal"])


class Thief(torch.nn.Module):
    """Writes what it sees into a file; TorchScript lets it."""

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        torch.save(seen, "stolen.pt")
        return seen.flatten(1)[:, :2]


def test_torchscript_is_run_only_with_consent_because_it_can_write_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Thief()).save(str(tmp_path / "thief.pt"))
    for given in ({"ct_clip": tmp_path / "thief.pt"}, {"radimagenet": tmp_path / "thief.pt"}):
        with pytest.raises(UserError, match=r"thief\.pt is TorchScript, .* your files .* `trust_weights=True` runs it"):
            load_feature_networks(**given)
    with pytest.raises(UserError, match="trust_weights"):
        load_feature_networks(features={"mine": tmp_path / "thief.pt"})
    assert not (tmp_path / "stolen.pt").exists()
    (network,) = load_feature_networks(ct_clip=tmp_path / "thief.pt", trust_weights=True)
    network.module(torch.zeros(1, 1, 4))
    assert (tmp_path / "stolen.pt").exists(), "this is what the consent is for"


def test_files_that_are_no_torchscript_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no network")
    assert not is_torchscript(tmp_path / "weights.pt") and not is_torchscript(tmp_path / "text.pt")
    assert is_torchscript(save_script(MeanAndSpread(), tmp_path / "net.pt"))
    for name in ("weights.pt", "text.pt"):
        with pytest.raises(UserError, match="not a TorchScript file"):
            load_feature_networks(ct_clip=tmp_path / name, trust_weights=True)
    with pytest.raises(UserError, match="no such file"):
        load_feature_networks(ct_clip=tmp_path / "none.pt", trust_weights=True)
    with pytest.raises(UserError, match="the name CT-CLIP is already used"):
        load_feature_networks(
            ct_clip=tmp_path / "net.pt", features={"CT-CLIP": tmp_path / "net.pt"}, trust_weights=True
        )


def test_the_step_between_slices_is_for_networks_of_slices(tmp_path):
    slices = save_script(MeanAndSpread(), tmp_path / "slices.pt", SLICES)
    volume = save_script(MeanAndSpread(), tmp_path / "volume.pt", VOLUME)
    networks = load_feature_networks(features={"a": slices, "b": volume}, slice_step=3, trust_weights=True)
    assert networks[0].input.step == 3 and networks[1].input == VolumeInput((4, 6, 6), (2.0, 1.0, 1.0), order="zyx")


# -- extraction and cache


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / f"case_{number}_0000.nii.gz", hu_volume(number))
    return tmp_path / "images"


@pytest.fixture
def networks(tmp_path):
    volume = save_script(MeanAndSpread(), tmp_path / "volume.pt", VOLUME)
    slices = save_script(MeanAndSpread(), tmp_path / "slices.pt", SLICES)
    return load_feature_networks(features={"volume": volume, "slices": slices}, trust_weights=True)


@pytest.mark.parametrize("readers", [0, 2])
def test_features_are_those_of_each_image_and_computed_once(folder, networks, tmp_path, readers, monkeypatch):
    done = []
    images = read_image_set(folder)
    first = extract_features(
        images, networks, cache=tmp_path / "cache", readers=readers, on_case=lambda: done.append(1)
    )
    assert len(done) == 3
    found = first.features["volume", "volume"]
    assert found.names == ("case_0", "case_1", "case_2") and found.rows.dtype == np.float64
    expected = [hu_volume(number).mean() / 1000 for number in range(3)]
    assert np.allclose(found.rows[:, 0], expected, atol=1e-6)
    axial = first.features["slices", "axial"]
    assert axial.rows.shape == (12, 2) and axial.case_of_row.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.allclose(axial.means()[:, 0], [(value + 1) / 2 * 6 / 8 for value in expected], atol=1e-6)
    assert len(list((tmp_path / "cache").iterdir())) == 6

    monkeypatch.setattr(FeatureNetwork, "features", lambda *_: pytest.fail("computed again"))
    again = extract_features(images, networks, cache=tmp_path / "cache", readers=readers)
    assert again.image_sha256 == first.image_sha256
    for key, features in first.features.items():
        assert np.array_equal(features.rows, again.features[key].rows)


def test_a_damaged_entry_is_made_again(folder, networks, tmp_path):
    images = read_image_set(folder)
    first = extract_features(images, networks, cache=tmp_path / "cache")
    damaged = tmp_path / "cache" / f"{cache_key(networks[0], first.image_sha256['case_1'])}.safetensors"
    whole = damaged.read_bytes()
    for content in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        damaged.write_bytes(content)
        again = extract_features(images, networks, cache=tmp_path / "cache")
        assert again.image_sha256 == first.image_sha256
        assert damaged.read_bytes() == whole


def test_keys_know_network_input_and_image(networks):
    volume, slices = networks
    keys = {
        cache_key(volume, "a"),
        cache_key(volume, "b"),
        cache_key(slices, "a"),
        cache_key(FeatureNetwork("volume", volume.path, "other", volume.input, volume.module, "cpu"), "a"),
        cache_key(
            FeatureNetwork(
                "volume", volume.path, volume.sha256, VolumeInput(hu_window=(-500, 500)), volume.module, "cpu"
            ),
            "a",
        ),
    }
    assert len(keys) == 5
    renamed = FeatureNetwork("other name", volume.path, volume.sha256, volume.input, volume.module, "cpu")
    assert cache_key(renamed, "a") == cache_key(volume, "a")


def test_images_that_cannot_be_used_are_all_named_and_the_others_kept(folder, networks, tmp_path):
    damaged = folder / "case_1_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"case_1: .*case_1_0000\.nii\.gz") as error:
        extract_features(read_image_set(folder), networks, cache=tmp_path / "cache")
    assert "case_0" not in str(error.value)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4


def test_means_of_cases():
    features = CaseFeatures.of({"a": np.array([[1.0], [3.0]]), "b": np.array([[10.0]])})
    assert features.means().tolist() == [[2.0], [10.0]]
