"""The VAEs that run from a checkout: against miniature ones made here, and the authors' code where it is at hand.

The miniature ones have module paths, class names and call conventions of the authors' repositories, and one convolution
on each side, so that what an adapter makes of them can be written down.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.checkout.codes import RESEARCH_VAES, load_checkout_vae
from fvae_nnunet.vae.checkout.importer import Checkout
from fvae_nnunet.vae.wanted import Wanted

NAMES = ["cv-vae", "videovae+"]
CHANNELS = 4

BLOCKS = dedent("""
    import torch
    import torch.nn.functional as F

    def pooled(x, offset):
        '''Means over 8 x 8 pixels and 4 slices, but the first ``offset`` slices on their own.'''
        x, dtype = x.float(), x.dtype
        parts = [F.avg_pool3d(x[:, :, :offset], (1, 8, 8))] if offset else []
        if x.shape[2] > offset:
            parts.append(F.avg_pool3d(x[:, :, offset:], (4, 8, 8)))
        return torch.cat(parts, 2).to(dtype)

    def spread(z, offset):
        z = torch.cat([z[:, :, :offset], z[:, :, offset:].repeat_interleave(4, 2)], 2)
        return z.repeat_interleave(8, 3).repeat_interleave(8, 4)
    """)

FAKES: dict[str, dict[str, str]] = {
    "cv-vae": {
        "models/__init__.py": "",
        "models/blocks.py": BLOCKS,
        "models/modeling_vae.py": """
            import xformers.ops
            from torch import nn
            from diffusers.configuration_utils import ConfigMixin, register_to_config
            from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
            from diffusers.models.modeling_outputs import AutoencoderKLOutput
            from diffusers.models.modeling_utils import ModelMixin
            from .blocks import pooled, spread

            class CVVAEModel(ModelMixin, ConfigMixin):
                config_name = "config.json"

                @register_to_config
                def __init__(self, z_channels=2, scaling_factor=0.25):
                    super().__init__()
                    self.encoder = nn.Conv3d(3, 2 * z_channels, 1)
                    self.decoder = nn.Conv3d(z_channels, 3, 1)

                def encode(self, x):
                    from models.blocks import pooled
                    tokens = x.reshape(x.shape[0], 3, -1).transpose(1, 2)[:, :5].contiguous()
                    assert xformers.ops.memory_efficient_attention(
                        tokens, tokens, tokens, attn_bias=None, op=None).shape == tokens.shape
                    return AutoencoderKLOutput(DiagonalGaussianDistribution(self.encoder(pooled(x, 1))))

                def decode(self, z):
                    return DecoderOutput(self.decoder(spread(z, 1)))
            """,
    },
    "videovae+": {
        "utils/common_utils.py": """
            import importlib
            import cv2, os

            def instantiate_from_config(config):
                module, name = config["target"].rsplit(".", 1)
                return getattr(importlib.import_module(module, package=None), name)(**config.get("params", {}))
            """,
        "src/modules/losses/__init__.py": "from taming.modules import *",
        "src/modules/blocks.py": BLOCKS,
        "src/modules/t5.py": "import ftfy\nfrom bs4 import BeautifulSoup\nfrom transformers import T5EncoderModel",
        "src/models/autoencoder.py": """
            import pytorch_lightning as pl
            from utils.common_utils import instantiate_from_config

            class AutoencoderKL(pl.LightningModule):
                def __init__(self, ddconfig, lossconfig, embed_dim):
                    super().__init__()
                    self.loss = instantiate_from_config(lossconfig)
            """,
        "src/models/autoencoder2plus1d_1dcnn.py": """
            from torch import nn
            from src.models.autoencoder import AutoencoderKL
            from src.modules.blocks import *
            from src.modules.t5 import BeautifulSoup
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            class AutoencoderKL2plus1D_1dcnn(AutoencoderKL):
                def __init__(self, ddconfig, ppconfig, lossconfig, embed_dim=0, use_quant_conv=True):
                    super().__init__(ddconfig, lossconfig, embed_dim)
                    z = ddconfig["z_channels"]
                    self.encoder = nn.Conv3d(3, 2 * z, 1)
                    self.encoder_temporal = nn.Conv3d(z, 2 * ppconfig["out_ch"], 1)
                    self.decoder_temporal = nn.Module()
                    self.decoder_temporal.conv_in = nn.Module()
                    self.decoder_temporal.conv_in.conv = nn.Conv3d(ppconfig["out_ch"], 3, 1)

                def encode_2plus1d(self, x):
                    return DiagonalGaussianDistribution(self.encoder(pooled(x, 0)))

                def encode_temporal(self, z):
                    return DiagonalGaussianDistribution(self.encoder_temporal(z))

                def decode(self, z):
                    return self.decoder_temporal.conv_in.conv(spread(z, 0))
            """,
        "configs/inference/config_4z.yaml": """
            model:
              target: src.models.autoencoder2plus1d_1dcnn.AutoencoderKL2plus1D_1dcnn
              params:
                monitor: "val/rec_loss"
                ckpt_path: ckpt/nowhere.ckpt
                embed_dim: 4
                use_quant_conv: True
                lossconfig: {target: src.modules.losses.LPIPSWithDiscriminator3D}
                ddconfig: {z_channels: 4}
                ppconfig: {z_channels: 4, out_ch: 4}
            """,
    },
}

blocks: dict[str, Any] = {}
exec(BLOCKS, blocks)
pooled, spread = blocks["pooled"], blocks["spread"]


def fake_checkout(name: str, folder: Path) -> Path:
    for file, source in FAKES[name].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
    return folder


def fake_state(name: str) -> dict[str, torch.Tensor]:
    layers = {
        "cv-vae": {"encoder": (2 * CHANNELS, 3), "decoder": (3, CHANNELS)},
        "videovae+": {
            "encoder": (2 * CHANNELS, 3),
            "encoder_temporal": (2 * CHANNELS, CHANNELS),
            "decoder_temporal.conv_in.conv": (3, CHANNELS),
        },
    }
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, (channels_out, channels_in) in layers[name].items():
        scale = 1 / channels_in**0.5
        state[f"{layer}.weight"] = torch.randn(channels_out, channels_in, 1, 1, 1, generator=generator) * scale
        state[f"{layer}.bias"] = torch.randn(channels_out, generator=generator)
    return state


def save(name: str, state: dict[str, torch.Tensor], folder: Path, **config: Any) -> Path:
    """Weights as the authors publish them; returns what ``--weights`` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "cv-vae":
        (folder / "config.json").write_text(json.dumps(config))
        save_file(
            {key: value.contiguous() for key, value in state.items()}, folder / "diffusion_pytorch_model.safetensors"
        )
        return folder
    path = folder / "weights.ckpt"
    torch.save({"epoch": 3, "state_dict": {**state, "loss.logvar": torch.zeros(())}}, path)
    return path


FAKE_CONFIGS: dict[str, dict[str, Any]] = {
    "cv-vae": {"_class_name": "CVVAEModel", "z_channels": CHANNELS},
    "videovae+": {},
}


def load_fake(name: str, folder: Path, **options: Any) -> FrozenVAE:
    weights = save(name, fake_state(name), folder / "weights", **FAKE_CONFIGS[name])
    return load_checkout_vae(Wanted(name, weights=weights, **options), code=fake_checkout(name, folder / "code"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def volume_for(name: str, count: int = 2) -> torch.Tensor:
    shape = (count, 1, 8 if name == "videovae+" else 9, 16, 24)
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


def layer(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear map over the channels (B, C, ...)."""
    weight = state[f"{name}.weight"].flatten(1)
    return (x.movedim(1, -1) @ weight.T + state[f"{name}.bias"]).movedim(-1, 1)


def expected_latent(name: str, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    state = fake_state(name)

    def draw(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        if generator is None:
            return mean
        return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)

    colours = torch.cat([volume] * 3, 1)
    if name == "videovae+":
        frames = draw(*layer(state, "encoder", pooled(colours, 0)).chunk(2, 1))
        return draw(*layer(state, "encoder_temporal", frames).chunk(2, 1))
    return draw(*layer(state, "encoder", pooled(colours, 1)).chunk(2, 1))


def expected_volume(name: str, latent: torch.Tensor) -> torch.Tensor:
    state = fake_state(name)
    if name == "videovae+":
        return layer(state, "decoder_temporal.conv_in.conv", spread(latent, 0)).mean(1, keepdim=True)
    return layer(state, "decoder", spread(latent, 1)).mean(1, keepdim=True)


@pytest.mark.parametrize("seed", [None, 3])
def test_codes_grey_volumes_with_mode_or_draw_and_the_mean_of_the_channels(
    name: str, seed: int | None, tmp_path: Path
) -> None:
    vae, volume = load_fake(name, tmp_path), volume_for(name)

    def generator() -> torch.Generator | None:
        return None if seed is None else torch.Generator().manual_seed(seed)

    latent = vae.encode(volume, generator())
    torch.testing.assert_close(latent, expected_latent(name, volume, generator()))
    decoded = vae.decode(latent)
    torch.testing.assert_close(decoded, expected_volume(name, latent))
    assert decoded.shape == volume.shape


def test_one_step_of_slices_is_enough(name: str, tmp_path: Path) -> None:
    vae = load_fake(name, tmp_path)
    volume = volume_for(name)[:, :, : vae.spec.padded_slices(1)]
    assert volume.shape[2] == (4 if name == "videovae+" else 1)
    latent = vae.encode(volume)
    torch.testing.assert_close(latent, expected_latent(name, volume, None))
    torch.testing.assert_close(vae.decode(latent), expected_volume(name, latent))


def test_says_what_it_needs(name: str, tmp_path: Path) -> None:
    spec = load_fake(name, tmp_path).spec
    window = 16 if name == "videovae+" else 65
    assert (spec.name, spec.inplane_stride, spec.latent_channels) == (name, 8, CHANNELS)
    assert (spec.slice_stride, spec.slice_offset, spec.window_slices) == (4, int(name != "videovae+"), window)
    assert not spec.causal


def test_gives_the_statistics_that_cv_vae_publishes(tmp_path: Path) -> None:
    vae = load_fake("cv-vae", tmp_path)
    assert vae.latent_mean is not None and vae.latent_std is not None
    assert vae.latent_mean.tolist() == [0] * CHANNELS
    assert vae.latent_std.tolist() == [4] * CHANNELS


def test_other_precision_keeps_the_digest(name: str, tmp_path: Path) -> None:
    vae, half = (load_fake(name, tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (half.dtype, half.weights_sha256) == (torch.bfloat16, vae.weights_sha256)
    volume = volume_for(name)
    latent = half.encode(volume, torch.Generator().manual_seed(0))
    assert latent.dtype == torch.bfloat16
    decoded, exact = half.decode(half.encode(volume)), vae.decode(vae.encode(volume))
    assert decoded.dtype == torch.float32
    assert (decoded - exact).norm() < 0.1 * exact.norm()  # bfloat16 keeps 8 bits


def test_all_live_in_one_process_and_leave_it_as_it_was(tmp_path: Path) -> None:
    def ours() -> set[str]:
        tops = {"models", "src", "utils", "xformers", "pytorch_lightning", "cv2"}
        return {module for module in sys.modules if module.partition(".")[0] in tops}

    before, path, random_state = ours(), list(sys.path), torch.random.get_rng_state()
    vaes = {name: load_fake(name, tmp_path / name) for name in NAMES}
    for name, vae in vaes.items():
        volume = volume_for(name)
        torch.testing.assert_close(
            vae.decode(vae.encode(volume)), expected_volume(name, expected_latent(name, volume, None))
        )
    assert (ours(), sys.path) == (before, path)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_another_repository_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    with pytest.raises(UserError, match=r"is not a checkout of github\.com/.*: it has no .*\.py"):
        load_checkout_vae(Wanted(name, weights=tmp_path), code=tmp_path / "code")


def test_weights_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    code = fake_checkout(name, tmp_path / "code")
    first, *others = fake_state(name)
    config = FAKE_CONFIGS[name]
    for case, state, message in (
        ("more", {**fake_state(name), "extra": torch.zeros(2)}, "extra is not part of the model"),
        ("less", {key: fake_state(name)[key] for key in others}, f"{first} is missing"),
    ):
        weights = save(name, state, tmp_path / case, **config)
        with pytest.raises(UserError, match=f"^{name.replace('+', '[+]')}: .*{case}.* does not fit .*: {message}"):
            load_checkout_vae(Wanted(name, weights=weights), code=code)


def test_weights_that_are_not_on_the_hub_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give its file .* as `weights` \(see github\.com/"):
        load_checkout_vae(Wanted("videovae+", weights=None), code=fake_checkout("videovae+", tmp_path))


def test_weights_on_the_hub_are_fetched_and_folders_may_be_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cv-vae"
    code = fake_checkout(name, tmp_path / "code")
    folder = tmp_path / "hub" / "vae3d"
    save(name, fake_state(name), folder, **FAKE_CONFIGS[name])
    monkeypatch.setattr("fvae_nnunet.vae.folders.HubModel.fetch", lambda hub, vae_name: folder)
    vae = load_checkout_vae(Wanted(name, weights=None), code=code)
    assert vae.weights_source == "hub AILab-CVC/CV-VAE"
    for place in (tmp_path / "hub", folder, folder / "diffusion_pytorch_model.safetensors"):
        assert load_checkout_vae(Wanted(name, weights=place), code=code).weights_sha256 == vae.weights_sha256
    (folder / "config.json").write_text(json.dumps({**FAKE_CONFIGS[name], "_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="holds a AutoencoderKL, not a CVVAEModel"):
        load_checkout_vae(Wanted(name, weights=folder), code=code)


def test_code_that_cannot_build_the_model_is_said(tmp_path: Path) -> None:
    code = fake_checkout("cv-vae", tmp_path / "code")
    model = code / "models" / "modeling_vae.py"
    model.write_text(model.read_text().replace("super().__init__()", "super().__init__(); self.absent"))
    weights = save("cv-vae", fake_state("cv-vae"), tmp_path / "weights", **FAKE_CONFIGS["cv-vae"])
    with pytest.raises(UserError, match=r"cannot build the model for .*: AttributeError: .*absent"):
        load_checkout_vae(Wanted("cv-vae", weights=weights), code=code)


def test_constants_that_are_not_in_the_state_dict_are_there(tmp_path: Path) -> None:
    code = fake_checkout("cv-vae", tmp_path / "code")
    model = code / "models" / "modeling_vae.py"
    constant = "self.register_buffer('two', __import__('torch').tensor(2.0), persistent=False)"
    model.write_text(model.read_text().replace("super().__init__()", f"super().__init__(); {constant}"))
    weights = save("cv-vae", fake_state("cv-vae"), tmp_path / "weights", **FAKE_CONFIGS["cv-vae"])
    vae = load_checkout_vae(Wanted("cv-vae", weights=weights), code=code)
    assert vae._model.two == 2  # type: ignore[attr-defined]


def test_videovae_plus_needs_the_configuration_for_its_channels(tmp_path: Path) -> None:
    code = fake_checkout("videovae+", tmp_path / "code")
    (code / "configs" / "inference" / "config_4z.yaml").rename(code / "configs" / "inference" / "config_16z.yaml")
    weights = save("videovae+", fake_state("videovae+"), tmp_path)
    with pytest.raises(UserError, match=r"has 4 channels, but there is no .*config_4z\.yaml"):
        load_checkout_vae(Wanted("videovae+", weights=weights), code=code)


def test_pickled_objects_are_read_only_if_trusted(tmp_path: Path) -> None:
    code = fake_checkout("videovae+", tmp_path / "code")
    (code / "src" / "models" / "history.py").write_text("class History: pass")
    history = Checkout(code, vae="", repository="", expects="src/models/history.py")
    history_class = history.load("src.models.history", "History")
    weights = tmp_path / "weights.ckpt"
    with history.visible():
        torch.save({"state_dict": fake_state("videovae+"), "callbacks": history_class()}, weights)
    with pytest.raises(UserError, match="`trust_weights=True`"):
        load_checkout_vae(Wanted("videovae+", weights=weights), code=code)
    assert (
        load_checkout_vae(Wanted("videovae+", weights=weights, trust=True), code=code).spec.latent_channels == CHANNELS
    )
    assert not [module for module in sys.modules if module.startswith("src.")]
    (code / "src" / "models" / "history.py").unlink()
    with pytest.raises(UserError, match="holds objects whose class is not installed"):
        load_checkout_vae(Wanted("videovae+", weights=weights, trust=True), code=code)


# The authors' code


def randomised(model: Any) -> Any:
    """All parameters random (the authors start some at zero), of a size that keeps the signal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not value.requires_grad:
                continue  # wavelets
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and "gamma" not in key:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + float("weight" in key or "gamma" in key))
    return model.eval()


VIDEO_CONFIG: dict[str, Any] = {
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 216, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "temporal_down_factor": 1, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    "ppconfig": {
        "temporal_scale_factor": 4, "z_channels": 4, "out_ch": 4, "ch": 4, "attn_temporal_factor": [],
        "hidden_channel": 32,
    },
    "embed_dim": 4,
    "use_quant_conv": True,
}  # fmt: skip
REAL_SIZES: dict[str, dict[str, Any]] = {
    "cv-vae": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
    "videovae+": {**VIDEO_CONFIG, "lossconfig": {"target": "torch.nn.Identity"}},
}  # fmt: skip
REAL_CODES = {"cv-vae": "FVAE_CVVAE_CODE", "videovae+": "FVAE_VIDEOVAEPLUS_CODE"}


def real_vae(name: str, folder: Path) -> tuple[FrozenVAE, Any]:
    """A small random model of the authors' code behind its adapter, and another object of the same model."""
    variable = REAL_CODES[name]
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a checkout of github.com/{RESEARCH_VAES[name].code.repository}")
    code = Path(os.environ[variable])
    if name == "videovae+":  # the same code with a configuration of a small model
        small = folder / "code"
        (small / "configs" / "inference").mkdir(parents=True)
        for part in ("src", "utils"):
            (small / part).symlink_to(code / part)
        config = {"model": {"params": VIDEO_CONFIG}}
        (small / "configs" / "inference" / "config_4z.yaml").write_text(yaml.safe_dump(config))
        code = small
    research = RESEARCH_VAES[name].code
    checkout = Checkout(
        code,
        vae=name,
        repository=research.repository,
        expects=research.module.replace(".", "/") + ".py",
        nominal=research.nominal,
        replaced=research.replaced,
    )
    model_class = checkout.load(research.module, research.class_name)
    sizes = REAL_SIZES[name]
    with torch.random.fork_rng(devices=[]):
        model = randomised(model_class(**sizes))
    config = {"_class_name": research.class_name, **sizes} if name == "cv-vae" else sizes
    weights = save(name, model.state_dict(), folder / "weights", **config)
    return load_checkout_vae(Wanted(name, weights=weights), code=code), model


@torch.no_grad()
def authors_reconstruction(name: str, model: Any, volume: torch.Tensor) -> torch.Tensor:
    """As the paper's scripts call the model, but with the mode of the posterior."""
    colours = volume.repeat(1, 3, 1, 1, 1)
    if name == "videovae+":
        model.device, model.dtype = torch.device("cpu"), torch.float32
        return model(colours, sample_posterior=False)[0].mean(1, keepdim=True)
    latent = model.encode(colours).latent_dist.mode()
    return model.decode(latent).sample.mean(1, keepdim=True)


def test_real_code_reconstructs_as_the_authors_call_it(name: str, tmp_path: Path) -> None:
    vae, model = real_vae(name, tmp_path)
    volume = volume_for(name)
    decoded = vae.decode(vae.encode(volume))
    expected = authors_reconstruction(name, model, volume)
    assert expected.std() > 0.05  # not washed out
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5)
    first, again, other = (vae.encode(volume, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, vae.encode(volume))


def test_real_code_takes_all_multiples_and_the_least_slices(name: str, tmp_path: Path) -> None:
    vae, _ = real_vae(name, tmp_path)
    spec = vae.spec
    for slices in (1, 13):
        volume = torch.rand(1, 1, spec.padded_slices(slices), 40, 24) * 2 - 1
        latent = vae.encode(volume)
        depth = (volume.shape[2] - spec.slice_offset) // spec.slice_stride + spec.slice_offset
        assert latent.shape == (1, spec.latent_channels, depth, 5, 3)
        assert vae.decode(latent).shape == volume.shape


def test_real_code_of_two_repositories_lives_in_one_process(tmp_path: Path) -> None:
    pairs = {name: real_vae(name, tmp_path / name) for name in NAMES}
    for name, (vae, model) in pairs.items():
        volume = volume_for(name, 1)
        expected = authors_reconstruction(name, model, volume)
        torch.testing.assert_close(vae.decode(vae.encode(volume)), expected, rtol=1e-5, atol=1e-5)
