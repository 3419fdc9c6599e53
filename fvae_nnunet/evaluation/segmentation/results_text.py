"""Segmentation results for the terminal: for each label a verdict and a table, followed by notes on the numbers.

Lines have at most 80 columns except for file names: long model names are shortened or become letters, with a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.segmentation.lesion_summary import SIZES
from fvae_nnunet.evaluation.segmentation.measures import LESION_METRICS, sizes_with_lesions
from fvae_nnunet.evaluation.segmentation.scores import HD95_KEY
from fvae_nnunet.evaluation.segmentation.verdict import (
    EXPLANATION,
    FEW_CASES,
    Measure,
    comparison_sentence,
    deciding,
    model_sentence,
    verdict,
)
from fvae_nnunet.evaluation.text_table import text_table, wrapped
from fvae_nnunet.numbers_as_text import (
    NOT_DEFINED,
    PERCENTILE_MARK,
    counted,
    interval_of,
    number,
    p_value,
    percent,
)
from fvae_nnunet.short_names import short_names

LONGEST_NAME = 6
"""Longest model name that fits a table; longer names are shortened or become letters."""


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """The content of ``comparison.json`` as text."""
    shown = short_names([model["name"] for model in comparison["models"]], LONGEST_NAME)
    lines = [line for name, short in shown.items() if name != short for line in wrapped(f"{short}  {name}", hanging=3)]
    lines += [""] if lines else []
    pairs = range(len(comparison["measures"][0]["comparisons"]))
    for label in comparison["labels"]:
        measures = _of_label(comparison["measures"], label["key"])
        for pair in pairs:
            entries = [
                (name, measure, _renamed(measure["comparisons"][pair], shown)) for name, measure in _rows(measures)
            ]
            decides = deciding(measures)
            sentence = comparison_sentence(decides, _renamed(decides["comparisons"][pair], shown))
            lines += [*wrapped(f"{label['name']}: {sentence}"), *_indented(text_table(_pair_table(entries))), ""]
    notes = [
        f"interval: 95 %, bootstrap over cases, {_bootstrap(comparison['settings'])}",
        f"p: Wilcoxon signed-rank over cases, two-sided, corrected (Holm) for the {counted(len(pairs), 'comparison')} "
        "of each label and measure",
        EXPLANATION,
    ]
    return _text(lines, [*notes, *_notes(comparison, "comparisons", comparison["settings"], shown)])


def format_summary(summary: Mapping[str, Any]) -> str:
    """The content of ``summary.json`` as text."""
    facts = summary["fvae"]
    lines = []
    for label in facts["labels"]:
        measures = _of_label(facts["measures"], label["key"])
        rows = [["", "mean", "95 % interval", "cases"]]
        for name, measure in _rows(measures):
            (entry,) = measure["models"]
            unit = measure["unit"]
            rows.append([name, number(entry["mean"], unit), interval_of(entry, unit), str(entry["n"])])
        lines += [*wrapped(f"{label['name']}: {model_sentence(measures)}"), *_indented(text_table(rows)), ""]
    if len(facts["labels"]) > 1:
        of_all = _of_label(facts["measures"], facts["labels"][0]["key"])
        means = [
            f"{_name(measure)} {number(summary['foreground_mean'][measure['key']], measure['unit'])}"
            for measure in of_all
            if measure["key"] in summary["foreground_mean"]
        ]
        lines += [*wrapped(f"mean of labels: {', '.join(means)}"), ""]
    notes = [f"interval: 95 %, bootstrap over cases, {_bootstrap(facts['statistics'])}"]
    empty = "scores 1" if facts["empty_masks"] == "flare" else "has no value"
    notes.append(f"a label missing from both reference and prediction {empty}; one missing from only one scores 0")
    settings = {"lesions": facts.get("lesions", {"labels": []})}
    content = {"reference": {"cases": range(facts["cases"]["reference"])}, "measures": facts["measures"]}
    missing = [{"name": "predictions", "missing": facts["cases"]["missing_names"]}]
    return _text(lines, [*notes, *_notes(content | {"models": missing}, "models", settings, {})])


def _of_label(measures: Sequence[Measure], label: str) -> list[Measure]:
    return [measure for measure in measures if measure["label"] == label]


def _rows(measures: Sequence[Measure]) -> Iterator[tuple[str, Measure]]:
    """Yield the rows of a label's table: each measure, followed for lesions by the size classes that have any."""
    named = {measure["key"]: measure for measure in measures}
    sizes = sizes_with_lesions(named)
    for measure in measures:
        metric = next((metric for metric in LESION_METRICS if measure["key"].startswith(metric)), None)
        if measure["key"] == metric or metric is None:
            yield _name(measure), measure
            for size in sizes if metric is not None else ():
                yield f"  {SIZES[size]}", named[f"{metric}_{size}"]


def _name(measure: Measure) -> str:
    return f"{measure['name']}, mm" if measure["unit"] == "mm" else measure["name"]


def _renamed(entry: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    return dict(entry) | {which: shown[entry[which]] for which in ("first", "second")}


def _pair_table(entries: Sequence[tuple[str, Measure, Mapping[str, Any]]]) -> list[list[str]]:
    pair = entries[0][2]
    rows = [["", pair["first"], pair["second"], "change", "95 % interval", "p", "verdict"]]
    for name, measure, entry in entries:
        unit = measure["unit"]
        means = [number(entry[f"{which}_mean"], unit) for which in ("first", "second")]
        change = number(entry["mean_difference"], unit, signed=True)
        p = p_value(entry["p_holm"]) if entry["n"] else NOT_DEFINED
        rows.append([name, *means, change, interval_of(entry, unit, signed=True), p, verdict(measure, entry)])
    return rows


def _bootstrap(settings: Mapping[str, Any]) -> str:
    return f"{settings['bootstrap']}, {settings['resamples']} resamples, seed {settings['seed']}"


def _notes(
    content: Mapping[str, Any], kind: str, settings: Mapping[str, Any], shown: Mapping[str, str]
) -> Iterator[str]:
    """Yield notes for models or comparisons; ``kind`` is the key of the entries."""
    measures, cases = content["measures"], len(content["reference"]["cases"])
    entries = [entry for measure in measures for entry in measure[kind]]
    if any(entry["interval_method"] != "none" and entry["n"] < FEW_CASES for entry in entries):
        yield f"with fewer than {FEW_CASES} cases, intervals are too narrow"
    if any(entry["interval_method"] == "percentile" for entry in entries):
        yield f"{PERCENTILE_MARK} percentile interval, because BCa is undefined there"
    for measure in measures:
        if measure["mean_over"] == "lesions" or not any(entry["n"] < cases for entry in measure[kind]):
            continue
        counts = _counts(measure[kind], shown)
        one_empty = ""
        if measure["key"] == HD95_KEY and any(entry["one_empty"] for entry in measure["models"]):
            alone = ", ".join(
                (f"{shown[entry['model']]} " if shown else "") + str(entry["one_empty"]) for entry in measure["models"]
            )
            one_empty = f"; cases in which only the reference or only the prediction lacks it: {alone}"
        yield f"{measure['name']} of {measure['label_name']}: {counts} of {counted(cases, 'case')}{one_empty}"
    lesions = settings["lesions"]
    if lesions["labels"]:
        yield (
            f"a lesion is detected if at least {percent(lesions['detection_overlap'])} of its voxels are predicted; "
            "false positives are predicted components that touch no lesion, per case, by their own size"
        )
    for model in content["models"]:
        if model["missing"]:
            name = shown.get(model["name"], model["name"])
            yield f"{name}: {len(model['missing'])} missing: {', '.join(model['missing'])}"


def _counts(entries: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> str:
    """Number of included cases: one number, or one for each comparison if they differ."""
    counts = {entry["n"] for entry in entries}
    if len(counts) == 1:
        return str(counts.pop())
    return ", ".join(f"{shown[entry['second']]} and {shown[entry['first']]} {entry['n']}" for entry in entries)


def _text(lines: Sequence[str], notes: Sequence[str]) -> str:
    return "\n".join([*lines, *(line for note in notes for line in wrapped(note))])


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
