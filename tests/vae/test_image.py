"""Image VAEs of diffusers: values, channels, precision, latent statistics, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_kl, tiny_taesd, tiny_wan

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import FrozenVAE, is_available_offline, load_vae
from fvae_nnunet.vae.image import ImageVAE

VOLUME = torch.rand(2, 1, 3, 16, 24, generator=torch.Generator().manual_seed(4)) * 2 - 1


def saved(model: Any, folder: Path) -> FrozenVAE:
    model.save_pretrained(folder)
    return load_vae(f"diffusers:{folder}")


@pytest.mark.parametrize("channels", [1, 3])
def test_each_slice_is_coded_as_diffusers_codes_the_image(channels: int, tmp_path: Path) -> None:
    model = tiny_kl(channels=channels)
    vae = saved(model, tmp_path)
    latent = vae.encode(VOLUME)
    decoded = vae.decode(latent)
    for volume in range(2):
        for index in range(3):
            image = torch.cat([VOLUME[volume : volume + 1, :, index]] * channels, dim=1)
            with torch.no_grad():
                expected = model.encode(image).latent_dist.mean
                colours = model.decode(expected).sample
            torch.testing.assert_close(latent[volume, :, index], expected[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(decoded[volume, 0, index], colours[0].mean(0), rtol=1e-4, atol=1e-5)


def test_draws_mean_plus_deviation_times_noise(tmp_path: Path) -> None:
    model = tiny_kl()
    drawn = saved(model, tmp_path).encode(VOLUME[:1], torch.Generator().manual_seed(3))
    with torch.no_grad():
        posterior = model.encode(VOLUME[0].transpose(0, 1)).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    expected = posterior.mean + posterior.std * noise
    torch.testing.assert_close(drawn[0], expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_tiny_autoencoder_gets_images_from_minus_one_to_one_and_gives_them_back() -> None:
    model = tiny_taesd()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder.layers[-1].bias.fill_(0.75)  # TAESD's own range is [0, 1]: 0.75 there is 0.5 in [-1, 1]
    vae = ImageVAE(model, name="test", source="test")
    torch.testing.assert_close(vae.decode(vae.encode(VOLUME)), torch.full_like(VOLUME, 0.5))

    model = tiny_taesd()
    inputs = []
    model.encoder.layers.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    ImageVAE(model, name="test", source="test").encode(VOLUME)
    expected = (VOLUME.transpose(1, 2).reshape(6, 1, 16, 24).repeat(1, 3, 1, 1) + 1) / 2
    torch.testing.assert_close(inputs[0], expected)


def test_strides_are_those_of_the_architecture(tmp_path: Path) -> None:
    for model in (tiny_kl(), tiny_taesd()):
        spec = ImageVAE(model, name="test", source="test").spec
        assert (spec.inplane_stride, spec.latent_channels) == (8, 4)
        assert (spec.slice_stride, spec.slice_offset, spec.independent_slices) == (1, 0, True)
    shallow = tiny_kl(widths=(4, 8))
    vae = ImageVAE(shallow, name="test", source="test")
    assert vae.spec.inplane_stride == 2
    assert vae.encode(VOLUME).shape == (2, 4, 3, 8, 12)


def test_latent_statistics_invert_the_normalisation_of_diffusers() -> None:
    vae = ImageVAE(tiny_kl(scaling_factor=0.25, shift_factor=0.5), name="test", source="test")
    assert vae.latent_mean is not None
    assert vae.latent_std is not None
    assert vae.latent_mean.tolist() == [0.5] * 4
    assert vae.latent_std.tolist() == [4.0] * 4
    latent = vae.encode(VOLUME)
    broadcast = (1, 4, 1, 1, 1)
    ours = (latent - vae.latent_mean.view(broadcast)) / vae.latent_std.view(broadcast)
    torch.testing.assert_close(ours, (latent - 0.5) * 0.25)

    without_shift = ImageVAE(tiny_kl(scaling_factor=0.5), name="test", source="test")
    assert without_shift.latent_mean is not None
    assert without_shift.latent_mean.tolist() == [0.0] * 4
    per_channel = tiny_kl(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[0.1, 0.2, 0.3, 0.4])
    vae = ImageVAE(per_channel, name="test", source="test")
    assert vae.latent_std is not None
    torch.testing.assert_close(vae.latent_std, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert ImageVAE(tiny_taesd(), name="test", source="test").latent_std is None


def test_a_model_that_overflows_in_float16_computes_in_float32_and_says_so() -> None:
    with pytest.warns(UserWarning, match="sdxl overflows in float16.*computes in float32"):
        vae = ImageVAE(tiny_kl(force_upcast=True), name="sdxl", source="test", dtype=torch.float16)
    assert vae.dtype == torch.float32
    assert torch.isfinite(vae.decode(vae.encode(VOLUME))).all()
    fine = ImageVAE(tiny_kl(force_upcast=False), name="fixed", source="test", dtype=torch.float16)
    assert fine.dtype == torch.float16
    assert ImageVAE(tiny_kl(), name="sdxl", source="test", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_vae_of_a_pipeline_is_found_and_named_without_the_path(tmp_path: Path) -> None:
    model = tiny_kl(seed=2)
    model.save_pretrained(tmp_path / "my-model" / "vae")
    (tmp_path / "my-model" / "model_index.json").write_text("{}")
    vae = load_vae(f"diffusers:{tmp_path / 'my-model'}")
    assert vae.spec.name == "diffusers:my-model"
    assert vae.weights_source == str(tmp_path / "my-model" / "vae")
    assert vae.weights_sha256 == ImageVAE(model, name="test", source="test").weights_sha256
    assert is_available_offline(f"diffusers:{tmp_path / 'my-model'}")
    assert load_vae(f"diffusers:{tmp_path / 'my-model' / 'vae'}").spec.name == "diffusers:my-model"


def test_weights_folder_stands_for_the_hub(tmp_path: Path) -> None:
    tiny_kl().save_pretrained(tmp_path)
    vae = load_vae("diffusers:stabilityai/sdxl-vae", weights=tmp_path)
    assert vae.spec.name == "diffusers:stabilityai/sdxl-vae"
    by_name = load_vae("diffusers:elsewhere", weights=tmp_path)
    assert by_name.spec.name == "diffusers:elsewhere" and by_name.weights_sha256 == vae.weights_sha256
    assert load_vae(f"diffusers:{tmp_path}", weights=tmp_path).weights_sha256 == vae.weights_sha256
    tiny_kl(seed=2).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="names another folder than `weights`"):
        load_vae(f"diffusers:{tmp_path}", weights=tmp_path / "other")


def test_half_precision_files_have_the_digest_of_their_values(tmp_path: Path) -> None:
    model = tiny_kl().half()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors")["quant_conv.bias"].dtype == torch.float16
    vae = load_vae(f"diffusers:{tmp_path}")
    assert vae.dtype == torch.float32
    assert vae.weights_sha256 == ImageVAE(model.float(), name="test", source="test").weights_sha256


def test_old_names_of_the_attention_are_understood(tmp_path: Path) -> None:
    """The published VAEs of Stable Diffusion 1 have them."""
    model = tiny_kl(channels=3)
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in old_names.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): state[key] for key in state}
    assert any(".query." in key for key in state)
    save_file(state, file, metadata={"format": "pt"})
    vae = load_vae(f"diffusers:{tmp_path}")
    assert vae.weights_sha256 == ImageVAE(model, name="test", source="test").weights_sha256


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path / "wan")
    with pytest.raises(UserError, match=r"holds a Wan VAE; give it as `weights` of `vae=wan2.1` or wan2.2"):
        load_vae(f"diffusers:{tmp_path / 'wan'}")

    tiny_kl().save_pretrained(tmp_path / "unet")
    config_file = tmp_path / "unet" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds a UNet2DModel; supported are AutoencoderKL and AutoencoderTiny"):
        load_vae(f"diffusers:{tmp_path / 'unet'}")

    tiny_kl(channels=4).save_pretrained(tmp_path / "four")
    with pytest.raises(UserError, match="takes 4 channels and returns 4"):
        load_vae(f"diffusers:{tmp_path / 'four'}")

    (tmp_path / "wan" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        load_vae(f"diffusers:{tmp_path / 'wan'}")


def test_weights_that_do_not_fit_are_refused_not_left_random(tmp_path: Path) -> None:
    tiny_kl().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    lacking = {key: value for key, value in state.items() if key != "decoder.conv_out.bias"}
    save_file(lacking, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks decoder.conv_out.bias \(1 such key\)"):
        load_vae(f"diffusers:{tmp_path}")
    save_file(state | {"decoder.extra": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has the unknown decoder.extra"):
        load_vae(f"diffusers:{tmp_path}")
    save_file(state | {"quant_conv.bias": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vae(f"diffusers:{tmp_path}")
    file.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vae(f"diffusers:{tmp_path}")


def test_embedded_vae_has_the_papers_compression() -> None:
    if not is_available_offline("tiny"):
        pytest.skip("the embedded weights are not in this checkout (scripts/train_tiny_vae.py makes them)")
    vae = load_vae("tiny")
    assert (vae.spec.name, vae.spec.inplane_stride, vae.weights_source) == ("tiny", 8, "embedded")
    assert vae.spec.latent_channels <= 16
    ramp = torch.linspace(-0.5, 0.5, 64).expand(1, 1, 2, 64, 64).contiguous()
    assert (vae.decode(vae.encode(ramp)) - ramp).abs().mean() < 0.05  # a smooth picture survives
    with pytest.raises(UserError, match="its weights are embedded"):
        load_vae("tiny", weights=".")
