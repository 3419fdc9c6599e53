"""HU windows: the paper's and the named ones."""

from __future__ import annotations

import math

from fvae_nnunet.errors import UserError

HUWindow = tuple[float, float]
"""Lower and upper end in HU."""

PAPER_HU_WINDOW: HUWindow = (-1000.0, 1000.0)
"""The window of the paper's reconstruction scripts."""

NAMED_WINDOWS: dict[str, HUWindow] = {"lung": (-1000.0, -300.0), "soft": (-200.0, 300.0), "bone": (150.0, 2000.0)}
"""Narrow windows to insert into a wide one: lung parenchyma; soft tissue incl. fat and contrast agent; bone."""


def check_hu_window(hu_window: tuple[float, float]) -> HUWindow:
    """The window as two floats; UserError unless both are finite and lower < upper."""
    lower, upper = (float(end) for end in hu_window)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise UserError(f"the HU window needs lower < upper, got {lower:g} {upper:g} (the paper's: -1000 1000)")
    return lower, upper
