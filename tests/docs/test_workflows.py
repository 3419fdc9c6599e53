"""Workflows as the pages and their configurations show them: calls of Snakemake, and the options of views."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from commands_for_tests import parsed

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
CONFIGURATIONS = [*(PROJECT / "scripts").glob("**/*.yaml"), PROJECT / "docs" / "reproduce.md"]


def shown_calls() -> list[list[str]]:
    """Calls of Snakemake on all pages, as words."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^ *(snakemake .*)$", text, flags=re.MULTILINE)]


def shown_views() -> list[str]:
    """Options of views, also of lines that are comments."""
    text = "\n".join(path.read_text() for path in CONFIGURATIONS)
    return re.findall(r"^[# ]*- (--view [^#\n]+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for words in shown_calls()])
def test_a_shown_call_names_what_there_is(words):
    snakefile = PROJECT / words[words.index("-s") + 1]
    assert all((PROJECT / word).is_file() for word in words if word.startswith("scripts/"))
    if "--workflow-profile" in words:
        profile = snakefile.parent / "profiles" / words[words.index("--workflow-profile") + 1]
        assert yaml.safe_load((profile / "config.yaml").read_text())["executor"]
    if "--config" in words:
        given = words[words.index("--config") + 1 :]
        known = importlib.import_module(f"{snakefile.parent.name}.setting").KEYS
        assert {word.partition("=")[0] for word in given} <= set(known)


def test_every_workflow_is_shown():
    snakefiles = {str(path.relative_to(PROJECT)) for path in (PROJECT / "scripts").glob("*/Snakefile")}
    assert {words[words.index("-s") + 1] for words in shown_calls()} == snakefiles


@pytest.mark.parametrize("options", dict.fromkeys(shown_views()))
def test_the_options_of_a_shown_view_are_those_of_the_command(options, monkeypatch):
    parsed(["fvae-preprocess", "7", "-c", "3d_fullres", "-p", "nnUNetPlans", *shlex.split(options)], monkeypatch)
