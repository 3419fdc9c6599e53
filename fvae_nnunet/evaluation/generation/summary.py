"""Results of `evaluate` as text for the terminal and as rows of a CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fvae_nnunet.evaluation.generation.choices import METRICS
from fvae_nnunet.evaluation.generation.memorisation import LEAST_REAL
from fvae_nnunet.evaluation.generation.network_inputs import PLANES
from fvae_nnunet.evaluation.text_table import text_table
from fvae_nnunet.numbers_as_text import counted, interval, number, p_value, percent

_METRIC_NAMES = {"fvd": "FVD", "fid2.5d": "FID 2.5D", "kid": "KID"}

_COSINE_NAMES = {
    "image_image": "CT-CLIP, image-image",
    "text_image": "CT-CLIP, text-image",
    "text_real": "CT-CLIP, text-image of real",
}

_NEAREST_SHOWN = 5


def case_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one row per generated case, for the CSV."""
    cosines, masks, memorisation = results["cosines"] or {}, results["masks"], results["memorisation"]
    nearest = {entry["case"]: entry for entry in memorisation["cases"]} if memorisation else {}
    for case, described in results["fake"]["cases"].items():
        row: dict[str, Any] = {"case": case, "image": described["image"], "source": described["source"]}
        for key in ("image_image", "text_image"):
            if cosines.get(key):
                row[f"{key}_cosine"] = cosines[key]["cases"].get(case)
        if case in nearest:
            entry = nearest[case]
            row |= {"nearest_training_case": entry["training_case"], "nearest_cosine": entry["cosine"]}
            row["above_limit"] = entry["above"]
        for name, figures in (masks["cases"][case] if masks else {}).items():
            row |= {f"{key} {name}": figures[key] for key in ("dice", "iou")}
        yield row


def format_table(results: Mapping[str, Any]) -> str:
    """All results as text: distances, cosines, masks, memorisation, and warnings."""
    parts = [
        _distances(results),
        _cosines(results["cosines"]),
        _masks(results["masks"]),
        _memorisation(results["memorisation"]),
        [f"warning: {warning}" for warning in results["warnings"]],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _distances(results: Mapping[str, Any]) -> list[str]:
    found = sorted(results["distances"], key=lambda entry: METRICS.index(entry["metric"]))
    if not found:
        return []
    means = {(metric, network): mean for metric, network, mean in _plane_means(found)}
    rows = [["distance", "value", "95 %", "by chance", "p", "real", "generated", "features"]]
    for place, entry in enumerate(found):
        part = "" if entry["part"] == "volume" else f", {entry['part']}"
        rows.append([
            f"{_METRIC_NAMES[entry['metric']]}, {entry['network']}{part}",
            number(entry["value"], "distance"), interval(entry["low"], entry["high"], "distance"),
            number(entry["by_chance"], "distance"),
            p_value(entry["p"]), _sets(entry, "real"), _sets(entry, "fake"), str(entry["width"]),
        ])  # fmt: skip
        key = entry["metric"], entry["network"]
        is_last = all((later["metric"], later["network"]) != key for later in found[place + 1 :])
        if key in means and is_last:
            mean = means[key]
            name = f"{_METRIC_NAMES[key[0]]}, {key[1]}, mean of planes"
            rows.append(
                [name, number(mean["value"], "distance"), "", number(mean["by_chance"], "distance"), "", "", "", ""]
            )
    return [
        *text_table(rows),
        "by chance: mean distance between random divisions of both sets together; p: how often one is as large",
    ]


def _plane_means(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield metric, network, and the means of value and by_chance over the planes, for networks that see slices."""
    for metric, network in dict.fromkeys((entry["metric"], entry["network"]) for entry in found):
        planes = [entry for entry in found if (entry["metric"], entry["network"]) == (metric, network)]
        if {entry["part"] for entry in planes} == set(PLANES):
            means = {key: float(np.mean([entry[key] for entry in planes])) for key in ("value", "by_chance")}
            yield metric, network, means


def _sets(entry: Mapping[str, Any], name: str) -> str:
    cases, rows = entry[f"cases_{name}"], entry[f"rows_{name}"]
    return f"{cases}" if rows == cases else f"{cases} ({rows} slices)"


def _cosines(cosines: Mapping[str, Any] | None) -> list[str]:
    known = {key: entry for key, entry in (cosines or {}).items() if entry is not None}
    if not known:
        return []
    rows = [["cosine", "mean", "95 %", "unrelated pairs", "cases"]]
    for key, entry in known.items():
        rows.append([
            _COSINE_NAMES[key], number(entry["mean"]), interval(entry["low"], entry["high"]),
            number(entry["unrelated"]), str(entry["n"]),
        ])  # fmt: skip
    if "image_image" in known and "text_image" in known:
        mean = (known["image_image"]["mean"] + known["text_image"]["mean"]) / 2
        rows.append(["CT-CLIP, mean of both", number(mean), "", "", ""])
    return text_table(rows)


def _masks(masks: Mapping[str, Any] | None) -> list[str]:
    if masks is None:
        return []
    rows = [["mask", "Dice", "95 %", "IoU", "95 %", "cases"]]
    for name, entry in masks["structures"].items():
        rows.append([
            name, number(entry["dice"]), interval(entry["dice_low"], entry["dice_high"]),
            number(entry["iou"]), interval(entry["iou_low"], entry["iou_high"]), str(entry["n"]),
        ])  # fmt: skip
    rows.append(["mean over masks", number(masks["mean"]["dice"]), "", number(masks["mean"]["iou"]), "", ""])
    left_out = masks["not_segmented"]
    note = [f"not scored, as the segmentations lack them: {', '.join(left_out)}"] if left_out else []
    return [*text_table(rows), *note]


def _memorisation(memorisation: Mapping[str, Any] | None) -> list[str]:
    if memorisation is None:
        return []
    found = memorisation
    if math.isnan(found["limit"]):
        limit = f"no limit for copies, which needs at least {LEAST_REAL} real images"
    else:
        limit = (
            f"{percent(found['above'])} of {found['n']} generated images are above the real images' limit of "
            f"{number(found['limit'])} ({percent(found['expected_above'])} expected without copying)"
        )
    lines = [
        f"nearest training case ({found['network']}): median cosine {number(found['median_fake'])} of generated, "
        f"{number(found['median_real'])} of {found['n_real']} real images; {limit}"
    ]
    if found["identical"]:
        lines.append(f"files that equal a training image: {', '.join(found['identical'])}")
    if found["nearest_is_source"]:
        lines.append(
            f"in {counted(found['nearest_is_source'], 'case')} the nearest training case is the source of generation"
        )
    rows = [["nearest", "training case", "cosine", ""]]
    for entry in found["cases"][:_NEAREST_SHOWN]:
        mark = "identical" if entry["identical"] else "above the limit" if entry["above"] else ""
        rows.append([entry["case"], entry["training_case"], number(entry["cosine"]), mark])
    return [*lines, *text_table(rows, left=2)]
