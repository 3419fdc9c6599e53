"""Options that stand in one place, and calls of the library with them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fvae_nnunet.cli.common_options import add_common, from_options, given_options
from fvae_nnunet.cli.parsers import CommandParser


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser("fvae-x: what it is.\n\nWhat its help\nsays.\n")
    add_common(parser, "processes", "hu_window")
    add_common(parser, "learning_rate", default=0.5, help="other words")
    return parser


def test_a_commands_help_is_its_modules_documentation(parser):
    assert parser.prog == "fvae-x"
    assert "What its help says." in parser.format_help() and "what it is" not in parser.format_help()


def test_a_command_may_change_a_common_option(parser):
    arguments = parser.parse_args(["-np", "3"])
    assert (arguments.processes, arguments.hu_window, arguments.learning_rate) == (3, None, 0.5)
    assert "--lr RATE" in parser.format_help() and "other words" in parser.format_help()


def test_given_options_are_named_as_a_user_writes_them(parser):
    arguments = parser.parse_args(["-np", "3", "--lr", "0.1", "--hu-window", "0", "1"])
    assert given_options(parser, arguments, {"processes", "learning_rate"}) == ["-np", "--lr"]
    assert given_options(parser, parser.parse_args(["-np", "2"]), {"processes"}) == []


@dataclass
class Settings:
    folder: Path
    processes: int
    learning_rate: float
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    steps: int = 7


def test_settings_take_options_by_name_and_keep_their_own_defaults(parser):
    settings = from_options(Settings, parser.parse_args([]), folder=Path("a"), learning_rate=0.25)
    assert settings == Settings(Path("a"), 2, 0.25)
    arguments = parser.parse_args(["--hu-window", "-160", "240"])
    assert from_options(Settings, arguments, folder=Path("a")).hu_window == (-160.0, 240.0)


def test_an_option_that_is_left_open_is_none_where_the_parameter_has_no_default(parser):
    def function(hu_window: tuple[float, float] | None, steps: int = 7) -> tuple:
        return hu_window, steps

    assert from_options(function, parser.parse_args([])) == (None, 7)
