"""What decides the result of a training, and the values that go with a size of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fvae_nnunet.errors import UserError

LOSSES = ("l1", "mse")

WARMUP_STEPS = 50
"""Of each stage, in which the learning rate rises linearly: Adam's first steps are the least certain."""


@dataclass(frozen=True)
class SizeDefaults:
    """Values that suit a size of the network; every one can be set.

    Attributes:
        inplane_pixels: of the squares that it is trained on.
        steps: of stage 1 and of stage 2.
        batch, window_batch: latent slices of a step of stage 1, windows of a step of stage 2.
        learning_rate: of both stages.
        passes: over which one process gathers its step; several processes share them.
        gradient_checkpointing: less memory, more time.
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
    """Every field but ``steps`` and ``accumulate`` changes what a step does.

    Attributes:
        size: of the network.
        prediction: see ``noise_process``.
        loss: ``l1`` or ``mse``, of the prediction.
        context: what the network sees of the latent, see ``denoiser``.
        consistency: ``conv`` or ``attention``, inserted for stage 2.
        steps: of stage 1 and of stage 2; stage 2 may have none.
        batch: latent slices of a step of stage 1, over all processes and passes.
        window_batch: windows of a step of stage 2, likewise.
        accumulate: passes over which a step gathers its batch.
        learning_rate: of AdamW, see ``learning_rate_at``.
        decay_share: last part of each stage over which it falls to 0.
        ema_decay: of the moving average of the weights, which is the model.
        condition_dropout: share of samples without condition.
        lesion_share: share of samples with lesion.
        lesion_weight: of a latent cell that is all lesion in the loss; others weigh 1.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        seed: of everything random.
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
            raise UserError(f"`loss` is {' or '.join(LOSSES)}, got {self.loss}")
        if self.steps[0] < 1 or self.steps[1] < 0:
            raise UserError(f"stage 1 needs at least one step and stage 2 not less than none, got {self.steps}")
        for name in ("condition_dropout", "lesion_share", "decay_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"`{name}` lies between 0 and 1, got {value:g}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"`ema_decay` is at least 0 and below 1, got {self.ema_decay:g}")
        if self.lesion_weight <= 0 or self.learning_rate <= 0:
            raise UserError("`lesion_weight` and `learning_rate` are above 0")
        if self.seed < 0:
            raise UserError(f"`seed` must not be negative, got {self.seed}")
        if min(self.batch, self.window_batch, self.accumulate) < 1:
            raise UserError("`batch`, `window_batch` and `accumulate` are at least 1")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 1) of a stage of so many steps.

        It rises linearly over ``WARMUP_STEPS``, stays, and falls linearly to 0 over the last ``decay_share`` of the
        stage. So it does not depend on the length of the stage until then, and a stage can be made longer.
        """
        rising = min(1.0, step / WARMUP_STEPS)
        falling = (steps + 1 - step) / (self.decay_share * steps) if self.decay_share else 1.0
        return self.learning_rate * min(rising, falling, 1.0)

    def samples(self, stage: int) -> int:
        """Samples of a step, over all processes and passes."""
        return self.batch if stage == 1 else self.window_batch

    def share(self, stage: int, processes: int) -> int:
        """Samples of one pass of one process.

        Raises:
            UserError: the step's samples cannot be shared out evenly.
        """
        parts = processes * self.accumulate
        if self.samples(stage) % parts:
            name = "batch" if stage == 1 else "window_batch"
            raise UserError(
                f"`{name}={self.samples(stage)}` cannot be shared out over {processes} processes with "
                f"{self.accumulate} passes each; make it a multiple of {parts}"
            )
        return self.samples(stage) // parts

    def check_shares(self, processes: int) -> None:
        """Raise UserError where the samples of a stage that has steps cannot be shared out, see ``share``."""
        for stage, steps in enumerate(self.steps, start=1):
            if steps:
                self.share(stage, processes)

    @property
    def recorded(self) -> dict[str, Any]:
        """What must be equal for a training to be continued, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("steps", "accumulate")}
