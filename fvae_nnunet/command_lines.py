"""Commands that a message tells the user to run, made from parameters."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_SINGLE_DASH = ("device", "num_parts", "part_id", "plans_name")
"""Besides names of one or two letters, as in nnU-Net's own commands."""

_RENAMED = {"hu_windows": "--hu-window", "overlap_slices": "--overlap", "posterior_seed": "--sample-posterior"}


def option_of(parameter: str) -> str:
    """What a parameter is called on the command line: ``--vae-code`` for vae_code, ``-np`` for np."""
    if len(parameter) <= 2 or parameter in _SINGLE_DASH:
        return f"-{parameter}"
    return _RENAMED.get(parameter, f"--{parameter.replace('_', '-')}")


def options_of(parameters: Mapping[str, Any]) -> list[str]:
    """The words that give parameters on a command line, in their order.

    Args:
        parameters: by name. True is the option alone, None and False are left out; the items of a list or tuple follow
            one option, and each of its items that is itself a list has an option of its own.
    """
    words = []
    for parameter, value in parameters.items():
        option = option_of(parameter)
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, (list, tuple)):
            for items in value if value and isinstance(value[0], (list, tuple)) else [value]:
                words += [option, *map(_word, items)]
        else:
            words += [option, _word(value)]
    return words


def command_line(program: str, /, *words: object, **parameters: Any) -> str:
    """A line that can be pasted into a shell.

    Args:
        program: such as fvae-preprocess.
        words: what stands before the options.
        parameters: as for ``options_of``.
    """
    return shlex.join([program, *map(str, words), *options_of(parameters)])


def _word(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
