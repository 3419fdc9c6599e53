"""Forest of differences, NSD over tolerance, DSC against lesion size."""

import math

from fvae_nnunet.report.result_plots import curves, difference_forest

COLOURS = {"raw": "#111111", "view": "#222222"}


def measure(key, name, change, *, unit="", p=0.01):
    entry = {
        "first": "raw", "second": "view", "mean_difference": change, "interval": [change - 0.1, change + 0.1],
        "interval_method": "BCa", "p_holm": p, "n": 10, "wins": 5, "losses": 0,
        "differences": {"case": change},
    }  # fmt: skip
    models = [
        {"model": name_, "mean": mean, "interval": [mean - 0.1, mean + 0.1], "interval_method": "BCa"}
        for name_, mean in (("raw", 0.5), ("view", 0.6))
    ]
    return {
        "key": key, "name": name, "unit": unit, "higher_is_better": unit != "mm", "mean_over": "cases",
        "models": models, "comparisons": [entry],
    }  # fmt: skip


def dots(axes):
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def test_better_is_to_the_right_also_for_distances():
    measures = [measure("Dice", "DSC", 0.2), measure("HD95_mm", "HD95", -3.0, unit="mm")]
    drawing = difference_forest({"tumour": measures}, COLOURS)
    unitless, in_mm = drawing.figure.axes
    for axes, gid in ((unitless, "forest0x0"), (in_mm, "forest1x0")):
        (x,), reference = dots(axes)[gid].get_xdata(), 0
        assert axes.transData.transform((x, 0))[0] > axes.transData.transform((reference, 0))[0]
    assert set(dots(unitless)) == {"forest0x0"} and set(dots(in_mm)) == {"forest1x0"}
    assert drawing.tips["forest1x0"] == "tumour, HD95, view − raw: −3.0 (−3.1 to −2.9), p 0.010"


def test_only_what_is_sure_is_filled():
    drawing = difference_forest(
        {"a": [measure("Dice", "DSC", 0.2)], "b": [measure("Dice", "DSC", 0.2, p=0.2)]}, COLOURS
    )
    found = dots(drawing.figure.axes[0])
    assert found["forest0x0"].get_markerfacecolor() == "#222222" and found["forest1x0"].get_markerfacecolor() == "none"
    assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == ["a: DSC", "b: DSC"]


def test_of_many_labels_the_deciding_measures_alone_are_shown():
    of_label = [measure("Dice", "DSC", 0.2), measure("NSD_2mm", "NSD 2 mm", 0.1)]
    few, many = (difference_forest({f"label {n}": of_label for n in range(labels)}, COLOURS) for labels in (6, 7))
    assert (len(few.tips), len(many.tips)) == (12, 7)
    assert all("NSD 2 mm" in tip for tip in many.tips.values())


def test_nsd_is_drawn_at_all_tolerances_in_their_order():
    measures = [measure("NSD_10mm", "NSD 10 mm", 0), measure("NSD_2mm", "NSD 2 mm", 0), measure("NSD_0.5mm", "N", 0)]
    drawing, panels = curves(measures, {}, COLOURS)
    assert panels == ["mean NSD over tolerance, with 95 % intervals"]
    (axes,) = drawing.figure.axes
    assert list(axes.get_xticks()) == [0.5, 2, 10]
    assert [line.get_gid() for line in axes.lines if line.get_gid()] == [
        f"nsd{m}x{t}" for m in (0, 1) for t in range(3)
    ]
    assert curves(measures[:1], {}, COLOURS) is None


def test_a_lesion_that_is_missed_is_a_cross_at_zero():
    lesions = {"view": {"case": {"diameters_mm": [5.0, 20.0], "dice": [math.nan, 0.8]}}}
    drawing, (panel,) = curves([measure("Dice", "DSC", 0)], lesions, COLOURS)
    assert panel.startswith("DSC of each lesion of the reference")
    (axes,) = drawing.figure.axes
    missed, found = (dots(axes)[gid] for gid in ("lesion0", "lesion1"))
    assert (missed.get_marker(), *missed.get_xdata(), *missed.get_ydata()) == ("x", 5.0, 0.0)
    assert (found.get_marker(), *found.get_xdata(), *found.get_ydata()) == ("o", 20.0, 0.8)
    assert drawing.tips["lesion0"] == "case, 5.0 mm, view: not detected"
    assert drawing.tips["lesion1"] == "case, 20.0 mm, view: DSC 0.800"
