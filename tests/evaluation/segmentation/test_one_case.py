"""Scores of one segmentation: of files, arrays and tensors, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from painted_cases import write_image

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.one_case import score
from fvae_nnunet.evaluation.segmentation.scoring import score_folders
from fvae_nnunet.evaluation.segmentation.summary import summarise

SPACING_MM = (3.0, 1.0, 1.0)
REFERENCE = np.zeros((6, 12, 12), np.uint8)
REFERENCE[1:5, 2:10, 2:10] = 1
REFERENCE[2:4, 4:8, 4:8] = 2
PREDICTION = np.roll(REFERENCE, 1, axis=2)


def write_folders(folder, *, labels):
    for name, array in (("labelsTs", REFERENCE), ("predictions", PREDICTION)):
        write_image(folder / name / "case.nii.gz", array, spacing_mm=SPACING_MM)
    content = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "labelsTs" / "case.nii.gz", folder / "predictions" / "case.nii.gz"


def test_files_are_scored_as_the_command_scores_folders(tmp_path):
    reference, prediction = write_folders(tmp_path, labels={"background": 0, "organ": 1, "tumour": 2})
    scores = score(str(reference), prediction, tolerance_mm=[1, 2])
    assert list(scores) == ["organ", "tumour"]
    summary = summarise(score_folders(reference.parent, [prediction.parent], tolerances_mm=(1.0, 2.0)))
    (case,) = summary["metric_per_case"]
    for value, name in (("1", "organ"), ("2", "tumour")):
        expected = {key: case["metrics"][value][key] for key in scores[name]}
        assert scores[name] == pytest.approx(expected, nan_ok=True)
    assert scores["tumour"]["Dice"] == pytest.approx(2 * 24 / 64)  # 2 x 4 x 3 of 2 x 4 x 4 voxels
    assert scores["tumour"]["HD95_mm"] == pytest.approx(1.0)


def test_arrays_and_tensors_need_their_spacing_and_name_labels_by_value():
    scores = score(REFERENCE, torch.from_numpy(PREDICTION), spacing_mm=SPACING_MM)
    assert list(scores) == ["1", "2"]
    assert scores["2"]["Dice"] == pytest.approx(0.75)
    regions = score(REFERENCE, PREDICTION, labels={"all": (1, 2), "none": 5}, spacing_mm=SPACING_MM, tolerance_mm=1.0)
    assert regions["all"]["Dice"] == pytest.approx(7 / 8) and regions["all"]["NSD_1mm"] == 1
    assert math.isnan(regions["none"]["Dice"])
    with pytest.raises(UserError, match="give spacing_mm"):
        score(REFERENCE, PREDICTION)


def test_two_labels_of_one_value_are_refused():
    labels = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(UserError, match="two labels have the same value"):
        score(labels, labels, labels={"a": 1, "b": 1}, spacing_mm=(1, 1, 1))


def test_what_does_not_belong_together_is_refused(tmp_path):
    reference, prediction = write_folders(tmp_path, labels={"background": 0, "organ": 1})
    with pytest.raises(UserError, match=r"holds labels that are not in dataset\.json: 2"):
        score(reference, prediction)
    write_image(prediction, PREDICTION, spacing_mm=SPACING_MM, origin_mm=(1.0, 0.0, 0.0))
    with pytest.raises(UserError, match="differ in origin"):
        score(reference, prediction)
    with pytest.raises(UserError, match="must be volumes of equal shape"):
        score(REFERENCE, PREDICTION[1:], spacing_mm=SPACING_MM)
