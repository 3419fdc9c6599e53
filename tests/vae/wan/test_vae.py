"""Wan 2.1 and 2.2: values against diffusers, the authors' checkpoints, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import save_file
from tiny_models import original_wan_state_dict, tiny_kl, tiny_wan, wan_vae

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.wan import vae as wan
from fvae_nnunet.vae.wan.checkpoint import config_from_sizes, to_diffusers_keys
from fvae_nnunet.vae.wan.network import WanSizes
from fvae_nnunet.vae.weights import state_dict_sha256

NAMES = ["wan2.1", "wan2.2"]

WAN22_CONFIG: dict[str, Any] = {  # Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae/config.json
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
    "out_channels": 12, "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
}  # fmt: skip

# Names as they stand in the published Wan2.1_VAE.pth and in the diffusers repository, by hand
WAN21_PAIRS = """
conv1.weight                               quant_conv.weight
conv2.bias                                 post_quant_conv.bias
encoder.conv1.weight                       encoder.conv_in.weight
encoder.downsamples.0.residual.0.gamma     encoder.down_blocks.0.norm1.gamma
encoder.downsamples.0.residual.2.weight    encoder.down_blocks.0.conv1.weight
encoder.downsamples.1.residual.6.bias      encoder.down_blocks.1.conv2.bias
encoder.downsamples.2.resample.1.weight    encoder.down_blocks.2.resample.1.weight
encoder.downsamples.3.shortcut.weight      encoder.down_blocks.3.conv_shortcut.weight
encoder.downsamples.5.time_conv.weight     encoder.down_blocks.5.time_conv.weight
encoder.downsamples.10.residual.3.gamma    encoder.down_blocks.10.norm2.gamma
encoder.middle.0.residual.2.weight         encoder.mid_block.resnets.0.conv1.weight
encoder.middle.1.to_qkv.weight             encoder.mid_block.attentions.0.to_qkv.weight
encoder.middle.2.residual.6.weight         encoder.mid_block.resnets.1.conv2.weight
encoder.head.0.gamma                       encoder.norm_out.gamma
encoder.head.2.bias                        encoder.conv_out.bias
decoder.conv1.bias                         decoder.conv_in.bias
decoder.middle.1.proj.bias                 decoder.mid_block.attentions.0.proj.bias
decoder.middle.1.norm.gamma                decoder.mid_block.attentions.0.norm.gamma
decoder.upsamples.0.residual.0.gamma       decoder.up_blocks.0.resnets.0.norm1.gamma
decoder.upsamples.2.residual.6.weight      decoder.up_blocks.0.resnets.2.conv2.weight
decoder.upsamples.3.resample.1.bias        decoder.up_blocks.0.upsamplers.0.resample.1.bias
decoder.upsamples.3.time_conv.weight       decoder.up_blocks.0.upsamplers.0.time_conv.weight
decoder.upsamples.4.shortcut.weight        decoder.up_blocks.1.resnets.0.conv_shortcut.weight
decoder.upsamples.5.residual.2.bias        decoder.up_blocks.1.resnets.1.conv1.bias
decoder.upsamples.7.time_conv.bias         decoder.up_blocks.1.upsamplers.0.time_conv.bias
decoder.upsamples.11.resample.1.weight     decoder.up_blocks.2.upsamplers.0.resample.1.weight
decoder.upsamples.12.residual.3.gamma      decoder.up_blocks.3.resnets.0.norm2.gamma
decoder.upsamples.14.residual.6.bias       decoder.up_blocks.3.resnets.2.conv2.bias
decoder.head.2.weight                      decoder.conv_out.weight
"""
WAN22_PAIRS = """
conv1.bias                                              quant_conv.bias
conv2.weight                                            post_quant_conv.weight
encoder.conv1.bias                                      encoder.conv_in.bias
encoder.downsamples.0.downsamples.0.residual.0.gamma    encoder.down_blocks.0.resnets.0.norm1.gamma
encoder.downsamples.0.downsamples.1.residual.6.weight   encoder.down_blocks.0.resnets.1.conv2.weight
encoder.downsamples.0.downsamples.2.resample.1.weight   encoder.down_blocks.0.downsampler.resample.1.weight
encoder.downsamples.1.downsamples.0.shortcut.bias       encoder.down_blocks.1.resnets.0.conv_shortcut.bias
encoder.downsamples.1.downsamples.2.time_conv.weight    encoder.down_blocks.1.downsampler.time_conv.weight
encoder.downsamples.2.downsamples.1.residual.3.gamma    encoder.down_blocks.2.resnets.1.norm2.gamma
encoder.downsamples.3.downsamples.1.residual.2.bias     encoder.down_blocks.3.resnets.1.conv1.bias
encoder.middle.0.residual.3.gamma                       encoder.mid_block.resnets.0.norm2.gamma
encoder.middle.1.to_qkv.bias                            encoder.mid_block.attentions.0.to_qkv.bias
encoder.middle.2.residual.0.gamma                       encoder.mid_block.resnets.1.norm1.gamma
encoder.head.2.weight                                   encoder.conv_out.weight
decoder.conv1.weight                                    decoder.conv_in.weight
decoder.middle.0.residual.6.bias                        decoder.mid_block.resnets.0.conv2.bias
decoder.middle.1.proj.weight                            decoder.mid_block.attentions.0.proj.weight
decoder.upsamples.0.upsamples.0.residual.2.weight       decoder.up_blocks.0.resnets.0.conv1.weight
decoder.upsamples.0.upsamples.2.residual.6.bias         decoder.up_blocks.0.resnets.2.conv2.bias
decoder.upsamples.0.upsamples.3.resample.1.bias         decoder.up_blocks.0.upsampler.resample.1.bias
decoder.upsamples.0.upsamples.3.time_conv.weight        decoder.up_blocks.0.upsampler.time_conv.weight
decoder.upsamples.2.upsamples.0.shortcut.weight         decoder.up_blocks.2.resnets.0.conv_shortcut.weight
decoder.upsamples.2.upsamples.3.resample.1.weight       decoder.up_blocks.2.upsampler.resample.1.weight
decoder.upsamples.3.upsamples.2.residual.0.gamma        decoder.up_blocks.3.resnets.2.norm1.gamma
decoder.head.0.gamma                                    decoder.norm_out.gamma
decoder.head.2.bias                                     decoder.conv_out.bias
"""


def model_of(name: str, seed: int = 0) -> Any:
    return tiny_wan(seed, residual=name == "wan2.2")


def volume_for(name: str) -> torch.Tensor:
    size = {"wan2.1": (1, 1, 9, 16, 24), "wan2.2": (1, 1, 9, 32, 48)}[name]
    return torch.rand(size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def reference(model: Any, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent and reconstruction as the authors' scripts make them: three equal channels in, their mean out."""
    with torch.no_grad():
        latent = model.encode(torch.cat([volume] * 3, dim=1)).latent_dist.mean
        colours = model.decode(latent).sample
    return latent, (colours[:, 0] + colours[:, 1] + colours[:, 2])[:, None] / 3


def error(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, relative to the expected."""
    return float((values.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", NAMES)
def test_is_diffusers_with_equal_channels_in_and_their_mean_out(name: str) -> None:
    model, volume = model_of(name), volume_for(name)
    latent, reconstruction = reference(model, volume)
    vae = wan_vae(model, name)
    assert error(vae.encode(volume), latent) < 1e-5
    assert error(vae.decode(latent), reconstruction) < 1e-5
    stride = {"wan2.1": 8, "wan2.2": 16}[name]
    spec = vae.spec
    assert (spec.name, spec.inplane_stride, spec.latent_channels) == (name, stride, 4)
    assert (spec.slice_stride, spec.slice_offset, spec.window_slices, spec.causal) == (4, 1, 65, True)


@pytest.mark.parametrize("name", NAMES)
def test_no_latent_or_slice_depends_on_later_ones(name: str) -> None:
    vae, volume = wan_vae(model_of(name), name), volume_for(name)
    latent = vae.encode(volume)
    changed = volume.clone()
    changed[:, :, 5:] *= -1  # the slices of latent 2
    latent_changed = vae.encode(changed)
    assert torch.equal(latent[:, :, :2], latent_changed[:, :, :2])
    assert not torch.equal(latent[:, :, 2], latent_changed[:, :, 2])
    assert torch.equal(vae.decode(latent)[:, :, :5], vae.decode(latent_changed)[:, :, :5])


def test_draws_mean_plus_deviation_times_noise() -> None:
    model, volume = tiny_wan(), volume_for("wan2.1")
    drawn = wan_vae(model).encode(volume, torch.Generator().manual_seed(3))
    with torch.no_grad():
        posterior = model.encode(volume.repeat(1, 3, 1, 1, 1)).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    expected = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise
    torch.testing.assert_close(drawn, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing_but_the_order_of_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    vae = wan_vae(model, name)
    volume = torch.rand(2, 1, 21, 32, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1
    latent, reconstruction = reference(model, volume)
    for slices in (1, 4, 8, 12, 100):
        monkeypatch.setattr(wan, "CPU_CHUNK_SLICES", slices)
        assert error(vae.encode(volume), latent) < 1e-5
        assert error(vae.decode(latent), reconstruction) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_convolving_slices_in_pairs_or_singly_is_the_same(name: str) -> None:
    model, volume = model_of(name), volume_for(name)
    pairs = wan_vae(model, name)
    singly = wan_vae(model, name)
    singly._network.load_state_dict(model.state_dict())
    for module in singly._network.modules():
        if hasattr(module, "sum_weight"):
            module.sum_weight = None
    latent = singly.encode(volume)
    assert error(pairs.encode(volume), latent) < 1e-5
    assert error(pairs.decode(latent), singly.decode(latent)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_no_worse_than_that_of_diffusers(name: str) -> None:
    volume = torch.rand(1, 1, 9, 64, 64, generator=torch.Generator().manual_seed(7)) * 2 - 1
    latent, reconstruction = reference(model_of(name), volume)
    theirs = reference(model_of(name).to(torch.bfloat16), volume.bfloat16())
    vae = wan_vae(model_of(name), name, dtype=torch.bfloat16)
    ours = vae.encode(volume), vae.decode(theirs[0])
    assert 1e-3 < error(ours[0], latent) < 1.2 * error(theirs[0], latent)
    assert 1e-3 < error(ours[1], reconstruction) < 1.2 * error(theirs[1], reconstruction)


def test_slices_wider_than_diffusers_tiles_are_coded_whole(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)
    volume = torch.rand(1, 1, 1, 16, 272, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = load_vae("wan2.1", weights=tmp_path)
    latent, reconstruction = reference(tiny_wan(), volume)  # diffusers' tiles, which are off there, begin at 256
    assert error(vae.encode(volume), latent) < 1e-5
    assert error(vae.decode(latent), reconstruction) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "layout", ["folder", "pipeline", "diffusers.safetensors", "original.safetensors", "original.pth"]
)
def test_every_layout_of_the_same_weights_is_the_same_vae(name: str, layout: str, tmp_path: Path) -> None:
    model, volume = model_of(name, seed=7), volume_for(name)
    weights = tmp_path / layout
    if layout == "folder":
        model.save_pretrained(weights)
    elif layout == "pipeline":
        model.save_pretrained(weights / "vae")
    elif layout == "diffusers.safetensors":
        save_file(model.state_dict(), weights)
    elif layout == "original.safetensors":
        save_file(original_wan_state_dict(model), weights)
    else:
        torch.save(original_wan_state_dict(model), weights)
    vae = load_vae(name, weights=weights)
    in_memory = wan_vae(model, name)
    latent, reconstruction = reference(model, volume)
    assert error(vae.encode(volume), latent) < 1e-5
    assert error(vae.decode(latent), reconstruction) < 1e-5
    assert vae.spec == in_memory.spec
    assert vae.weights_sha256 == in_memory.weights_sha256 == state_dict_sha256(model.state_dict())
    assert str(weights) in vae.weights_source


@pytest.mark.parametrize(("name", "pairs"), [("wan2.1", WAN21_PAIRS), ("wan2.2", WAN22_PAIRS)])
def test_published_names_become_those_of_diffusers(name: str, pairs: str) -> None:
    original = original_wan_state_dict(model_of(name))
    converted = to_diffusers_keys(original)
    for line in pairs.strip().splitlines():
        theirs, ours = line.split()
        assert converted[ours] is original[theirs], line
    assert converted.keys() == model_of(name).state_dict().keys()


def test_converts_wan21_as_diffusers_does() -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    original = original_wan_state_dict(tiny_wan())
    expected = convert_wan_vae_to_diffusers(original)
    converted = to_diffusers_keys(original)
    assert converted.keys() == expected.keys()
    assert all(converted[key] is expected[key] for key in expected)


@pytest.mark.parametrize("config", [{}, WAN22_CONFIG], ids=NAMES)
def test_sizes_of_the_published_models_give_their_configuration(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model: Any = AutoencoderKLWan(**config)
    read = config_from_sizes(model.state_dict())
    expected = {key: model.config[key] for key in read}
    expected["decoder_base_dim"] = config.get("decoder_base_dim", 96)
    if config:
        del expected["latents_mean"], expected["latents_std"]  # not passed above
        assert (read.pop("latents_mean")[0], read.pop("latents_std")[47]) == (-0.2289, 0.7744)
    assert read == expected
    with torch.device("meta"):
        again = AutoencoderKLWan(**read)
    sizes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == sizes


def test_latent_statistics_are_the_published_ones_or_none(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path / "folder")
    from_folder = load_vae("wan2.1", weights=tmp_path / "folder")
    assert from_folder.latent_mean is not None
    assert from_folder.latent_std is not None
    torch.testing.assert_close(from_folder.latent_mean, torch.tensor([0.1, -0.2, 0.3, 0.0]))
    torch.testing.assert_close(from_folder.latent_std, torch.tensor([1.0, 2.0, 0.5, 1.5]))

    save_file(tiny_wan().state_dict(), tmp_path / "unknown.safetensors")  # 4 channels: nobody published theirs
    unknown = load_vae("wan2.1", weights=tmp_path / "unknown.safetensors")
    assert unknown.latent_mean is unknown.latent_std is None

    published: Any = AutoencoderKLWan(base_dim=2)
    save_file(published.state_dict(), tmp_path / "published.safetensors")
    vae = load_vae("wan2.1", weights=tmp_path / "published.safetensors")
    assert vae.latent_mean is not None
    assert vae.latent_mean.tolist() == pytest.approx(published.config.latents_mean)


@pytest.mark.parametrize("layout", ["folder", "file"])
@pytest.mark.parametrize("name", NAMES)
def test_the_other_wan_is_refused_and_recognised(name: str, layout: str, tmp_path: Path) -> None:
    other = "wan2.2" if name == "wan2.1" else "wan2.1"
    weights = tmp_path / "weights"
    if layout == "folder":
        model_of(other).save_pretrained(weights)
    else:
        weights = weights.with_suffix(".pth")
        torch.save(original_wan_state_dict(model_of(other)), weights)
    with pytest.raises(UserError, match=f"looks like {other}.*down_blocks.0.resnets.0.conv1.*use `vae={other}`"):
        load_vae(name, weights=weights)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(tiny_kl().state_dict(), tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=r"not a Wan VAE: encoder.conv_in.weight has size"):
        load_vae("wan2.1", weights=tmp_path / "sd.safetensors")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"not a Wan VAE: it has no encoder.conv_in.weight"):
        load_vae("wan2.2", weights=tmp_path / "other.pth")


def test_an_incomplete_or_resized_checkpoint_names_the_parameter(tmp_path: Path) -> None:
    state = tiny_wan().state_dict()
    gone = state.pop("decoder.up_blocks.3.resnets.2.conv2.bias")
    save_file(state, tmp_path / "lacks.safetensors")
    with pytest.raises(UserError, match=r"decoder.up_blocks.3.resnets.2.conv2.bias is missing"):
        load_vae("wan2.1", weights=tmp_path / "lacks.safetensors")

    state["decoder.up_blocks.3.resnets.2.conv2.bias"] = torch.cat([gone, gone])
    save_file(state, tmp_path / "resized.safetensors")
    with pytest.raises(UserError, match=r"resnets.2.conv2.bias has size \(8,\), expected \(4,\)"):
        load_vae("wan2.1", weights=tmp_path / "resized.safetensors")

    state = tiny_wan().state_dict()
    del state["post_quant_conv.weight"]
    save_file(state, tmp_path / "sizeless.safetensors")
    with pytest.raises(UserError, match=r"post_quant_conv.weight is missing"):
        load_vae("wan2.1", weights=tmp_path / "sizeless.safetensors")


def test_the_folder_of_another_part_of_the_pipeline_is_refused_with_the_way_out(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(UserError, match="holds a WanTransformer3DModel, not an AutoencoderKLWan"):
        load_vae("wan2.1", weights=tmp_path)

    authors = tmp_path / "authors"  # what a download of the authors' own repository looks like
    authors.mkdir()
    torch.save({"a": torch.zeros(1)}, authors / "Wan2.1_VAE.pth")
    with pytest.raises(UserError, match=r"no config.json.*name it: Wan2.1_VAE.pth"):
        load_vae("wan2.1", weights=authors)


@pytest.mark.parametrize(
    ("entry", "message"), [({"attn_scales": [0.5]}, "attention"), ({"patch_size": 4}, "in_channels 3; three colours")]
)
def test_architectures_that_no_published_wan_has_are_refused(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny_wan().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(UserError, match=f"is not a published Wan VAE: .*{message}"):
        load_vae("wan2.1", weights=tmp_path)


@pytest.mark.parametrize("config", [{}, WAN22_CONFIG], ids=NAMES)
def test_network_has_the_parameters_of_the_published_models(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model: Any = AutoencoderKLWan(**config)
        network = wan.WanNetwork(WanSizes.from_config(model.config))
    sizes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in network.state_dict().items()} == sizes
    assert network.encoder.patch == (2 if config else 1)
