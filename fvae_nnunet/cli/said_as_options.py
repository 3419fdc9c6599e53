"""Translation of parameters in the library's messages into options of the running command.

The library does not know the options. Its messages name parameters between backticks, alone (```overlap```), with a
value (```scheme='paper'```) or as a switch (```truncate=True```).
"""

from __future__ import annotations

import argparse
import re

_PARAMETER = re.compile(r"`(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`")

_ALSO_CALLED = {"eta": "sampling_eta", "lesions": "lesion", "steps": "sampling_steps"}
"""Parameter -> name that its option has in some commands."""

_options: dict[str, str] = {}


def speak_for(parser: argparse.ArgumentParser) -> None:
    """Use the options of this command and its subcommands in messages from now on."""
    _options.clear()
    _options.update(_options_by_parameter(parser))


def said_as_options(message: str) -> str:
    """Return the message with options for parameters: ``--overlap``, ``--scheme paper``, ``--truncate`` above.

    Names that are not parameters of the command are left unchanged.
    """
    return _PARAMETER.sub(_as_option, message)


def _as_option(found: re.Match[str]) -> str:
    option, value = _options.get(found["name"]), found["value"]
    if option is None:
        return found[0]
    return option if value in (None, "True") else f"{option} {value.strip(chr(39))}"


def _options_by_parameter(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Map ``dest`` and the option's own name to the option: ``processes`` and ``np`` to ``-np``."""
    options: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                options = _options_by_parameter(command) | options
        else:
            names = (name.lstrip("-").replace("-", "_") for name in action.option_strings)
            option = action.option_strings[0] if action.option_strings else str(action.metavar)
            options = dict.fromkeys(names, option) | options | {action.dest: option}
    options |= {name: options[dest] for name, dest in _ALSO_CALLED.items() if dest in options and name not in options}
    return options
