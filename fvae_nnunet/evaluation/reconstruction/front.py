"""The front of denoisers: error at edges against error in flat tissue, for filters at all strengths and for views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW, HUWindow
from fvae_nnunet.evaluation.reconstruction.known_noise import PLACES, KnownNoise, errors_hu, places_of
from fvae_nnunet.evaluation.statistics import mean_and_interval
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.numbers_as_text import counted, interval, number
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.vae.denoisers import CONTROLS, Control

KIND, NOISY = "denoising_front", "noisy"

FILTER_STRENGTHS = {
    "gaussian": (0.4, 0.55, 0.7, 0.85, 1.0, 1.3),
    "curvature-flow": (0.25, 0.5, 1.0, 2.0, 4.0),
    "tv": (0.004, 0.008, 0.012, 0.018, 0.027, 0.04),
    "nlm": (0.012, 0.016, 0.02, 0.025, 0.032, 0.045),
}
"""Strengths of the plain filters in the HU window of -1000 to 1000, for noise of 25 HU; strengths that are grey values
are scaled with the noise."""

Method = Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]
"""Function of noisy axial HU (z, y, x) and the voxel size in mm that returns the view."""


@dataclass(frozen=True)
class Denoised:
    """Errors that remain after a method at one strength.

    Attributes:
        method: name of the method; ``noisy`` for the noisy image itself.
        strength: strength of a filter; None for views.
        errors: root mean square errors in HU by place (`known_noise.PLACES`), one per case; NaN if a case lacks it.
    """

    method: str
    strength: float | None
    errors: dict[str, list[float]]

    def mean(self, place: str) -> float:
        """Mean error over the cases that have such a place; NaN if none has."""
        known = [error for error in self.errors[place] if not math.isnan(error)]
        return float(np.mean(known)) if known else math.nan


def middle(volume: np.ndarray, *most: int) -> np.ndarray:
    """The middle of a volume (z, y, x), at most ``most`` slices, rows and columns; axes not given are kept whole."""
    return volume[tuple(slice(max(0, (n - m) // 2), (n + m) // 2) for n, m in zip(volume.shape, most, strict=False))]


def filter_methods(noise: KnownNoise) -> Iterator[tuple[str, float, Method]]:
    """Yield name, strength and method of the plain filters at all their strengths."""
    settings = {name: ReconstructionSettings.for_vae(Control(f"control:{name}", 0).spec) for name in FILTER_STRENGTHS}
    for name, strengths in FILTER_STRENGTHS.items():
        for strength in strengths:
            scaled = strength * noise.sd_hu / 25 if CONTROLS[f"control:{name}"].of_grey_values else strength
            yield name, scaled, partial(_filtered, Control(f"control:{name}", scaled), settings[name])


def _filtered(
    control: Control, settings: ReconstructionSettings, noisy_hu: np.ndarray, _: tuple[float, float, float]
) -> np.ndarray:
    return reconstruct_volume(control, noisy_hu, settings)


def measure_front(
    cases: Sequence[tuple[np.ndarray, tuple[float, float, float]]],
    views: Mapping[str, Method],
    noise: KnownNoise,
    *,
    hu_window: HUWindow = PAPER_HU_WINDOW,
    seed: int = 0,
    on_step: Callable[[], object] | None = None,
) -> list[Denoised]:
    """Measure every filter and view on every case.

    Args:
        cases: axial volumes (z, y, x) in HU with their voxel sizes (z, y, x) in mm.
        views: methods by name.
        noise: noise to add.
        hu_window: HU window of the views; all images are clipped to it before they are compared.
        seed: seed of the noise, which differs between cases.
        on_step: called after each method on each case.

    Returns:
        Errors of the noisy images, then of filters, then of views.
    """
    methods: list[tuple[str, float | None, Method]] = [(NOISY, None, lambda noisy_hu, _: noisy_hu)]
    methods += [*filter_methods(noise), *((name, None, view) for name, view in views.items())]
    found = [Denoised(name, strength, {place: [] for place in PLACES}) for name, strength, _ in methods]
    for place_of_case, (volume_hu, spacing_mm) in enumerate(cases):
        truth_hu = noise.truth_of(volume_hu)
        noisy_hu = truth_hu + noise.drawn(truth_hu, spacing_mm[2], np.random.default_rng([seed, place_of_case]))
        places = places_of(truth_hu)
        for denoised, (_, _, method) in zip(found, methods, strict=True):
            view_hu = np.clip(method(noisy_hu, spacing_mm), *hu_window)
            for place, error in errors_hu(view_hu, np.clip(truth_hu, *hu_window), places).items():
                denoised.errors[place].append(error)
            if on_step is not None:
                on_step()
    return found


def methods_count(views: int) -> int:
    """Number of calls of ``on_step`` by ``measure_front`` per case."""
    return 1 + sum(map(len, FILTER_STRENGTHS.values())) + views


def best_of(found: Sequence[Denoised]) -> list[Denoised]:
    """Each method at the strength with the smallest mean of both errors, in the order of the methods."""
    best: dict[str, Denoised] = {}
    for denoised in found:
        before = best.get(denoised.method)
        if before is None or _both(denoised) < _both(before):
            best[denoised.method] = denoised
    return list(best.values())


def _both(denoised: Denoised) -> float:
    return denoised.mean("edges") + denoised.mean("flat")


def front_rows(found: Sequence[Denoised], places: Sequence[str] = PLACES) -> list[list[str]]:
    """Table rows: a header, and each method at its best strength with mean errors and 95 % intervals over cases."""
    return [
        ["", "strength", *places],
        *(
            [
                denoised.method,
                "" if denoised.strength is None else f"{denoised.strength:.3g}",
                *(_with_interval(denoised.errors[place]) for place in places),
            ]
            for denoised in best_of(found)
        ),
    ]


def _with_interval(errors: Sequence[float]) -> str:
    mean, mean_interval = mean_and_interval(errors, seed=0)
    ends = "" if mean_interval.method == "none" else f" ({interval(mean_interval.low, mean_interval.high, 'HU')})"
    return f"{number(mean, 'HU')}{ends}"


def write_front(
    found: Sequence[Denoised], noise: KnownNoise, cases: Sequence[str], path: Path, made_with: Mapping[str, Any]
) -> Path:
    """Write the measurements as JSON, and a picture beside it.

    Args:
        found: result of ``measure_front``.
        noise: noise that was added.
        cases: names of the cases.
        path: JSON file to write: noise, cases, errors of each method in each case, and ``made_with``.
        made_with: further values, such as the options of the views.

    Returns:
        The path of the picture.
    """
    methods = [
        {
            "method": one.method,
            "strength": one.strength,
            "errors_hu": {place: _rounded(one.errors[place]) for place in PLACES},
        }
        for one in found
    ]
    results = {"schema": 1, "kind": KIND, "noise": asdict(noise), "cases": list(cases), "methods": methods}
    write_json(path, results | dict(made_with))
    picture = path.with_suffix(".png")
    write_front_picture(found, picture, title=f"{noise} in {counted(len(cases), 'image')}: remaining error")
    return picture


def _rounded(errors: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(error) else round(error, 3) for error in errors]


def write_front_picture(found: Sequence[Denoised], path: Path, *, title: str) -> None:
    """Write a PNG: filters as curves, views as numbered points with the 95 % intervals of both errors over cases."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, method in enumerate(dict.fromkeys(one.method for one in found if one.strength is not None)):
        curve = [one for one in found if one.method == method]
        axes.plot(
            [one.mean("flat") for one in curve], [one.mean("edges") for one in curve], "-", marker="osD^"[place % 4],
            color=_FILTER_COLOURS[place % len(_FILTER_COLOURS)], markersize=4, label=f"{method}, by strength",
        )  # fmt: skip
    points = [one for one in found if one.strength is None]
    for place, one in enumerate(points):
        colour = "black" if one.method == NOISY else "#c1121f"
        flat, edges = one.mean("flat"), one.mean("edges")
        axes.errorbar(
            flat, edges, xerr=_reach(one.errors["flat"]), yerr=_reach(one.errors["edges"]), color=colour, fmt="o",
            markersize=3, elinewidth=0.6, label=f"{place}  {one.method}",
        )  # fmt: skip
        beside = (4, 4) if place % 2 else (-10, -12)
        axes.annotate(str(place), (flat, edges), xytext=beside, textcoords="offset points", fontsize=9, color=colour)
    axes.set_xlabel("root mean square error in flat tissue, HU")
    axes.set_ylabel("root mean square error at edges, HU")
    axes.set_ylim(0, 1.2 * max(one.mean("edges") for one in points))
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _reach(errors: Sequence[float]) -> list[list[float]] | None:
    """Distance of the interval's ends below and above the mean, as matplotlib takes it; None without interval."""
    mean, found = mean_and_interval(errors, seed=0)
    return None if found.method == "none" else [[mean - found.low], [found.high - mean]]


_FILTER_COLOURS = ("#1b6ca8", "#e09f3e", "#335c67", "#7a5195")
