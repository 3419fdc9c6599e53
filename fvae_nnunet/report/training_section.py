"""The chapter on training: pseudo-Dice and losses by epoch, from nnU-Net's logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.folders import folders_above
from fvae_nnunet.nnunet.training_logs import TrainingCurves, folds_with_logs, read_training_curves
from fvae_nnunet.pictures.forest import GREY
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Block, Drawing, Figure, Heading
from fvae_nnunet.report.plots import STYLE, legend
from fvae_nnunet.report.results import Results

Trainings = Mapping[str, Mapping[str, TrainingCurves]]
"""Model -> fold -> curves."""

SMOOTHING = 0.9
"""Weight of the previous smoothed value in the next one, as in nnU-Net's smoothing of the pseudo-Dice."""


def load_trainings(given: Sequence[tuple[str, Path]], results: Sequence[Results]) -> Trainings:
    """Load the curves of models whose folders are given, or whose predictions are in the folder of a fold.

    Of the latter, folds without a completed epoch are left out.

    Args:
        given: name and folder of models, or of one fold.
        results: results whose prediction folders are checked, such as ``fold_0/validation``.

    Raises:
        UserError: a given folder holds no log, or no completed epoch.
    """
    beside = [
        (of.full_names[model["name"]], above)
        for of in results
        for model, folder in zip(of.content["models"], of.prediction_folders, strict=True)
        for above in filter(folds_with_logs, folders_above(folder))
    ]
    names = {name for name, _ in given}
    places: dict[str, dict[str, Path]] = {}
    for name, folder in (*given, *(place for place in beside if place[0] not in names)):
        folds = folds_with_logs(folder)
        if not folds and name in names:
            raise UserError(f"{folder} (`training={name}`) holds no training_log_*.txt of nnU-Net, nor do its folds")
        for fold, path in folds.items():
            of_name = places.setdefault(name, {})
            if path not in of_name.values():
                of_name[fold if fold not in of_name else f"{fold} of {path.parent}"] = path
    trainings: dict[str, dict[str, TrainingCurves]] = {}
    for name, of_name in places.items():
        for fold, path in of_name.items():
            curves = read_training_curves(path)
            if curves.val_loss:
                trainings.setdefault(name, {})[fold] = curves
            elif name in names:
                raise UserError(f"{path} has no training log with a completed epoch")
    return trainings


def training_blocks(trainings: Trainings, colours: Colours) -> Iterator[Block]:
    """Yield the chapter; nothing without any training."""
    if not trainings:
        return
    yield Heading("Training")
    yield Figure(
        training_curves(trainings, colours),
        "Left: pseudo-Dice of the validation patches, mean over labels, smoothed over epochs as in nnU-Net. Right: "
        "training loss (dashed) and validation loss. One line per fold. Pseudo-Dice is measured on patches of the "
        "validation data (image or view); it does not determine which model is better.",
        f"Training curves of {', '.join(trainings)}",
    )


def training_curves(trainings: Trainings, colours: Colours) -> Drawing:
    """Draw two panels over epochs; the tooltip of a line names model and fold."""
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
