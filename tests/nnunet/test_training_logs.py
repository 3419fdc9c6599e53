import pytest

from fvae_nnunet.nnunet.training_logs import TrainingCurves, folds_with_logs, read_training_curves

EPOCH = """2026-01-01 10:00:00.000000: Epoch {epoch}
2026-01-01 10:00:00.000000: Current learning rate: 0.01
2026-01-01 10:00:01.000000: train_loss {train}
2026-01-01 10:00:01.000000: val_loss {val}
2026-01-01 10:00:01.000000: Pseudo dice [{dice}]
2026-01-01 10:00:01.000000: Epoch time: 1.0 s
"""


def write_log(fold, name, *epochs):
    fold.mkdir(parents=True, exist_ok=True)
    text = "nnU-Net says much at first: Epoch of all\n"
    text += "".join(EPOCH.format(epoch=e, train=t, val=v, dice=d) for e, t, v, d in epochs)
    (fold / f"training_log_{name}.txt").write_text(text)


def test_curves_hold_every_epoch_and_the_last_of_repeated_ones(tmp_path):
    write_log(tmp_path, "2026_1_9_10_00_00", (0, 0.5, 0.4, "0.1, 0.3"), (1, 0.2, 0.1, "nan, 0.5"), (2, 9, 9, "0.9"))
    write_log(tmp_path, "2026_1_10_10_00_00", (2, -0.2, -0.3, "np.float32(0.6), np.float64(nan)"))
    curves = read_training_curves(tmp_path)
    assert curves.train_loss == {0: 0.5, 1: 0.2, 2: -0.2} and curves.val_loss == {0: 0.4, 1: 0.1, 2: -0.3}
    assert curves.pseudo_dice == pytest.approx({0: 0.2, 1: 0.5, 2: 0.6})


def test_an_epoch_without_any_label_has_no_pseudo_dice(tmp_path):
    write_log(tmp_path, "2026_1_1_1_1_1", (0, 0.5, 0.4, "nan"))
    assert read_training_curves(tmp_path).pseudo_dice == {}


def test_folds_are_found_below_a_model_and_alone(tmp_path):
    for fold in (0, 1):
        write_log(tmp_path / f"fold_{fold}", "2026_1_1_1_1_1", (0, 0.5, 0.4, "0.1"))
    assert list(folds_with_logs(tmp_path)) == ["fold_0", "fold_1"]
    assert list(folds_with_logs(tmp_path / "fold_1")) == ["fold_1"]
    assert folds_with_logs(tmp_path / "fold_2") == {}


def test_a_log_without_an_epoch_has_no_curves(tmp_path):
    write_log(tmp_path, "2026_1_1_1_1_1")
    assert read_training_curves(tmp_path) == TrainingCurves({}, {}, {})
