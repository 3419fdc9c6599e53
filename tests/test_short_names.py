import pytest

from fvae_nnunet.short_names import LONGEST, short_names

TRAINER = "nnUNetTrainerFVAE__nnUNetResEncUNetLPlans__3d_fullres"


def test_short_names_stay_as_they_are():
    assert short_names(["raw", "view", "raw", "c\x01"]) == {"raw": "raw", "view": "view", "c\x01": "c\ufffd"}
    assert short_names([]) == {}


def test_long_names_lose_what_all_share_and_nothing_else():
    names = [f"{TRAINER}_fold_0_{view}_250epochs_of_a_long_training" for view in ("wan2.1", "wan2.2", "control-nlm")]
    assert list(short_names(names).values()) == ["wan2.1", "wan2.2", "control-nlm"]


def test_words_are_not_cut():
    names = [f"{TRAINER}_view1", f"{TRAINER}_view2"]
    assert list(short_names(names).values()) == ["view1", "view2"], "not 1 and 2"


@pytest.mark.parametrize(
    "names",
    [
        [f"{'a' * 70}_{'b' * 30}", f"{'c' * 70}_{'d' * 30}"],
        [TRAINER, f"{TRAINER}_250epochs"],  # nothing would be left of the first
    ],
)
def test_names_that_stay_too_long_become_letters(names):
    assert list(short_names(names).values()) == ["A", "B"]


def test_letters_suffice_for_any_number():
    shown = list(short_names([f"{place:03d}{'x' * LONGEST}{place:03d}" for place in range(60)]).values())
    assert len(set(shown)) == 60 and shown[:2] + shown[25:28] == ["A", "B", "Z", "AA", "AB"]


def test_one_long_name_keeps_both_ends():
    (shown,) = short_names([f"{TRAINER}_fold_7"]).values()
    assert len(shown) == LONGEST and shown.startswith("nnUNetTr") and shown.endswith("_fold_7") and "…" in shown
