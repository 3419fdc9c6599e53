"""What lesions shall look like: drawn from real lesions made by hand, asked for, recorded, and judged accordingly."""

import dataclasses
import math
import re

import numpy as np
import pytest
from painted_cases import LESION_HU, ORGAN_HU, write_dataset
from synthesize_for_tests import SIZE, paints, run

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases
from fvae_nnunet.synthesis.lesions.appearance import Appearance, AskedAppearance, draw_appearance, nearest_in_size
from fvae_nnunet.synthesis.lesions.quality import QualityLimits, reasons_against
from fvae_nnunet.synthesis.lesions.real_lesions import RealLesions

__all__ = ["paints"]


def a_real(diameter_mm, mean_hu, contrast_hu, sd_hu):
    return {
        "diameter_mm": diameter_mm, "core_mean_hu": mean_hu, "contrast_hu": contrast_hu, "texture_sd_hu": sd_hu,
    }  # fmt: skip


NODULES = [a_real(10 + i, 30.0 + i % 3, 850.0 + 40 * i, 10.0 + i) for i in range(9)]
"""Alike in HU, in lungs that are not."""

TUMOURS = [a_real(10 + i, 60.0 + 10 * i, -40.0 + i % 3, 10.0 + i) for i in range(9)]
"""Alike in their difference to organs that are not."""


def draws(real, n=300, *, asked=None, like=None, diameter_mm=14.0, around_hu=100.0):
    rng = np.random.default_rng(0)
    how = {"like": like, "diameter_mm": diameter_mm, "around_hu": around_hu}
    return [draw_appearance(rng, asked or AskedAppearance(), real, **how) for _ in range(n)]


def test_the_mean_is_taken_where_it_varies_less_and_else_the_contrast():
    assert draws(NODULES, 1, like=NODULES[4]) == [Appearance(31.0, 14.0)]
    assert draws(TUMOURS, 1, like=TUMOURS[4]) == [Appearance(100.0 - 39.0, 14.0)]
    # without surroundings there is no contrast
    assert draws(TUMOURS, 1, like=TUMOURS[4], around_hu=None) == [Appearance(100.0, 14.0)]
    assert draws([*TUMOURS, alone := a_real(30, 55.0, None, 3.0)], 1, like=alone) == [Appearance(55.0, 3.0)]


def test_the_real_lesions_of_similar_size_are_looked_like():
    # the third of nine that is nearest to 14 mm by its logarithm: 13, 14 and 15 mm, with SDs of 13 to 15
    found = [appearance.texture_sd_hu for appearance in draws(NODULES)]
    assert set(found) == {13.0, 14.0, 15.0}
    # 100 expected of each, with a standard deviation of 8
    assert min(found.count(sd) for sd in set(found)) > 68
    assert {appearance.texture_sd_hu for appearance in draws(NODULES, diameter_mm=3)} == {10.0, 11.0, 12.0}


def test_the_nearest_in_size_are_a_third_and_at_least_one():
    assert {lesion["diameter_mm"] for lesion in nearest_in_size(NODULES, 14.0)} == {13, 14, 15}
    assert nearest_in_size(NODULES[:1], 90.0) == NODULES[:1] and nearest_in_size([], 5.0) == []


def test_what_is_asked_for_is_drawn_evenly_with_the_texture_of_a_real_lesion():
    means = [a.core_mean_hu for a in draws(TUMOURS, asked=AskedAppearance.parse([-20, 60], None))]
    assert -20 <= min(means) < -15 and 55 < max(means) <= 60
    assert np.mean(means) == pytest.approx(20, abs=4 * 80 / math.sqrt(12 * 300))
    contrasts = draws(NODULES, asked=AskedAppearance.parse(None, [-15.0]), like=NODULES[0])
    assert set(contrasts) == {Appearance(85.0, 10.0)}


def test_without_real_lesions_only_what_is_asked_for_is_known():
    assert draws([], 1) == [None]
    (asked,) = draws([], 1, asked=AskedAppearance.parse([40.0], None))
    assert asked.core_mean_hu == 40 and math.isnan(asked.texture_sd_hu)
    assert asked.recorded() == {"core_mean_hu": 40.0, "texture_sd_hu": None}
    (nowhere,) = draws([], 1, asked=AskedAppearance.parse(None, [-30.0]), around_hu=None)
    assert math.isnan(nowhere.core_mean_hu)


@pytest.mark.parametrize("values", [[3, 2], [1, 2, 3], [math.nan], [0, math.inf]])
def test_ranges_that_are_none_are_refused(values):
    with pytest.raises(UserError, match="`contrast_hu` takes a number, or MIN <= MAX, got"):
        AskedAppearance.parse(None, values)
    with pytest.raises(UserError, match="exclude each other"):
        AskedAppearance.parse([1], [1])


def test_limits_of_brightness_are_those_that_were_asked_for():
    measures = ("mean_hu", "core_mean_hu", "core_sd_hu", "contrast_hu", "rim_hu", "slice_change_hu")
    lesions = tuple(
        dict.fromkeys(measures, float(value)) | {"diameter_mm": 20.0, "depth_mm": 9.0} for value in range(101)
    )
    real = RealLesions(lesions, {})
    shares = {"inside_fraction": 0.8, "found_share": 0.7}
    limits = QualityLimits(real, **shares, asked={"contrast_hu": (-200.0, -190.0)}).of_size(20.0, 9.0)
    # widened as the real ones are: a quarter of the 98 between their percentiles 1 and 99
    assert limits.hu["contrast_hu"] == (-224.5, -165.5)
    assert set(limits.hu) == {"contrast_hu", "core_sd_hu", "slice_change_hu"}
    wide = QualityLimits(real, **shares, asked={"core_mean_hu": (0.0, 400.0)}).of_size(20.0, 9.0)
    assert wide.hu["core_mean_hu"] == (-100.0, 500.0)
    alone = QualityLimits(RealLesions((), {}), **shares, asked={"core_mean_hu": (40.0, 40.0)})
    assert alone.of_size(20.0, 9.0).hu == {"core_mean_hu": (32.0, 48.0)}
    allowed = alone.of_size(20.0, 9.0).recorded()
    quality = dict.fromkeys(measures, 50.0) | {"inside_fraction": 1.0, "found_share": None, "limits": allowed}
    assert reasons_against([quality], alone) == [
        "the lesion has a core with a mean of 50.0 HU; the requested range allows 32.0 to 48.0"
    ]
    assert reasons_against([quality | {"core_mean_hu": 44.0}], alone) == []


def told(painting_model):
    """Such a model, as if it was told what lesions look like; it paints what it did."""
    appearance = {"core_mean_hu": (40.0, 10.0), "texture_sd_hu": (10.0, 5.0)}
    painting_model.settings = dataclasses.replace(painting_model.settings, **appearance)


@pytest.mark.slow
def test_records_say_what_each_lesion_was_to_look_like(paints, tmp_path):
    dataset = write_dataset()
    assert run(dataset, tmp_path / "out", *SIZE, "--no-filter", n=3) == 0
    plain = read_synthetic_cases(tmp_path / "out")
    for case in plain:
        asked = case.record["lesions"][0]["appearance"]
        # noise of 10 HU on cores of some tens of voxels
        assert asked["core_mean_hu"] == pytest.approx(LESION_HU, abs=8)
        assert 0 < asked["texture_sd_hu"] < 6
    told(paints())
    assert run(dataset, tmp_path / "faint", *SIZE, "--no-filter", "--contrast-hu", -12, -8, n=3) == 0
    for before, case in zip(plain, read_synthetic_cases(tmp_path / "faint"), strict=True):
        (old,), (lesion,) = before.record["lesions"], case.record["lesions"]
        assert lesion["appearance"]["core_mean_hu"] == pytest.approx(ORGAN_HU - 10, abs=4)
        # the same lesions in the same places
        same = ("shape", "borrowed_from", "voxels", "centre_voxel")
        assert [lesion[key] for key in same] == [old[key] for key in same]
        assert case.record["settings"]["plan"]["appearance"] == {"core_mean_hu": None, "contrast_hu": [-12.0, -8.0]}


@pytest.mark.slow
def test_lesions_are_accepted_that_are_what_was_asked_for(paints, tmp_path):
    """The model paints 150 HU whatever it is told; real lesions have 40 in an organ of 100."""
    dataset = write_dataset()
    told(paints(hu=150, noise_hu=10))
    verdicts = {}
    for name, options in {"real": [], "dense": ["--lesion-hu", 150], "faint": ["--contrast-hu", -30, -20]}.items():
        assert run(dataset, tmp_path / name, *SIZE, *options, n=2) == 0
        verdicts[name] = len(read_synthetic_cases(tmp_path / name))
    assert verdicts == {"real": 0, "dense": 2, "faint": 0}
    (reason,) = read_synthetic_cases(tmp_path / "faint", accepted=False)[0].record["reasons"]
    assert re.fullmatch(
        r"the lesion has a contrast of [45]\d\.\d HU to its surroundings; "
        r"the requested range allows −\d+\.\d to −?\d+\.\d",
        reason,
    )


def test_a_model_that_is_not_told_is_not_asked(paints, tmp_path, capsys):
    assert run(write_dataset(cases=1), tmp_path / "out", *SIZE, "--lesion-hu", 150, n=1) == 1
    assert "is not conditioned on the appearance of lesions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
