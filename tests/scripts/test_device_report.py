"""The page on a device: what is wrong stands at its top, and a section that fails does not end it."""

import device_report
import device_sections
import pytest
import torch
from device_report import measured_apart, page
from device_sections import Part

CPU = torch.device("cpu")
COMMANDS = "fvae-preprocess on many cases"


def test_what_is_wrong_stands_at_the_top_and_the_rest_is_written():
    good, bad = Part(CPU, True), Part(CPU, True)
    good.table(("VAE", "Mvoxel/s"), [("wan2.1", 35)])
    bad.problems += ["wan2.1 is 400 HU from the CPU", "so is tiny"]
    assert page("cpu", {"Speed": good, "Values": bad}).splitlines() == [
        "# cpu", "", "**Wrong:**", "", "- Values: wan2.1 is 400 HU from the CPU", "- Values: so is tiny", "",
        "## Speed", "", "| VAE | Mvoxel/s |", "| --- | --- |", "| wan2.1 | 35 |", "", "## Values", "",
    ]  # fmt: skip
    assert "Nothing is wrong that this page looks at." in page("cpu", {"Speed": good})


@pytest.mark.slow
def test_a_section_that_fails_or_hangs_is_a_finding_and_says_why(monkeypatch):
    monkeypatch.setattr(device_report, "LIMIT_S", 0.2)
    assert measured_apart("Versions", "cpu", small=True).problems == ["did not end within 0 s"]
    monkeypatch.undo()
    lost = measured_apart("no such section", "cpu", small=True)
    assert "its process ended with status 2: " in lost.problems[0] and "invalid choice" in lost.problems[0]


def test_an_error_in_a_section_becomes_a_problem(monkeypatch, capsys):
    def fails(part):
        part.lines.append("as far as this")
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(device_report, "SECTIONS", {"Values": fails})
    monkeypatch.setattr(device_report.os, "_exit", lambda status: None)
    device_report._measure("Values", Part(CPU, True))
    assert '[["as far as this"], ["RuntimeError: no kernel for this"]]' in capsys.readouterr().out


def test_a_case_that_keeps_memory_is_found(monkeypatch):
    part = Part(CPU, True)
    device_sections.write_failed_case(part)
    assert part.problems == []
    monkeypatch.setattr("fvae_nnunet.jobs.pipeline.release", lambda error: None)
    device_sections.write_failed_case(part)
    assert part.problems == ["a case that fails keeps memory from the next one"]


@pytest.mark.slow
def test_values_that_are_not_the_cpus_are_found(monkeypatch):
    class Wrong(device_sections.WanVAE):
        def _decode(self, latent):
            return super()._decode(latent).flip(-1)

    calls = []

    def wrong_on_the_device(name, device, dtype, *, small):
        reference = name not in calls
        calls.append(name)
        state, config = device_sections.random_wan("wan2.1", True)
        class_ = device_sections.WanVAE if reference else Wrong
        return class_(state, config, name=name, source="random", device=device, dtype=dtype)

    monkeypatch.setattr(device_sections, "vae_of", wrong_on_the_device)
    part = Part(CPU, True)
    device_sections.write_values(part)
    assert len(part.problems) == 3 + 4 + 4 and "tiny in float32 is" in part.problems[0]


def test_without_a_gpu_only_the_small_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_report.main(["-o", str(tmp_path / "page.md")]) == 1
    assert "use --small to try out the report on the CPU" in capsys.readouterr().err
    assert device_report.main(["--small", "-o", str(tmp_path / "page.txt")]) == 1


@pytest.mark.slow
def test_the_page_of_a_cpu(tmp_path, monkeypatch):
    """Without the sections that run other commands, which have tests of their own and take minutes."""
    quick = {title: write for title, write in device_report.SECTIONS.items() if title not in ("Training", COMMANDS)}
    monkeypatch.setattr(device_report, "SECTIONS", quick)
    assert device_report.main(["-device", "cpu", "--small", "-o", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert len(quick) == 7
    assert "Nothing is wrong" in text and all(f"\n## {title}\n" in text for title in quick)
