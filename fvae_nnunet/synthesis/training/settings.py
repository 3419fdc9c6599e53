"""Settings that determine the result of a training, and their defaults for each size of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fvae_nnunet.errors import UserError

LOSSES = ("l1", "mse")

WARMUP_STEPS = 50
"""Steps at the start of each stage in which the learning rate rises linearly, as Adam's first steps are unreliable."""


@dataclass(frozen=True)
class SizeDefaults:
    """Defaults for a size of the network; each can be overridden.

    Attributes:
        inplane_pixels: side of the training squares.
        steps: number of steps of stage 1 and stage 2.
        batch, window_batch: latent slices per step in stage 1, windows per step in stage 2.
        learning_rate: learning rate of both stages.
        passes: number of passes over which a single process accumulates a step; several processes share them.
        gradient_checkpointing: use less memory and more time.
    """

    inplane_pixels: int
    steps: tuple[int, int]
    batch: int
    window_batch: int
    learning_rate: float
    passes: int = 1
    gradient_checkpointing: bool = False


DEFAULTS = {
    "paper": SizeDefaults(512, (100_000, 20_000), 32, 4, 1e-4, passes=4, gradient_checkpointing=True),
    "small": SizeDefaults(256, (100_000, 20_000), 32, 4, 1e-4),
    "tiny": SizeDefaults(64, (1_200, 120), 16, 2, 1e-3),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; all except ``steps`` and ``accumulate`` change the result of a step.

    Attributes:
        size: size of the network.
        prediction: see ``noise_process``.
        loss: loss of the prediction, ``l1`` or ``mse``.
        context: additional input of the network, see ``denoiser``.
        consistency: ``conv`` or ``attention``, inserted for stage 2.
        steps: number of steps of stage 1 and stage 2; stage 2 may have none.
        batch: latent slices per step in stage 1, over all processes and passes.
        window_batch: windows per step in stage 2, over all processes and passes.
        accumulate: number of passes over which a batch is accumulated.
        learning_rate: learning rate of AdamW, see ``learning_rate_at``.
        decay_share: final share of each stage over which the learning rate falls to 0.
        ema_decay: decay of the moving average of the weights, which becomes the model.
        condition_dropout: share of samples with dropped conditions.
        lesion_share: share of samples with lesion.
        lesion_weight: weight in the loss of a latent cell full of lesion; cells without lesion have 1.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        seed: seed of all random draws.
    """

    size: str
    prediction: str
    loss: str
    context: str
    consistency: str
    steps: tuple[int, int]
    batch: int
    window_batch: int
    accumulate: int
    learning_rate: float
    decay_share: float
    ema_decay: float
    condition_dropout: float
    lesion_share: float
    lesion_weight: float
    mixed_precision: str
    seed: int

    def __post_init__(self) -> None:
        if self.context == "draft" and self.prediction != "sample":
            raise UserError(f"`context='draft'` needs `prediction='sample'`, got {self.prediction}")
        if self.loss not in LOSSES:
            raise UserError(f"`loss` must be {' or '.join(LOSSES)}, got {self.loss}")
        if self.steps[0] < 1 or self.steps[1] < 0:
            raise UserError(
                f"stage 1 needs at least one step, and stage 2 must not have fewer than 0, got {self.steps}"
            )
        for name in ("condition_dropout", "lesion_share", "decay_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"`{name}` must be between 0 and 1, got {value:g}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"`ema_decay` must be at least 0 and below 1, got {self.ema_decay:g}")
        if self.lesion_weight <= 0 or self.learning_rate <= 0:
            raise UserError("`lesion_weight` and `learning_rate` must be above 0")
        if self.seed < 0:
            raise UserError(f"`seed` must not be negative, got {self.seed}")
        if min(self.batch, self.window_batch, self.accumulate) < 1:
            raise UserError("`batch`, `window_batch` and `accumulate` must be at least 1")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 1) in a stage with ``steps`` steps.

        It rises linearly over ``WARMUP_STEPS``, stays constant, and falls linearly to 0 over the last ``decay_share``
        of the stage. Until then it does not depend on the length of the stage, so a stage can be extended.
        """
        rising = min(1.0, step / WARMUP_STEPS)
        falling = (steps + 1 - step) / (self.decay_share * steps) if self.decay_share else 1.0
        return self.learning_rate * min(rising, falling, 1.0)

    def samples(self, stage: int) -> int:
        """Number of samples in a step, over all processes and passes."""
        return self.batch if stage == 1 else self.window_batch

    def share(self, stage: int, processes: int) -> int:
        """Number of samples in one pass of one process.

        Raises:
            UserError: the samples of a step cannot be divided evenly.
        """
        parts = processes * self.accumulate
        if self.samples(stage) % parts:
            name = "batch" if stage == 1 else "window_batch"
            raise UserError(
                f"`{name}={self.samples(stage)}` cannot be divided among {processes} "
                f"{'process' if processes == 1 else 'processes'} with {self.accumulate} "
                f"{'pass' if self.accumulate == 1 else 'passes'} each; make it a multiple of {parts}"
            )
        return self.samples(stage) // parts

    def check_shares(self, processes: int) -> None:
        """Raise UserError if the samples of a stage that has steps cannot be divided evenly, see ``share``."""
        for stage, steps in enumerate(self.steps, start=1):
            if steps:
                self.share(stage, processes)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that must be equal to resume a training, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("steps", "accumulate")}
