"""Picture of a training batch: for each sample the raw image, the input of the network, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.pictures.colours import BLUE, LABEL_COLOURS, VERMILION, colours_of
from fvae_nnunet.pictures.marks import mark_panel
from fvae_nnunet.pictures.outlines import Outline
from fvae_nnunet.pictures.panels import show_difference, show_slice
from fvae_nnunet.pictures.planes import largest_cross_sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fvae_nnunet.training.batch import Sample, TrainingBatch

PANEL_INCHES = 2.6
CHANGED_COLOUR = VERMILION
"""Frame around inputs that differ from the raw image."""

SYNTHETIC_COLOUR = BLUE
"""Frame around a synthetic case."""

MADE_BY = "fvae-show-batch of fvae_nnunet"
"""Mark in the PNG, by which it is recognised."""

DIFFERENCE_SHARE = 0.25
"""Range of the difference panels on both sides of 0, as a share of the grey range."""


NOTE = "Augmentation (mirroring, rotation, scaling, grey values) is the same for both images; letters apply after it."


def batch_picture(batch: TrainingBatch, *, title: str, path: str | Path) -> Path:
    """Write a PNG with a row for each sample of the batch: raw, as received by the network, difference.

    The first image channel is shown in the axial slice in which the last label of ``dataset.json`` that is in the patch
    (the tumour in nnU-Net's tumour datasets) has its largest cross-section, else in the middle slice. For a synthetic
    case, it is the slice in which most of that label differs from the source case, which is the raw image here.
    Outlines are those of the target. Views and synthetic cases have coloured frames; the second line of the title
    counts them. There is no scale bar, because augmentation scales the images.

    Raises:
        UserError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = len(batch.samples)
    names = (name for sample in batch.samples for name in sample.masks)
    outlines = {name: Outline(colour, 1.2) for name, colour in colours_of(names, LABEL_COLOURS).items()}
    frames = [
        Patch(fill=False, edgecolor=CHANGED_COLOUR, linewidth=2, label="frame: view, or blended with it"),
        Patch(fill=False, edgecolor=SYNTHETIC_COLOUR, linewidth=2, label="frame: synthetic case"),
    ]
    with matplotlib.rc_context({"text.parse_math": False}):
        size = (3 * PANEL_INCHES + 0.3, rows * (PANEL_INCHES + 0.35) + 1.7)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        for sample, panels in zip(batch.samples, figure.subplots(rows, 3, squeeze=False), strict=True):
            _draw(sample, panels, batch.limits, outlines)
        figure.suptitle(f"{title}\n{_counted(batch.samples)}", fontsize=11)
        figure.legend(
            handles=[*(outline.in_legend(name) for name, outline in outlines.items()), *frames],
            loc="outside lower center", ncols=4, frameon=False, fontsize=9,
            title=f"Grey: {batch.grey}. Difference: plus/minus a quarter of this range.\n{NOTE}", title_fontsize=9,
        )  # fmt: skip
        with atomic_write(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": MADE_BY})
    return Path(path)


def _counted(samples: Sequence[Sample]) -> str:
    """Numbers of samples by kind: ``2 samples: 1 raw, 1 view``."""
    kinds = ["synthetic" if sample.synthetic is not None else sample.mark.split(",")[0] for sample in samples]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(samples)} sample{'s' * (len(samples) > 1)}: {counts}"


def _draw(sample: Sample, panels: Sequence[Axes], limits: tuple[float, float], outlines: dict[str, Outline]) -> None:
    reach = DIFFERENCE_SHARE * (limits[1] - limits[0])
    masks = [mask for mask in reversed(list(sample.masks.values())) if mask.any()]
    if sample.synthetic is not None:
        changed = np.abs(sample.received[0] - sample.raw[0]) > reach / 2
        masks = [*(mask & changed for mask in masks[:1]), *masks]
    (plane,) = largest_cross_sections(sample.raw.shape[1:], masks, axes=(0,))
    raw, received = plane.cut(sample.raw[0]), plane.cut(sample.received[0])
    extent = (0.0, float(raw.shape[1]), float(raw.shape[0]), 0.0)
    for panel, image in zip(panels[:2], (raw, received), strict=True):
        show_slice(panel, image, limits, extent)
    show_difference(panels[2], received - raw, reach, extent)
    for name, mask in sample.masks.items():
        outlines[name].draw(panels[1], plane.cut(mask), extent)
    headings = (f"{sample.case}, slice {plane.index + 1} of {sample.raw.shape[1]}", sample.mark, "difference")
    for panel, heading in zip(panels, headings, strict=True):
        panel.set_title(heading, fontsize=9)
        if sample.sides is not None:
            mark_panel(panel, sample.sides, font_size=8, bar=False)
    if sample.weight != 0 or sample.synthetic is not None:
        panels[1].set_title(sample.mark, fontsize=9, fontweight="bold")
        for side in panels[1].spines.values():
            side.set(color=CHANGED_COLOUR if sample.synthetic is None else SYNTHETIC_COLOUR, linewidth=3)
