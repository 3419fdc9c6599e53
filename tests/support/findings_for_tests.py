"""A dataset of tiny chests whose findings can be seen, and folders of synthetic cases made from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fvae_nnunet.nnunet.case_reports import CaseReport, CaseReports, write_case_reports

FINDINGS = ("Lung nodule", "Pleural effusion", "Hiatal hernia")
"""A bright ball, a dense layer at the back, and one that no case has."""

SHAPE, SPACING_MM = (16, 32, 32), (6.0, 4.0, 4.0)
TINY = ["--network", "tiny", "--shape", "16", "32", "32", "--spacing", "6", "4", "4", "-np", "0", "-device", "cpu"]


def chest(nodule: bool, effusion: bool, seed: int) -> np.ndarray:
    """HU (z, y, x), int16: lung in a body, with noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
    body = ((y - 15.5) / 14) ** 2 + ((x - 15.5) / 15) ** 2 < 1
    lung = ((y - 15.5) / 10) ** 2 + ((x - 15.5) / 11) ** 2 < 1
    volume = np.where(lung, -850.0, np.where(body, 40.0, -1000.0))
    if nodule:
        centre = rng.uniform((4, 9, 9), (12, 18, 22))
        volume[((z - centre[0]) * 1.5) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 16] = 60
    if effusion:
        volume[lung & (y > 20)] = 15
    return np.rint(volume + rng.normal(0, 30, SHAPE)).astype(np.int16)


def write_image(path: Path, volume: np.ndarray) -> None:
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING_MM[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_findings_dataset(raw: Path, *, train: int = 30, test: int = 12) -> CaseReports:
    """Cases p<patient>_<scan> in nnU-Net's raw format with their reports; every third patient has two scans."""
    cases = {}
    for number in range(train + test):
        split = "train" if number < train else "test"
        values = {FINDINGS[0]: number % 2, FINDINGS[1]: number // 2 % 2, FINDINGS[2]: 0}
        for scan in range(2 if number % 3 == 0 else 1):
            case = f"p{number:03d}_{scan}"
            volume = chest(bool(values[FINDINGS[0]]), bool(values[FINDINGS[1]]), seed=10 * number + scan)
            write_image(raw / {"train": "imagesTr", "test": "imagesTs"}[split] / f"{case}_0000.nii.gz", volume)
            cases[case] = CaseReport(f"p{number:03d}", split, f"{case}.nii.gz", findings=values)
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"})
    )
    reports = CaseReports(FINDINGS, cases)
    write_case_reports(raw / "reports.json", reports)
    return reports


def write_synthetic_folder(folder: Path, dataset: str, records: dict[str, dict]) -> None:
    """Synthetic cases whose records differ from a usual one as said, in the form of ``fvae-synthesize``."""
    (folder / "records").mkdir(parents=True)
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"})
    )
    for number, (case, changes) in enumerate(records.items()):
        record = {
            "case": case, "dataset": dataset, "source_case": None, "lesions": [], "label": {},
            "model": {"training_cases": None}, "findings": {FINDINGS[0]: number % 2, FINDINGS[1]: 0},
        } | changes  # fmt: skip
        findings = record["findings"] or {}
        volume = chest(bool(findings.get(FINDINGS[0])), bool(findings.get(FINDINGS[1])), seed=9000 + number)
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", volume)
        write_image(folder / "labelsTr" / f"{case}.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
        (folder / "records" / f"{case}.json").write_text(json.dumps(record))
