"""WF-VAE: values of upstream's code, its parameters, what depends on what, checkpoints, and what is refused.

``FVAE_WFVAE_CODE`` may name a checkout of github.com/PKU-YuanGroup/WF-VAE, with whose code ours is then compared.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_kl
from torch import nn
from torch.nn import functional
from wfvae_for_tests import TINY, TINY_CONFIG, haar_kernel, random_state, write_folder

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.folders import HubModel
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.wfvae.layers import (
    Block,
    Downsample,
    SliceAttention,
    SliceDownsample,
    SliceUpsample,
    Upsample,
    as_slices,
)
from fvae_nnunet.vae.wfvae.network import WFVAENetwork, WFVAESizes
from fvae_nnunet.vae.wfvae.vae import WFVAE, load_wfvae
from fvae_nnunet.vae.wfvae.wavelets import HAAR_2D, HAAR_3D, Haar3d, InverseHaar3d

LARGE_CONFIG = {
    "_class_name": "WFVAEModel", "latent_dim": 16, "base_channels": 192, "encoder_energy_flow_hidden_size": 128,
    "decoder_energy_flow_hidden_size": 128, "norm_type": "layernorm", "t_interpolation": "trilinear",
}  # fmt: skip

# Kinds: haar (of 2 or 3 dimensions, kernels or convolutions), slice (3x3) and conv (3x3x3) with channels in and out,
# block (residual; of slices with one number), attention, norm
LARGE_LAYERS = """
encoder.wavelet_transform_in             haar-conv
encoder.wavelet_transform_l1             haar-2d
encoder.wavelet_transform_l2             haar-conv
encoder.connect_l1                       slice 12 128
encoder.connect_l2                       slice 24 128
encoder.down1.0                          slice 24 192
encoder.down1.1                          block 192
encoder.down1.2                          block 192
encoder.down1.3.conv                     slice 192 192
encoder.down2.0                          slice 320 384
encoder.down2.1                          block 384 384
encoder.down2.2                          block 384 384
encoder.down2.3.conv                     conv 384 384
encoder.mid.0                            block 512 768
encoder.mid.1                            attention 768
encoder.mid.2                            block 768 768
encoder.norm_out                         norm 768
encoder.conv_out                         conv 768 32
decoder.conv_in                          conv 16 768
decoder.mid.0                            block 768 768
decoder.mid.1                            attention 768
decoder.mid.2                            block 768 896
decoder.up2.0                            block 768 768
decoder.up2.1                            block 768 768
decoder.up2.2.conv                       conv 768 768
decoder.up2.3                            block 768 896
decoder.up1.0                            block 768 384
decoder.up1.1                            block 384 384
decoder.up1.2.conv                       slice 384 384
decoder.up1.3                            block 384 384
decoder.layer.0                          block 384 192
decoder.layer.1                          block 192 192
decoder.connect_l1.0                     block 128 128
decoder.connect_l1.1                     slice 128 12
decoder.connect_l2.0                     block 128 128
decoder.connect_l2.1                     slice 128 24
decoder.norm_out                         norm 192
decoder.conv_out                         slice 192 24
decoder.inverse_wavelet_transform_out    haar-3d
decoder.inverse_wavelet_transform_l1     haar-2d
decoder.inverse_wavelet_transform_l2     haar-3d
"""

Shapes = dict[str, tuple[int, ...]]


def shapes_of(layer: str, kind: str, sizes: list[int]) -> Shapes:
    first, last = sizes[:1], sizes[-1:]
    if kind == "norm":
        return {f"{layer}.norm.weight": (*last,), f"{layer}.norm.bias": (*last,)}
    if kind == "slice":
        return {f"{layer}.weight": (*last, *first, 3, 3), f"{layer}.bias": (*last,)}
    if kind in ("conv", "linear"):
        kernel = (3, 3, 3) if kind == "conv" else (1, 1, 1)
        return {f"{layer}.conv.weight": (*last, *first, *kernel), f"{layer}.conv.bias": (*last,)}
    if kind.startswith("haar"):
        if kind == "haar-2d":
            return {f"{layer}.{name}": (1, 1, 2, 2) for name in HAAR_2D}
        part = "_conv.conv.weight" if kind == "haar-conv" else ""
        return {f"{layer}.{name}{part}": (1, 1, 2, 2, 2) for name in HAAR_3D}
    if kind == "attention":
        parts = [("norm", "norm", first), *((part, "linear", first) for part in ("q", "k", "v", "proj_out"))]
    else:
        convolution = "slice" if len(sizes) == 1 else "conv"
        parts = [("norm1", "norm", first), ("conv1", convolution, first + last)]
        parts += [("norm2", "norm", last), ("conv2", convolution, last)]
        if first != last:
            parts.append(("nin_shortcut", "linear", sizes))
    return {key: shape for part in parts for key, shape in shapes_of(f"{layer}.{part[0]}", *part[1:]).items()}


def network_of(state: dict[str, torch.Tensor], sizes: WFVAESizes = TINY) -> WFVAENetwork:
    network = WFVAENetwork(sizes).eval().requires_grad_(False)
    network.load_state_dict(state)
    return network.channels_last()


def random_volume(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> WFVAENetwork:
    return network_of(random_state())


@pytest.fixture
def vae(network: WFVAENetwork) -> WFVAE:
    return WFVAE(network_of(network.state_dict()), TINY, source="test")


def test_parameters_of_the_large_model_are_the_published_ones() -> None:
    expected: Shapes = {}
    for line in LARGE_LAYERS.strip().splitlines():
        layer, kind, *sizes = line.split()
        expected |= shapes_of(layer, kind, [int(size) for size in sizes])
    with torch.device("meta"):
        state = WFVAENetwork(WFVAESizes()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert sum(value.numel() for value in state.values()) == 317_081_532


# Recorded from upstream's code with ``random_state()``: eleven values each, at even distances
LATENT = (
    -0.301827, -0.125377, -0.493967, -0.495576, -0.191289, -0.01865, 0.179402, 0.066468, -0.46902, -0.752157, -0.024942,
)  # fmt: skip
RECONSTRUCTION = (
    -0.209133, 0.516843, 0.389275, 0.69718, 0.191447, 0.480971, 1.199981, -0.180263, 0.901832, 0.033038, 0.8293,
)  # fmt: skip


def test_values_are_those_of_upstreams_code(vae: WFVAE) -> None:
    latent = vae.encode(random_volume(1, 1, 9, 16, 24))
    reconstruction = vae.decode(latent)
    for found, expected in ((latent, LATENT), (reconstruction, RECONSTRUCTION)):
        places = torch.linspace(0, found.numel() - 1, 11).long()
        torch.testing.assert_close(found.flatten()[places], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_grey_goes_in_as_three_equal_colours_and_comes_out_as_their_mean(vae: WFVAE, network: WFVAENetwork) -> None:
    volume = random_volume(2, 1, 5, 8, 16)
    latent = network.encode(torch.cat([volume] * 3, dim=1))[0]
    torch.testing.assert_close(vae.encode(volume), latent, rtol=1e-5, atol=1e-6)
    colours = network.decode(latent)
    expected = (colours[:, 0] + colours[:, 1] + colours[:, 2])[:, None] / 3
    torch.testing.assert_close(vae.decode(latent), expected, rtol=1e-5, atol=1e-6)


def test_generator_draws_from_the_posterior(vae: WFVAE, network: WFVAENetwork) -> None:
    volume = random_volume(1, 1, 5, 8, 16)
    mean, log_variance = network.encode(volume.expand(-1, 3, -1, -1, -1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    drawn = vae.encode(volume, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, mean + log_variance.exp().sqrt() * noise)


def test_log_variance_is_kept_within_minus_30_and_20() -> None:
    state = random_state()
    state["encoder.conv_out.conv.bias"][4:] = torch.tensor([-100.0, 100.0, -10.0, 10.0])
    log_variance = network_of(state).encode(random_volume(1, 3, 1, 8, 8))[1].flatten()
    assert log_variance[:2].tolist() == [-30, 20]
    torch.testing.assert_close(log_variance[2:], torch.tensor([-10.0, 10.0]), rtol=0, atol=5)


def test_spec(vae: WFVAE) -> None:
    spec = vae.spec
    assert (spec.name, spec.inplane_stride, spec.latent_channels) == ("wf-vae", 8, 4)
    assert (spec.slice_stride, spec.slice_offset, spec.window_slices, spec.causal) == (4, 1, 65, False)
    assert vae.open_stream() is None


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """The slices in which two volumes differ."""
    return torch.nonzero((before - after).abs().amax((0, 1, 3, 4)) > 1e-4).flatten().tolist()


def test_encoder_is_causal_and_decoder_looks_ahead_by_two_slices(vae: WFVAE) -> None:
    volume = random_volume(1, 1, 13, 8, 8)
    other = volume.clone()
    other[:, :, 5] += 1
    latent = vae.encode(volume)
    assert changed(latent, vae.encode(other)) == [2, 3]  # slice 5 is one of 5 to 8, latent slice 2
    other_latent = latent.clone()
    other_latent[:, :, 2] += 1
    assert changed(vae.decode(latent), vae.decode(other_latent)) == list(range(3, 13))  # not 5 to 12


def test_first_slice_has_no_share_in_the_interpolation(vae: WFVAE) -> None:
    latent = random_volume(1, 4, 2, 1, 1)
    other = latent.clone()
    other[:, :, 1] += 1
    assert changed(vae.decode(latent), vae.decode(other)) == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(vae: WFVAE, dtype: torch.dtype) -> None:
    half = WFVAE(network_of(random_state()), TINY, source="test", dtype=dtype)
    volume = random_volume(1, 1, 5, 16, 24)
    latent, exact = vae.encode(volume), vae.decode(vae.encode(volume))
    assert half.weights_sha256 == vae.weights_sha256
    half_latent = half.encode(volume)
    assert half_latent.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01  # 8 and 11 bits, through a few dozen layers
    assert (half_latent - latent).norm() < tolerance * latent.norm()
    assert (half.decode(half_latent) - exact).norm() < tolerance * exact.norm()


def filled(layer: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(2)
    for value in layer.parameters():
        fan_in = value[0].numel() if value.ndim > 1 else 4
        value.data = torch.randn(value.shape, generator=generator) / fan_in**0.5
    return layer.requires_grad_(False)


def led(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)


def each_slice(function: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(part) for part in x.unbind(2)], dim=2)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_layers_equal_their_formulas(slices: int) -> None:
    x = random_volume(2, 4, slices, 6, 8)

    upsample = filled(Upsample(4))
    parts = [functional.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")]
    if slices > 1:
        parts.append(functional.interpolate(x[:, :, 1:], scale_factor=2, mode="trilinear"))
    expected = functional.conv3d(led(torch.cat(parts, 2)), *upsample.conv.conv.parameters(), padding=(0, 1, 1))
    torch.testing.assert_close(upsample(x), expected)

    slice_upsample = filled(SliceUpsample(4))
    nearest = functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    torch.testing.assert_close(slice_upsample(x), each_slice(slice_upsample.conv, nearest))

    padded = functional.pad(x, (0, 1, 0, 1))
    down = filled(Downsample(4))
    torch.testing.assert_close(down(x), functional.conv3d(led(padded), *down.conv.conv.parameters(), stride=2))
    slice_down = filled(SliceDownsample(4))
    kernel = dict(slice_down.conv.named_parameters())
    expected = each_slice(lambda image: functional.conv2d(image, kernel["weight"], kernel["bias"], stride=2), padded)
    torch.testing.assert_close(slice_down(x), expected)


def test_residual_block_and_attention_equal_their_formulas() -> None:
    x = random_volume(2, 4, 3, 4, 6)

    def norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (value[:, None, None, None] for value in (layer.norm.weight, layer.norm.bias))
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight + bias

    block = filled(Block(4, 6))
    h = x
    for layer, convolution in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        h = norm(layer, h)
        h = functional.conv3d(led(h * torch.sigmoid(h)), *convolution.conv.parameters(), padding=(0, 1, 1))
    torch.testing.assert_close(block(x), block.nin_shortcut.conv(x) + h, rtol=1e-4, atol=1e-5)

    attention = filled(SliceAttention(4))
    h = norm(attention.norm, x)
    query, key, value = (as_slices(part.conv(h)).flatten(2) for part in (attention.q, attention.k, attention.v))
    weights = torch.softmax(query.transpose(1, 2) @ key / 2, dim=2)  # 2 = sqrt(4 channels)
    mixed = (value @ weights.transpose(1, 2)).unflatten(0, (2, 3)).transpose(1, 2).unflatten(3, (4, 6))
    torch.testing.assert_close(attention(x), x + attention.proj_out.conv(mixed), rtol=1e-4, atol=1e-5)


def test_wavelets_invert_each_other_and_begin_with_the_low_pass() -> None:
    forward, inverse = Haar3d(), InverseHaar3d()
    exact = {name: haar_kernel(f"wavelet.{name}") / 0.3536 / 8**0.5 for name in HAAR_3D}  # orthonormal
    forward.load_state_dict({f"{name}_conv.conv.weight": kernel for name, kernel in exact.items()})
    inverse.load_state_dict(exact)
    x = random_volume(2, 3, 5, 4, 6)
    coefficients = forward(x)
    assert coefficients.shape == (2, 24, 3, 2, 3)
    torch.testing.assert_close(inverse(coefficients), x)
    low_pass = functional.avg_pool3d(torch.cat([x[:, :, :1], x], dim=2), 2) * 8**0.5
    torch.testing.assert_close(coefficients[:, :3], low_pass)


@pytest.mark.parametrize("layout", ["folder", "file.safetensors", "file.pth", "training.ckpt", "averaged.ckpt"])
def test_every_layout_of_the_same_weights_is_the_same_vae(layout: str, vae: WFVAE, tmp_path: Path) -> None:
    state, path = random_state(), tmp_path / layout
    trained = {key: value for key, value in state.items() if "wavelet" not in key}
    if layout == "folder":
        write_folder(path, state)
    elif layout == "file.safetensors":
        save_file(state, path)
    elif layout == "file.pth":
        torch.save(state, path)
    elif layout == "training.ckpt":
        torch.save({"epoch": 1, "state_dict": {"gen_model": state, "dics_model": {}}, "ema_state_dict": {}}, path)
    else:
        content = {"gen_model": random_state(seed=9)}
        averaged = {f"module.{key}": value for key, value in trained.items()}
        torch.save({"state_dict": content, "ema_state_dict": averaged}, path)
    loaded = load_wfvae(Wanted("wf-vae", weights=path))
    volume = random_volume(1, 1, 5, 8, 16)
    assert torch.equal(loaded.encode(volume), vae.encode(volume))
    assert loaded.spec == vae.spec
    assert loaded.weights_sha256 == vae.weights_sha256
    assert loaded.weights_source == str(path)


def test_sizes_of_a_lone_file_are_read_from_its_tensors(tmp_path: Path) -> None:
    sizes = WFVAESizes(8, 4, 2, 3, 2, 1, 1)
    save_file(random_state(sizes), tmp_path / "wfvae.safetensors")
    loaded = load_wfvae(Wanted("wf-vae", weights=tmp_path / "wfvae.safetensors"))
    volume = random_volume(1, 1, 1, 8, 8)
    expected = network_of(random_state(sizes), sizes).encode(volume.expand(-1, 3, -1, -1, -1))[0]
    assert loaded.spec.latent_channels == 8
    assert torch.equal(loaded.encode(volume), expected)


def test_without_weights_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "cached", random_state())
    monkeypatch.setattr(HubModel, "fetch", lambda hub, name: folder)
    assert load_wfvae(Wanted("wf-vae", weights=None)).weights_source == "hub chestnutlzj/WF-VAE-L-16Chn"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "WFVAE2Model"}, "holds a WFVAE2Model, not a WFVAEModel"),
        ({"t_interpolation": "nearest"}, "t_interpolation is 'nearest', not 'trilinear'"),
        ({"norm_type": "groupnorm"}, "norm_type is 'groupnorm', not 'layernorm'"),
        (
            {"l1_dowmsample_block": "Spatial2xTime2x3DDownsample"},
            "l1_dowmsample_block is 'Spatial2xTime2x3DDownsample'",
        ),
        ({"latent_dim": 8}, r"encoder.conv_out.conv.weight has size \(8, .*expected \(16, "),
    ],
)
def test_a_folder_of_another_variant_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "variant", random_state(), **config)
    with pytest.raises(UserError, match=message):
        load_wfvae(Wanted("wf-vae", weights=folder))


def test_settings_that_a_config_leaves_out_are_upstreams_defaults(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", random_state())
    config = {key: value for key, value in TINY_CONFIG.items() if key != "t_interpolation"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="t_interpolation is 'nearest'"):
        load_wfvae(Wanted("wf-vae", weights=folder))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = random_state()
    group_norm = {key.replace("norm_out.norm.", "norm_out."): value for key, value in state.items()}
    for name, tensors, message in (
        ("kl", tiny_kl().state_dict(), "not a WF-VAE: it has no encoder.wavelet_transform_in"),
        ("two", {"encoder.down_blocks.0.in_flow_conv.weight": torch.zeros(1)}, "is a WFVAE2Model"),
        ("group", group_norm, "with group norm"),
        ("cut", {key: value for key, value in state.items() if key != "decoder.connect_l2.2.weight"}, "is missing"),
        (
            "less",
            {key: value for key, value in state.items() if key != "decoder.layer.1.conv2.conv.bias"},
            "is missing",
        ),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=message):
            load_wfvae(Wanted("wf-vae", weights=tmp_path / f"{name}.safetensors"))
    torch.save({"state_dict": {"gen_model": 1}}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="neither a state dict"):
        load_wfvae(Wanted("wf-vae", weights=tmp_path / "odd.ckpt"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Any]:
    code = os.environ.get("FVAE_WFVAE_CODE")
    if not code:
        pytest.skip("FVAE_WFVAE_CODE names no checkout of github.com/PKU-YuanGroup/WF-VAE")
    sys.path.insert(0, code)
    from causalvideovae.model.vae.modeling_wfvae import WFVAEModel

    yield WFVAEModel
    sys.path.remove(code)


def upstream_model(upstream: Any, config: dict[str, Any]) -> Any:
    return (
        upstream(**{key: value for key, value in config.items() if key != "_class_name"}).eval().requires_grad_(False)
    )


def test_parameters_are_upstreams(upstream: Any) -> None:
    with torch.device("meta"):
        theirs = upstream_model(upstream, LARGE_CONFIG).state_dict()
        ours = WFVAENetwork(WFVAESizes()).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(("slices", "height", "width"), [(1, 8, 8), (5, 16, 24), (9, 24, 16), (17, 8, 32)])
def test_equals_upstream(upstream: Any, slices: int, height: int, width: int, tmp_path: Path) -> None:
    model = upstream_model(upstream, TINY_CONFIG)
    model.load_state_dict(random_state())
    model.save_pretrained(tmp_path)
    vae = load_wfvae(Wanted("wf-vae", weights=tmp_path))
    volume = random_volume(2, 1, slices, height, width)
    latent = model.encode(torch.cat([volume] * 3, dim=1)).latent_dist.mean
    reconstruction = model.decode(latent).sample.mean(1, keepdim=True)
    for ours, theirs in ((vae.encode(volume), latent), (vae.decode(latent), reconstruction)):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_wavelets_of_the_tests_are_upstreams(upstream: Any) -> None:
    state = upstream_model(upstream, TINY_CONFIG).state_dict()
    for key, value in state.items():
        kernel = haar_kernel(key)
        if kernel is not None:
            assert torch.equal(value, kernel), key
