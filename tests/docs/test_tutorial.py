"""The tutorial runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def said(cell) -> str:
    parts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(parts)


@pytest.mark.slow
def test_the_tutorial_runs_and_its_numbers_are_plausible():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    text = "\n".join(said(cell) for cell in notebook.cells if cell.cell_type == "code")
    errors_hu = {name: float(flat) for name, flat in re.findall(r"(raw|view): +([\d.]+) HU in flat", text)}
    assert errors_hu["view"] < 0.8 * errors_hu["raw"]
    assert "'Dice': 0." in text and "trained" in text
    diameter_mm = float(re.search(r"diameter ([\d.]+) mm", text)[1])
    assert diameter_mm == pytest.approx(20, abs=2)
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
