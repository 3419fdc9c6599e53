import argparse

import pytest

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.cli.said_as_options import said_as_options, speak_for
from fvae_nnunet.errors import UserError


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser(prog="fvae-example")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("-np", dest="processes", type=int, default=0)
    parser.add_argument("--overlap", dest="overlap_slices")
    parser.add_argument("--scheme")
    parser.add_argument("--truncate", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("said", "as_options"),
    [
        ("with `scheme='paper'` leave `overlap_slices` out", "with --scheme paper leave --overlap out"),
        ("use `truncate=True`, not `truncate`", "use --truncate, not --truncate"),
        ("use fewer `processes` or `processes=0`", "use fewer -np or -np 0"),
        ("`overlap` is called so, too", "--overlap is called so, too"),
        ("`folder` is no folder", "FOLDER is no folder"),
        ("`labels` are not its parameter, `hf download X` is a command", None),
    ],
)  # fmt: skip
def test_parameters_become_options(parser, said, as_options):
    speak_for(parser)
    assert said_as_options(said) == (said if as_options is None else as_options)


def test_subcommands_have_their_options():
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("ct-rate").add_argument("--volumes")
    speak_for(parser)
    assert said_as_options("give `volumes`") == "give --volumes"


def test_a_command_says_the_librarys_errors_in_its_options(parser, capsys):
    def run(arguments: argparse.Namespace) -> int:
        raise UserError("leave `overlap_slices` out")

    assert run_command(parser, run, ["x"]) == 1
    assert capsys.readouterr().err == "fvae-example: leave --overlap out\n"
