"""Exception that commands turn into a message and an exit status, and a helper for lists in messages."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Invalid input or a missing prerequisite; the message says what was wrong, where, and what to do.

    Commands print the message without a traceback and exit with status 1.
    """


def some_of(items: Iterable[object], most: int = 10, separator: str = ", ") -> str:
    """Join the first ``most`` items for a message, and add the number of further items."""
    texts = [str(item) for item in items]
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join(texts[:most] + more)
