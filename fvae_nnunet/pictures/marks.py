"""Marks on every CT picture: sides of the patient, and a scale bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fvae_nnunet.pictures.planes import Sides

BAR_LENGTHS_MM = (20.0, 10.0, 5.0, 2.0, 1.0)
LONGEST_BAR_SHARE = 0.4
"""Maximum length of the scale bar, as a fraction of a panel's width."""

_BEHIND: dict[str, Any] = {"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 1.5}


def write_on(panel: Axes, x: float, y: float, text: str, *, font_size: float, **options: Any) -> None:
    """Write white text on a dark background, at fractions of the panel's width and height (from the bottom)."""
    usual: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "transform": panel.transAxes}
    panel.text(x, y, text, fontsize=font_size, bbox=_BEHIND, zorder=5, **(usual | options))


def bar_length_mm(width_mm: float) -> float:
    """The longest of `BAR_LENGTHS_MM` within `LONGEST_BAR_SHARE` of a panel's width; otherwise the shortest."""
    fitting = (length for length in BAR_LENGTHS_MM if length <= LONGEST_BAR_SHARE * width_mm)
    return next(fitting, BAR_LENGTHS_MM[-1])


def mark_panel(panel: Axes, sides: Sides, *, font_size: float, bar: bool = True) -> None:
    """Draw letters at the four sides, and a scale bar with its length in the lower right corner.

    Args:
        panel: panel with an x axis in mm, whose limits are final.
        sides: letters for left, right, top and bottom, from `planes`.
        font_size: size of the letters in points.
        bar: whether to draw the scale bar.
    """
    for text, x, y in zip(sides, (0.035, 0.965, 0.5, 0.5), (0.5, 0.5, 0.955, 0.045), strict=True):
        write_on(panel, x, y, text, font_size=font_size)
    if not bar:
        return
    left, right = panel.get_xlim()
    length_mm = bar_length_mm(right - left)
    end = 0.95
    begin = end - length_mm / (right - left)
    for width, colour in ((4.5, "black"), (2.2, "white")):
        panel.plot(
            [begin, end], [0.05, 0.05], color=colour, linewidth=width, solid_capstyle="butt",
            transform=panel.transAxes, scalex=False, scaley=False, zorder=5,
        )  # fmt: skip
    text = f"{length_mm / 10:g} cm" if length_mm >= 10 else f"{length_mm:g} mm"
    write_on(panel, (begin + end) / 2, 0.075, text, font_size=0.9 * font_size, va="bottom")
