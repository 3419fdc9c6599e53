"""The embedded VAE `tiny`, and the script that trains it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from fvae_nnunet.reconstruction.volume import fidelity, reconstruct_volume
from fvae_nnunet.vae import FrozenVAE, load_vae
from fvae_nnunet.vae.registry import TINY_FOLDER

WINDOW_HU = (-1000.0, 1000.0)
CT_SMALL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct_small" / "ct.nii.gz"


@pytest.fixture(scope="module")
def tiny() -> FrozenVAE:
    return load_vae("tiny")


def test_package_folder_is_at_most_4_mb_and_has_its_card():
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) <= 4_000_000
    assert {path.name for path in TINY_FOLDER.iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "reference.npy",
    }


def test_compression_is_8x8_with_16_channels_and_a_known_latent_scale(tiny):
    assert (tiny.spec.inplane_stride, tiny.spec.latent_channels, tiny.spec.independent_slices) == (8, 16, True)
    assert torch.equal(tiny.latent_mean, torch.zeros(16))
    assert torch.equal(tiny.latent_std, torch.ones(16))


@pytest.mark.slow
def test_latent_of_natural_images_has_the_published_mean_and_std(tiny):
    from tiny_vae_crops import CropSampler
    from tiny_vae_images import load_images

    training, _ = load_images()
    sampler = CropSampler(training, seed=7)
    latent = torch.cat([tiny.encode(sampler.draw(16, 64)[:, :, None])[:, :, 0] for _ in range(8)])
    per_channel = latent.transpose(0, 1).flatten(1)
    assert per_channel.mean(dim=1).abs().max() < 0.3
    assert torch.allclose(per_channel.std(dim=1), torch.ones(16), atol=0.25)  # 128 other crops than those measured on


def test_posterior_is_a_distribution_narrower_than_the_latent(tiny):
    volume = torch.rand((1, 1, 1, 64, 64), generator=torch.Generator().manual_seed(0)) - 0.5
    mode = tiny.encode(volume)
    draws = torch.stack([tiny.encode(volume, torch.Generator().manual_seed(seed)) for seed in range(8)])
    spread = (draws - mode).std()
    assert 1e-4 < spread < 0.5


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 200, 136)])
def test_air_comes_back_as_air(tiny, shape):
    error_hu = np.abs(reconstruct_volume(tiny, np.full(shape, -1000, dtype=np.int16)) + 1000)
    assert error_hu.mean() < 2
    assert error_hu[:, 16:-16, 16:-16].max() < 10  # the first latent pixels see the zeros around the image


@pytest.mark.slow
def test_held_out_photograph_comes_back():
    from tiny_vae_images import held_out_pairs, load_images
    from train_tiny_vae import psnr_db

    model = load_vae("tiny")._model
    _, held_out = load_images()
    figures = {name: psnr_db(model, image) for name, image in held_out_pairs(held_out).items()}
    assert figures["camera"] > 29.5  # 30.0; 30.5 before it denoised
    assert figures["camera_island"] > 39  # 39.6; 40.1 before it denoised


@pytest.mark.slow
def test_noise_is_taken_out_of_held_out_photographs(tiny):
    """Total variation at its best leaves 18.5 and 10.1 HU of five such photographs, the first weights 20.6 and 17.6."""
    from tiny_vae_held_out import denoising_cases, denoising_errors_hu
    from tiny_vae_images import load_images

    _, held_out = load_images()
    errors = denoising_errors_hu(denoising_cases(held_out), lambda image_hu: reconstruct_volume(tiny, image_hu))
    assert errors["edges"] < 18.5 and errors["flat"] < 10.5, errors


@pytest.mark.slow
def test_ct_comes_back_above_the_bar(tiny):
    if not CT_SMALL.exists():
        pytest.skip(f"no {CT_SMALL}")
    from fvae_nnunet.ct.files import read_volume

    volume_hu, _ = read_volume(CT_SMALL)
    found = fidelity(volume_hu, reconstruct_volume(tiny, volume_hu), WINDOW_HU)
    assert found.psnr_db > 30.5  # 30.8; 31.7 before it denoised


def test_normalising_the_latent_leaves_the_reconstruction():
    from train_tiny_vae import build_model, normalise_latent

    torch.manual_seed(0)
    model = build_model((8, 8, 8, 8)).eval()
    batches = [torch.rand(4, 1, 32, 32) * 2 - 1 for _ in range(3)]
    before = model.decode(model.encode(batches[0]).latent_dist.mode()).sample
    noise_before = model.encode(batches[0]).latent_dist.std / _std(model, batches)[None, :, None, None]
    normalise_latent(model, batches)
    after = model.decode(model.encode(batches[0]).latent_dist.mode()).sample
    assert torch.allclose(after, before, atol=1e-5)
    assert torch.allclose(_std(model, batches), torch.ones(16), atol=1e-4)
    assert torch.allclose(model.encode(batches[0]).latent_dist.std, noise_before, rtol=1e-4)


def _std(model, batches) -> torch.Tensor:
    with torch.no_grad():
        modes = torch.cat([model.encode(batch).latent_dist.mode() for batch in batches])
    return modes.transpose(0, 1).flatten(1).std(dim=1)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the script that trains it needs torch 2.9")
def test_run_resumed_from_its_checkpoint_takes_the_same_steps(tmp_path):
    from tiny_vae_crops import CropSampler
    from train_tiny_vae import Run, loss_of

    def advance(run: Run, sampler: CropSampler, steps: int) -> None:
        for _ in range(steps):
            loss_of(run.model, *sampler.draw_noisy(2, 32), bfloat16=False).backward()
            run.step(1e-3)
            run.update_average()

    image = {"noise": torch.rand((3, 120, 120), generator=torch.Generator().manual_seed(0))}
    run, sampler = Run((8, 8, 8, 8), 0), CropSampler(image, seed=0)
    start = copy.deepcopy(run.model.state_dict())
    advance(run, sampler, 2)
    run.save(tmp_path / "checkpoint", sampler)
    advance(run, sampler, 2)
    resumed, resumed_sampler = Run((8, 8, 8, 8), 1), CropSampler(image, seed=1)
    resumed.load(tmp_path / "checkpoint", resumed_sampler)
    advance(resumed, resumed_sampler, 2)
    assert resumed.steps == run.steps == 4
    for name, value in run.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name
    moved = [name for name, value in run.model.state_dict().items() if not torch.equal(value, start[name])]
    assert any(name.endswith("conv1.weight") for name in moved)
    assert len(moved) == len(start)


def test_crops_are_in_range_and_repeat_from_the_seed():
    from tiny_vae_crops import CropSampler

    image = {"noise": torch.rand((3, 200, 300), generator=torch.Generator().manual_seed(0))}
    first, second = (CropSampler(image, seed=3).draw(64, 48) for _ in range(2))
    assert first.shape == (64, 1, 48, 48)
    assert torch.equal(first, second)
    assert first.min() >= -1
    assert first.max() <= 1
    air = (first == -1).flatten(1).float().mean(dim=1)
    assert 0.1 < (air > 0.2).float().mean() < 0.7  # many crops have a flat background, most have content


def test_noise_is_in_the_crops_that_the_network_sees_and_not_in_what_it_is_compared_with():
    from tiny_vae_crops import CLEAN_SHARE, MOST_NOISE, CropSampler

    grey = {"grey": torch.full((3, 400, 400), 0.5)}
    sampler = CropSampler(grey, seed=5)
    pairs = [sampler.draw_noisy(64, 64) for _ in range(4)]
    clean, noisy = (torch.cat([pair[n] for pair in pairs]) for n in (1, 0))
    assert torch.equal(clean[:64], CropSampler(grey, seed=5).draw(64, 64))
    inside = (clean.abs() < 0.5).flatten(1).all(dim=1)  # no clipping there
    sd = (noisy - clean)[inside].std(dim=(1, 2, 3))
    assert sd.max() < 1.3 * MOST_NOISE
    assert abs(float((sd == 0).float().mean()) - CLEAN_SHARE) < 0.15
    assert 0.005 < sd.median() < 0.04
    assert noisy.min() >= -1 and noisy.max() <= 1


@pytest.mark.parametrize(("sd_y", "sd_x"), [(0.0, 0.0), (0.8, 0.8), (0.3, 2.0)])
def test_crops_are_blurred_as_scipy_does(sd_y, sd_x):
    from scipy import ndimage
    from tiny_vae_crops import blurred

    images = torch.rand((2, 1, 40, 50), generator=torch.Generator().manual_seed(0))
    found = blurred(images, torch.full((2,), sd_y), torch.full((2,), sd_x))
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, sd_y, sd_x), mode="mirror", radius=(0, 0, 6, 6))
    assert np.allclose(found, expected, atol=2e-4)  # 2 pixels reach past the kernel


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the script that trains it needs torch 2.9")
def test_a_wider_network_starts_from_the_narrower_one():
    from train_tiny_vae import build_model, psnr_db, widened

    torch.manual_seed(0)
    narrow, same, wide = (build_model((8, n, n + 8, 40)).eval() for n in (16, 16, 24))
    same.load_state_dict(widened(narrow.state_dict(), same.state_dict()))
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    image = torch.rand((1, 1, 64, 64)) * 0.2
    with torch.no_grad():
        of_narrow, of_same, of_wide = (
            m.decode(m.encode(image).latent_dist.mode()).sample for m in (narrow, same, wide)
        )
    assert torch.equal(of_narrow, of_same)
    alike = torch.corrcoef(torch.stack([of_wide.flatten(), of_narrow.flatten()]))[0, 1]
    assert alike > 0.7  # not 1: GroupNorm sees other statistics
    kernels, wider = (m.decoder.up_blocks[2].resnets[1].conv1.weight[0] for m in (narrow, wide))
    assert torch.allclose(wider[0] + wider[2], kernels[0], atol=1e-6)  # 16 channels to 24: 0, 1, 0, 2, 3, 3, ...
    assert not torch.allclose(wider[0], wider[2])  # unequal shares, so that copies part
    assert psnr_db(narrow, image) == pytest.approx(psnr_db(same, image))


def test_held_out_photographs_are_judged_as_ct_is():
    from tiny_vae_held_out import NOISE, denoising_cases, denoising_errors_hu

    generator = torch.Generator().manual_seed(0)
    blocks = torch.nn.functional.interpolate(torch.rand((1, 3, 8, 8), generator=generator), scale_factor=40)[0]
    cases = denoising_cases({"blocks": blocks})
    assert {name: case.shape for name, case in cases.items()} == {
        "blocks 400": (1, 320, 320),
        "blocks 150": (1, 320, 320),
    }
    kept = denoising_errors_hu(cases, lambda image_hu: image_hu)
    assert kept == pytest.approx({"edges": NOISE.sd_hu, "flat": NOISE.sd_hu}, rel=0.05)
    assert denoising_errors_hu(cases, lambda image_hu: image_hu, noise=None) == {"edges": 0, "flat": 0}


def test_wallpapers_are_found_below_their_folder_and_shrunk(tmp_path, monkeypatch):
    import tiny_vae_images
    from PIL import Image

    monkeypatch.setattr(tiny_vae_images, "WALLPAPERS", {"calla": "a/calla.png", "picos": "b/picos.jpg"})
    for name in ("a/calla.png", "b/picos.jpg"):
        path = tmp_path / "usr" / "share" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (80, 40), (255, 0, 51)).save(path)
    training, held_out = tiny_vae_images.load_images(tmp_path)
    assert training["calla"].shape == (3, 20, 40)
    assert held_out["picos"].shape == (3, 10, 20)
    assert training["calla"][:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert set(held_out) == {*tiny_vae_images.HELD_OUT, "picos"}
    assert set(tiny_vae_images.load_images()[0]) == set(training) - {"calla"}
