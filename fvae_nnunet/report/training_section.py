"""How the models were trained: pseudo-Dice and losses by epoch, from nnU-Net's logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.training_logs import TrainingCurves, folds_with_logs, read_training_curves
from fvae_nnunet.pictures.forest import GREY
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Block, Drawing, Figure, Heading
from fvae_nnunet.report.plots import STYLE, legend
from fvae_nnunet.report.results import Results

Trainings = Mapping[str, Mapping[str, TrainingCurves]]
"""Model -> fold -> its curves."""

SMOOTHING = 0.9
"""Share of the smoothed value before in the next one, as nnU-Net smooths its pseudo-Dice."""


def load_trainings(given: Sequence[tuple[str, Path]], results: Sequence[Results]) -> Trainings:
    """The curves of the models whose folders are known: that are given, or whose predictions lie in a fold's folder.

    Args:
        given: name of a model and its folder, or that of one fold.
        results: whose folders of predictions are looked at, such as ``fold_0/validation``.

    Raises:
        UserError: a folder that is given holds no log, or a log no epoch.
    """
    beside = [
        (of.full_names[model["name"]], folder.resolve().parent)
        for of in results
        for model, folder in zip(of.content["models"], of.prediction_folders, strict=True)
    ]
    names = {name for name, _ in given}
    found: dict[str, dict[str, TrainingCurves]] = {}
    for name, folder in (*given, *(place for place in beside if place[0] not in names)):
        folds = folds_with_logs(folder)
        if not folds and name in names:
            raise UserError(f"{folder} (`training={name}`) holds no training_log_*.txt of nnU-Net, nor do its folds")
        if folds:
            found[name] = {fold: read_training_curves(path) for fold, path in folds.items()}
    return found


def training_blocks(trainings: Trainings, colours: Colours) -> Iterator[Block]:
    """The chapter; nothing without any."""
    if not trainings:
        return
    yield Heading("Training")
    yield Figure(
        training_curves(trainings, colours),
        "Left: pseudo-Dice of the validation patches, mean of the labels, smoothed over epochs as nnU-Net does. Right: "
        "loss of training (dashed) and validation. A line for each fold. Pseudo-Dice is of patches, on what the model "
        "is validated with (image or view); it chooses no winner.",
        f"Training curves of {', '.join(trainings)}",
    )


def training_curves(trainings: Trainings, colours: Colours) -> Drawing:
    """Two panels over epochs; the pointer on a line tells model and fold."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    tips: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(9.2, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        lines = [(name, fold, curves) for name, folds in trainings.items() for fold, curves in folds.items()]
        for place, (name, fold, curves) in enumerate(lines):
            drawn = (
                (left, _smooth(curves.pseudo_dice), "-"),
                (right, curves.train_loss, (0, (3, 2))),
                (right, curves.val_loss, "-"),
            )
            for at, (axes, values, style) in enumerate(drawn):
                gid = f"training{place}x{at}"
                tips[gid] = f"{name}, {fold}"
                axes.plot(
                    list(values), list(values.values()), color=colours[name], linewidth=1, linestyle=style, gid=gid
                )
        left.set(xlabel="epoch", ylabel="pseudo-Dice")
        right.set(xlabel="epoch", ylabel="loss")
        for axes in (left, right):
            axes.grid(color=GREY, alpha=0.25, linewidth=0.5)
        legend(figure, {name: colours[name] for name in trainings})
    return Drawing(figure, tips)


def _smooth(values: Mapping[int, float]) -> dict[int, float]:
    smoothed: dict[int, float] = {}
    last: float | None = None
    for epoch in sorted(values):
        last = values[epoch] if last is None else SMOOTHING * last + (1 - SMOOTHING) * values[epoch]
        smoothed[epoch] = last
    return smoothed
