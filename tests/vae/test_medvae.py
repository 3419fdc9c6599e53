"""MedVAE: a reference written out in full, the authors' package where it is installed, and which files are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from medvae_for_tests import WIDTH, random_state

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import medvae
from fvae_nnunet.vae.medvae import MedVAE, MedVAENetwork, load_medvae
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, state_dict_sha256


@pytest.fixture(scope="module")
def state() -> StateDict:
    return random_state()


@pytest.fixture(scope="module")
def weights(state: StateDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medvae") / "vae_4x_1c_3D.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def vae(weights: Path) -> MedVAE:
    return load_medvae(Wanted("medvae", weights=weights))


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.ckpt")
    return folder / "weights.ckpt"


class Reference:
    """Latent diffusion's autoencoder in 3D over a state dict; volumes (B, 1, x, y, z)."""

    def __init__(self, state: StateDict) -> None:
        self.state = state

    def conv(self, key: str, x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
        weight = self.state[f"{key}.weight"]
        return F.conv3d(x, weight, self.state[f"{key}.bias"], stride, weight.shape[2] // 2 if stride == 1 else 0)

    def norm(self, key: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self.state[f"{key}.weight"], self.state[f"{key}.bias"], eps=1e-6)

    def residual(self, key: str, x: torch.Tensor) -> torch.Tensor:
        h = x
        for number in (1, 2):
            h = self.norm(f"{key}.norm{number}", h)
            h = self.conv(f"{key}.conv{number}", h * torch.sigmoid(h))
        return h + (self.conv(f"{key}.nin_shortcut", x) if f"{key}.nin_shortcut.weight" in self.state else x)

    def middle(self, key: str, x: torch.Tensor) -> torch.Tensor:
        x = self.residual(f"{key}.block_1", x)
        h = self.norm(f"{key}.attn_1.norm", x)
        q, k, v = (self.conv(f"{key}.attn_1.{name}", h).flatten(2) for name in "qkv")
        mixing = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=2)
        h = torch.einsum("bij,bcj->bci", mixing, v).reshape(x.shape)
        return self.residual(f"{key}.block_2", x + self.conv(f"{key}.attn_1.proj_out", h))

    def out(self, key: str, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(f"{key}.norm_out", x)
        return self.conv(f"{key}.conv_out", h * torch.sigmoid(h))

    def moments(self, ct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv("encoder.conv_in", ct)
        for level in range(3):
            for block in range(2):
                x = self.residual(f"encoder.down.{level}.block.{block}", x)
            if level < 2:
                behind = F.pad(x, (0, 1, 0, 1, 0, 1))
                x = self.conv(f"encoder.down.{level}.downsample.conv", behind, stride=2)
        moments = self.conv("quant_conv", self.out("encoder", self.middle("encoder.mid", x)))
        return moments[:, :1], torch.exp(moments[:, 1:].clamp(-30, 20) / 2)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", latent)))
        for level in (2, 1, 0):
            for block in range(3):
                x = self.residual(f"decoder.up.{level}.block.{block}", x)
            if level > 0:
                for axis in (2, 3, 4):
                    x = x.repeat_interleave(2, dim=axis)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x)
        return self.out("decoder", x)


def test_is_the_network_of_its_authors_over_x_y_z(vae: MedVAE, state: StateDict) -> None:
    ct = volume(2, 1, 8, 12, 16)
    reference = Reference(state)
    mean, _ = reference.moments(ct.permute(0, 1, 4, 3, 2))
    decoded = reference.decode(mean).permute(0, 1, 4, 3, 2)
    latent = vae.encode(ct)
    assert latent.shape == (2, 1, 2, 3, 4)
    # the same sums in another order
    torch.testing.assert_close(latent, mean.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=1e-4, atol=1e-5)
    assert decoded.std() > 0.1


def test_is_the_authors_package(vae: MedVAE, state: StateDict) -> None:
    models = pytest.importorskip(
        "medvae.models", reason="the authors' package medvae is not installed", exc_type=ImportError
    )
    sizes = {"ch": WIDTH, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    sizes |= {"in_channels": 1, "out_ch": 1, "z_channels": 1, "double_z": True, "resolution": 512}
    model = models.AutoencoderKL_3D(ddconfig=sizes, embed_dim=1).eval().requires_grad_(False)
    model.load_state_dict(state)  # strict: every name and size is theirs
    ct = volume(1, 1, 8, 12, 16)
    mean = model.encode(ct.permute(0, 1, 4, 3, 2)).mode()
    latent = vae.encode(ct)
    torch.testing.assert_close(latent, mean.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latent), model.decode(mean).permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)


def test_few_queries_at_once_change_nothing(vae: MedVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    ct = volume(1, 1, 8, 12, 16)
    latent = vae.encode(ct)
    decoded = vae.decode(latent)
    monkeypatch.setattr(medvae, "QUERIES_AT_ONCE", 7)  # 24 latent voxels: 7 + 7 + 7 + 3
    torch.testing.assert_close(vae.encode(ct), latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=1e-4, atol=1e-5)


def test_has_the_size_of_the_released_file() -> None:
    with torch.device("meta"):
        expected = MedVAENetwork(128, 1).state_dict()
    assert len(expected) == 204
    second_latent = 64 + 64 + 64 * 64 * 27 + 64 + 64 + 1 + 1 + 1
    assert 4 * (sum(value.numel() for value in expected.values()) + second_latent) == 644_005_432


def test_generator_draws_mean_plus_noise_times_deviation(vae: MedVAE, state: StateDict) -> None:
    ct = volume(1, 1, 4, 8, 8)
    mean, std = Reference(state).moments(ct.permute(0, 1, 4, 3, 2))
    noise = torch.randn(std.shape, generator=torch.Generator().manual_seed(3))
    drawn = vae.encode(ct, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (mean + std * noise).permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, vae.encode(ct))


def test_takes_multiples_of_four_along_every_axis(vae: MedVAE) -> None:
    spec = vae.spec
    assert [spec.padded_slices(slices) for slices in (1, 4, 5, 16)] == [4, 4, 8, 16]
    assert [spec.padded_inplane(pixels) for pixels in (1, 512, 513)] == [4, 512, 516]
    assert spec.window_slices == spec.padded_slices(spec.window_slices)
    assert spec.latent_channels == 1
    with pytest.raises(ValueError, match="6 slices; needs 0 \\+ k \\* 4"):
        vae.encode(torch.zeros(1, 1, 6, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(torch.zeros(1, 1, 4, 8, 10))


def test_the_first_slice_depends_on_the_last(vae: MedVAE) -> None:
    ct = volume(1, 1, 16, 8, 8)
    changed = ct.clone()
    changed[:, :, -1] *= -1
    assert (vae.encode(ct) - vae.encode(changed))[:, :, 0].abs().max() > 1e-4
    assert not vae.spec.causal
    assert vae.open_stream() is None


def test_bfloat16_is_close_and_has_the_digest_of_the_source(vae: MedVAE, weights: Path) -> None:
    half = load_medvae(Wanted("medvae", weights=weights, dtype=torch.bfloat16))
    assert half.weights_sha256 == vae.weights_sha256
    ct = volume(1, 1, 8, 8, 8)
    latent = half.encode(ct)
    assert (latent.dtype, vae.encode(ct).dtype) == (torch.bfloat16, torch.float32)
    decoded, exact = half.decode(latent), vae.decode(vae.encode(ct))
    assert decoded.dtype == torch.float32
    # bfloat16 keeps 8 bits; the rounding of a few dozen layers stays within a few per cent of the signal
    assert 0 < (decoded - exact).norm() < 0.1 * exact.norm()


def test_reads_a_bare_state_dict_and_leaves_the_second_latent_out(
    vae: MedVAE, state: StateDict, tmp_path: Path
) -> None:
    used = {key: value for key, value in state.items() if not key.startswith("channel_")}
    assert len(used) < len(state)
    for content in (state, used):
        assert load_medvae(Wanted("medvae", weights=saved(tmp_path, content))).weights_sha256 == vae.weights_sha256
    assert vae.weights_sha256 == state_dict_sha256(used)


def test_without_a_file_it_says_where_to_get_it() -> None:
    with pytest.raises(
        UserError, match=r"hf download stanfordmimi/MedVAE model_weights/vae_4x_1c_3D\.ckpt .*`weights`"
    ):
        load_medvae(Wanted("medvae", weights=None))


def test_names_what_keeps_a_file_from_being_this_medvae(state: StateDict, tmp_path: Path) -> None:
    def refused(content: StateDict, reason: str) -> None:
        with pytest.raises(UserError, match=f"^medvae: {tmp_path / 'weights.ckpt'} .*{reason}"):
            load_medvae(Wanted("medvae", weights=saved(tmp_path, content)))

    flat = {key: value[..., 0] if value.ndim == 5 else value for key, value in state.items()}  # vae_4x_1c_2D.ckpt
    refused(flat, r"it has no encoder\.conv_in\.weight with five dimensions")
    refused({"conv.weight": torch.zeros(3)}, r"it has no encoder\.conv_in\.weight")
    deeper = {"encoder.down.2.downsample.conv.weight": torch.zeros(128, 128, 3, 3, 3)}  # vae_8x_1c_3D.ckpt
    refused(state | deeper, r"is not the MedVAE for volumes .* is not part of the model")
    narrow = {"encoder.conv_in.weight": torch.zeros(48, 1, 3, 3, 3)}
    refused(state | narrow, "48 channels, not a multiple of 32")
    colour = {"encoder.conv_in.weight": torch.zeros(WIDTH, 3, 3, 3, 3)}
    refused(state | colour, r"\(32, 3, 3, 3, 3\), expected \(32, 1, 3, 3, 3\)")
    refused({key: value for key, value in state.items() if key != "quant_conv.bias"}, r"quant_conv\.bias is missing")
