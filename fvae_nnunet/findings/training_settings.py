"""Settings that, with the cases, determine the result of a classifier's training."""

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
"""Largest weight of positive cases with ``balanced`` (its inverse is the smallest), so that rare findings do not
dominate the loss."""

WARMUP_SHARE, LONGEST_WARMUP = 0.05, 500
"""Length of the learning rate warm-up, as a fraction of all steps, and its maximum in steps."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training, checked on creation.

    Attributes:
        network: one of ``networks.NETWORKS``.
        grid: grid of the volumes.
        hu_window: lower and upper HU, mapped to [-1, 1].
        findings: findings to learn, in the order of the outputs.
        steps: number of optimizer steps, independent of the number of cases.
        batch: cases per step.
        learning_rate: peak learning rate of AdamW.
        positive_weight: ``none``, or ``balanced``: the loss weight of a finding's positive cases is the ratio of its
            negative to its positive training cases.
        precision: precision of the network, ``float32`` or ``bfloat16``; weights stay float32.
        seed: seed of all random numbers.
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
            raise UserError(f"`steps` must be at least 1 and `batch` at least 2, got {self.steps} and {self.batch}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0) or self.seed < 0:
            raise UserError(
                f"`learning_rate` must be above 0 and `seed` must not be negative, got {self.learning_rate:g} and "
                f"{self.seed}"
            )

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, from 0: a linear warm-up, then half a cosine down to nearly zero."""
        warmup = min(LONGEST_WARMUP, max(1, round(WARMUP_SHARE * self.steps)))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))) / 2

    def drawn(self, step: int, cases: int) -> list[int]:
        """Indices of the cases in the batch of a step, from 0; each case is used once before any is repeated."""
        places = range(step * self.batch, (step + 1) * self.batch)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(cases)
            for epoch in {place // cases for place in places}
        }
        return [int(orders[place // cases][place % cases]) for place in places]

    def augmentation_seed(self, step: int, place: int) -> int:
        """Seed for the case at index ``place`` in the batch of a step, 32 bits."""
        return int(np.random.SeedSequence([self.seed, step, place]).generate_state(1)[0])


def positive_weights(labels: np.ndarray, rule: str) -> np.ndarray:
    """Weight of the positive cases of each finding, float32 (F,).

    Args:
        labels: labels of the training cases (n, F): 0 or 1, NaN if unknown.
        rule: ``none`` or ``balanced``. A finding without positive or without negative cases has weight 1.
    """
    weights = np.ones(labels.shape[1], dtype=np.float32)
    if rule == "balanced":
        positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
        both = (positive > 0) & (negative > 0)
        weights[both] = np.clip(negative[both] / positive[both], 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    return weights
