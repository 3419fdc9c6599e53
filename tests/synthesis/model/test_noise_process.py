"""Noise, targets and steps of the diffusion, against published formulas written out here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess

# Rombach et al. 2022: betas are squares of evenly spaced roots
ALPHA_BAR = np.cumprod(1 - np.linspace(8.5e-4**0.5, 0.012**0.5, 1000) ** 2)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 2, 4, 4), generator=torch.Generator().manual_seed(seed))


def test_noisy_latents_have_the_papers_levels():
    latent, noise = normal(0), normal(1)
    timesteps = torch.tensor([0, 700])
    for prediction in ("epsilon", "v_prediction"):
        noisy = NoiseProcess(prediction).noisy(latent, noise, timesteps)
        for index, timestep in enumerate((0, 700)):
            alpha_bar = ALPHA_BAR[timestep]
            expected = alpha_bar**0.5 * latent[index] + (1 - alpha_bar) ** 0.5 * noise[index]
            torch.testing.assert_close(noisy[index].double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_targets_by_arithmetic():
    latent, noise = torch.tensor([2.0, 2.0]).view(2, 1), torch.tensor([-1.0, 3.0]).view(2, 1)
    timesteps = torch.tensor([99, 500])
    assert NoiseProcess("epsilon").target(latent, noise, timesteps) is noise
    assert NoiseProcess("sample").target(latent, noise, timesteps) is latent
    velocity = NoiseProcess("v_prediction").target(latent, noise, timesteps).flatten()
    for index, (timestep, drawn) in enumerate(((99, -1.0), (500, 3.0))):
        alpha_bar = ALPHA_BAR[timestep]
        assert float(velocity[index]) == pytest.approx(alpha_bar**0.5 * drawn - (1 - alpha_bar) ** 0.5 * 2, rel=1e-5)
    flow = NoiseProcess("flow")
    assert flow.target(latent, noise, torch.tensor([250.0, 1000.0])).flatten().tolist() == [-3.0, 1.0]
    assert flow.noisy(latent, noise, torch.tensor([250.0, 1000.0])).flatten().tolist() == [1.25, 3.0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 20, 33])
def test_ddim_step_is_the_published_formula(eta, steps):
    """Song et al. 2021, equations 12 and 16, steps of 1000 // steps to timestep 1, and no noise behind the last."""
    sampler = NoiseProcess().sampler(steps, eta)
    stride = 1000 // steps
    assert sampler.timesteps.tolist() == [1 + stride * index for index in reversed(range(steps))]
    x, prediction, fresh = (normal(seed).double().numpy() for seed in (0, 1, 2))
    for index, timestep in enumerate(sampler.timesteps.tolist()):
        now, after = ALPHA_BAR[timestep], ALPHA_BAR[timestep - stride] if timestep > stride else 1.0
        sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
        predicted_latent = (x - np.sqrt(1 - now) * prediction) / np.sqrt(now)
        expected = np.sqrt(after) * predicted_latent + np.sqrt(1 - after - sigma**2) * prediction + sigma * fresh
        found = sampler.step(
            torch.from_numpy(prediction), index, torch.from_numpy(x), torch.from_numpy(fresh) if eta else None
        )
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)  # diffusers' betas are float32


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_are_those_of_diffusers(prediction, eta):
    sampler = NoiseProcess(prediction).sampler(20, eta)
    scheduler = DDIMScheduler(
        beta_start=8.5e-4, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    assert torch.equal(sampler.timesteps, scheduler.timesteps)
    x, predicted, fresh = normal(0), normal(1), normal(2)
    for index, timestep in enumerate(scheduler.timesteps):
        options = {"eta": eta} | ({"variance_noise": fresh} if eta else {})
        expected = scheduler.step(predicted, int(timestep), x, **options).prev_sample
        torch.testing.assert_close(sampler.step(predicted, index, x, fresh if eta else None), expected)


@pytest.mark.parametrize("stochastic", [False, True])
def test_steps_of_the_flow_are_those_of_diffusers(stochastic):
    sampler = NoiseProcess("flow").sampler(7, float(stochastic))
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(7)
    assert torch.equal(sampler.timesteps, scheduler.timesteps)
    x = normal(0)
    fresh = normal(2) if stochastic else None
    for index, timestep in enumerate(scheduler.timesteps):
        predicted = normal(10 + index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)  # as of ``fresh``; diffusers 0.36 takes no generator here
            expected = scheduler.step(predicted, timestep, x).prev_sample
        torch.testing.assert_close(sampler.step(predicted, index, x, fresh), expected)
        x = expected


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_perfect_prediction_follows_the_known_latent(prediction, eta):
    """Stepping with the true target and putting the known latent back are the same thing, noise included."""
    process = NoiseProcess(prediction)
    sampler = process.sampler(10, eta)
    generator = torch.Generator().manual_seed(5)
    latent, noise = normal(0, 1, 2, 3), normal(1, 1, 2, 3)
    x = sampler.known(latent, noise, -1)
    torch.testing.assert_close(x, process.noisy(latent, noise, sampler.timesteps[:1]))
    for index in range(10):
        fresh = sampler.draw_fresh(index, latent.shape, generator)
        assert (fresh is None) == (eta == 0 or (index == 9 and prediction != "flow"))
        target = process.target(latent, noise, sampler.timesteps[index : index + 1])
        x = sampler.step(target, index, x, fresh)
        noise = sampler.renewed(noise, index, fresh)
        if index < 9:
            torch.testing.assert_close(x, sampler.known(latent, noise, index), rtol=1e-4, atol=1e-4)
    assert sampler.known(latent, noise, 9) is latent
    # behind the last step no noise is left
    torch.testing.assert_close(x, latent, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_renewed_noise_keeps_unit_variance(prediction):
    sampler = NoiseProcess(prediction).sampler(20, 0.8)
    generator = torch.Generator().manual_seed(0)
    noise = normal(1, 200_000)
    for index in range(20):
        noise = sampler.renewed(noise, index, sampler.draw_fresh(index, noise.shape, generator))
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_timesteps_are_uniform_and_follow_the_generator():
    for prediction, lowest, highest in (("epsilon", 0, 999), ("v_prediction", 0, 999), ("flow", 0, 1000)):
        process = NoiseProcess(prediction)
        drawn = process.draw_timesteps(20_000, torch.Generator().manual_seed(3))
        assert torch.equal(drawn, process.draw_timesteps(20_000, torch.Generator().manual_seed(3)))
        assert not torch.equal(drawn, process.draw_timesteps(20_000, torch.Generator().manual_seed(4)))
        assert lowest <= drawn.min() and drawn.max() <= highest
        counts = torch.histc(drawn.float(), bins=10, min=0, max=1000)
        assert ((counts - 2000).abs() < 200).all()  # five standard deviations are 212
    assert drawn.min() > 0 and drawn.dtype == torch.float32


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction", "flow"])
def test_saved_process_is_read_again_and_says_how_to_sample(prediction, tmp_path):
    process = NoiseProcess(prediction, steps=7, eta=0.25)
    process.save(tmp_path)
    loaded = NoiseProcess.load(tmp_path)
    assert (loaded.prediction, loaded.steps, loaded.eta) == (prediction, 7, 0.25)
    one, other, explicit = loaded.sampler(), process.sampler(7, 0.25), process.sampler(5, 1.0)
    assert torch.equal(one.signal, other.signal) and torch.equal(one.fresh_share, other.fresh_share)
    assert (len(one), len(explicit)) == (7, 5) and not torch.equal(one.fresh_share[:5], explicit.fresh_share)


def test_a_schedule_of_version_0_1_0_is_read(tmp_path):
    NoiseProcess().save(tmp_path)
    path = tmp_path / "scheduler_config.json"
    content = json.loads(path.read_text()) | {"set_alpha_to_one": False}
    del content["sampling_steps"], content["sampling_eta"]
    path.write_text(json.dumps(content))
    loaded = NoiseProcess.load(tmp_path)
    assert (loaded.steps, loaded.eta) == (20, 1.0) and float(loaded.sampler().noise_level[-1]) == 0


def test_another_schedule_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a noise schedule"):
        NoiseProcess.load(tmp_path)
    NoiseProcess().save(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.02}))
    with pytest.raises(UserError, match=r"beta_end is 0\.02"):
        NoiseProcess.load(tmp_path)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="choose from sample, epsilon, v_prediction, flow"):
        NoiseProcess("x0")
    for process, steps, most in (
        (NoiseProcess(), 0, 999),
        (NoiseProcess(), 1000, 999),
        (NoiseProcess("flow"), 1001, 1000),
    ):
        with pytest.raises(UserError, match=f"1 to {most} steps, got {steps}"):
            process.sampler(steps, 0.0)
    with pytest.raises(UserError, match="between 0 and 1"):
        NoiseProcess().sampler(5, 1.5)


def test_sampling_begins_near_pure_noise():
    """Where the signal of the latent, the square root of alpha_bar, is a quarter at most."""
    for prediction in ("epsilon", "v_prediction"):
        process = NoiseProcess(prediction)
        for steps in range(1, 1000):
            timestep = int(process.sampler(steps).timesteps[0])
            if timestep >= 750:
                process.check_steps(steps)
                assert ALPHA_BAR[timestep] ** 0.5 < 0.25
            else:
                with pytest.raises(UserError, match=f"`steps={steps}`: DDIM would not start near pure noise"):
                    process.check_steps(steps)
        with pytest.raises(UserError, match="1 to 999 steps"):
            process.check_steps(1000)
        with pytest.raises(UserError, match="`steps=0`"):
            process.check_steps(0)
    for steps in (1, 3, 1000):
        assert NoiseProcess("flow").sampler(steps).timesteps[0] == 1000
        NoiseProcess("flow").check_steps(steps)
