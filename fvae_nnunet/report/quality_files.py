"""Read ``reconstruction_quality.json`` files and check that they match the views and cases of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.ct.files import read_header
from fvae_nnunet.ct.geometry import SPACING_TOLERANCE
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.summary import SCHEMA
from fvae_nnunet.files.checked_json import check_shape, read_json
from fvae_nnunet.jobs.manifest import differences
from fvae_nnunet.report.case_images import View
from fvae_nnunet.report.results import Results

_FIGURES = {"*": (float, None)}
_SUMMARY = {"*": {"n": int, "*": (float, None)}}
_QUALITY = {
    "view_settings": (dict, None),
    "settings": {"tissues_hu": dict},
    "labels": [{"key": str, "name": str}],
    "cases": [
        {
            "case": str,
            "shape": [int],
            "spacing_mm": [float],
            "volume": _FIGURES,
            "tissues": {"*": _FIGURES},
            "labels": {"*": _FIGURES},
        }
    ],
    "summary": {"volume": _SUMMARY, "tissues": {"*": _SUMMARY}, "labels": {"*": _SUMMARY}},
}
"""The parts of the file that a report uses; a shape of ``files.checked_json``."""


@dataclass(frozen=True)
class Quality:
    """The content of a file, with the name of its view."""

    name: str
    path: Path
    content: Mapping[str, Any]


def load_quality(given: Sequence[tuple[str, Path]], views: Sequence[View], results: Sequence[Results]) -> list[Quality]:
    """Read the files. A file with the name of a view must match this view and the cases with which it is shown.

    Args:
        given: name and path of each file.
        views: see `case_images.load_views`. If several have the name, the file must match one of them.
        results: results whose references exist.

    Raises:
        UserError: all problems, one line each: no such file, another kind or schema, settings other than in the view's
            manifest, missing cases, or a shape or spacing other than the reference's.
    """
    problems: list[str] = []
    found: list[Quality] = []
    for name, path in given:
        called = f"{path} (`quality={name}`)"
        if not path.is_file():
            problems.append(f"{called} does not exist; create it with fvae-evaluate-reconstruction")
            continue
        content = read_json(path)
        if not isinstance(content, dict) or content.get("kind") != "reconstruction_quality":
            problems.append(f"{called} is not a reconstruction_quality.json")
        elif content.get("schema") != SCHEMA:
            problems.append(f"{called} does not have schema {SCHEMA}; run this version of fvae-evaluate-reconstruction")
        else:
            check_shape(path, content, _QUALITY, remedy="Run fvae-evaluate-reconstruction again")
            of_each_view = [_misfits(called, content, view, results) for view in views if view.name == name]
            fewest: list[str] = min(of_each_view, key=len, default=[])
            problems += fewest
            found.append(Quality(name, path, content))
    if problems:
        raise UserError("\n  ".join(problems))
    return found


def _misfits(called: str, content: Mapping[str, Any], view: View, results: Sequence[Results]) -> list[str]:
    """Reasons why the file does not match this view."""
    problems = []
    settings = content["view_settings"] or {}
    if settings and view.manifest is not None:
        of_view = {key: view.manifest["settings"].get(key) for key in settings}
        changed = differences(of_view, settings)
        if changed:
            problems.append(f"{called} is from a view with other settings than {view.folder}: {'; '.join(changed)}")
    cases = {case["case"]: case for case in content["cases"]}
    for at in view.of_results:
        missing = [case for case in results[at].cases if case not in cases]
        if missing:
            problems.append(
                f"{called} lacks {len(missing)} of the {len(results[at].cases)} cases of {results[at].path}: "
                f"{', '.join(missing)}; run fvae-evaluate-reconstruction again"
            )
        for case in results[at].cases:
            if case in cases:
                problems += _other_grid(called, cases[case], results[at].reference_file(case))
    return problems


def _other_grid(called: str, case: Mapping[str, Any], reference: Path) -> list[str]:
    shape, geometry = read_header(reference)
    order = geometry.axial_order
    expected_shape = [shape[axis] for axis in order]
    expected_mm = [geometry.spacing_mm[::-1][axis] for axis in order]
    if case["shape"] == expected_shape and np.allclose(case["spacing_mm"], expected_mm, rtol=SPACING_TOLERANCE, atol=0):
        return []
    return [
        f"{called}: {case['case']} was measured with shape {case['shape']} and spacing {case['spacing_mm']} mm, the "
        f"reference has {expected_shape} and {expected_mm} (as z, y, x)"
    ]
