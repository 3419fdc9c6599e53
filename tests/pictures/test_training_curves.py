"""The curves of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fvae_nnunet.pictures.training_curves import MOST_POINTS, brought_together, draw_training_curves, read_columns

TABLE = "step,stage,loss,lesion_loss,learning_rate\n1,1,4,,0.1\n2,1,2,1,0.1\n3,2,1,0.5,0.05\n4,2,0.5"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "progress.csv"
    path.write_text(TABLE)
    return path


def test_steps_are_brought_together_by_their_means() -> None:
    steps = np.arange(1, 10 * MOST_POINTS + 1, dtype=float)
    at, mean, low, high = brought_together(steps, np.where(steps % 2 == 0, 4.0, 2.0))
    assert len(at) == MOST_POINTS and at[0] == pytest.approx(5.5) and at[-1] == pytest.approx(steps[-1] - 4.5)
    assert np.all(mean == 3) and np.all(low == 2) and np.all(high == 4)
    at, mean, _, _ = brought_together(np.array([1.0, 2.0, 3.0]), np.array([5.0, np.nan, 7.0]))
    assert at.tolist() == [1, 3] and mean.tolist() == [5, 7]


def test_what_a_crash_has_cut_short_is_left_out(table: Path) -> None:
    columns = read_columns(table)
    assert columns["step"].tolist() == [1, 2, 3] and columns["loss"].tolist() == [4, 2, 1]
    np.testing.assert_array_equal(columns["lesion_loss"], [np.nan, 1, 0.5])


def test_the_picture_has_both_losses_the_learning_rate_and_a_mark_where_a_stage_begins(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    path = draw_training_curves(table, title="$t")
    assert path == table.with_suffix(".png") and path.read_bytes().startswith(b"\x89PNG")
    above, below = drawn[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in above.lines[:2]}
    assert curves == {"loss": [[1, 4], [2, 2], [3, 1]], "loss in lesions": [[2, 1], [3, 0.5]]}
    assert below.lines[0].get_ydata().tolist() == [0.1, 0.1, 0.05]
    assert above.lines[2].get_xdata() == [3, 3] and above.get_title() == "$t"
    table.write_text(TABLE.splitlines()[0] + "\n")
    assert draw_training_curves(table, title="") is None
