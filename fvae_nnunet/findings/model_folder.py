"""The folder of a findings classifier.

::

    manifest.json               {"schema": 1, "kind": "findings_classifier", "settings": {...}, "made_with": {...}}
    network.safetensors         the trained network
    checkpoint_<step>.pt        until then: the last two checkpoints, from which the training resumes
    cases/                      records of these files with their digests, see ``manifest``
    progress.csv, progress.png  see ``training``
    predictions_validation.csv  see ``predictions``
    predictions_test.csv

``settings`` hold everything that determines the network: settings, dataset, fold, and a digest of the training cases
with their images and labels. ``made_with`` names the cases.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.findings.cases import Case, CaseSplit
from fvae_nnunet.findings.predictions import PARTS, predictions_path
from fvae_nnunet.findings.synthetic_cases import SyntheticCases
from fvae_nnunet.findings.training import CHECKPOINTS, NETWORK, PROGRESS, PROGRESS_PICTURE, RECORDS
from fvae_nnunet.findings.training_settings import TrainingSettings
from fvae_nnunet.findings.volumes import VolumeCache
from fvae_nnunet.jobs.manifest import Manifest

KIND = "findings_classifier"
_FILES = (
    "manifest.json",
    NETWORK,
    PROGRESS,
    PROGRESS_PICTURE,
    *(predictions_path(Path(), part).name for part in PARTS),
)


def check_is_ours(output: Path) -> None:
    """Raise UserError if a folder holds output files of a training but was not made by ``fvae-train-classifier``."""
    names = (*_FILES, RECORDS, *(path.name for path in output.glob(CHECKPOINTS)))
    Manifest(output).refuse_foreign(output, names, kind=KIND, command="fvae-train-classifier")


def begin_model(
    output: Path,
    settings: TrainingSettings,
    dataset: str,
    fold: int | None,
    training: Sequence[Case],
    split: CaseSplit,
    synthetic: SyntheticCases | None,
    cache: VolumeCache,
) -> None:
    """Write the manifest, or check that the folder was begun with the same settings and cases.

    Raises:
        UserError: it was begun with others; each difference is named.
    """
    recorded = settings.recorded | {
        "dataset": dataset,
        "fold": fold,
        "training_cases": len(training),
        "synthetic_cases": len(synthetic.used) if synthetic else 0,
        "training_sha256": _digest(training, settings.findings, cache),
    }
    made_with = {
        "training_cases": [case.key for case in training if not case.synthetic],
        "validation_cases": [case.key for case in split.validation],
        "synthetic_cases": [case.key for case in training if case.synthetic],
        "synthetic_left_out": dict(synthetic.left_out) if synthetic else {},
        "synthetic_that_may_know_held_out_patients": list(synthetic.seen) if synthetic else [],
    }
    Manifest(output).begin(KIND, recorded, made_with)


def remove_model(output: Path) -> None:
    """Delete the files of a training from its folder."""
    shutil.rmtree(output / RECORDS, ignore_errors=True)
    for path in (*output.glob(CHECKPOINTS), *(output / name for name in _FILES)):
        path.unlink(missing_ok=True)


def _digest(cases: Sequence[Case], findings: Sequence[str], cache: VolumeCache) -> str:
    """Digest of the cases in order: name, digest of the image, and labels."""
    digest = hashlib.sha256()
    for case in cases:
        labels = " ".join(str(case.findings.get(name, "?")) for name in findings)
        digest.update(f"{case.key} {cache.digest(case.key)} {labels}\n".encode())
    return digest.hexdigest()
