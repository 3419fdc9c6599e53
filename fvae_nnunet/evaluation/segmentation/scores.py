"""Scores of folders of predictions: metrics of each label and lesions, for each folder and case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fvae_nnunet.evaluation.segmentation.lesions import CaseLesions, LesionRule
from fvae_nnunet.nnunet.labels import Label, LabelScheme

CaseMetrics = Mapping[Label, Mapping[str, float]]
"""Label or region -> metric -> value."""

HD95_KEY = "HD95_mm"
"""Key of the 95 % Hausdorff distance in a summary."""


def nsd_key(tolerance_mm: float) -> str:
    """Key of the NSD in a summary: ``NSD_2mm``, ``NSD_0.5mm``."""
    return f"NSD_{tolerance_mm:g}mm"


@dataclass(frozen=True)
class ScoredCase:
    """One case with the compared files, its metrics, and its lesions for labels evaluated by lesion."""

    case: str
    reference: Path
    prediction: Path
    metrics: CaseMetrics
    lesions: Mapping[Label, CaseLesions] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredFolder:
    """The cases of one folder of predictions, sorted by name, and the missing cases."""

    folder: Path
    cases: list[ScoredCase]
    missing: list[str]


@dataclass(frozen=True)
class Scores:
    """Folders scored against one folder of references, with the scoring rules.

    Attributes:
        reference_folder: folder of the references.
        scheme: the labels.
        tolerances_mm, empty_masks: see `segmentation.scoring.evaluate_case`.
        lesion_rule: labels with lesions, and the rule for detection.
        folders: at least one scored folder, each with at least one case.
    """

    reference_folder: Path
    scheme: LabelScheme
    tolerances_mm: tuple[float, ...]
    empty_masks: str
    lesion_rule: LesionRule
    folders: list[ScoredFolder]
