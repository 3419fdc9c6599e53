"""Command lines for messages, built from parameters."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_SINGLE_DASH = ("device", "num_parts", "part_id", "plans_name", "prev_stage_predictions")
"""Parameters with a single dash, besides those of one or two letters, as in nnU-Net's own commands."""

_RENAMED = {"hu_windows": "--hu-window", "overlap_slices": "--overlap", "posterior_seed": "--sample-posterior"}


def option_of(parameter: str) -> str:
    """Option of a parameter on the command line: ``--vae-code`` for vae_code, ``-np`` for np."""
    if len(parameter) <= 2 or parameter in _SINGLE_DASH:
        return f"-{parameter}"
    return _RENAMED.get(parameter, f"--{parameter.replace('_', '-')}")


def options_of(parameters: Mapping[str, Any]) -> list[str]:
    """Words of a command line for these parameters, in their order.

    Args:
        parameters: values by name. True gives the option alone; None and False are left out. The items of a list or
            tuple follow one option, but a list of lists repeats the option for each inner list.
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
    """Command line that can be pasted into a shell.

    Args:
        program: name of the program, such as fvae-preprocess.
        words: positional arguments, before the options.
        parameters: as for ``options_of``.
    """
    return shlex.join([program, *map(str, words), *options_of(parameters)])


def _word(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
