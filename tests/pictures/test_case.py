"""The picture of a case: which slices, which way up, which proportions, which colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.pictures.case import LESION_MARGIN_MM, case_picture, comparison_picture
from fvae_nnunet.pictures.colours import PREDICTION_COLOUR, REFERENCE_COLOUR
from fvae_nnunet.pictures.hu_windows import LUNG_HU_WINDOW, SOFT_TISSUE_HU_WINDOW
from fvae_nnunet.pictures.panels import DIFFERENCE_HU, write_beside
from fvae_nnunet.pictures.planes import Plane, frame_around, largest_cross_sections, sides_of

SHAPE = (10, 20, 40)
SPACING_MM = (5.0, 2.0, 1.0)
LABELS: dict[str, int] = {"background": 0, "organ": 1, "tumour": 2}


def test_planes_go_through_the_largest_cross_section_of_the_first_mask_that_is_not_empty() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3, 5:8, 10:13] = True
    mask[4, 7, 10:13] = True
    empty = np.zeros(SHAPE, bool)
    # slice 3 holds 9 voxels, slice 4 holds 3; row 7 holds 6, rows 5 and 6 hold 3
    assert largest_cross_sections(SHAPE, [empty, mask, np.ones(SHAPE, bool)]) == (Plane(0, 3), Plane(1, 7))
    assert largest_cross_sections(SHAPE, [empty]) == (Plane(0, 5), Plane(1, 10))
    assert largest_cross_sections(SHAPE, []) == (Plane(0, 5), Plane(1, 10))


def test_planes_can_be_had_across_all_three_axes() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3, 5:8, 10:13] = True
    mask[4:6, 7, 12] = True
    # column 12 holds 5 voxels, columns 10 and 11 hold 3
    assert largest_cross_sections(SHAPE, [mask], axes=(0, 1, 2)) == (Plane(0, 3), Plane(1, 7), Plane(2, 12))
    assert largest_cross_sections(SHAPE, [], axes=(2,)) == (Plane(2, 20),)


def test_sagittal_slices_show_the_head_up_and_the_front_on_the_left() -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    plane = Plane(2, 31)
    sagittal = plane.cut(volume)
    assert plane.name == "sagittal" and sagittal.shape == (10, 20)
    assert sagittal[0, 3] == volume[9, 3, 31] and sagittal[-1, 0] == volume[0, 0, 31]
    assert plane.extent_mm(SHAPE, SPACING_MM) == (0, 20 * 2.0, 10 * 5.0, 0)


def test_the_letters_of_a_slice_follow_the_direction_of_its_axes() -> None:
    left, back, head = np.eye(3)
    assert Plane(0, 0).sides == sides_of(back, left) == ("R", "L", "A", "P")
    assert Plane(1, 0).sides == sides_of(-head, left) == ("R", "L", "S", "I")
    assert Plane(2, 0).sides == sides_of(-head, back) == ("A", "P", "S", "I")
    assert sides_of(-back, -left) == ("L", "R", "P", "A"), "as RAS files lie"
    assert sides_of(0.8 * back + 0.6 * left, 0.8 * left - 0.6 * back) == ("R", "L", "A", "P"), "oblique"


def test_a_frame_has_the_slices_proportions_holds_the_mask_and_stays_in_the_slice() -> None:
    mask = np.zeros((20, 40), bool)
    mask[0:4, 36:40] = True  # pixels of 2 mm x 1 mm, so a slice of 40 mm x 40 mm
    assert frame_around(mask, (0.0, 40.0, 40.0, 0.0), 5.0) == pytest.approx((22, 40, 18, 0))
    assert frame_around(mask, (0.0, 40.0, 40.0, 0.0), 50.0) == (0, 40, 40, 0)
    assert frame_around(mask & False, (0.0, 40.0, 40.0, 0.0), 5.0) == (0, 40, 40, 0)


def test_axial_slices_show_the_front_up_and_coronal_ones_the_head_up() -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    axial, coronal = Plane(0, 2).cut(volume), Plane(1, 7).cut(volume)
    assert axial.shape == (20, 40)
    assert axial[0, 0] == volume[2, 0, 0]
    assert coronal.shape == (10, 40)
    assert coronal[0, 3] == volume[9, 7, 3]
    assert coronal[-1, 3] == volume[0, 7, 3]


def test_extent_is_in_mm() -> None:
    assert Plane(0, 0).extent_mm(SHAPE, SPACING_MM) == (0, 40 * 1.0, 20 * 2.0, 0)
    assert Plane(1, 0).extent_mm(SHAPE, SPACING_MM) == (0, 40 * 1.0, 10 * 5.0, 0)


def drawn(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def boxes_of_colour(picture: np.ndarray, colour: tuple[float, float, float]) -> list[tuple[slice, ...]]:
    """Bounding boxes (rows, columns) of the large areas of one colour."""
    from scipy import ndimage

    areas, _ = ndimage.label(np.abs(picture - colour).max(-1) < 0.02)
    return [box for box in ndimage.find_objects(areas) if (box[0].stop - box[0].start) > 100]


def picture_of(path: Path, raw_hu: np.ndarray, view_hu: np.ndarray, **changes: Any) -> np.ndarray:
    empty = np.zeros(raw_hu.shape, np.uint8)
    arguments: dict[str, Any] = {"reference": empty, "prediction": empty, "labels": LABELS, "spacing_mm": SPACING_MM}
    arguments |= {"detection_overlap": 0.1, "title": "case", "path": path / "case.png"} | changes
    return drawn(case_picture(raw_hu, view_hu, **arguments))


@pytest.mark.slow
def test_panels_have_the_proportions_of_the_slices_and_the_grey_of_the_hu_window(tmp_path: Path) -> None:
    raw_hu = np.full(SHAPE, 60, np.int16)  # (60 + 160) / (240 + 160) = 0.55 of the way to white
    picture = picture_of(tmp_path, raw_hu, raw_hu + 100.0)
    panels = [*boxes_of_colour(picture, (0.55, 0.55, 0.55)), *boxes_of_colour(picture, (0.8, 0.8, 0.8))]
    proportions = sorted((box[0].stop - box[0].start) / (box[1].stop - box[1].start) for box in panels)
    # raw twice and view once, in an axial row of 40 mm x 40 mm and a coronal row of 50 mm x 40 mm
    assert proportions == pytest.approx([1.0] * 3 + [1.25] * 3, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("shift_hu", "end"), [(100.0, 1.0), (-100.0, 0.0), (25.0, 0.75)])
def test_difference_is_view_minus_raw_on_a_scale_of_50_hu(tmp_path: Path, shift_hu: float, end: float) -> None:
    from matplotlib import colormaps

    raw_hu = np.full(SHAPE, 60, np.int16)
    red, green, blue, _ = colormaps["RdBu_r"](end)
    assert len(boxes_of_colour(picture_of(tmp_path, raw_hu, raw_hu + shift_hu), (red, green, blue))) == 2


@pytest.mark.slow
def test_outlines_appear_only_for_what_is_there_and_in_the_hue_of_their_role(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb

    raw_hu = np.full(SHAPE, -1000, np.int16)
    reference = np.zeros(SHAPE, np.uint8)
    reference[4:7, 5:15, 10:30] = 2
    prediction = np.roll(reference, 2, axis=2)

    def has_colour(picture: np.ndarray, colour: str) -> bool:
        area = picture[: int(0.85 * len(picture))]  # without the legend
        return bool((np.abs(area - to_rgb(colour)).max(-1) < 0.1).sum() > 100)

    both = picture_of(tmp_path, raw_hu, raw_hu, reference=reference, prediction=prediction)
    assert has_colour(both, REFERENCE_COLOUR) and has_colour(both, PREDICTION_COLOUR)
    missed = picture_of(tmp_path, raw_hu, raw_hu, reference=reference)
    assert has_colour(missed, REFERENCE_COLOUR) and not has_colour(missed, PREDICTION_COLOUR)
    false = picture_of(tmp_path, raw_hu, raw_hu, prediction=prediction)
    assert has_colour(false, PREDICTION_COLOUR) and not has_colour(false, REFERENCE_COLOUR)


def test_a_region_and_a_mask_at_the_border_can_be_drawn(tmp_path: Path) -> None:
    raw_hu = np.zeros((1, 16, 16), np.int16)
    everywhere = np.ones((1, 16, 16), np.uint8)
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    picture = picture_of(
        tmp_path, raw_hu, raw_hu, reference=everywhere, prediction=everywhere, labels=labels, spacing_mm=(3.0, 1.0, 1.0)
    )
    assert picture.shape[2] == 3


@pytest.fixture
def case() -> dict[str, Any]:
    """An organ with a large and a small tumour; one model finds both, the other none."""
    shape = (20, 60, 80)
    reference = np.zeros(shape, np.uint8)
    reference[5:15, 10:50, 10:70] = 1
    reference[8:12, 20:26, 30:38] = 2
    reference[6, 45, 60] = 2
    raw_hu = np.random.default_rng(0).integers(-100, 200, shape).astype(np.int16)
    return {
        "raw_hu": raw_hu,
        "views": {"view a": raw_hu + 10, "view b": raw_hu // 2},
        "spacing_mm": (3.0, 1.0, 1.0),
        "reference": reference,
        "predictions": {"$one": reference, "two": np.minimum(reference, 1)},
        "labels": LABELS,
        "lesion": "tumour",
        "detection_overlap": 0.1,
        "remarks": {"$one": "NSD 1.000"},
    }


def test_a_comparison_shows_each_view_with_its_difference_and_each_model_in_three_planes(case: dict[str, Any]) -> None:
    figure = comparison_picture(**case)
    panels = [axes for axes in figure.axes if axes.images]
    headings = [axes.get_title() for axes in panels[:8]]
    assert headings == [
        "raw image", "its framed part", "view a", "view a\nminus raw", "view b", "view b\nminus raw", "$one\nNSD 1.000",
        "two",
    ]  # fmt: skip
    assert len(panels) == 3 * 8
    raw_hu = case["raw_hu"]
    # by the first of equal cross-sections
    planes = [Plane(0, 8), Plane(1, 20), Plane(2, 30)]
    for row, plane in enumerate(planes):
        shown = [np.asarray(axes.images[0].get_array()) for axes in panels[8 * row : 8 * (row + 1)]]
        np.testing.assert_array_equal(shown[0], plane.cut(raw_hu))
        np.testing.assert_array_equal(shown[3], np.full_like(shown[3], 10))
        np.testing.assert_array_equal(shown[5], plane.cut(raw_hu // 2).astype(float) - plane.cut(raw_hu))
        limits = [axes.images[0].get_clim() for axes in panels[8 * row : 8 * (row + 1)]]
        assert limits[3] == limits[5] == (-DIFFERENCE_HU, DIFFERENCE_HU)
        assert limits[0] == limits[2] == limits[6] == SOFT_TISSUE_HU_WINDOW
    legend = next(axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["reference", "prediction", "organ", "tumour"]


def texts_of(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_panel_has_its_letters_and_a_bar_and_a_missed_lesion_is_called_so(case: dict[str, Any]) -> None:
    panels = [axes for axes in comparison_picture(**case).figure.axes if axes.images]
    for row, sides in enumerate((["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"])):
        for panel in panels[8 * row : 8 * (row + 1)]:
            assert texts_of(panel)[-5:-1] == sides or texts_of(panel)[-6:-2] == sides
            assert any(text in ("2 cm", "1 cm", "5 mm") for text in texts_of(panel))
    found, missed = panels[6:8]
    assert "missed" not in texts_of(found) and texts_of(missed).count("missed") == 1
    nothing = case | {"reference": np.minimum(case["reference"], 1), "predictions": {"one": case["reference"]}}
    (panel,) = [axes for axes in comparison_picture(**nothing).figure.axes if axes.get_title() == "one"]
    assert "false positive" in texts_of(panel) and "missed" not in texts_of(panel)


def test_a_note_stands_beside_each_of_the_largest_pieces_and_within_the_panel() -> None:
    from matplotlib.figure import Figure

    panel = Figure().add_subplot()
    panel.set(xlim=(0, 40), ylim=(20, 0))
    mask = np.zeros((20, 40), bool)
    for rows, columns in ((slice(1, 6), slice(18, 22)), (slice(10, 13), slice(36, 40)), (slice(10, 12), slice(0, 2))):
        mask[rows, columns] = True
    mask[17, 20] = True  # the fourth
    write_beside(panel, mask, "missed", (0.0, 40.0, 20.0, 0.0), font_size=8)
    placed = [(*text.get_position(), text.get_va(), text.get_ha()) for text in panel.texts]
    assert placed == [(20, 6, "top", "center"), (38, 10, "bottom", "right"), (1, 10, "bottom", "left")]
    write_beside(panel, mask & False, "missed", (0.0, 40.0, 20.0, 0.0), font_size=8)
    assert len(panel.texts) == 3
    near = np.zeros((20, 40), bool)
    near[10:12, 18:20] = near[10, 23] = True
    write_beside(panel, near, "missed", (0.0, 40.0, 20.0, 0.0), font_size=8)
    assert len(panel.texts) == 4, "the smaller one would cover the larger one's"


def test_a_lesion_in_the_lung_is_drawn_in_its_window(case: dict[str, Any]) -> None:
    in_lung = case | {"raw_hu": np.where(case["reference"] == 2, 40, -850).astype(np.int16), "views": {}}
    assert comparison_picture(**in_lung).axes[0].images[0].get_clim() == LUNG_HU_WINDOW


def test_close_ups_show_the_lesion_with_room_around_it(case: dict[str, Any]) -> None:
    figure = comparison_picture(**case)
    overview, *close_ups = [axes for axes in figure.axes if axes.images][:8]
    assert overview.get_xlim() == (0, 80) and overview.get_ylim() == (60, 0)
    # rows 20 to 26 of 60, 1 mm each: 56 mm with room on both sides, moved into the slice, in its proportions
    assert LESION_MARGIN_MM == 25
    for axes in close_ups:
        assert axes.get_ylim() == pytest.approx((56, 0)) and axes.get_xlim() == pytest.approx((0, 56 * 80 / 60))


def test_a_lesion_that_only_a_model_sees_and_none_at_all(case: dict[str, Any]) -> None:
    elsewhere = np.zeros_like(case["reference"])
    elsewhere[3:5, 50:55, 70:75] = 2
    without = case | {"reference": np.minimum(case["reference"], 1)}
    figure = comparison_picture(**without | {"predictions": {"one": without["reference"], "two": elsewhere}})
    assert np.array_equal(figure.axes[0].images[0].get_array(), case["raw_hu"][3])
    figure = comparison_picture(**without | {"predictions": {}, "views": {}, "remarks": {}})
    assert [axes.get_title() for axes in figure.axes[:3]] == ["raw image", "its framed part", "reference"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), case["raw_hu"][5]), "through the organ"


def test_a_comparison_of_unequal_shapes_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"view a has shape \(19, 60, 80\), raw_hu \(20, 60, 80\)"):
        comparison_picture(**case | {"views": {"view a": case["raw_hu"][1:]}})


def test_unequal_shapes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    raw_hu = np.zeros(SHAPE, np.int16)
    with pytest.raises(UserError, match=r"prediction has shape \(10, 20, 39\), raw_hu \(10, 20, 40\)"):
        picture_of(tmp_path, raw_hu, raw_hu, prediction=np.zeros((10, 20, 39)))
    with pytest.raises(UserError, match="view_hu has shape"):
        picture_of(tmp_path, raw_hu, raw_hu[1:])
    assert list(tmp_path.iterdir()) == []
