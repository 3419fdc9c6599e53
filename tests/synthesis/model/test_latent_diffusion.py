"""The trained model: sampling over windows, inpainting, its folder, and the VAE that it belongs to."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_diffusion_for_tests import HU_WINDOW, settings_for
from safetensors.torch import load_file, save_file
from tiny_bert import save_tiny_bert
from tiny_models import tiny_wan, wan_vae

from fvae_nnunet.ct.intensity import hu_to_model, model_to_hu
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.synthesis.model.codec import LatentCodec
from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
from fvae_nnunet.synthesis.model.folder import ModelSettings, read_model, save_model
from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.mask_conditions import class_shares
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.model.sampling import Known, LatentWindows, sample_latent
from fvae_nnunet.synthesis.model.scale import standardise
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.base import FrozenVAE, VAESpec


class CellVAE(FrozenVAE):
    """The mean grey value of each cell, and back. Its latents can be computed by hand."""

    def __init__(
        self, *, slice_stride: int, slice_offset: int, inplane_stride: int = 2, window_slices: int = 9
    ) -> None:
        self.spec = VAESpec(
            "cells", inplane_stride, 1, slice_stride, slice_offset, window_slices, causal=slice_offset > 0
        )
        self.weights_sha256 = "0" * 64
        self.weights_source = "no weights"
        self.decoded: list[torch.Tensor] = []

    device = torch.device("cpu")
    dtype = torch.float32

    def encode(self, volume, generator=None):
        self.check_volume(volume)
        rows = torch.nn.functional.avg_pool2d(volume[:, 0], self.spec.inplane_stride)
        first, others = rows[:, : self.spec.slice_offset], rows[:, self.spec.slice_offset :]
        steps = [first.mean(1, keepdim=True)] if self.spec.slice_offset else []
        if others.shape[1]:
            steps.append(others.unflatten(1, (-1, self.spec.slice_stride)).mean(2))
        return torch.cat(steps, dim=1)[:, None]

    def decode(self, latent):
        self.decoded.append(latent.clone())
        volume = latent.float()
        for axis in (3, 4):
            volume = volume.repeat_interleave(self.spec.inplane_stride, axis)
        first = 1 if self.spec.slice_offset else 0
        pieces = [volume[:, :, :first].repeat_interleave(max(1, self.spec.slice_offset), 2)]
        return torch.cat([*pieces, volume[:, :, first:].repeat_interleave(self.spec.slice_stride, 2)], dim=2)


IMAGE_CELLS = {"slice_stride": 1, "slice_offset": 0, "window_slices": 4}
CAUSAL_CELLS = {"slice_stride": 4, "slice_offset": 1, "window_slices": 13}
BLOCK_CELLS = {"slice_stride": 4, "slice_offset": 0, "window_slices": 16}


def network(settings: ModelSettings, seed: int = 0, consistency: str | None = "conv") -> LatentDenoiser:
    """A random network whose slices see each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentDenoiser(
            settings.latent_channels,
            settings.mask_encoding,
            len(settings.class_names),
            "tiny",
            text_width=settings.text_width,
            consistency=consistency,
        )
        with torch.no_grad():
            for parameter in model.stage_parameters(2) if consistency else ():
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


class PerfectNetwork:
    """Stands for a denoiser that knows the clean latent: its condition's channel 2, mapped to ``low`` and ``high``.

    It finds the noise by arithmetic, from the levels of its process.
    """

    def __init__(self, settings: ModelSettings, low: float, high: float) -> None:
        self.config = {
            "latent_channels": 1,
            "mask_encoding": "onehot",
            "classes": len(settings.class_names),
            "text_width": None,
            "detail_channels": 0,
            "context": "none",
        }
        self.device = torch.device("cpu")
        self.process = NoiseProcess(settings.prediction)
        self.low, self.high = low, high
        self.slices: list[int] = []

    def __call__(self, noisy, timestep, condition, text=None, drop=None, context=None):
        self.slices.append(noisy.shape[2])
        latent = self.low + (self.high - self.low) * condition[:, 2:3]
        zeros, ones = torch.zeros_like(noisy), torch.ones_like(noisy)
        signal = self.process.noisy(ones, zeros, timestep)
        noise_level = self.process.noisy(zeros, ones, timestep)
        noise = (noisy - signal * latent) / noise_level
        return self.process.target(latent, noise, timestep)


@pytest.fixture(scope="module")
def tiny():
    return load_vae("tiny")


@pytest.fixture(scope="module")
def wan():
    return wan_vae(tiny_wan())


@pytest.fixture
def image_model(tiny):
    settings = settings_for(tiny, window_slices=4)
    return LatentDiffusion(network(settings), settings, NoiseProcess(), tiny)


@pytest.fixture
def causal_model(wan):
    settings = settings_for(wan, window_slices=9)
    return LatentDiffusion(network(settings), settings, NoiseProcess(), wan)


def laid_out(class_map: np.ndarray) -> Layout:
    return Layout.of(class_map, (1.0, 1.0, 1.0), organs=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def phantom(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume in HU, its class map, and a region in the middle."""
    rng = np.random.default_rng(seed)
    volume = rng.normal(0, 100, shape).astype(np.float32)
    classes = np.zeros(shape, np.uint8)
    classes[:, 4:-4, 4:-4] = 1
    region = np.zeros(shape, bool)
    region[shape[0] // 2, 9:14, 9:15] = True
    classes[region] = 2
    return volume, classes, region


@pytest.mark.parametrize("cells", [IMAGE_CELLS, CAUSAL_CELLS, BLOCK_CELLS])
def test_windows_cover_a_volume_on_one_grid(cells):
    spec = CellVAE(**cells).spec
    longest = 0
    for steps in range(0 if spec.slice_offset else 1, 14):
        slices = spec.slice_offset + steps * spec.slice_stride
        windows = LatentWindows.over(slices, spec.window_slices, spec)
        total = torch.zeros(windows.frames)
        coded: dict[int, tuple[int, int]] = {}
        seen = np.zeros(slices, bool)
        for window in windows.windows:
            assert window.stop - window.start == spec.padded_slices(window.stop - window.start) <= spec.window_slices
            total.index_add_(0, window.frames, window.weights)
            seen[window.start : window.stop] = True
            position = window.start
            for number, frame in enumerate(window.frames.tolist()):
                span = spec.slice_offset if number == 0 and spec.slice_offset else spec.slice_stride
                # windows that share a latent slice mean the same slices of the volume by it
                assert coded.setdefault(frame, (position, position + span)) == (position, position + span)
                position += span
            assert position == window.stop
        torch.testing.assert_close(total, torch.ones(windows.frames))
        assert seen.all() and sorted(coded) == list(range(windows.frames))
        for before, after in itertools.pairwise(windows.windows):
            assert before.stop - after.start == windows.overlap_slices
            assert len(set(before.frames.tolist()) & set(after.frames.tolist())) >= 1
        longest = max(longest, len(windows.windows))
    assert longest > 2


def test_windows_without_a_step_cannot_go_on():
    spec = CellVAE(slice_stride=4, slice_offset=1).spec
    assert len(LatentWindows.over(1, 1, spec).windows) == 1
    with pytest.raises(UserError, match="too short for a volume of 9; train one with at least 5"):
        LatentWindows.over(9, 1, spec)


@pytest.mark.parametrize("cells", [IMAGE_CELLS, CAUSAL_CELLS, BLOCK_CELLS])
@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_generated_volume_is_what_a_perfect_network_says(cells, prediction, eta):
    """Over many windows, sizes that need padding, and latents with a scale."""
    vae = CellVAE(**cells)
    settings = settings_for(
        vae, inplane_pixels=8, prediction=prediction, latent_mean=(0.2,), latent_std=(0.5,), window_slices=None
    )
    denoiser = PerfectNetwork(settings, low=-1.0, high=1.0)
    model = LatentDiffusion(denoiser, settings, NoiseProcess(prediction), vae)
    slices = 30
    spec = vae.spec
    classes = np.zeros((slices, 7, 9), np.uint8)
    # whole cells, so that the decoded volume shows the class map
    start = spec.slice_offset + 2 * spec.slice_stride
    classes[start : start + 4 * spec.slice_stride, 2:6, 4:8] = 2
    done = []
    volume = model.generate(
        laid_out(classes), steps=12, eta=eta, generator=seeded(), on_step=lambda step, steps: done.append((step, steps))
    )
    assert volume.shape == classes.shape and volume.dtype == np.float32
    # latent -1 and 1 are grey values -0.3 and 0.7
    expected = np.where(classes == 2, 0.7 * 500, -0.3 * 500)
    np.testing.assert_allclose(volume, expected, atol=0.05)
    assert done == [(step, 12) for step in range(1, 13)]
    assert len(denoiser.slices) > 2 * 12


def test_windows_agree_on_what_they_share():
    """A network that says something else in each window: the result changes over smoothly, not at a seam."""
    vae = CellVAE(**IMAGE_CELLS | {"window_slices": 16})
    settings = settings_for(vae, inplane_pixels=4, prediction="flow", latent_mean=(0.0,), latent_std=(1.0,))
    denoiser = PerfectNetwork(settings, low=0.0, high=0.0)

    def one_window(noisy, timestep, condition, text=None, drop=None, context=None):
        number = 0 if condition[0, 0, 0, 0, 0] == 1 else 1
        return PerfectNetwork.__call__(denoiser, noisy, timestep, condition) - number * 1000 / float(timestep)

    one_window.config, one_window.device = denoiser.config, denoiser.device
    model = LatentDiffusion(one_window, settings, NoiseProcess("flow"), vae)
    classes = np.zeros((28, 4, 4), np.uint8)
    classes[12] = 1  # the first slice of the second window only
    volume = model.generate(laid_out(classes), steps=3, eta=0.0, generator=seeded())[:, 0, 0] / 500
    np.testing.assert_allclose(volume[:12], 0, atol=1e-3)
    np.testing.assert_allclose(volume[16:], 1, atol=1e-3)
    assert (np.diff(volume[11:17]) > 0).all() and np.diff(volume).max() < 0.4


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@torch.no_grad()
def test_known_part_is_put_back_exactly_and_is_seen_at_the_true_level(tiny, prediction, eta):
    settings = settings_for(tiny, prediction=prediction)
    process = NoiseProcess(prediction)
    denoiser = network(settings)
    seen = []

    class Watched:
        config, device = denoiser.config, denoiser.device

        def __call__(self, noisy, timestep, *others, **named):
            seen.append((noisy.clone(), timestep))
            return denoiser(noisy, timestep, *others, **named)

    shape = (1, 16, 3, 16, 16)
    latent = 2 + torch.randn(shape, generator=seeded(1))
    generated = torch.zeros(1, 1, 3, 16, 16, dtype=torch.bool)
    generated[:, :, 1, 4:9, 4:8] = True
    condition = torch.randn(1, 3, 3, 16, 16, generator=seeded(2)).softmax(1)
    windows = LatentWindows.over(3, 8, tiny.spec)
    sampler = process.sampler(6, eta)
    drawn = sample_latent(Watched(), sampler, windows, [condition], generator=seeded(), known=Known(latent, generated))
    outside = ~generated.expand(shape)
    assert torch.equal(drawn[outside], latent[outside])
    assert (drawn[~outside] - latent[~outside]).abs().min() > 0
    # outside, the network sees what a perfect one would have made of the same noise and the same fresh noise
    generator = seeded()
    x = sampler.known(latent, torch.randn(shape, generator=generator), -1)
    ones = torch.ones(1, 1, 1, 1, 1)
    for index, (noisy, timestep) in enumerate(seen):
        torch.testing.assert_close(noisy[outside], x[outside], rtol=1e-3, atol=1e-3)
        signal, noise_level = process.noisy(ones, 0 * ones, timestep), process.noisy(0 * ones, ones, timestep)
        noise = (x - signal * latent) / noise_level
        # twelve thousand values: a deviation of one within five standard errors
        assert float(noise[outside].std()) == pytest.approx(1, abs=0.04)
        fresh = sampler.draw_fresh(index, noise.shape, generator)
        x = sampler.step(process.target(latent, noise, timestep), index, x, fresh)


def spied_decode(model: LatentDiffusion, monkeypatch) -> list[torch.Tensor]:
    decoded = []
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda latent: decoded.append(latent.clone()) or decode(latent))
    return decoded


@pytest.mark.parametrize("kind", ["image", "causal"])
def test_inpainting_keeps_the_latent_outside_the_region(kind, image_model, causal_model, monkeypatch):
    model, slices = (image_model, 3) if kind == "image" else (causal_model, 7)
    volume, classes, region = phantom((slices, 27, 30))
    decoded = spied_decode(model, monkeypatch)
    generated, reconstructed = model.inpaint(volume, laid_out(classes), region, steps=3, generator=seeded())
    # a whole window, as in training: slices like the last one, in-plane the lower end of the HU window
    padded = np.pad(volume, ((0, model.settings.window_slices - slices), (0, 0), (0, 0)), mode="edge")
    padded = np.pad(padded, ((0, 0), (0, 5), (0, 2)), constant_values=HU_WINDOW[0])
    latent = model.vae.encode(hu_to_model(torch.from_numpy(padded)[None, None], HU_WINDOW))
    # rows 9 to 13 and columns 9 to 14 of slice 1 (or 3: latent slice 1) lie in the cell (1, 1, 1); of slices that are
    # coded alone only that one is decoded
    run = slice(1, 2) if kind == "image" else slice(None)
    assert torch.equal(decoded[1], latent[:, :, run])
    inside = torch.zeros(latent.shape, dtype=torch.bool)
    inside[:, :, 1, 1, 1] = True
    inside = inside[:, :, run]
    assert torch.equal(decoded[0][~inside], latent[:, :, run][~inside])
    assert (decoded[0][inside] != latent[:, :, run][inside]).all()
    expected = model_to_hu(model.vae.decode(latent)[0, 0, :slices, :27, :30], HU_WINDOW).numpy()
    assert np.array_equal(model.reconstruct(volume), expected)
    if kind == "image":
        np.testing.assert_allclose(reconstructed[1], expected[1], atol=1e-3)
        for decoding in (generated, reconstructed):
            assert np.array_equal(decoding[[0, 2]], volume[[0, 2]])
    else:
        assert np.array_equal(reconstructed, expected)
    assert generated.shape == volume.shape and generated.dtype == np.float32
    assert not np.array_equal(generated, reconstructed)


def test_the_network_sees_the_square_of_its_training_with_the_region_in_its_middle(tiny, monkeypatch):
    settings = settings_for(tiny, window_slices=4, inplane_pixels=32)
    model = LatentDiffusion(network(settings), settings, NoiseProcess(), tiny)
    volume, classes, region = (np.zeros((4, 96, 64), dtype) for dtype in (np.float32, np.uint8, bool))
    region[1, 40:48, 0:16] = True
    classes[1, 40:44, 0:8] = 2
    seen = []
    forward = model.denoiser.forward

    def spy(noisy, timestep, condition, *others, **named):
        seen.append(condition)
        return forward(noisy, timestep, condition, *others, **named)

    monkeypatch.setattr(model.denoiser, "forward", spy)
    model.inpaint(volume, laid_out(classes), region, steps=1, generator=seeded())
    # cells (5, 0) and (5, 1): rows 3 to 6 of 12, columns 0 to 3 of 8
    shares = class_shares(torch.from_numpy(classes)[None], tiny.spec, classes=2).dense(2)
    assert torch.equal(seen[0], shares[..., 3:7, 0:4]) and shares[0, 2, 1, 5, 0] == 0.5
    region[1, 0:96, 8] = True
    model.inpaint(volume, laid_out(classes), region, steps=1, generator=seeded())
    assert torch.equal(seen[1], shares[..., 0:4])


def test_lower_precision(monkeypatch, image_model):
    vae = load_vae("tiny", dtype=torch.bfloat16)
    settings = settings_for(vae, window_slices=4, precision="bfloat16")
    model = LatentDiffusion(network(settings), settings, NoiseProcess(), vae)
    volume, classes, region = phantom((3, 24, 32))
    decoded = spied_decode(model, monkeypatch)
    generated, reconstructed = model.inpaint(volume, laid_out(classes), region, steps=3, generator=seeded())
    inside = torch.zeros(decoded[0].shape, dtype=torch.bool)
    inside[:, :, 0, 1, 1] = True
    assert torch.equal(decoded[1][~inside], decoded[0][~inside])
    assert generated.dtype == reconstructed.dtype == np.float32
    full = image_model.inpaint(volume, laid_out(classes), region, steps=3, generator=seeded())
    for one, other in zip((generated, reconstructed), full):
        assert np.abs(one - other).mean() < 10  # a bfloat16 near 1 is 2 HU from the next in this window
    assert not np.array_equal(reconstructed, full[1])


def test_inpainting_nothing_gives_the_volume(image_model):
    volume, classes, region = phantom((4, 24, 24))
    generated, reconstructed = image_model.inpaint(volume, laid_out(classes), np.zeros_like(region), generator=seeded())
    assert np.array_equal(generated, volume) and np.array_equal(reconstructed, volume)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "causal"])
def test_the_seed_decides(kind, image_model, causal_model):
    model = image_model if kind == "image" else causal_model
    for slices in (1, 3, 4, 7) if kind == "image" else (1, 4, 9, 14):
        _, classes, _ = phantom((slices, 24, 30))
        first, again, other = (model.generate(laid_out(classes), steps=2, generator=seeded(seed)) for seed in (3, 3, 4))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert first.shape == classes.shape and first.dtype == np.float32
        assert np.isfinite(first).all() and first.min() >= -500 and first.max() <= 500
    volume, classes, region = phantom((4, 24, 30))
    first, again, other = (
        model.inpaint(volume, laid_out(classes), region, steps=2, generator=seeded(seed))[0] for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_class_map_matters(image_model):
    _, classes, _ = phantom((2, 24, 24))
    with_lesion = image_model.generate(laid_out(classes), steps=2, generator=seeded())
    without = image_model.generate(laid_out(np.minimum(classes, 1)), steps=2, generator=seeded())
    assert not np.array_equal(with_lesion, without)


def test_vae_encoding_is_standardised_like_a_latent(tiny, monkeypatch):
    settings = settings_for(tiny, window_slices=4, mask_encoding="vae")
    model = LatentDiffusion(network(settings), settings, NoiseProcess(), tiny)
    _, classes, _ = phantom((2, 32, 32))
    conditions = []
    monkeypatch.setattr(
        model.denoiser, "forward", lambda noisy, timestep, condition, *_, **__: conditions.append(condition) or noisy
    )
    model.generate(laid_out(classes), steps=1, generator=seeded())
    grey = torch.from_numpy(classes.astype(np.float32))[None, None] - 1
    expected = standardise(tiny.encode(grey), settings.latent_mean, settings.latent_std)
    torch.testing.assert_close(conditions[0], expected)


def test_guidance_by_arithmetic(image_model):
    """One step without fresh noise is linear in the prediction, so guidance can be seen in the latent."""
    denoiser, sampler = image_model.denoiser, NoiseProcess().sampler(1, 0.0)
    windows = LatentWindows.over(2, 4, image_model.vae.spec)
    condition = torch.randn(1, 3, 2, 4, 4, generator=seeded(1)).softmax(1)

    def drawn(guidance):
        return sample_latent(denoiser, sampler, windows, [condition], generator=seeded(), guidance=guidance)

    noise = torch.randn(1, 16, 2, 4, 4, generator=seeded())
    timestep = torch.tensor([1])
    with torch.no_grad():
        given = denoiser(noise, timestep, condition)
        without = denoiser(noise, timestep, condition, drop=torch.tensor([True]))
    assert torch.equal(drawn(1.0), sampler.step(given, 0, noise, None))
    assert torch.equal(drawn(3.0), sampler.step(without + 3 * (given - without), 0, noise, None))
    torch.testing.assert_close(drawn(0.0), sampler.step(without, 0, noise, None))


def test_guidance_one_is_no_guidance_to_the_bit(image_model, monkeypatch):
    _, classes, _ = phantom((5, 24, 24))
    without = image_model.generate(laid_out(classes), steps=2, generator=seeded())
    assert not np.array_equal(
        image_model.generate(laid_out(classes), steps=2, guidance=2.0, generator=seeded()), without
    )
    forward = image_model.denoiser.forward

    def no_drop(*given, drop=None, **named):
        assert drop is None
        return forward(*given, **named)

    monkeypatch.setattr(image_model.denoiser, "forward", no_drop)
    assert np.array_equal(image_model.generate(laid_out(classes), steps=2, guidance=1.0, generator=seeded()), without)


def test_guidance_needs_condition_dropout(image_model):
    _, classes, _ = phantom((2, 24, 24))
    image_model.training = {"condition_dropout": 0.0}
    with pytest.raises(UserError, match="trained with condition dropout"):
        image_model.generate(laid_out(classes), guidance=2.0, steps=1, generator=seeded())
    image_model.generate(laid_out(classes), guidance=1.0, steps=1, generator=seeded())
    image_model.training = {"condition_dropout": 0.1}
    image_model.generate(laid_out(classes), guidance=2.0, steps=1, generator=seeded())


@pytest.mark.parametrize("slices", [1, 6, 9, 10, 11, 12, 13, 22])
def test_conditions_behind_the_last_slice_are_those_of_training(slices):
    """The last latent slice of an organ that goes on to the end is all organ, whatever the number of slices."""
    vae = CellVAE(**CAUSAL_CELLS)
    settings = settings_for(vae, inplane_pixels=8)
    codec = LatentCodec(vae, settings)
    windows = LatentWindows.over(vae.spec.padded_slices(slices), settings.window_slices, vae.spec)
    class_map = np.ones((slices, 8, 7), np.uint8)
    padded = laid_out(class_map).padded((vae.spec.padded_slices(slices), 8, 7))
    in_synthesis = codec.conditions(padded, windows, vae.device)
    assert all((window[:, 1, ..., :3] == 1).all() for window in in_synthesis)
    assert all((window[:, 1, ..., 3] == 0.5).all() for window in in_synthesis), "in-plane there is background"


def test_report_text_conditions(tiny, tmp_path):
    pytest.importorskip("transformers")
    save_tiny_bert(tmp_path / "bert")
    settings = settings_for(tiny, window_slices=4, text_encoder=str(tmp_path / "bert"), text_width=16)
    model = LatentDiffusion(network(settings), settings, NoiseProcess(), tiny)
    _, classes, _ = phantom((2, 24, 24))
    volumes = [
        model.generate(laid_out(classes), steps=2, text=text, generator=seeded()) for text in (None, "mass", "no mass")
    ]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(volumes, 2))
    again = model.generate(laid_out(classes), steps=2, text="no mass", generator=seeded())
    assert np.array_equal(again, volumes[2])
    digest = model.report_encoder.weights_sha256
    for changed, message in (({"text_weights_sha256": "1" * 64}, "weights of the text encoder"), ({}, None)):
        other = dataclasses.replace(settings, **({"text_weights_sha256": digest} | changed))
        model = LatentDiffusion(network(other), other, NoiseProcess(), tiny)
        if message is None:
            assert model.report_encoder.weights_sha256 == digest
        else:
            with pytest.raises(UserError, match=message):
                model.generate(laid_out(classes), steps=1, text="mass", generator=seeded())
    wider = dataclasses.replace(settings, text_width=24)
    with pytest.raises(UserError, match="has 16 channels, this model needs 24"):
        LatentDiffusion(network(wider), wider, NoiseProcess(), tiny).generate(
            laid_out(classes), steps=1, text="mass", generator=seeded()
        )


def test_text_is_refused_by_a_model_without(image_model):
    _, classes, _ = phantom((2, 24, 24))
    with pytest.raises(UserError, match="without report text"):
        image_model.generate(laid_out(classes), text="mass", generator=seeded())


def test_saved_model_makes_the_same_volumes(image_model, tmp_path):
    folder = tmp_path / "results" / "model"
    training = {"training_cases": ["a", "b"], "condition_dropout": 0.0}
    save_model(folder, image_model.denoiser, image_model.settings, training)
    assert sorted(path.name for path in folder.iterdir()) == ["denoiser", "manifest.json", "scheduler"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    loaded = LatentDiffusion.load(folder)
    assert loaded.settings == image_model.settings and loaded.training == training
    assert read_model(folder) == (image_model.settings, training)
    assert loaded.weights_sha256 == image_model.weights_sha256
    _, classes, _ = phantom((5, 24, 24))
    first, second = (model.generate(laid_out(classes), steps=2, generator=seeded()) for model in (image_model, loaded))
    assert np.array_equal(first, second)
    denoiser = LatentDenoiser.from_pretrained(folder / "denoiser")
    assert denoiser.config["consistency"] == "conv"
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    content = json.loads((folder / "manifest.json").read_text())
    modes = {path.stat().st_mode for path in (folder / "denoiser").iterdir()}
    assert len(modes) == 1, "the weights are as readable as the configuration"
    assert content["kind"] == "ldm" and content["made_with"]["torch"] == torch.__version__.partition("+")[0]


def test_saving_into_a_folder_keeps_its_other_files(image_model, tmp_path):
    save_model(tmp_path, image_model.denoiser, image_model.settings, {"steps": 1})
    (tmp_path / "progress.csv").write_text("step,loss\n")
    other = network(image_model.settings, seed=1)
    save_model(tmp_path, other, image_model.settings, {"steps": 2})
    loaded = LatentDiffusion.load(tmp_path)
    assert loaded.training == {"steps": 2}
    assert loaded.weights_sha256 != image_model.weights_sha256
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["denoiser", "manifest.json", "progress.csv", "scheduler"]


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_save_leaves_no_model(exists, image_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    if exists:
        save_model(folder, image_model.denoiser, image_model.settings)

    def fail(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(NoiseProcess, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, network(image_model.settings, seed=1), image_model.settings)
    assert folder.exists() == exists and len(list(tmp_path.iterdir())) == exists
    if exists:
        assert LatentDiffusion.load(folder).weights_sha256 == image_model.weights_sha256


def test_a_model_half_replaced_is_no_model(image_model, tmp_path, monkeypatch):
    save_model(tmp_path, image_model.denoiser, image_model.settings)

    def fail_at_the_manifest(target, content):
        if target == tmp_path / "manifest.json":
            raise KeyboardInterrupt
        write_json(target, content)

    monkeypatch.setattr("fvae_nnunet.synthesis.model.folder.write_json", fail_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, network(image_model.settings, seed=1), image_model.settings)
    with pytest.raises(UserError, match="is not a latent diffusion model"):
        LatentDiffusion.load(tmp_path)


def test_vae_of_a_local_folder_is_found_by_weights(tmp_path):
    folder = Path(load_vae.__code__.co_filename).parent / "tiny"
    local = load_vae(f"diffusers:{folder}")
    settings = settings_for(local, window_slices=4)
    save_model(tmp_path / "model", network(settings), settings)
    assert settings.vae == "diffusers:tiny"
    assert LatentDiffusion.load(tmp_path / "model", weights=folder).vae.weights_sha256 == local.weights_sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 4}, "tiny has 16 latent channels, but the model was trained with tiny, which has 4"),
        (
            {"weights_sha256": "1" * 64},
            r"weights of tiny \(embedded\) are not those .* another version of fvae_nnunet: create it again",
        ),
        ({"inplane_pixels": 30}, r"30 pixels in-plane.*multiples of 8"),
        ({"mask_encoding": "vae"}, "denoiser has mask_encoding onehot, but the model's settings say vae"),
        ({"class_names": ("tumour",)}, "denoiser has classes 2, but the model's settings say 1"),
        ({"text_width": 16}, "denoiser has text_width None, but the model's settings say 16"),
        ({"latent_std": (1.0,)}, "latent_std for each of 16"),
    ],
)
def test_another_vae_or_network_is_refused(options, message, image_model, tmp_path):
    settings = dataclasses.replace(image_model.settings, **options)
    save_model(tmp_path, image_model.denoiser, settings)
    with pytest.raises(UserError, match=message):
        LatentDiffusion.load(tmp_path)


def test_a_window_that_the_vae_does_not_take_is_refused(wan):
    settings = settings_for(wan, window_slices=8)
    with pytest.raises(UserError, match=r"windows of 8 slices, which wan2.1 does not accept \(1 \+ k \* 4\)"):
        LatentDiffusion(network(settings), settings, NoiseProcess(), wan)


def test_folders_that_are_no_model_are_refused(image_model, tmp_path):
    with pytest.raises(UserError, match="is not a latent diffusion model; train one with fvae-train-ldm"):
        LatentDiffusion.load(tmp_path)
    save_model(tmp_path, image_model.denoiser, image_model.settings)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"kind": "view"}))
    with pytest.raises(UserError, match="is not a latent diffusion model"):
        LatentDiffusion.load(tmp_path)
    path.write_text(json.dumps(content | {"settings": {**content["settings"], "colour": 1}}))
    with pytest.raises(UserError, match="colour is missing or unknown"):
        LatentDiffusion.load(tmp_path)
    path.write_text(json.dumps(content | {"settings": {**content["settings"], "prediction": "flow"}}))
    with pytest.raises(UserError, match=r"manifest.json says flow, the schedule epsilon"):
        LatentDiffusion.load(tmp_path)
    path.write_text(json.dumps(content))
    weights = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["other"] = state.pop("null_token")
    save_file(state, weights)
    with pytest.raises(UserError, match=r"safetensors has \d+ bytes, but \d+ were written; copy the model again"):
        LatentDiffusion.load(tmp_path)
    del content["outputs"]  # as in version 0.1.0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"denoiser lacks null_token \(1 such keys\)"):
        LatentDiffusion.load(tmp_path)
    weights.write_bytes(b"half")
    with pytest.raises(UserError, match="denoiser cannot be loaded"):
        LatentDiffusion.load(tmp_path)


def test_wrong_volumes_are_refused(image_model):
    volume, classes, region = phantom((4, 24, 24))

    def inpaint(volume=volume, classes=classes, region=region):
        image_model.inpaint(volume, laid_out(classes), region, steps=1, generator=seeded())

    with pytest.raises(UserError, match="5 slices; this model takes windows of 4"):
        inpaint(*phantom((5, 24, 24)))
    with pytest.raises(UserError, match="not finite"):
        inpaint(volume=np.full_like(volume, np.nan))
    with pytest.raises(UserError, match="layout has shape"):
        inpaint(classes=classes[:, :8])
    with pytest.raises(UserError, match="region has shape"):
        inpaint(region=region[:, :8])
    with pytest.raises(UserError, match="has class 3; this model knows 0 background, 1 liver, 2 tumour"):
        inpaint(classes=classes + 1)
    with pytest.raises(UserError, match="at least one voxel"):
        image_model.generate(laid_out(classes[:0]), generator=seeded())
    with pytest.raises(UserError, match="at least one voxel"):
        image_model.reconstruct(volume[0])
    with pytest.raises(ValueError, match="class maps must be uint8"):
        inpaint(classes=classes.astype(np.float32))
