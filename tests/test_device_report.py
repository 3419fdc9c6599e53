"""The page on a machine's device: what counts as wrong, what a section that dies leaves, and the whole in small."""

import subprocess
import sys
from pathlib import Path

import device_report
import device_sections
import numpy as np
import pytest
import torch
from device_report import measured_apart, page
from device_sections import MOST_RMS_HU, Measured, Setting

SMALL = Setting("cpu", small=True)
SCRIPT = Path(device_report.__file__).with_name("device_report.sh")


def test_the_page_says_first_what_is_wrong():
    good = Measured("Speed", ["VAE", "Mvoxel/s"], [["wan2.1", "35"]], ["A note."])
    bad = Measured("Values").with_problem("wan2.2 differs by 90 HU").with_problem("so does tiny")
    text = page([good, bad], {"Speed": 12.4, "Values": 3})
    assert text.startswith(
        "# Device report\n\n**2 found wrong:**\n\n- Values: wan2.2 differs by 90 HU\n- Values: so does tiny\n"
    )
    assert "## Speed\n\n| VAE | Mvoxel/s |\n|---|---|\n| wan2.1 | 35 |\n\nA note.\n\n(12 s)\n" in text
    assert "**Nothing found wrong.**" in page([good], {"Speed": 1})


def test_a_device_that_is_right_is_not_blamed_and_one_that_is_not_is(monkeypatch):
    found = device_sections.values(SMALL)
    assert [row[:2] for row in found.rows] == [
        [vae, precision] for vae in ("tiny", "wan2.1", "wan2.2") for precision in ("float32", "bfloat16")
    ]
    assert found.problems == []
    assert all(float(row[2]) == 0 for row in found.rows if row[1] == "float32"), "the same device"
    assert all(0.5 < float(row[2]) < MOST_RMS_HU["bfloat16"] for row in found.rows if row[1] == "bfloat16")

    right = device_sections.reconstructed

    def wrong(vae, volume_hu):
        hu = right(vae, volume_hu)
        return hu if vae.dtype == torch.float32 else np.where(hu > 0, hu, hu - 80)

    monkeypatch.setattr(device_sections, "reconstructed", wrong)
    problems = device_sections.values(SMALL).problems
    assert len(problems) == 3 and "tiny in bfloat16 differs from the CPU by" in problems[0]


def test_a_section_that_dies_or_hangs_is_a_finding(monkeypatch):
    lost = measured_apart("values", Setting("no such device", small=True))
    assert lost.title == "Values" and "its process ended with status" in lost.problems[0]
    monkeypatch.setattr(device_report, "LIMIT_S", 0.2)
    assert measured_apart("values", SMALL).problems == ["did not end within 0 s"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
def test_the_command_in_small(tmp_path):
    done = subprocess.run(
        ["sh", str(SCRIPT), "--small", "-device", "cpu", "-o", str(tmp_path / "page.md")],
        env=dict(device_sections.os.environ) | {"PYTHON": sys.executable, "nnUNet_compile": "f"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = (tmp_path / "page.md").read_text()
    assert done.returncode == 0, text + done.stderr
    assert "**Nothing found wrong.**" in done.stdout
    for title in ("Machine and versions", "Values: ", "Speed: ", "fvae-preprocess, 3 phantoms", "Training, phantoms"):
        assert f"\n## {title}" in text
    assert "| nnUNetTrainerFVAEOnline | tiny |" in text


def test_without_a_gpu_only_the_small_one(tmp_path, capsys):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    assert device_report.main(["-o", str(tmp_path / "page.md")]) == 1
    assert "--small tries the report out on the CPU" in capsys.readouterr().err
    assert device_report.main(["--small", "-o", str(tmp_path / "page.txt")]) == 1
