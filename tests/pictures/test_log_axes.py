"""Labels of logarithmic axes where math text is not parsed."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from fvae_nnunet.pictures.log_axes import label_plainly


@pytest.mark.parametrize(
    ("values", "expected"), [((40, 400), {"100", "200"}), ((0.05, 400), {"0.1", "1", "10", "100"})]
)
def test_labels_are_numbers_without_markup(values, expected):
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure()
        panel = figure.subplots()
        panel.plot([0, 1], values)
        panel.set_yscale("log")
        label_plainly(panel.yaxis)
        figure.canvas.draw()
        labels = {label.get_text() for which in ("major", "minor") for label in panel.yaxis.get_ticklabels(which=which)}
    assert expected <= labels and all(float(label) > 0 for label in labels if label)
