"""Formatting of numbers for terminal, reports, pictures and messages: the same number always gives the same text.

The number of digits depends only on the quantity. A minus is a true minus sign, zero has no sign, and undefined values
are shown as `NOT_DEFINED`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_DEFINED = "n/a"
"""Shown for an undefined value (NaN), such as a DSC without cases or the interval of a single case."""

FORMATS = {
    "": ".3f",
    "%": ".1f",
    "share": ".2f",
    "mm": ".1f",
    "mm of a shift": ".2f",
    "per case": ".2f",
    "HU": ".1f",
    "HU²": ".1f",
    "dB": ".2f",
    "of [0, 1]²": ".2e",
    "distance": "#.4g",
    "count": ".0f",
    "of the paper": ".2f",
    "s": ".1f",
    "MB": ".1f",
}
"""Quantity (usually its unit) -> format; "": DSC, NSD, rates, AUC, ratios and cosines; "share": share of a lesion."""

PERCENTILE_MARK = "*"
"""Mark after an interval that is not BCa."""

SHA256_SHOWN = 12
"""Number of characters of a sha256 that are shown."""


def number(value: float | None, quantity: str = "", *, signed: bool = False) -> str:
    """Format a value with the digits of its quantity, without the unit.

    Args:
        value: any value; NaN becomes `NOT_DEFINED`, None an empty text.
        quantity: a key of `FORMATS`.
        signed: whether positive values get a plus.
    """
    if value is None:
        return ""
    if math.isnan(value):
        return NOT_DEFINED
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    text = f"{value:{'+' if signed else ''}{FORMATS[quantity]}}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.rstrip(".").replace("-", "−")


def interval(low: float, high: float, quantity: str = "", *, signed: bool = False) -> str:
    """Format as ``0.51 to 0.62``; `NOT_DEFINED` if an end is NaN."""
    if math.isnan(low) or math.isnan(high):
        return NOT_DEFINED
    return f"{number(low, quantity, signed=signed)} to {number(high, quantity, signed=signed)}"


def interval_of(entry: Mapping[str, Any], quantity: str = "", *, signed: bool = False) -> str:
    """Format the ``interval`` of an entry, with `PERCENTILE_MARK` if its ``interval_method`` is percentile."""
    if entry["interval_method"] == "none":
        return NOT_DEFINED
    low, high = entry["interval"]
    mark = PERCENTILE_MARK if entry["interval_method"] == "percentile" else ""
    return f"{interval(low, high, quantity, signed=signed)}{mark}"


def p_value(p: float) -> str:
    """Format with three decimals, as ``<0.001`` below that."""
    return NOT_DEFINED if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "<0.001"


def percent(share: float) -> str:
    """``95 %`` for 0.95, ``2.5 %`` for 0.025: at most one decimal."""
    return NOT_DEFINED if math.isnan(share) else f"{number(100 * share, '%').removesuffix('.0')} %"


def counted(n: int, thing: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def nsd_name(tolerance_mm: float) -> str:
    """``NSD 2 mm``: name of an NSD with its tolerance."""
    return f"NSD {tolerance_mm:g} mm"


def short_sha256(sha256: str | None) -> str:
    return "not recorded" if sha256 is None else sha256[:SHA256_SHOWN]


def is_number(value: Any) -> bool:
    """Whether the value is not None and finite."""
    return value is not None and math.isfinite(value)
