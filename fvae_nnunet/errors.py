"""Exception that commands turn into a message and an exit status, and a helper for lists in messages."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Invalid input or a missing prerequisite; the message says what was wrong, where, and what to do.

    Commands print the message without a traceback and exit with status 1.
    """


def some_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first ``most`` items for a message, and add the number of further items."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])
