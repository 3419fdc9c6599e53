"""What scoring folders of predictions gives: for each folder and case the metrics of each label, and the lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fvae_nnunet.evaluation.segmentation.lesions import CaseLesions, LesionRule
from fvae_nnunet.nnunet.labels import Label, LabelScheme

CaseMetrics = Mapping[Label, Mapping[str, float]]
"""Label or region -> metric -> value."""

HD95_KEY = "HD95_mm"
"""The key of the 95 % Hausdorff distance in a summary."""


def nsd_key(tolerance_mm: float) -> str:
    """The key of the NSD in a summary: ``NSD_2mm``, ``NSD_0.5mm``."""
    return f"NSD_{tolerance_mm:g}mm"


@dataclass(frozen=True)
class ScoredCase:
    """One case with the files that were compared, its metrics, and the lesions of the labels that have them."""

    case: str
    reference: Path
    prediction: Path
    metrics: CaseMetrics
    lesions: Mapping[Label, CaseLesions] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredFolder:
    """The cases of one folder of predictions, in the order of their names, and the cases that it lacks."""

    folder: Path
    cases: list[ScoredCase]
    missing: list[str]


@dataclass(frozen=True)
class Scores:
    """The folders that were scored against one folder of references, and the rules by which.

    Attributes:
        reference_folder: where the references are.
        scheme: the labels.
        tolerances_mm, empty_masks: see `segmentation.scoring.evaluate_case`.
        lesion_rule: which labels have lesions, and when one is detected.
        folders: at least one, each with at least one case.
    """

    reference_folder: Path
    scheme: LabelScheme
    tolerances_mm: tuple[float, ...]
    empty_masks: str
    lesion_rule: LesionRule
    folders: list[ScoredFolder]
