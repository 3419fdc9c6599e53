"""The command lines that README.md and docs/ show are ones that the commands take."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from commands_for_tests import COMMANDS, parsed

from fvae_nnunet.cli import train_ldm
from fvae_nnunet.training.views import default_view_name

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def shown_commands(page: Path) -> list[list[str]]:
    """The lines of a page's code blocks that begin with one of our commands, as words."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).splitlines() + re.findall(r"^    (.*)", text, flags=re.MULTILINE)
    lines = [line.removeprefix("+").strip().replace("...", "") for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.split(" ")[0] in COMMANDS]


SHOWN = [pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in shown_commands(page)]


def test_the_guide_names_every_command():
    assert set(re.findall(r"fvae-[a-z-]*[a-z]", (PROJECT / "docs" / "guide.md").read_text())) >= set(COMMANDS)


@pytest.mark.parametrize("words", SHOWN)
def test_a_shown_command_is_one_that_the_command_takes(words, monkeypatch):
    parsed(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_shown_model_folder_is_where_the_shown_training_writes(page, monkeypatch):
    """``--ldm`` is spelled out; the training that the page shows before decides its name."""
    monkeypatch.setattr("fvae_nnunet.nnunet.folders.nnunet_folder", lambda name: Path("results"))
    written = set()
    for words in shown_commands(page):
        arguments = parsed(words, monkeypatch)
        if words[0] == "fvae-train-ldm":
            dataset = argparse.Namespace(name=f"Dataset{int(arguments.dataset):03d}_X")
            written.add(train_ldm._output_folder(arguments, dataset, default_view_name(arguments.vae)))
        elif words[0] == "fvae-synthesize" and "fvae_ldm__" in str(arguments.ldm):
            dataset_name, model = Path(arguments.ldm).parts[-2:]
            assert Path("results") / f"{dataset_name[:10]}_X" / model in written, words
