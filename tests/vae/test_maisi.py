"""MAISI's VAE: MONAI's own class as the reference, what a window must hold, and which files are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from maisi_for_tests import BUNDLE, library_model
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.maisi import MaisiVAE, load_maisi
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import state_dict_sha256


@pytest.fixture(scope="module")
def model() -> Any:
    return library_model()


@pytest.fixture(scope="module")
def weights(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maisi") / "autoencoder_v1.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vae(weights: Path) -> MaisiVAE:
    return load_maisi(Wanted("maisi", weights=weights))


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 8, 12, 16), (1, 1, 4, 4, 512)])  # from 500 on MONAI's norm goes another way
def test_is_monais_model_over_x_y_z_and_values_from_0_to_1(
    vae: MaisiVAE, model: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # called for each group of each norm: minutes
    ct = volume(*shape)
    mean, _ = model.encode((ct.permute(0, 1, 4, 3, 2) + 1) / 2)
    decoded = model.decode(mean).permute(0, 1, 4, 3, 2) * 2 - 1
    latent = vae.encode(ct)
    assert latent.shape == (shape[0], 4, shape[2] // 4, shape[3] // 4, shape[4] // 4)
    # the same sums in another order
    torch.testing.assert_close(latent, mean.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=1e-4, atol=1e-4)
    assert decoded.std() > 0.1


def test_decoded_0_and_1_are_the_ends_of_the_window(model: Any, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    last = max(int(key.split(".")[2]) for key in state if key.startswith("decoder."))
    state[f"decoder.blocks.{last}.conv.conv.weight"] = torch.zeros(1, 32, 3, 3, 3)
    for grey, expected in ((0.0, -1.0), (0.75, 0.5), (1.0, 1.0)):
        state[f"decoder.blocks.{last}.conv.conv.bias"] = torch.tensor([grey])
        decoded = load_maisi(Wanted("maisi", weights=saved(tmp_path, state))).decode(torch.zeros(1, 4, 1, 1, 2))
        assert torch.equal(decoded, torch.full((1, 1, 4, 4, 8), expected))


def test_generator_draws_mean_plus_noise_times_deviation(vae: MaisiVAE, model: Any) -> None:
    ct = volume(1, 1, 4, 8, 8)
    drawn = vae.encode(ct, torch.Generator().manual_seed(3))
    mean, std = model.encode((ct.permute(0, 1, 4, 3, 2) + 1) / 2)
    noise = torch.randn(std.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (mean + std * noise).permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, vae.encode(ct))


def test_takes_multiples_of_four_along_every_axis(vae: MaisiVAE) -> None:
    spec = vae.spec
    assert [spec.padded_slices(slices) for slices in (1, 4, 5, 64)] == [4, 4, 8, 64]
    assert [spec.padded_inplane(pixels) for pixels in (1, 512, 513)] == [4, 512, 516]
    assert spec.window_slices == spec.padded_slices(spec.window_slices)
    with pytest.raises(ValueError, match="6 slices; needs 0 \\+ k \\* 4"):
        vae.encode(torch.zeros(1, 1, 6, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(torch.zeros(1, 1, 4, 8, 10))


def test_the_first_slice_depends_on_the_last(vae: MaisiVAE) -> None:
    ct = volume(1, 1, 16, 8, 8)
    changed = ct.clone()
    changed[:, :, -1] *= -1
    assert (vae.encode(ct) - vae.encode(changed))[:, :, 0].abs().max() > 1e-4
    assert not vae.spec.causal
    assert vae.open_stream() is None


def test_float32_stays_float32_and_bfloat16_runs(vae: MaisiVAE, weights: Path) -> None:
    half = load_maisi(Wanted("maisi", weights=weights, dtype=torch.bfloat16))
    assert half.weights_sha256 == vae.weights_sha256
    ct = volume(1, 1, 8, 8, 8)
    latent = half.encode(ct)
    assert (latent.dtype, vae.encode(ct).dtype) == (torch.bfloat16, torch.float32)
    decoded, exact = half.decode(latent), vae.decode(vae.encode(ct))
    assert decoded.dtype == torch.float32
    # bfloat16 keeps 8 bits; the rounding of a few dozen layers stays within a few per cent of the signal
    assert 0 < (decoded - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("entry", [None, "unet_state_dict", "state_dict"])
def test_reads_every_form_of_the_file(entry: str | None, model: Any, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in model.state_dict().items()}
    content = state if entry is None else {entry: state, "epoch": 273, "scale_factor": torch.tensor(1.0)}
    loaded = load_maisi(Wanted("maisi", weights=saved(tmp_path, content)))
    assert loaded.weights_sha256 == state_dict_sha256(state)
    assert loaded.dtype == torch.float32


def test_has_the_parameters_of_the_bundles_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = AutoencoderKlMaisi(**BUNDLE).state_dict()
    assert len(expected) == 130
    zeros = {key: torch.zeros(1).half().expand(value.shape) for key, value in expected.items()}
    vae = load_maisi(Wanted("maisi", weights=saved(tmp_path, zeros)))
    assert (vae.spec.latent_channels, vae.spec.inplane_stride, vae.spec.slice_stride) == (4, 4, 4)


def test_without_a_file_it_says_where_to_get_it() -> None:
    with pytest.raises(UserError, match=r"hf download nvidia/NV-Generate-CT models/autoencoder_v1\.pt .*`weights`"):
        load_maisi(Wanted("maisi", weights=None))


def test_names_what_keeps_a_file_from_being_maisis(model: Any, tmp_path: Path) -> None:
    state = dict(model.state_dict())

    def refused(content: object, reason: str) -> None:
        with pytest.raises(UserError, match=f"^(maisi|weights): {tmp_path / 'weights.pt'} is not .*{reason}"):
            load_maisi(Wanted("maisi", weights=saved(tmp_path, content)))

    refused({"conv.weight": torch.zeros(3)}, r"encoder\.blocks\.0\.conv\.conv\.weight")
    refused({"state_dict": {"epoch": 3}}, "state dict")
    masks = library_model(in_channels=8, out_channels=125)  # like mask_generation_autoencoder.pt
    refused(masks.state_dict(), r"\(32, 8, 3, 3, 3\), expected \(32, 1, 3, 3, 3\)")
    narrow = {"encoder.blocks.0.conv.conv.weight": torch.zeros(48, 1, 3, 3, 3)}
    refused(state | narrow, "48 channels, not a multiple of 32")
    refused(state | {"discriminator.weight": torch.zeros(1)}, r"discriminator\.weight is not part of the model")
    del state["decoder.blocks.4.norm2.bias"]
    refused(state, r"decoder\.blocks\.4\.norm2\.bias is missing")
