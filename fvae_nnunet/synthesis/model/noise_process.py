"""The noise process of the diffusion: training targets, and sampling from noise to a latent.

All latents here are standardised. A noisy latent is ``signal * latent + noise_level * noise``:

- ``sample``, ``epsilon`` and ``v_prediction``: T = 1000 steps, scaled-linear betas from 8.5e-4 to 0.012 (Rombach et al.
  2022; the paper's), ``signal = sqrt(alpha_bar)``, ``noise_level = sqrt(1 - alpha_bar)``; sampled by DDIM (Song et al.
  2021).
- ``flow``: rectified flow (Liu et al. 2023), ``noise_level = t / 1000``, ``signal = 1 - t / 1000``.

Schedules and their files are those of diffusers' ``DDIMScheduler`` and ``FlowMatchEulerDiscreteScheduler``. The
sampling step is implemented here for all of them, because the noise of a known part of the latent has to use the same
fresh noise as the step. After the last step no noise is left, not even with DDIM (diffusers: ``set_alpha_to_one``; the
paper's code leaves 0.029 standard deviations).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json

PREDICTIONS = ("sample", "epsilon", "v_prediction", "flow")
TRAINING_STEPS = 1000

_OF_OLDER_VERSIONS = "set_alpha_to_one"
"""Entry of a schedule that is ignored when reading: its value no longer has an effect."""


class NoiseProcess:
    """Noise and targets for training, and samplers.

    Args:
        prediction: what the network predicts: the latent (``sample``), the noise (``epsilon``, the paper's), the
            velocity of Salimans and Ho 2022 (``v_prediction``: signal * noise - noise_level * latent), or that of the
            flow (``flow``: noise - latent).
        steps, eta: default sampling parameters, see ``sampler``.
    """

    def __init__(self, prediction: str = "epsilon", *, steps: int = 20, eta: float = 1.0) -> None:
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

        if prediction not in PREDICTIONS:
            raise UserError(f"unknown prediction {prediction!r}; choose from {', '.join(PREDICTIONS)}")
        self.prediction, self.steps, self.eta = prediction, steps, eta
        self._scheduler: Any
        if prediction == "flow":
            self._scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAINING_STEPS)
        else:
            self._scheduler = DDIMScheduler(
                num_train_timesteps=TRAINING_STEPS,
                beta_start=8.5e-4,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=True,
                steps_offset=1,
                prediction_type=prediction,
                timestep_spacing="leading",
            )
        self._scheduler.register_to_config(sampling_steps=steps, sampling_eta=eta)

    def save(self, folder: Path) -> None:
        """Write the schedule in diffusers' format (``scheduler_config.json``), with ``sampling_steps`` and
        ``sampling_eta``."""
        self._scheduler.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> NoiseProcess:
        """Read the process from a folder written by ``save``.

        Raises:
            UserError: the file is missing, or has another schedule.
        """
        path = folder / "scheduler_config.json"
        if not path.is_file():
            raise UserError(f"{folder} has no scheduler_config.json; it is not a noise schedule of fvae-train-ldm")
        content = read_json(
            path,
            {"_class_name": str, "prediction_type?": str, "sampling_steps?": int, "sampling_eta?": float},
        )
        flow = content["_class_name"] == "FlowMatchEulerDiscreteScheduler"
        process = cls(
            "flow" if flow else content.get("prediction_type", "epsilon"),
            steps=content.get("sampling_steps", 20),
            eta=content.get("sampling_eta", 1.0),
        )
        for name, value in process._scheduler.config.items():
            if not name.startswith("_") and name != _OF_OLDER_VERSIONS and content.get(name, value) != value:
                raise UserError(f"{path}: {name} is {content[name]}, but this version supports only {value}")
        return process

    def draw_timesteps(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw uniform timesteps (batch,) on the generator's device: int64 in [0, 1000), flow: float32 in (0, 1000]."""
        if self.prediction == "flow":
            return TRAINING_STEPS * (1 - torch.rand(batch, generator=generator, device=generator.device))
        return torch.randint(TRAINING_STEPS, (batch,), generator=generator, device=generator.device)

    def noisy(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Add noise to a latent (B, ...), at the levels of ``timesteps`` (B,)."""
        signal, noise_level = self._levels(timesteps, latent)
        return signal * latent + noise_level * noise

    def target(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The target that the network should predict from ``noisy(latent, noise, timesteps)``."""
        if self.prediction == "sample":
            return latent
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - latent
        signal, noise_level = self._levels(timesteps, latent)
        return signal * noise - noise_level * latent

    def _levels(self, timesteps: torch.Tensor, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = timesteps.to(latent.device)
        if self.prediction == "flow":
            noise_level = timesteps.to(latent.dtype) / TRAINING_STEPS
            signal = 1 - noise_level
        else:
            alpha_bar = self._scheduler.alphas_cumprod.to(latent.device)[timesteps]
            signal, noise_level = alpha_bar.sqrt().to(latent.dtype), (1 - alpha_bar).sqrt().to(latent.dtype)
        shape = (-1,) + (1,) * (latent.ndim - 1)
        return signal.view(shape), noise_level.view(shape)

    def check_steps(self, steps: int) -> None:
        """Check that sampling with this number of steps starts at nearly pure noise.

        The steps of DDIM are 1000 // steps apart, the last at 1 (like the paper's). Three steps therefore start at
        timestep 667, and 501 steps at 501, where half of the latent is left. The flow always starts at pure noise.

        Raises:
            UserError: it does not, or the number of steps is invalid.
        """
        ddim = self.prediction != "flow"
        if ddim and (steps < 1 or (steps - 1) * (TRAINING_STEPS // steps) < 0.75 * TRAINING_STEPS - 1):
            raise UserError(
                f"`steps={steps}`: DDIM would not start near pure noise; choose 20, 50, 100 or another number from 4 "
                f"to {TRAINING_STEPS // 2} that approximately divides {TRAINING_STEPS}"
            )
        self.sampler(steps)

    def sampler(self, steps: int | None = None, eta: float | None = None) -> Sampler:
        """A sampler from noise to a latent.

        Args:
            steps: number of steps, 1 to 999, for the flow to 1000; the paper uses 20. None: default of the process.
            eta: fresh noise in each step, from 0 (none: DDIM, Euler's method) to 1 (DDIM: as in DDPM; flow: all noise
                is new). The paper uses 1. None: default of the process.

        Raises:
            UserError: a value is outside these ranges.
        """
        steps, eta = self.steps if steps is None else steps, self.eta if eta is None else eta
        # DDIM with 1000 steps would start at timestep 1000, which does not occur in training
        most = TRAINING_STEPS if self.prediction == "flow" else TRAINING_STEPS - 1
        if not 1 <= steps <= most:
            raise UserError(f"sampling takes 1 to {most} steps, got {steps}")
        if not 0 <= eta <= 1:
            raise UserError(f"eta must be between 0 and 1, got {eta:g}")
        self._scheduler.set_timesteps(steps)
        timesteps = self._scheduler.timesteps.clone()
        if self.prediction == "flow":
            noise_level = self._scheduler.sigmas.double()
            return Sampler(self.prediction, timesteps, 1 - noise_level, noise_level, torch.full((steps,), float(eta)))
        now = self._scheduler.alphas_cumprod.double()[timesteps]
        after = torch.cat([now[1:], torch.ones(1, dtype=torch.float64)])
        sigma_squared = eta**2 * (1 - after) / (1 - now) * (1 - now / after)  # Song et al. 2021, equation 16
        fresh_share = torch.nan_to_num(sigma_squared / (1 - after)).sqrt()  # after the last step there is no noise
        alpha_bar = torch.cat([now[:1], after])
        return Sampler(self.prediction, timesteps, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), fresh_share)


class Sampler:
    """Steps from noise to a latent; created by ``NoiseProcess.sampler``. It has no state.

    Before step ``index`` (from 0) the latent has level ``index``, after it level ``index + 1``.

    Attributes:
        timesteps: (steps,), input of the network at each step.
        signal, noise_level: float64 (steps + 1,), factors at each level.
        fresh_share: (steps,), share of new noise at the next level; the old noise is weighted by
            ``sqrt(1 - share ** 2)``.
    """

    def __init__(
        self,
        prediction: str,
        timesteps: torch.Tensor,
        signal: torch.Tensor,
        noise_level: torch.Tensor,
        fresh_share: torch.Tensor,
    ) -> None:
        self._prediction = prediction
        self.timesteps = timesteps
        self.signal, self.noise_level, self.fresh_share = signal, noise_level, fresh_share

    def __len__(self) -> int:
        return len(self.timesteps)

    def draw_fresh(self, index: int, shape: torch.Size, generator: torch.Generator) -> torch.Tensor | None:
        """Draw the fresh noise of a step, float32 on the generator's device; None if the step uses none."""
        if self.fresh_share[index] == 0:
            return None
        return torch.randn(shape, generator=generator, device=generator.device)

    def step(self, prediction: torch.Tensor, index: int, x: torch.Tensor, fresh: torch.Tensor | None) -> torch.Tensor:
        """The latent at the next level.

        With the estimates of latent and noise from the network's prediction, this is ``signal * latent + noise_level *
        renewed(noise)`` at that level: equation 12 of DDIM (Song et al. 2021), and Euler's method for the flow.

        Args:
            prediction: output of the network for ``x`` at ``timesteps[index]``.
            index: number of the step.
            x: the latent at level ``index``.
            fresh: output of ``draw_fresh``, on the device of ``x``.
        """
        signal, noise_level = float(self.signal[index]), float(self.noise_level[index])
        if self._prediction == "sample":
            latent = prediction
            noise = (x - signal * latent) / noise_level
        elif self._prediction == "epsilon":
            noise = prediction
            latent = (x - noise_level * noise) / signal
        elif self._prediction == "flow":
            latent = x - noise_level * prediction
            noise = x + signal * prediction
        else:
            latent = signal * x - noise_level * prediction
            noise = signal * prediction + noise_level * x
        noise = self.renewed(noise, index, fresh)
        return float(self.signal[index + 1]) * latent + float(self.noise_level[index + 1]) * noise

    def renewed(self, noise: torch.Tensor, index: int, fresh: torch.Tensor | None) -> torch.Tensor:
        """The noise at level ``index + 1``, given that at level ``index``."""
        share = float(self.fresh_share[index])
        if fresh is None:
            return noise
        return (1 - share**2) ** 0.5 * noise + share * fresh

    def known(self, latent: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """A known latent with its noise at the level after step ``index``; -1: before the first step.

        After the last step it is exactly the latent.
        """
        if index == len(self) - 1:
            return latent
        return float(self.signal[index + 1]) * latent + float(self.noise_level[index + 1]) * noise
