"""Reading of JSON files with checks; an error message names the file, the first problem and a remedy.

A shape describes the content, as far as it is used:

- a type (``float``: any number; ``object``: anything), ``None``, or a tuple: any one of these;
- ``[shape]``: a list of values of this shape;
- ``{"name": shape, "other?": shape, "*": shape}``: an object that must have ``name`` and may have ``other``; further
  entries must have the shape of ``*``, or are not checked if there is none;
- a ``Rule``: a value that fulfils a condition.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError

REPAIR = "Restore it from a copy, or repeat the step that wrote it"

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object",
          list: "a list", None: "null"}  # fmt: skip
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Rule:
    """Condition on a JSON value.

    Attributes:
        expected: expected value, for the message: ``"text"``, ``"two numbers, the lower first"``.
        holds: whether a JSON value fulfils the condition; may raise TypeError for a value of another type.
    """

    expected: str
    holds: Callable[[Any], bool]


def read_json(path: Path, shape: Any = object, *, remedy: str = REPAIR) -> Any:
    """Read a JSON file in UTF-8 and check its content.

    Args:
        path: path of the file.
        shape: see the module.
        remedy: what to do if the file is damaged: a sentence without its full stop.

    Raises:
        UserError: the file cannot be read, is not JSON, or has another shape.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid JSON (not UTF-8: {error.reason}). {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). {remedy}") from error
    check_shape(path, content, shape, remedy=remedy)
    return content


def check_shape(path: Path, content: Any, shape: Any, *, remedy: str = REPAIR) -> None:
    """Raise UserError with the first problem unless the content of a file has this shape."""
    wrong = next(problems(content, shape), None)
    if wrong is not None:
        raise UserError(f"{path} is damaged or incomplete: {wrong}. {remedy}")


def problems(value: Any, shape: Any, place: str = "") -> Iterator[str]:
    """Yield a sentence for each deviation from a shape, such as ``folds[2].val must be a list, not null``."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            yield _not(value, "an object", place)
            return
        named = {name.removesuffix("?"): name for name in shape if name != "*"}
        for name, written in named.items():
            if name in value:
                yield from problems(value[name], shape[written], _inside(place, name))
            elif written == name:
                yield f"{place or 'it'} lacks {name}"
        for name in value if "*" in shape else ():
            if name not in named:
                yield from problems(value[name], shape["*"], _inside(place, name))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield _not(value, "a list", place)
            return
        for number, entry in enumerate(value):
            yield from problems(entry, shape[0], f"{place}[{number}]")
    elif isinstance(shape, tuple):
        of_each = [list(problems(value, one, place)) for one in shape]
        if all(of_each):
            yield from of_each[0]
    elif not _holds(value, shape):
        yield _not(value, shape.expected if isinstance(shape, Rule) else _NAMES[shape], place)


def _holds(value: Any, shape: Any) -> bool:
    if isinstance(shape, Rule):
        try:
            return shape.holds(value)
        except TypeError:
            return False
    if shape is None:
        return value is None
    if isinstance(value, bool) and shape in (int, float):
        return False
    return isinstance(value, int | float if shape is float else shape)


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _not(value: Any, expected: str, place: str) -> str:
    shown = json.dumps(value)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} ..."
    return f"{place or 'its content'} must be {expected}, not {shown}"
