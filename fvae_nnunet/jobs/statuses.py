"""Exit statuses of commands that process many cases."""

from __future__ import annotations

from collections.abc import Iterable

INCOMPLETE = 75
"""Exit status if other processes still work on cases (EX_TEMPFAIL of sysexits.h)."""


def joint_status(statuses: Iterable[int]) -> int:
    """Exit status of several runs: that of the first that failed; else ``INCOMPLETE`` if one is incomplete, else 0."""
    return max(statuses, key=lambda status: 0 if status == 0 else 1 if status == INCOMPLETE else 2, default=0)
