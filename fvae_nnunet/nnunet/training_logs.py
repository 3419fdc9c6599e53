"""Losses and pseudo-Dice by epoch, read from nnU-Net's text logs of a training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fvae_nnunet.errors import UserError

_LOGS = "training_log_*.txt"
_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_LOSS = re.compile(r": (train_loss|val_loss) (\S+)\s*$")
_PSEUDO_DICE = re.compile(r": Pseudo dice \[(.*)\]\s*$")
_NUMBER_TYPE = re.compile(r"np\.float\d+\(|\)")


@dataclass(frozen=True)
class TrainingCurves:
    """Epoch -> value for completed epochs; the last value if an epoch was repeated.

    ``pseudo_dice`` is the mean over the labels that have one in the epoch.
    """

    train_loss: dict[int, float]
    val_loss: dict[int, float]
    pseudo_dice: dict[int, float]


def folds_with_logs(folder: Path) -> dict[str, Path]:
    """Folders with logs, by name: a fold's own folder, or all ``fold_*`` of a model folder; empty if there are none."""
    folders = [folder, *sorted(folder.glob("fold_*"))]
    return {fold.name: fold for fold in folders if any(fold.glob(_LOGS))}


def read_training_curves(fold: Path) -> TrainingCurves:
    """Read the curves of one fold from all logs in its folder, in chronological order; empty without a completed epoch,
    such as after nnUNetv2_train --val.

    Raises:
        UserError: a log cannot be read.
    """
    curves = TrainingCurves({}, {}, {})
    for log in sorted(fold.glob(_LOGS), key=_time_of):
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"{log} cannot be read: {error.strerror}") from error
        _add(curves, lines)
    return curves


def _time_of(log: Path) -> tuple[int, ...]:
    """Time in the name of a log, whose numbers have no leading zeros."""
    return tuple(map(int, re.findall(r"\d+", log.stem)))


def _add(curves: TrainingCurves, lines: list[str]) -> None:
    losses = {"train_loss": curves.train_loss, "val_loss": curves.val_loss}
    epoch = None
    for line in lines:
        if found := _EPOCH.search(line):
            epoch = int(found[1])
        elif epoch is not None and (found := _LOSS.search(line)):
            losses[found[1]][epoch] = float(found[2])
        elif epoch is not None and (found := _PSEUDO_DICE.search(line)):
            values = [float(value) for value in _NUMBER_TYPE.sub("", found[1]).split(",") if value.strip()]
            known = [value for value in values if not math.isnan(value)]
            if known:
                curves.pseudo_dice[epoch] = sum(known) / len(known)
