"""A training batch as a sheet: for each sample the raw image, what the network receives, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.pictures.panels import LABEL_COLOURS
from fvae_nnunet.pictures.planes import largest_cross_sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fvae_nnunet.training.batch import Sample, TrainingBatch

PANEL_INCHES = 2.6
CHANGED_COLOUR = "#ff9f1c"
"""Of the frame around what is not the raw image."""

SYNTHETIC_COLOUR = "#d0359b"
"""Of the frame around a synthetic case."""

MADE_BY = "fvae-show-batch of fvae_nnunet"
"""In the PNG, by which it is known again."""

DIFFERENCE_SHARE = 0.25
"""The difference panels show this share of the grey range to both sides."""


def batch_picture(batch: TrainingBatch, *, title: str, path: str | Path) -> Path:
    """Write a PNG with a row for each sample of the batch: raw, as received by the network, difference.

    The first image channel is shown, in the axial slice where the last label of ``dataset.json`` (in nnU-Net's tumour
    datasets the tumour) that is in the patch has its largest cross-section, else in the middle slice; of a synthetic
    case where that label has most of what differs from the source case, which is its raw image here. The outlines are
    those of the target. What is not the raw image has a coloured frame, a synthetic case one of its own.

    Raises:
        UserError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = len(batch.samples)
    names = list(dict.fromkeys(name for sample in batch.samples for name in sample.masks))
    colours = {name: LABEL_COLOURS[number % len(LABEL_COLOURS)] for number, name in enumerate(names)}
    with matplotlib.rc_context({"text.parse_math": False}):
        size = (3 * PANEL_INCHES + 0.3, rows * (PANEL_INCHES + 0.35) + 1.3)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        for sample, panels in zip(batch.samples, figure.subplots(rows, 3, squeeze=False), strict=True):
            _draw(sample, panels, batch.limits, colours)
        figure.suptitle(title, fontsize=11)
        lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
        figure.legend(
            handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
            title=f"Grey: {batch.grey}. Difference: a quarter of that range to both sides.", title_fontsize=9,
        )  # fmt: skip
        with atomic_write(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": MADE_BY})
    return Path(path)


def _draw(sample: Sample, panels: Sequence[Axes], limits: tuple[float, float], colours: dict[str, str]) -> None:
    reach = DIFFERENCE_SHARE * (limits[1] - limits[0])
    masks = [mask for mask in reversed(list(sample.masks.values())) if mask.any()]
    if sample.synthetic is not None:
        changed = np.abs(sample.received[0] - sample.raw[0]) > reach / 2
        masks = [*(mask & changed for mask in masks[:1]), *masks]
    (plane,) = largest_cross_sections(sample.raw.shape[1:], masks, axes=(0,))
    raw, received = plane.cut(sample.raw[0]), plane.cut(sample.received[0])
    for panel, image in zip(panels[:2], (raw, received), strict=True):
        panel.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
        panel.set_autoscale_on(False)
    panels[2].imshow(received - raw, cmap="RdBu_r", vmin=-reach, vmax=reach)
    for name, mask in sample.masks.items():
        outlined = plane.cut(mask)
        if outlined.any():
            # a ring of background, so that a mask at the border is closed too
            rows, columns = outlined.shape
            ring = np.pad(outlined, 1).astype(float)
            x, y = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
            panels[1].contour(x, y, ring, levels=[0.5], colors=[colours[name]], linewidths=1.2)
    headings = (f"{sample.case}, slice {plane.index + 1} of {sample.raw.shape[1]}", sample.mark, "difference")
    for panel, heading in zip(panels, headings, strict=True):
        panel.set(xticks=[], yticks=[])
        panel.set_title(heading, fontsize=9)
    if sample.weight != 0 or sample.synthetic is not None:
        panels[1].set_title(sample.mark, fontsize=9, fontweight="bold")
        for side in panels[1].spines.values():
            side.set(color=CHANGED_COLOUR if sample.synthetic is None else SYNTHETIC_COLOUR, linewidth=3)
