"""The paper's tables: the numbers that can be derived from each other, and how they are shown."""

from __future__ import annotations

import math
import sys

import pytest
from report_for_tests import Page

from fvae_nnunet.cli.report import main
from fvae_nnunet.report.paper import TASKS, paper_tables

MODELS = ["Wan 2.1", "Wan 2.2", "VideoVAE+", "IV-VAE", "CV-VAE", "WF-VAE", "LeanVAE", "MedVAE", "MAISI"]


def nsd_gain(task: str, model: str) -> float:
    rows = {
        row["training_data"]: row["labels"]["tumour"]["nsd"] for row in paper_tables()["tasks"][task]["segmentation"]
    }
    return rows[model] - rows["real CT"]


def test_the_headline_gain_is_the_mean_over_lung_and_pancreas_of_one_row():
    tables = paper_tables()
    headline = tables["headline_nsd_gain_percent"]
    # of four numbers with one digit: the mean of two differences is off by at most 0.1
    gains = {model: (nsd_gain("lung", model) + nsd_gain("pancreas", model)) / 2 for model in MODELS}
    assert gains["Wan 2.2"] == pytest.approx(headline, abs=0.1 + 1e-9)
    assert gains["Wan 2.2"] == max(gains.values())


def test_psnr_and_mse_of_every_row_belong_together():
    """With 255 as data range, the mean PSNR is above that of the mean MSE (Jensen), by what the cases' spread explains.

    A digit that was copied wrongly falls out of these narrow ranges.
    """
    for task, lowest, highest in (("lung", 1.0, 1.9), ("pancreas", 0.25, 0.48)):
        for row in paper_tables()["tasks"][task]["reconstruction"]:
            of_mean_mse = 10 * math.log10(255**2 / row["mse"])
            assert lowest < row["psnr_db"] - of_mean_mse < highest, (task, row["model"])


def test_every_task_has_all_rows_in_one_order_and_possible_values():
    tasks = paper_tables()["tasks"]
    assert tuple(tasks) == TASKS
    for task, content in tasks.items():
        assert [row["model"] for row in content["reconstruction"]] == MODELS
        assert [row["training_data"] for row in content["segmentation"]] == ["real CT", *MODELS]
        for row in content["reconstruction"]:
            assert 25 < row["psnr_db"] < 45 and 0.7 <= row["ssim"] <= 1
            assert (row["mse"] is None) == (task in ("lits", "kits19"))
            assert (row["psnr_sd_db"] is None) == (task in ("lits", "kits19") or not row["model"].startswith("Wan"))
        for row in content["segmentation"]:
            assert list(row["labels"]) == content["labels"]
            for values in row["labels"].values():
                assert 30 < values["dsc"] < 100
                assert (values["nsd"] is None) == (task in ("lits", "kits19"))


def test_the_tables_alone_need_neither_results_nor_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "paper.html"
    assert main(["--paper", "-o", str(path)]) == 0
    text = path.read_text()
    page = Page(text)
    assert len(page.tables) == 2 * 4
    rows = page.table("trained on", "DSC", "NSD")
    assert ["Wan 2.1", "71.9", "75.3"] in rows
    assert ["Wan 2.1", "30.93", "4.06", "0.76", "77.97"] in page.table("VAE", "PSNR (dB)")
    assert any("These numbers are from the paper" in paragraph for paragraph in page.texts["p"])
    assert "tolerance of the NSD is not stated" in text and "no intervals" in text
    assert "standard deviation in every cell" in text and "0 to 255" in text
    # LiTS has no NSD here, so no column for it
    assert ["real CT", "94.7", "57.2"] in page.tables[4]
    assert "written:" in capsys.readouterr().out


def test_tasks_can_be_chosen_and_unknown_ones_are_refused(tmp_path, capsys):
    path = tmp_path / "paper.md"
    assert main(["--paper", "pancreas", "lung", "--format", "markdown", "-o", str(path)]) == 0
    text = path.read_text()
    assert text.index("### Pancreas") < text.index("### Lung") and "LiTS" not in text
    assert "| real CT | 82.2 | 79.2 | 42.8 | 39.8 |" in text
    assert list(tmp_path.iterdir()) == [path], "no folder of images without images"
    assert main(["--paper", "lung", "comparison.json"]) == 1
    assert "takes the tasks lung, pancreas, lits, kits19, got comparison.json" in capsys.readouterr().err
