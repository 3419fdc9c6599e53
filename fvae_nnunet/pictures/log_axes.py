"""Plain numbers on logarithmic axes; matplotlib's labels are math text, which pictures with file names do not parse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: each decade, and steps between if there are few decades."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
