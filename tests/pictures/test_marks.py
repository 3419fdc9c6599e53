"""Letters and bars of lengths in CT panels."""

from __future__ import annotations

import numpy as np
import pytest

from fvae_nnunet.pictures.marks import bar_length_mm, mark_panel


@pytest.mark.parametrize(("width_mm", "length_mm"), [(400, 20), (50, 20), (49, 10), (24, 5), (6, 2), (3, 1), (1, 1)])
def test_the_bar_is_2_cm_or_shorter_in_a_close_up(width_mm: float, length_mm: float) -> None:
    assert bar_length_mm(width_mm) == length_mm


@pytest.mark.parametrize(("spacing_mm", "text"), [(2.0, "2 cm"), (0.5, "2 cm"), (0.1, "5 mm")])
def test_the_bar_has_the_length_in_pixels_that_the_spacing_says(spacing_mm: float, text: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=100)
    canvas = FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.imshow(np.zeros((200, 200)), cmap="gray", vmin=0, vmax=1, extent=(0, 200 * spacing_mm, 200 * spacing_mm, 0))
    mark_panel(panel, ("R", "L", "A", "P"), font_size=8)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    # 400 pixels for 200 of the image
    white = (image[380] > 200).all(-1).sum()
    length_mm = float(text.split()[0]) * (10 if "cm" in text else 1)
    assert white == pytest.approx(2 * length_mm / spacing_mm, abs=2)
    assert [entry.get_text() for entry in panel.texts] == ["R", "L", "A", "P", text]
    places = [entry.get_position() for entry in panel.texts[:4]]
    assert places[0][0] < 0.5 < places[1][0] and places[2][1] > 0.5 > places[3][1]
    assert all(entry.get_bbox_patch() is not None for entry in panel.texts)
