"""One measure of an experiment over all its tests: how far each arm is from the raw arm, as a table and a picture.

    python scripts/experiment_overview.py WORK/*/results.json -o overview.png > overview.md

Tests on the same scan belong together. Arms are compared with the raw arm, Holm-corrected over the arms of a scan.
Predictions with options of their own (``predict`` of a test) are compared with those of the same models without options
on the same scan, if these are given, Holm-corrected over these. A difference is bold, or a filled dot, if its interval
excludes 0, its corrected p is below 0.05 in the same direction, and it is larger than that between two seeds of the raw
arm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment_table import (
    REFERENCE,
    Compared,
    Measure,
    comparable_runs,
    compared,
    deciding,
    mean_and_interval_text,
    mean_of_seeds,
    measures_of,
    runs_by_arm,
)

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.verdict import SIGNIFICANT_P
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.pictures.forest import GREY, Estimate, draw_forest, forest_height_inches, legend_dot
from fvae_nnunet.pictures.series import series_colours

CHANCE = "raw, another seed"
AS_IT_IS = "as it is"

LEGEND_BELOW_INCHES = 0.5
"""Distance of the legend from its panel, for the numbers and the name of the axis."""


@dataclass(frozen=True)
class Scan:
    """All that is known of one scan.

    Attributes:
        raw: mean over cases of the raw arm.
        trained: each other arm, compared with the raw arm.
        predicted: arm with options of prediction, compared with the same arm without.
        chance: two seeds of the raw arm, under `CHANCE`; empty with one seed.
    """

    raw: float
    trained: Mapping[str, Compared]
    predicted: Mapping[str, Compared]
    chance: Mapping[str, Compared]

    def is_sure(self, one: Compared) -> bool:
        """Whether the interval excludes 0, the corrected p is small in the same direction, and the difference is larger
        than chance."""
        is_significant = one.p_holm < SIGNIFICANT_P and (
            one.interval.low > 0 < one.direction or one.interval.high < 0 > one.direction
        )
        chance = self.chance.get(CHANCE)
        return is_significant and (chance is None or one is chance or abs(one.mean) > abs(chance.mean))


def scans_of(results: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Scan]:
    """By name of its plain test, the images as they are first; scans without a plain test are left out.

    Raises:
        UserError: two plain tests of one scan.
    """
    plain: dict[str, tuple[str, Mapping[str, Any]]] = {}
    with_options = []
    for content in results:
        test = content.get("test") or {"name": AS_IT_IS, "scan": "", "predict": ""}
        if test["predict"]:
            with_options.append((test, content))
        elif test["scan"] in plain:
            raise UserError(
                f"{plain[test['scan']][0]} and {test['name']} are results of the same scan; give one of them"
            )
        else:
            plain[test["scan"]] = (test["name"], content)
    in_order = sorted(plain.items(), key=lambda item: (item[0] != "", item[1][0]))
    return {
        name: _scan(
            content, [(test["predict"], other) for test, other in with_options if test["scan"] == scan], measure
        )
        for scan, (name, content) in in_order
    }


def _scan(plain: Mapping[str, Any], predicted: Sequence[tuple[str, Mapping[str, Any]]], measure: str) -> Scan:
    runs = comparable_runs(plain)
    arms = {arm: mean_of_seeds(list(of_arm.values())) for arm, of_arm in runs.items()}
    raw = arms[REFERENCE]
    with_options = {
        f"{arm} `{options}`": tuple(mean_of_seeds([of[name] for name in common]) for of in (runs[arm], of_arm))
        for options, content in predicted
        for arm, of_arm in runs_by_arm(content).items()
        if (common := sorted(runs.get(arm, {}).keys() & of_arm.keys()))
    }
    first, *others = runs[REFERENCE].values()
    return Scan(
        float(np.nanmean([of_case[measure] for of_case in raw.values()])),
        trained=compared({arm: (raw, values) for arm, values in arms.items() if arm != REFERENCE}, measure),
        predicted=compared(with_options, measure),
        chance=compared({CHANCE: (first, others[0])} if others else {}, measure),
    )


def overview(scans: Mapping[str, Scan], measure: Measure) -> list[str]:
    """Markdown: a row for each arm, a column for each scan; bold where the arm helps or harms."""
    every = scans.values()
    lines = [f"| {measure.name} | " + " | ".join(scans) + " |", "|---" * (len(scans) + 1) + "|"]
    lines.append(f"| {REFERENCE} | " + " | ".join(number(scan.raw, measure.quantity) for scan in every) + " |")
    for kind in ("trained", "predicted", "chance"):
        of_scan = [getattr(scan, kind) for scan in every]
        for row in dict.fromkeys(row for found in of_scan for row in found):
            cells = [_cell(scan, found.get(row), measure.quantity) for scan, found in zip(every, of_scan, strict=True)]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def _cell(scan: Scan, one: Compared | None, quantity: str) -> str:
    if one is None:
        return ""
    return mean_and_interval_text(one.mean, one.interval, quantity, signed=True, bold=scan.is_sure(one))


def picture(scans: Mapping[str, Scan], measure: Measure, path: Path) -> None:
    """Write a PNG: for each scan the differences of all arms that were trained, and of all options of prediction."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = scans.values()
    trained, predicted = (
        series_colours(dict.fromkeys(row for scan in every for row in getattr(scan, kind)))
        for kind in ("trained", "predicted")
    )
    panels = [("trained: minus raw", {**trained, CHANCE: GREY})]
    panels += [("options of prediction: minus the same models without", dict(predicted))] if predicted else []
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        most = max(len(colours) for _, colours in panels)
        figure = Figure(
            figsize=(6.0 * len(panels), 1.2 + 0.2 * most + forest_height_inches(len(scans), most)), layout="constrained"
        )
        FigureCanvasAgg(figure)
        every_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, colours) in zip(every_axes, panels, strict=True):
            rows = []
            for scan in every:
                shown = {**scan.trained, **scan.predicted, **scan.chance}
                rows.append(
                    [_estimate(scan, one, colour) for row, colour in colours.items() if (one := shown.get(row))]
                )
            draw_forest(axes, rows, reference=0)
            axes.set_yticks(range(len(scans)), list(scans))
            axes.set_title(title)
            axes.set_xlabel(f"{measure.name}, 95 % interval; filled: larger than chance explains")
            handles = [legend_dot(colour, row.replace("`", "")) for row, colour in colours.items()]
            below = -LEGEND_BELOW_INCHES / forest_height_inches(len(scans), most)
            axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, below), frameon=False)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _estimate(scan: Scan, one: Compared, colour: str) -> Estimate:
    return Estimate(one.mean, (one.interval.low, one.interval.high), colour, scan.is_sure(one))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiment_overview.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="results.json of the tests of one experiment")
    parser.add_argument("--measure", metavar="KEY", help="such as Dice; default: NSD_2mm, or the NSD that was measured")
    parser.add_argument("-o", type=Path, metavar="PNG", help="draw it, too")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    results = [read_json(path) for path in args.results]
    measures = measures_of(results[0])
    if args.measure not in (None, *measures):
        raise UserError(f"--measure {args.measure}: not measured; there are {', '.join(measures)}")
    measure = measures[args.measure] if args.measure else deciding(measures)
    scans = scans_of(results, measure.key)
    if args.o:
        picture(scans, measure, args.o)
    print("\n".join(overview(scans, measure)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
