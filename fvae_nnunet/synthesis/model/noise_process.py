"""The noise of the diffusion: what the network learns to predict, and the way back from noise to a latent.

All latents here are standardised. A noisy latent is ``signal * latent + noise_level * noise``:

- ``sample``, ``epsilon`` and ``v_prediction``: T = 1000 steps, scaled-linear betas from 8.5e-4 to 0.012 (Rombach et al.
  2022; the paper's), ``signal = sqrt(alpha_bar)``, ``noise_level = sqrt(1 - alpha_bar)``; sampled by DDIM (Song et al.
  2021).
- ``flow``: rectified flow (Liu et al. 2023), ``noise_level = t / 1000``, ``signal = 1 - t / 1000``.

Schedules and their files are diffusers' ``DDIMScheduler`` and ``FlowMatchEulerDiscreteScheduler``. The step is written
out for all at once, because where a part of the latent is known its noise has to take part in the step's fresh noise.
Behind the last step no noise is left, in DDIM neither (diffusers: ``set_alpha_to_one``; the paper's code leaves 0.029
standard deviations).
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
"""Is no obstacle to reading a schedule: what it says is not done any more."""


class NoiseProcess:
    """Noise for training, targets, and samplers.

    Args:
        prediction: what the network predicts: the latent (``sample``), the noise (``epsilon``, the paper's), the
            velocity of Salimans and Ho 2022 (``v_prediction``: signal * noise - noise_level * latent), or that of the
            flow (``flow``: noise - latent).
        steps, eta: how to sample unless told otherwise, see ``sampler``.
    """

    def __init__(self, prediction: str = "epsilon", *, steps: int = 20, eta: float = 1.0) -> None:
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

        if prediction not in PREDICTIONS:
            raise UserError(f"unknown prediction {prediction!r}; known are {', '.join(PREDICTIONS)}")
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
        """Write the schedule as diffusers does (``scheduler_config.json``), with ``sampling_steps`` and
        ``sampling_eta``."""
        self._scheduler.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> NoiseProcess:
        """The process of a folder that ``save`` wrote.

        Raises:
            UserError: there is none, or it is of another schedule.
        """
        path = folder / "scheduler_config.json"
        if not path.is_file():
            raise UserError(f"{folder} has no scheduler_config.json; it is no noise schedule of fvae-train-ldm")
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
                raise UserError(f"{path}: {name} is {content[name]}, this version knows only {value}")
        return process

    def draw_timesteps(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """(batch,), uniform: int64 in [0, 1000), for the flow float32 in (0, 1000]. Drawn on the generator's device."""
        if self.prediction == "flow":
            return TRAINING_STEPS * (1 - torch.rand(batch, generator=generator, device=generator.device))
        return torch.randint(TRAINING_STEPS, (batch,), generator=generator, device=generator.device)

    def noisy(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The latent (B, ...) with noise at the levels of ``timesteps`` (B,)."""
        signal, noise_level = self._levels(timesteps, latent)
        return signal * latent + noise_level * noise

    def target(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network should predict from ``noisy(latent, noise, timesteps)``."""
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
        """See that sampling in so many steps begins where hardly anything but noise is left.

        DDIM's steps lie 1000 // steps apart, the last at 1 (the paper's), so three begin at timestep 667, and 501 at
        501, where half of the latent is left. The flow always begins where all is noise.

        Raises:
            UserError: it does not, or there are no such steps.
        """
        ddim = self.prediction != "flow"
        if ddim and (steps < 1 or (steps - 1) * (TRAINING_STEPS // steps) < 0.75 * TRAINING_STEPS - 1):
            raise UserError(
                f"`steps={steps}`: DDIM would not begin near pure noise; take 20, 50, 100 or another number from 4 to "
                f"{TRAINING_STEPS // 2} that about divides {TRAINING_STEPS}"
            )
        self.sampler(steps)

    def sampler(self, steps: int | None = None, eta: float | None = None) -> Sampler:
        """The way from noise to a latent in so many steps.

        Args:
            steps: 1 to 999, of the flow to 1000; the paper takes 20. None: as the process says.
            eta: fresh noise in each step, from 0 (none: DDIM, Euler's method) to 1 (of DDIM: as in DDPM; of the flow:
                all noise is new). The paper takes 1. None: as the process says.

        Raises:
            UserError: values outside these ranges.
        """
        steps, eta = self.steps if steps is None else steps, self.eta if eta is None else eta
        # DDIM in 1000 steps would begin at timestep 1000, which training does not have
        most = TRAINING_STEPS if self.prediction == "flow" else TRAINING_STEPS - 1
        if not 1 <= steps <= most:
            raise UserError(f"sampling takes 1 to {most} steps, got {steps}")
        if not 0 <= eta <= 1:
            raise UserError(f"eta lies between 0 and 1, got {eta:g}")
        self._scheduler.set_timesteps(steps)
        timesteps = self._scheduler.timesteps.clone()
        if self.prediction == "flow":
            noise_level = self._scheduler.sigmas.double()
            return Sampler(self.prediction, timesteps, 1 - noise_level, noise_level, torch.full((steps,), float(eta)))
        now = self._scheduler.alphas_cumprod.double()[timesteps]
        after = torch.cat([now[1:], torch.ones(1, dtype=torch.float64)])
        sigma_squared = eta**2 * (1 - after) / (1 - now) * (1 - now / after)  # Song et al. 2021, equation 16
        fresh_share = torch.nan_to_num(sigma_squared / (1 - after)).sqrt()  # behind the last step there is no noise
        alpha_bar = torch.cat([now[:1], after])
        return Sampler(self.prediction, timesteps, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), fresh_share)


class Sampler:
    """Steps from noise to a latent; made by ``NoiseProcess.sampler``. Nothing in it changes from step to step.

    Before step ``index`` (from 0) the latent has level ``index``, behind it level ``index + 1``.

    Attributes:
        timesteps: (steps,), what the network is told at each step.
        signal, noise_level: float64 (steps + 1,), of each level.
        fresh_share: (steps,), of the noise at the next level, how much is new: its old part is weighted by
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
        """The fresh noise of a step, float32 on the generator's device; None where the step takes none."""
        if self.fresh_share[index] == 0:
            return None
        return torch.randn(shape, generator=generator, device=generator.device)

    def step(self, prediction: torch.Tensor, index: int, x: torch.Tensor, fresh: torch.Tensor | None) -> torch.Tensor:
        """The latent at the next level.

        With the estimates of latent and noise that follow from the network's prediction, this is ``signal * latent +
        noise_level * renewed(noise)`` at that level: DDIM's equation 12 (Song et al. 2021), and Euler's method of the
        flow.

        Args:
            prediction: of the network for ``x`` at ``timesteps[index]``.
            index: of the step.
            x: the latent at level ``index``.
            fresh: of ``draw_fresh``, on the device of ``x``.
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
        """The noise at level ``index + 1`` that follows from that at level ``index``."""
        share = float(self.fresh_share[index])
        if fresh is None:
            return noise
        return (1 - share**2) ** 0.5 * noise + share * fresh

    def known(self, latent: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """A known latent with its noise at the level behind step ``index``; -1: before the first step.

        Behind the last step it is the latent itself, to the bit.
        """
        if index == len(self) - 1:
            return latent
        return float(self.signal[index + 1]) * latent + float(self.noise_level[index + 1]) * noise
