"""Picture of an evaluation: real and generated cases in feature space, and the most likely copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.ct.hu_windows import HUWindow
from fvae_nnunet.evaluation.generation.evaluate import Evaluated
from fvae_nnunet.evaluation.generation.features import Extracted
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.numbers_as_text import number, percent
from fvae_nnunet.pictures.colours import BLUE, LIGHT_GREY, ORANGE
from fvae_nnunet.pictures.hu_windows import hu_window_around
from fvae_nnunet.pictures.marks import mark_panel
from fvae_nnunet.pictures.panels import show_slice
from fvae_nnunet.pictures.planes import Plane, largest_cross_sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": LIGHT_GREY, "real": BLUE, "fake": ORANGE}
NAMES = {"train": "training", "real": "real", "fake": "generated"}
MARKERS = {"train": "s", "real": "o", "fake": "^"}
PAIRS = 3
"""Number of generated images shown beside their nearest training case."""

THUMBNAIL_PIXELS = (48, 48)
"""Size at which slices of a pair are compared."""

_PANEL_INCHES = 3.6
_COLUMNS = 4


def generation_picture(evaluated: Evaluated, path: Path, *, title: str) -> Path | None:
    """Write the PNG.

    One panel for each network and part of its input shows the two leading principal components of the cases' features
    (of all sets together; means over slices) with their fraction of the variance; the title holds the network's
    distances. Below, if there was a memorisation check, are the generated images nearest to a training case, beside it:
    see `pair_of`.

    Returns:
        The path; None if there are no features to draw.

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
            _draw_components(panel, part, evaluated)
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
        vectors: features (cases, width) of each set.

    Returns:
        Scores (cases, 2) of each set, 0 for a missing second component; and the fractions of the variance (2,).
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


def _draw_components(panel: Axes, part: tuple[str, str], evaluated: Evaluated) -> None:
    extracted = evaluated.extracted
    sets = {name: extracted[name].features[part] for name in COLOURS if part in _features(extracted, name)}
    scores, shares = components([features.means() for features in sets.values()])
    for (name, features), points in zip(sets.items(), scores, strict=True):
        panel.scatter(
            points[:, 0], points[:, 1], s=22, marker=MARKERS[name], color=COLOURS[name], alpha=0.75, linewidths=0,
            label=f"{NAMES[name]} ({len(features.names)})",
        )  # fmt: skip
    network, of_input = part
    heading = [network if of_input == "volume" else f"{network}, {of_input}"]
    heading += [
        f"{entry['metric'].upper()} {number(entry['value'], 'distance')} "
        f"(by chance {number(entry['by_chance'], 'distance')})"
        for entry in evaluated.results["distances"]
        if (entry["network"], entry["part"]) == part
    ]
    panel.set_title("\n".join(heading), fontsize=9)
    panel.set_xlabel(f"component 1 ({percent(shares[0])})", fontsize=8)
    panel.set_ylabel(f"component 2 ({percent(shares[1])})", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.locator_params(nbins=5)
    panel.ticklabel_format(scilimits=(-2, 3))


def _features(extracted: Mapping[str, Extracted], name: str) -> Mapping[tuple[str, str], Any]:
    return extracted[name].features if name in extracted else {}


@dataclass(frozen=True)
class Pair:
    """A generated and a training image: upright volumes (z, y, x) in HU, with spacing and the axial slices to show."""

    volumes: tuple[np.ndarray, np.ndarray]
    spacing_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    planes: tuple[Plane, Plane]
    hu_window: HUWindow


def pair_of(fake: Mapping[str, Any], train: Mapping[str, Any]) -> Pair:
    """Choose the slices in which a copy would be visible.

    For the generated image, it is the slice with the largest cross-section of the highest label, which is the tumour in
    nnU-Net's tumour datasets (the middle slice without a label map); for the training image, the slice that correlates
    most with it.

    Args:
        fake, train: entries of the cases in ``results``, with ``image`` and ``label``.

    Raises:
        UserError: a file cannot be read.
    """
    (fake_hu, fake_mm), (train_hu, train_mm) = (read_upright(Path(case["image"])) for case in (fake, train))
    labels = np.zeros(fake_hu.shape, np.uint8) if fake["label"] is None else read_upright(Path(fake["label"]))[0]
    lesion = (labels == labels.max()) & (labels > 0)
    (plane,) = largest_cross_sections(fake_hu.shape, [lesion], axes=(0,))
    window = hu_window_around(fake_hu, lesion, fake_mm)
    shown = _thumbnail(fake_hu[plane.index], window)
    likeness = [float((_thumbnail(axial, window) * shown).sum()) for axial in train_hu]
    return Pair((fake_hu, train_hu), (fake_mm, train_mm), (plane, Plane(0, int(np.argmax(likeness)))), window)


def _thumbnail(slice_hu: np.ndarray, hu_window: HUWindow) -> np.ndarray:
    """A slice resized to `THUMBNAIL_PIXELS`, with mean 0 and norm 1, so that products are correlations."""
    from skimage.transform import resize

    small = resize(np.clip(slice_hu.astype(np.float32), *hu_window), THUMBNAIL_PIXELS, anti_aliasing=True)
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def _draw_pairs(panels: Sequence[Axes], pairs: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    for place, entry in enumerate(pairs):
        names = entry["case"], entry["training_case"]
        pair = pair_of(results["fake"]["cases"][names[0]], results["train"]["cases"][names[1]])
        beside = panels[2 * place : 2 * place + 2]
        for panel, name, what, volume, spacing_mm, plane in zip(
            beside, names, ("generated", "training"), pair.volumes, pair.spacing_mm, pair.planes, strict=True
        ):
            show_slice(panel, plane.cut(volume), pair.hu_window, plane.extent_mm(volume.shape, spacing_mm))
            mark_panel(panel, plane.sides, font_size=7)
            panel.set_title(f"{name}\n{what}, slice {plane.index + 1} of {len(volume)}", fontsize=8)
            for side in panel.spines.values():
                side.set(color=COLOURS["fake"] if what == "generated" else "#1f2328", linewidth=1.5)
        beside[0].set_xlabel(f"cosine {number(entry['cosine'])}", fontsize=8)
