"""Two pictures of an evaluation in one PNG: where real and generated cases lie, and the most suspicious copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.evaluation.generation.evaluate import Evaluated
from fvae_nnunet.evaluation.generation.features import Extracted
from fvae_nnunet.files.recorded import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#9aa3b0", "real": "#2563b8", "fake": "#e07b1a"}
NAMES = {"train": "training", "real": "real", "fake": "generated"}
MARKERS = {"train": "s", "real": "o", "fake": "^"}
HU_WINDOW = (-1000.0, 400.0)
"""Lung and soft tissue in one grey range."""

PAIRS = 3
"""Generated images that are shown beside their nearest training case."""

_PANEL_INCHES = 3.6
_COLUMNS = 4


def generation_picture(evaluated: Evaluated, path: Path, *, title: str) -> Path | None:
    """Write the PNG.

    A panel for each network and part of its input: the two leading principal components of the cases' features (of all
    sets together; means over slices), with their share of the variance. Below, if there was a memorisation check, the
    generated images that are nearest to a training case, beside it: the middle axial slice of both.

    Returns:
        The path; None where there are no features to draw.

    Raises:
        UserError: an image cannot be read.
    """
    import matplotlib
    from matplotlib.figure import Figure

    parts = list(evaluated.extracted["real"].features)
    if not parts:
        return None
    memorisation = evaluated.results["memorisation"]
    pairs = memorisation["cases"][:PAIRS] if memorisation else []
    rows = -(-len(parts) // _COLUMNS)
    columns = -(-len(parts) // rows)
    heights = [rows * _PANEL_INCHES, *([_PANEL_INCHES] if pairs else [])]
    width = max(columns * _PANEL_INCHES, 2 * PAIRS * 2.2 if pairs else 0, 6.0)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, sum(heights) + 0.9), layout="constrained")
        figure.suptitle(title, fontsize=11)
        upper, *lower = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        panels = upper.subplots(rows, columns, squeeze=False).ravel()
        for panel, part in zip(panels, parts, strict=False):
            _draw_components(panel, part, evaluated.extracted)
        for panel in panels[len(parts) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        if pairs:
            lower[0].suptitle("nearest to a training case", fontsize=10)
            _draw_pairs(lower[0].subplots(1, 2 * len(pairs), squeeze=False)[0], pairs, evaluated.results)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    return path


def components(vectors: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The two leading principal components of several sets together.

    Args:
        vectors: for each set (cases, width).

    Returns:
        For each set (cases, 2), the second 0 if there is none; and the shares of the variance (2,).
    """
    together = np.concatenate(vectors)
    centred = together - together.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    # the sign of a component is arbitrary: its largest coefficient is made positive
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    scores = (left * singular * signs)[:, :2]
    scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
    total = (singular**2).sum()
    shares = np.pad(singular[:2] ** 2, (0, max(0, 2 - len(singular)))) / total if total > 0 else np.zeros(2)
    borders = np.cumsum([len(of_set) for of_set in vectors])[:-1]
    return np.split(scores, borders), shares


def _draw_components(panel: Axes, part: tuple[str, str], extracted: Mapping[str, Extracted]) -> None:
    sets = {name: extracted[name].features[part] for name in COLOURS if part in _features(extracted, name)}
    scores, shares = components([features.means() for features in sets.values()])
    for (name, features), points in zip(sets.items(), scores, strict=True):
        panel.scatter(
            points[:, 0], points[:, 1], s=22, marker=MARKERS[name], color=COLOURS[name], alpha=0.75, linewidths=0,
            label=f"{NAMES[name]} ({len(features.names)})",
        )  # fmt: skip
    network, of_input = part
    panel.set_title(network if of_input == "volume" else f"{network}, {of_input}", fontsize=10)
    panel.set_xlabel(f"component 1 ({shares[0]:.0%})", fontsize=8)
    panel.set_ylabel(f"component 2 ({shares[1]:.0%})", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.locator_params(nbins=5)
    panel.ticklabel_format(scilimits=(-2, 3))


def _features(extracted: Mapping[str, Extracted], name: str) -> Mapping[tuple[str, str], Any]:
    return extracted[name].features if name in extracted else {}


def _draw_pairs(panels: Sequence[Axes], pairs: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    for number, pair in enumerate(pairs):
        shown = (("fake", pair["case"]), ("train", pair["training_case"]))
        for panel, (name, case) in zip(panels[2 * number : 2 * number + 2], shown, strict=True):
            volume, (_, y_mm, x_mm) = read_upright(Path(results[name]["cases"][case]["image"]))
            panel.imshow(
                volume[len(volume) // 2], cmap="gray", vmin=HU_WINDOW[0], vmax=HU_WINDOW[1], aspect=y_mm / x_mm
            )
            panel.set(xticks=[], yticks=[])
            panel.set_title(f"{case}\n{'generated' if name == 'fake' else 'training'}", fontsize=8)
            for side in panel.spines.values():
                side.set(color=COLOURS["fake"] if name == "fake" else "#1f2328", linewidth=1.5)
        panels[2 * number].set_xlabel(f"cosine {pair['cosine']:.3f}", fontsize=8)
