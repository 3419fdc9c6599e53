"""Numbers as a reader sees them: digits by unit, a true minus sign, words for what is not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fvae_nnunet.evaluation.segmentation.comparison_tables import interval_text

NOT_THERE = "none"
"""Shown for a value that does not exist (NaN)."""

_DIGITS = {"": 3, "mm": 2, "per case": 2}

SHA256_SHOWN = 12
"""Characters of a sha256 that a reader sees."""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A value with so many digits after the point; `NOT_THERE` for NaN, nothing for None."""
    if value is None:
        return ""
    if math.isnan(value):
        return NOT_THERE
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def of_measure(measure: Mapping[str, Any], value: float | None, *, signed: bool = False) -> str:
    """A value of a measure of ``comparison.json``: three digits, or two if it is in mm or per case."""
    return number(value, _DIGITS.get(measure["unit"], 3), signed=signed)


def interval(measure: Mapping[str, Any], entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """The interval of a model or comparison of ``comparison.json``."""
    return interval_text(entry, lambda end: of_measure(measure, end, signed=signed))


def percent(share: float) -> str:
    """``95 %`` of 0.95."""
    return f"{100 * share:g} %"


def count(value: int | None) -> str:
    """A count; nothing for None."""
    return "" if value is None else str(value)


def short_sha256(sha256: str | None) -> str:
    return "not recorded" if sha256 is None else sha256[:SHA256_SHOWN]


def is_number(value: Any) -> bool:
    """Whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def counted(n: int, thing: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"
