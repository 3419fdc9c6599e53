"""What decides the result of a classifier's training, beside its cases."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fvae_nnunet.ct.hu_windows import check_hu_window
from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.networks import check_network
from fvae_nnunet.findings.volumes import Grid

LARGEST_WEIGHT = 20.0
"""Of a positive case with ``balanced``, and its inverse the smallest: a finding of two cases must not rule the loss."""

WARMUP_SHARE, LONGEST_WARMUP = 0.05, 500
"""Of all steps, and in steps, over which the learning rate rises."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training, checked when made.

    Attributes:
        network: of ``networks.NETWORKS``.
        grid: of the volumes.
        hu_window: lower and upper HU, mapped to [-1, 1].
        findings: what is learnt, in the order of the outputs.
        steps: of the optimizer, however many cases there are.
        batch: cases of a step.
        learning_rate: of AdamW, at its highest.
        positive_weight: ``none``, or ``balanced``: weight of a finding's positive cases in the loss, negative by
            positive training cases of that finding.
        precision: in which the network computes, ``float32`` or ``bfloat16``; weights stay float32.
        seed: of everything random.
    """

    network: str
    grid: Grid
    hu_window: tuple[float, float]
    findings: tuple[str, ...]
    steps: int
    batch: int
    learning_rate: float
    positive_weight: str
    precision: str
    seed: int

    def __post_init__(self) -> None:
        check_hu_window(self.hu_window)
        check_network(self.network, self.grid.shape)
        if self.steps < 1 or self.batch < 2:
            raise UserError(f"`steps` is at least 1 and `batch` at least 2, got {self.steps} and {self.batch}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0) or self.seed < 0:
            raise UserError(
                f"`learning_rate` is above 0 and `seed` not negative, got {self.learning_rate:g} and {self.seed}"
            )

    @property
    def recorded(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def learning_rate_at(self, step: int) -> float:
        """Of a step, from 0: a linear rise, then half a cosine down to nearly zero."""
        warmup = min(LONGEST_WARMUP, max(1, round(WARMUP_SHARE * self.steps)))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))) / 2

    def drawn(self, step: int, cases: int) -> list[int]:
        """Which of so many cases are in the batch of a step, from 0: every case once before any comes again."""
        places = range(step * self.batch, (step + 1) * self.batch)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(cases)
            for epoch in {place // cases for place in places}
        }
        return [int(orders[place // cases][place % cases]) for place in places]

    def augmentation_seed(self, step: int, place: int) -> int:
        """Of the place-th case of a step's batch, 32 bits."""
        return int(np.random.SeedSequence([self.seed, step, place]).generate_state(1)[0])


def positive_weights(labels: np.ndarray, rule: str) -> np.ndarray:
    """Weight of the positive cases of each finding, float32 (F,).

    Args:
        labels: of the training cases (n, F): 0 or 1, NaN where unknown.
        rule: ``none`` or ``balanced``. A finding without positive or without negative cases has weight 1.
    """
    weights = np.ones(labels.shape[1], dtype=np.float32)
    if rule == "balanced":
        positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
        both = (positive > 0) & (negative > 0)
        weights[both] = np.clip(negative[both] / positive[both], 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    return weights
