"""Quality control put to the test with ideal and with spoilt lesions (scripts/oracle_lesions.py)."""

import numpy as np
import oracle_lesions as oracle
import pytest

from fvae_nnunet.synthesis.lesions.measures import lesion_core, measure_lesion
from fvae_nnunet.synthesis.lesions.quality import QualityLimits
from fvae_nnunet.vae import load_vae


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lung", "pancreas"])
def test_ideal_lesions_pass_and_mottled_ones_do_not(kind):
    phantoms = [oracle.Phantom.make(kind, 400, number) for number in range(12)]
    real = oracle.real_lesions(phantoms)
    assert len(oracle.real_rejected(real)) <= 0.1 * len(real.lesions)
    diameters_mm = [lesion["diameter_mm"] for lesion in real.lesions]
    rng = np.random.default_rng(400)
    ideal = oracle.ideal_lesions(phantoms, load_vae("tiny"), rng, 60, (min(diameters_mm), max(diameters_mm)))
    table = oracle.accepted_by_fault(ideal, QualityLimits(real, inside_fraction=0, found_share=0), rng)
    share = {fault: sum(map(sum, by_size.values())) / len(ideal) for fault, by_size in table.items()}
    assert share["none"] >= 0.95
    assert share["core SD x 3"] <= 0.05
    assert share["core SD x 2"] <= 0.25
    assert share["edge blurred by 3 mm"] <= 0.15
    # from 20 mm on texture and slices are seen well
    medium = {fault: np.mean(by_size["medium"]) for fault, by_size in table.items()}
    assert medium["core SD x 2"] == 0 and medium["slices flicker by 20 HU"] <= 0.15


@pytest.fixture(scope="module")
def ball() -> oracle.IdealLesion:
    """Of 24 mm and 40 HU in an organ of 100, with noise of 15 HU."""
    z, y, x = np.ogrid[-9:10, -21:22, -21:22]
    lesion = (3 * z) ** 2 + y**2 + x**2 <= 12**2
    noise = np.random.default_rng(0).normal(0, 15, lesion.shape)
    raw_hu = np.rint(100 + noise).astype(np.int16)
    bare = oracle.IdealLesion(raw_hu, ~lesion, lesion, np.zeros(lesion.shape), (3.0, 1.0, 1.0))
    return oracle.IdealLesion(raw_hu, ~lesion, lesion, bare.smoothed(-60.0 * lesion, 0.9), (3.0, 1.0, 1.0))


def core_of(ball, fault):
    return oracle.FAULTS[fault](np.random.default_rng(1), ball)[lesion_core(ball.lesion, ball.spacing_mm)]


def test_faults_are_what_they_are_called(ball):
    ideal = core_of(ball, "none")
    assert ideal.mean() == pytest.approx(40, abs=2) and ideal.std() == pytest.approx(15, rel=0.1)
    for times in (1.5, 2, 3):
        spoilt = core_of(ball, f"core SD x {times}")
        assert spoilt.std() == pytest.approx(times * ideal.std(), rel=0.1)
        assert spoilt.mean() == pytest.approx(ideal.mean(), abs=0.5)
    assert core_of(ball, "40 HU brighter").mean() == pytest.approx(ideal.mean() + 40, abs=1)
    inside = np.argwhere(ball.lesion)[:, 0]
    flicker = oracle.FAULTS["slices flicker by 20 HU"](np.random.default_rng(1), ball) - ball.inserted(ball.decoded_hu)
    for at in range(inside.min(), inside.max() + 1):
        assert np.ptp(flicker[at][ball.lesion[at]]) <= 1, "a whole slice alike"


def test_the_rim_tells_of_an_edge_that_is_too_soft_or_too_hard(ball):
    rim_hu = {
        fault: measure_lesion(
            oracle.FAULTS[fault](np.random.default_rng(1), ball), ball.lesion, ball.surroundings, ball.spacing_mm
        )["rim_hu"]
        for fault in ("none", "edge blurred by 3 mm", "edge overshoots by its height")
    }
    # the organ is brighter, so a blurred edge makes the rim brighter
    assert rim_hu["edge blurred by 3 mm"] > rim_hu["none"] + 5
    assert rim_hu["edge overshoots by its height"] < rim_hu["none"] - 5


def test_real_lesions_are_held_against_other_cases():
    lesion = {
        "diameter_mm": 20.0, "depth_mm": 9.0, "mean_hu": 40.0, "core_mean_hu": 40.0, "core_sd_hu": 10.0,
        "contrast_hu": -30.0, "rim_hu": 5.0, "slice_change_hu": 1.0,
    }  # fmt: skip
    odd = lesion | {"case": "odd", "core_sd_hu": 60.0}
    real = oracle.RealLesions((*(lesion | {"case": f"case_{at}"} for at in range(11)), odd, odd), {})
    rejected = oracle.real_rejected(real)
    assert [found["case"] for found, _ in rejected] == ["odd", "odd"], "its own case does not excuse it"
    assert rejected[0][1] == [
        "the lesion has a core with a standard deviation of 60.0 HU; real ones of 20.0 to 20.0 mm allow 2.0 to 18.0"
    ]
