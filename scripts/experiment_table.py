"""Print tables of an experiment of ``scripts/experiments``: each arm, and its paired difference from the raw arm.

    python scripts/experiment_table.py docs/evidence/sarcoma_cpu.json

The unit is the case: each one is predicted once for every arm and seed, by the model of the fold that did not see it.
The seeds of an arm are averaged by case. Intervals and tests are those of ``fvae-evaluate`` (docs/evaluation.md), with
Holm's correction over the arms of a measure. Incomplete runs are named and left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY, nsd_key
from fvae_nnunet.evaluation.statistics import Interval, holm, mean_and_interval, signed_rank_direction, signed_rank_test
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.numbers_as_text import NOT_DEFINED, interval, nsd_name, number, p_value

SIZE_PARTS = 3

REFERENCE = "raw"

Values = Mapping[str, Mapping[str, float]]
"""Case -> measure -> value."""


@dataclass(frozen=True)
class Measure:
    """A measure of the tumour.

    Attributes:
        key: name in the results, such as ``NSD_2mm``.
        name: name in tables.
        quantity: key of ``numbers_as_text.FORMATS``.
        higher_is_better: whether larger is better.
    """

    key: str
    name: str
    quantity: str = ""
    higher_is_better: bool = True


def measures_of(results: Mapping[str, Any]) -> dict[str, Measure]:
    """The measures of an experiment by key: DSC, NSD at rising tolerances, HD95."""
    keys = {key for run in results["runs"] for of_case in run["cases"].values() for key in of_case}
    tolerances_mm = sorted(float(key[4:-2]) for key in keys if key.startswith("NSD_"))
    found = [Measure("Dice", "DSC")]
    found += [Measure(nsd_key(tolerance_mm), nsd_name(tolerance_mm)) for tolerance_mm in tolerances_mm]
    found += [Measure(HD95_KEY, "HD95 (mm)", "mm", higher_is_better=False)]
    return {measure.key: measure for measure in found if measure.key in keys}


def deciding(measures: Mapping[str, Measure]) -> Measure:
    """NSD at 2 mm; without it, the NSD with the smallest tolerance."""
    nsds = [measure for key, measure in measures.items() if key.startswith("NSD_")]
    return measures.get(nsd_key(2), nsds[0])


def complete_runs(results: Mapping[str, Any]) -> dict[tuple[str, int], Values]:
    """Values of all cases for each arm and seed with all folds; others are left out."""
    folds = [set(fold) for fold in results["folds"]]
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for entry in results["runs"]:
        if set(entry["cases"]) != folds[entry["fold"]]:
            raise UserError(f"{entry['arm']}, seed {entry['seed']}: the cases are not those of fold {entry['fold']}")
        found.setdefault((entry["arm"], entry["seed"]), {}).update(entry["cases"])
    every = set().union(*folds)
    return {key: values for key, values in found.items() if set(values) == every}


def mean_of_seeds(runs: Sequence[Values]) -> Values:
    """Values by case, averaged over the runs of an arm; NaN if one of them is."""
    return {
        case: {measure: float(np.mean([values[case][measure] for values in runs])) for measure in runs[0][case]}
        for case in sorted(runs[0])
    }


def arm_table(arms: Mapping[str, Values], measures: Mapping[str, Measure]) -> list[str]:
    """Markdown table of mean and 95 % interval of each arm."""
    lines = [
        "| arm | " + " | ".join(measure.name for measure in measures.values()) + " |",
        "|---" * (len(measures) + 1) + "|",
    ]
    for arm, values in arms.items():
        cells = []
        for key, measure in measures.items():
            numbers = [value for of_case in values.values() if math.isfinite(value := of_case[key])]
            left_out = len(values) - len(numbers)
            cells.append(
                mean_and_interval_text(*mean_and_interval(numbers, seed=0), measure.quantity)
                + (f"; {left_out} without" if left_out else "")
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


@dataclass(frozen=True)
class Compared:
    """Second minus first of each case that has the measure in both.

    Attributes:
        differences: of each case, in the order of the cases.
        mean, interval: of them, with 95 %; NaN without any.
        p, p_holm: Wilcoxon's signed-rank test, and the same after Holm's correction.
        direction: of the test, see ``signed_rank_direction``.
    """

    differences: Sequence[float]
    mean: float
    interval: Interval
    p: float
    p_holm: float
    direction: int


def compared(pairs: Mapping[str, tuple[Values, Values]], measure: str) -> dict[str, Compared]:
    """The comparison of each pair by one measure, corrected over all pairs."""
    found = {name: _differences(*pair, measure) for name, pair in pairs.items()}
    ps = [signed_rank_test(differences).p for differences in found.values()]
    return {
        name: Compared(
            differences, *mean_and_interval(differences, seed=0), p, p_holm, signed_rank_direction(differences)
        )
        for (name, differences), p, p_holm in zip(found.items(), ps, holm(ps), strict=True)
    }


def difference_table(arms: Mapping[str, Values], reference: str, measures: Mapping[str, Measure]) -> list[str]:
    """Markdown table of the mean paired difference of each arm from the reference arm, with interval and tests."""
    lines = [
        f"| measure | arm | minus {reference} (95 % interval) | p | p Holm | better, equal, worse | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = {arm: (arms[reference], values) for arm, values in arms.items() if arm != reference}
    for key, measure in measures.items():
        for arm, one in compared(pairs, key).items():
            gains = np.array(one.differences) * (1 if measure.higher_is_better else -1)
            counts = f"{(gains > 0).sum()}, {(gains == 0).sum()}, {(gains < 0).sum()}"
            difference = mean_and_interval_text(one.mean, one.interval, measure.quantity, signed=True)
            ps = f"{p_value(one.p)} | {p_value(one.p_holm)}"
            lines.append(f"| {measure.name} | {arm} | {difference} | {ps} | {counts} | {len(gains)} |")
    return lines


def size_table(
    arms: Mapping[str, Values], reference: str, diameters_mm: Mapping[str, float], measure: Measure
) -> list[str]:
    """Markdown table of one measure in each third of the cases by size of tumour: differences from the reference arm.

    There are no tests, because the parts are small.
    """
    by_size = sorted(diameters_mm, key=lambda case: (diameters_mm[case], case))
    thirds = [list(part) for part in np.array_split(by_size, SIZE_PARTS) if part.size]
    ends = [[number(diameters_mm[case], "mm") for case in (part[0], part[-1])] for part in thirds]
    headings = [f"{low} to {high} mm ({len(part)})" for (low, high), part in zip(ends, thirds, strict=True)]
    lines = [f"| {measure.name} | " + " | ".join(headings) + " |", "|---" * (len(thirds) + 1) + "|"]
    parts = [{arm: {case: values[case] for case in part} for arm, values in arms.items()} for part in thirds]
    means = [np.nanmean([values[measure.key] for values in part[reference].values()]) for part in parts]
    lines.append(f"| {reference} | " + " | ".join(number(mean, measure.quantity) for mean in means) + " |")
    for arm in arms:
        if arm != reference:
            found = [compared({arm: (part[reference], part[arm])}, measure.key)[arm] for part in parts]
            cells = [mean_and_interval_text(one.mean, one.interval, measure.quantity, signed=True) for one in found]
            lines.append(f"| {arm} minus {reference} | " + " | ".join(cells) + " |")
    return lines


def _differences(before: Values, after: Values, measure: str) -> list[float]:
    both = [after[case][measure] - before[case][measure] for case in before]
    return [difference for difference in both if math.isfinite(difference)]


def mean_and_interval_text(
    mean: float, found: Interval, quantity: str, *, signed: bool = False, bold: bool = False
) -> str:
    """``+0.012 (+0.003 to +0.020)``; Markdown's bold is for the mean."""
    if math.isnan(mean):
        return NOT_DEFINED
    mark = "**" if bold else ""
    ends = interval(found.low, found.high, quantity, signed=signed)
    return f"{mark}{number(mean, quantity, signed=signed)}{mark} ({ends})"


def runs_by_arm(results: Mapping[str, Any]) -> dict[str, dict[str, Values]]:
    """For each arm, the raw one first if there is one, its complete runs by name (``raw seed 1``)."""
    found: dict[str, dict[str, Values]] = {}
    for (arm, seed), values in sorted(complete_runs(results).items(), key=lambda run: (run[0][0] != REFERENCE, run[0])):
        found.setdefault(arm, {})[f"{arm} seed {seed}"] = values
    return found


def comparable_runs(results: Mapping[str, Any]) -> dict[str, dict[str, Values]]:
    """The same; UserError without a complete run of the raw arm."""
    found = runs_by_arm(results)
    if REFERENCE not in found:
        raise UserError("no seed of the raw arm is complete yet")
    return found


def report(results: Mapping[str, Any]) -> list[str]:
    """The lines of all tables; arms are compared with the raw one, or without it with the first.

    Raises:
        UserError: no run is complete yet.
    """
    runs, measures = runs_by_arm(results), measures_of(results)
    if not runs:
        raise UserError("no seed of any arm is complete yet")
    arms = {_name(arm, of_arm): mean_of_seeds(list(of_arm.values())) for arm, of_arm in runs.items()}
    lines = [f"{sum(map(len, results['folds']))} cases, {len(results['folds'])} folds:", ""]
    lines += [*arm_table(arms, measures), "", *difference_table(arms, next(iter(arms)), measures)]
    if diameters_mm := results.get("tumour_diameters_mm"):
        lines += ["", "By diameter of the largest tumour (cases):", ""]
        lines += size_table(arms, next(iter(arms)), diameters_mm, deciding(measures))
    for arm, of_arm in runs.items():
        if len(of_arm) > 1:
            lines += ["", f"Chance alone, seeds of {arm}:", "", *difference_table(of_arm, next(iter(of_arm)), measures)]
    complete = [name for of_arm in runs.values() for name in of_arm]
    started = {f"{entry['arm']} seed {entry['seed']}" for entry in results["runs"]}
    if unfinished := sorted(started.difference(complete)):
        lines += ["", f"Not complete, left out: {', '.join(unfinished)}"]
    return lines


def _name(arm: str, runs: Mapping[str, Values]) -> str:
    return arm if len(runs) == 1 else f"{arm} ({len(runs)} seeds)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiment_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results.json of scripts/experiments")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    if not args.results.is_file():
        raise UserError(f"{args.results} is missing; the workflow in scripts/experiments writes it")
    print("\n".join(report(read_json(args.results))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
