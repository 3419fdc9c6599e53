"""The page on a device: what is wrong stands at its top, and a section that fails does not end it."""

from __future__ import annotations

import device_report
import pytest
import torch


def test_what_is_wrong_stands_at_the_top_and_the_rest_is_written(tmp_path, monkeypatch):
    def fails(page):
        raise RuntimeError("no kernel\nfor this")

    def finds(page):
        page.lines.append("all figures")
        page.problems.append("wan2.1 is 400 HU from the CPU")

    monkeypatch.setattr(device_report, "SECTIONS", {"First": fails, "Second": finds})
    assert device_report.main(["-device", "cpu", "-o", str(tmp_path / "page.md")]) == 1
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[:6] == [
        "# cpu", "", "**Wrong:**", "", "- First: RuntimeError: no kernel for this", "- wan2.1 is 400 HU from the CPU",
    ]  # fmt: skip
    assert "all figures" in lines


def test_a_case_that_keeps_memory_is_found(monkeypatch):
    page = device_report.Page(torch.device("cpu"), small=True)
    device_report.write_failed_case(page)
    assert page.problems == []
    monkeypatch.setattr("fvae_nnunet.pipeline.release", lambda error: None)
    device_report.write_failed_case(page)
    assert page.problems == ["a case that fails keeps memory from the next one"]


def test_values_that_are_not_the_cpus_are_found(monkeypatch):
    class Wrong(device_report.WanVAE):
        def _decode(self, latent):
            return super()._decode(latent).flip(-1)

    calls = []

    def wrong_on_the_device(name, device, dtype, *, small):
        calls.append(name)
        reference = len(calls) % 3 == 1
        state, config = device_report.random_wan("wan2.1", True)
        class_ = device_report.WanVAE if reference else Wrong
        return class_(state, config, name=name, source="random", device=device, dtype=dtype)

    monkeypatch.setattr(device_report, "vae_of", wrong_on_the_device)
    page = device_report.Page(torch.device("cpu"), small=True)
    device_report.write_values(page)
    assert len(page.problems) == 6 and "tiny in float32 is" in page.problems[0]


@pytest.mark.slow
def test_the_page_of_a_cpu(tmp_path):
    assert device_report.main(["-device", "cpu", "-o", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "Nothing is wrong" in text and all(f"## {title}" in text for title in device_report.SECTIONS)
