"""The page of all commands, from their parsers."""

from __future__ import annotations

import argparse

import command_reference
from commands_for_tests import COMMANDS


def test_every_installed_command_has_its_options_on_the_page():
    parsers = command_reference.parsers()
    assert parsers.keys() == COMMANDS.keys()
    page = command_reference.page(parsers)
    sections = {section.split("\n")[0]: section for section in page.split("\n## ")[1:]}
    assert sections.keys() == COMMANDS.keys()
    assert "<code>--overlap N</code>" in sections["fvae-preprocess"]
    assert "\n### fvae-convert check\n" in sections["fvae-convert"]
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.dest not in command_reference.OF_ALL_COMMANDS:
                assert all(f"<code>{option}" in sections[name] for option in action.option_strings)


def test_options_are_explained_with_their_defaults_and_nothing_becomes_markup():
    parser = argparse.ArgumentParser(prog="x", description="What\n  x_does.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "-k", "--keep", choices=("a", "b"), default="a", help="<which> of *a* | b;\n default %(default)s"
    )
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    commands = parser.add_subparsers()
    commands.add_parser("y", help="another")
    lines = command_reference.page({"x": parser}).splitlines()
    assert "What x&#95;does." in lines
    assert lines[lines.index("<code>FILE [FILE ...]</code>") + 1] == ":   "
    assert (
        lines[lines.index("<code>-k</code>, <code>--keep {a,b}</code>") + 1]
        == ":   &lt;which&gt; of &#42;a&#42; | b; default a"
    )
    assert not any("hidden" in line for line in lines)
    assert lines[lines.index("### x FILE [FILE ...] y") + 2] == "another"
