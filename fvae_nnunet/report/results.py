"""Read results of ``fvae-evaluate`` for a report, in one format for a comparison and for a single model."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.comparison import SCHEMA
from fvae_nnunet.evaluation.segmentation.measures import LESION_METRICS
from fvae_nnunet.evaluation.segmentation.verdict import deciding
from fvae_nnunet.files.checked_json import Rule, check_shape, read_json
from fvae_nnunet.report.single_model import as_comparison
from fvae_nnunet.short_names import short_names

_TWO = Rule("two numbers", lambda value: [isinstance(end, int | float) for end in value] == [True, True])
_INTERVAL = {"interval": _TWO, "interval_method": str, "n": int, "items": int, "nan": int, "missing": int}
_COMPARISON = {
    "made_with": {"*": str},
    "settings": {
        "confidence": float,
        "resamples": int,
        "seed": int,
        "tolerances_mm": [float],
        "empty_masks": str,
        "ignore_label?": (int, None),
        "file_ending": str,
        **dict.fromkeys(("test", "zero_method", "correction", "family"), str),
        "lesions": {"labels": [str], "size_classes": [str], "detection_overlap": float, "connectivity": int},
    },
    "reference": {"folder": str, "sha256": str, "cases": [str]},
    "models": [{"name": str, "folder": str, "sha256": str, "missing": [str]}],
    "labels": [{"key": str, "name": str}],
    "measures": [
        {
            "label": str,
            "label_name": str,
            "key": str,
            "name": str,
            "unit": str,
            "higher_is_better": bool,
            "mean_over": str,
            "models": [{"model": str, "mean": float, "values": {"*": float}, "best_first": [str], **_INTERVAL}],
            "comparisons": [
                {
                    "first": str,
                    "second": str,
                    "first_mean": float,
                    "second_mean": float,
                    "mean_difference": float,
                    "p": float,
                    "p_holm": float,
                    "wins": int,
                    "ties": int,
                    "losses": int,
                    "differences": {"*": float},
                    "most_improved_first": [str],
                    "bland_altman": {"means": {"*": float}, "bias": float, "sd": float, "limits": _TWO},
                    **_INTERVAL,
                }
            ],
        }
    ],
    "lesions": {
        "*": {
            "*": {
                "*": {
                    "diameters_mm": [float],
                    "detected": [bool],
                    "dice": [float],
                    "false_positive_diameters_mm": [float],
                }
            }
        }
    },
}
"""The parts of ``comparison.json`` that a report uses; a shape of ``files.checked_json``."""
_REMEDY = "Run fvae-evaluate again"


@dataclass(frozen=True)
class Results:
    """One file of results.

    Attributes:
        path: the file.
        title: name for readers: the file's name, or that of its folder if the file has the default name.
        content: as in ``comparison.json`` (single model: see `single_model.as_comparison`), with short model names.
        full_names: short name of a model -> its name in the file.
        reference_folder, prediction_folders: current folders; the recorded ones if they no longer exist.
    """

    path: Path
    title: str
    content: Mapping[str, Any]
    full_names: Mapping[str, str]
    reference_folder: Path
    prediction_folders: Sequence[Path]

    @property
    def is_comparison(self) -> bool:
        return len(self.models) > 1

    @property
    def cases(self) -> list[str]:
        return self.content["reference"]["cases"]

    @property
    def models(self) -> list[str]:
        return [model["name"] for model in self.content["models"]]

    @property
    def label_names(self) -> dict[str, str]:
        """Key -> name."""
        return {label["key"]: label["name"] for label in self.content["labels"]}

    @property
    def label_values(self) -> dict[str, int | tuple[int, ...]]:
        """Name -> value, or values of a region."""
        return {name: ast.literal_eval(key) for key, name in self.label_names.items()}

    @property
    def lesion_labels(self) -> list[str]:
        """Keys of the labels that are evaluated by lesion."""
        return self.content["settings"]["lesions"]["labels"]

    def measures_of(self, label: str) -> list[Mapping[str, Any]]:
        """The measures of a label (its key), in the file's order."""
        return [measure for measure in self.content["measures"] if measure["label"] == label]

    @property
    def deciding_measure(self) -> Mapping[str, Any]:
        """The measure that orders cases: `verdict.deciding` for the first label evaluated by lesion, else for the first
        label."""
        return deciding(self.measures_of((self.lesion_labels or list(self.label_names))[0]))

    def reference_file(self, case: str) -> Path:
        return self.reference_folder / f"{case}{self.content['settings']['file_ending']}"

    def prediction_files(self, case: str) -> dict[str, Path]:
        """Model -> prediction, for models that have one."""
        ending = self.content["settings"]["file_ending"]
        return {
            model["name"]: folder / f"{case}{ending}"
            for model, folder in zip(self.content["models"], self.prediction_folders, strict=True)
            if case not in model["missing"]
        }


def is_of_lesions(measure: Mapping[str, Any]) -> bool:
    """Whether one of the ``measures`` is a measure of lesions instead of whole cases."""
    return measure["key"].startswith(tuple(LESION_METRICS))


def load_results(paths: Sequence[Path]) -> list[Results]:
    """Read ``comparison.json`` or ``summary.json`` files.

    Folders with a relative path are searched in the working directory, then beside the file; the folder of the file
    itself counts if it has the same name.

    Raises:
        UserError: all problems with the files, one line each.
    """
    problems, found = [], []
    for path in paths:
        try:
            found.append((path, _content(path)))
        except UserError as error:
            problems.append(str(error))
    repeated = {str(path) for path in paths if [other.resolve() for other in paths].count(path.resolve()) > 1}
    problems += [f"{path} is given twice" for path in sorted(repeated)]
    if problems:
        raise UserError("\n  ".join(problems))
    file_names = [path.resolve().parent.name if path.stem in ("comparison", "summary") else path.stem for path in paths]
    titles = file_names if len(set(file_names)) == len(file_names) else [str(path) for path in paths]
    short = short_names([model["name"] for _, content in found for model in content["models"]])
    return [
        Results(
            path,
            title,
            _renamed(content, short),
            {short[model["name"]]: model["name"] for model in content["models"]},
            _folder(content["reference"]["folder"], path),
            [_folder(model["folder"], path) for model in content["models"]],
        )
        for title, (path, content) in zip(titles, found, strict=True)
    ]


def _content(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no such file: {path}; fvae-evaluate writes comparison.json and summary.json")
    content = read_json(path, {}, remedy=_REMEDY)
    if content.get("kind") == "comparison":
        if content.get("schema") != SCHEMA:
            raise UserError(f"{path} does not have schema {SCHEMA}; run this version of fvae-evaluate")
        check_shape(path, content, _COMPARISON, remedy=_REMEDY)
        models = [model["name"] for model in content["models"]]
        for number, measure in enumerate(content["measures"]):
            if [entry["model"] for entry in measure["models"]] != models or not measure["comparisons"]:
                what = f"measures[{number}] does not match the compared models"
                raise UserError(f"{path} is damaged or incomplete: {what}. {_REMEDY}")
        of_models = dict.fromkeys(models, dict)
        of_labels = dict.fromkeys(content["settings"]["lesions"]["labels"], of_models)
        check_shape(path, content, {"lesions": of_labels}, remedy=_REMEDY)
        return content
    if "metric_per_case" in content:
        if "fvae" not in content:
            raise UserError(f"{path} is nnU-Net's own summary.json, without NSD; run fvae-evaluate on the predictions")
        try:
            of_one = as_comparison(content)
        except (LookupError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(f"{path} is damaged or incomplete: it lacks {error}. {_REMEDY}") from error
        check_shape(path, of_one, {key: _COMPARISON[key] for key in ("measures", "lesions", "labels")}, remedy=_REMEDY)
        return of_one
    kind = f", but {content['kind']!r}" if "kind" in content else ""
    raise UserError(f"{path} is not a comparison.json or summary.json of fvae-evaluate{kind}")


def _renamed(content: Mapping[str, Any], short: Mapping[str, str]) -> dict[str, Any]:
    """The content with short names of its models."""

    def entries(measure: Mapping[str, Any], kind: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        return [entry | {key: short[entry[key]] for key in keys} for entry in measure[kind]]

    return {
        **content,
        "models": [model | {"name": short[model["name"]]} for model in content["models"]],
        "measures": [
            {
                **measure,
                "models": entries(measure, "models", ["model"]),
                "comparisons": entries(measure, "comparisons", ["first", "second"]),
            }
            for measure in content["measures"]
        ],
        "lesions": {
            label: {short[model]: cases for model, cases in models.items()}
            for label, models in content["lesions"].items()
        },
    }


def _folder(name: str, results: Path) -> Path:
    folder = Path(name)
    # a summary.json is in the folder of its predictions, unless another place was named
    places = [folder, results.parent / folder, *([results.parent] if results.parent.name == folder.name else [])]
    return next((place for place in places if place.is_dir()), folder)
