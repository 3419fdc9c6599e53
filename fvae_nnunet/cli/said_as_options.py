"""Parameters in a message of the library, said as the options of the command that runs.

The library knows no options: its messages name parameters between backticks, alone (```overlap```), with a value
(```scheme='paper'```) or as a switch (```truncate=True```).
"""

from __future__ import annotations

import argparse
import re

_PARAMETER = re.compile(r"`(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`")

_options: dict[str, str] = {}


def speak_for(parser: argparse.ArgumentParser) -> None:
    """Messages are said in the options of this command, and of its subcommands, from now on."""
    _options.clear()
    _options.update(_options_by_parameter(parser))


def said_as_options(message: str) -> str:
    """The message with ``--overlap``, ``--scheme paper`` and ``--truncate`` for the examples above.

    What is no parameter of the command stays as it is.
    """
    return _PARAMETER.sub(_as_option, message)


def _as_option(found: re.Match[str]) -> str:
    option, value = _options.get(found["name"]), found["value"]
    if option is None:
        return found[0]
    return option if value in (None, "True") else f"{option} {value.strip(chr(39))}"


def _options_by_parameter(parser: argparse.ArgumentParser) -> dict[str, str]:
    """By ``dest``, and by the option's own name: ``-np`` is ``processes`` and ``np``."""
    options: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                options = _options_by_parameter(command) | options
        else:
            names = (name.lstrip("-").replace("-", "_") for name in action.option_strings)
            option = action.option_strings[0] if action.option_strings else str(action.metavar)
            options = dict.fromkeys(names, option) | options | {action.dest: option}
    return options
