"""Outlines run along the edges of pixels and are closed."""

from __future__ import annotations

import numpy as np
import pytest

from fvae_nnunet.pictures.outlines import Outline, pixel_edges


def area(loop: np.ndarray) -> float:
    """What a line encloses, by the shoelace formula; with y downwards positive clockwise on the screen."""
    y, x = loop.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_one_pixel_has_its_four_edges_as_outline() -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 4] = True
    (loop,) = pixel_edges(mask)
    assert loop.tolist()[0] == loop.tolist()[-1]
    assert {tuple(corner) for corner in loop.tolist()} == {(2, 4), (2, 5), (3, 5), (3, 4)} and len(loop) == 5


@pytest.mark.parametrize("seed", range(5))
def test_lines_are_closed_part_mask_from_background_and_enclose_its_pixels(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 12)) < 0.5
    loops = pixel_edges(mask)
    edges = []
    for loop in loops:
        steps = np.diff(loop, axis=0)
        assert np.array_equal(loop[0], loop[-1]) and np.array_equal(np.abs(steps).sum(1), np.ones(len(steps)))
        edges += [tuple(sorted((tuple(begin), tuple(end)))) for begin, end in zip(loop[:-1], loop[1:])]
    padded = np.pad(mask, 1)
    expected = sum(int((np.diff(padded.astype(int), axis=axis) != 0).sum()) for axis in (0, 1))
    assert len(edges) == len(set(edges)) == expected
    assert sum(map(area, loops)) == mask.sum()


def test_a_mask_that_fills_the_image_is_closed_at_its_border() -> None:
    (loop,) = pixel_edges(np.ones((3, 4), bool))
    assert area(loop) == 12 and loop.min(0).tolist() == [0, 0] and loop.max(0).tolist() == [3, 4]
    assert pixel_edges(np.zeros((3, 4), bool)) == []


def test_an_outline_is_drawn_in_mm_over_a_dark_casing() -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    panel = Figure().add_subplot()
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    Outline("#56b4e9", 2.0).draw(panel, mask, (0.0, 8.0, 12.0, 0.0))
    casing, line = panel.collections
    assert to_hex(casing.get_colors()[0]) == "#000000" and casing.get_linewidths()[0] > line.get_linewidths()[0] == 2
    corners = line.get_segments()[0]
    assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([4, 3], [6, 6])
    Outline("red").draw(panel, mask & False, (0.0, 8.0, 12.0, 0.0))
    assert len(panel.collections) == 2
