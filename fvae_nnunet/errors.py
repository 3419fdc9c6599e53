"""The one exception that commands turn into a message and an exit status, and lists in its messages."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Bad input or a missing prerequisite: the message says what was wrong, where, and what to do.

    Commands print the message without a traceback and exit with status 1.
    """


def some_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of many items, for a message, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])
