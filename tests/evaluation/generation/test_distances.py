"""Distances against closed forms, MONAI, torchmetrics and brute force."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation import distances
from fvae_nnunet.evaluation.generation.distances import frechet, frechet_distance, kernel
from fvae_nnunet.evaluation.generation.features import CaseFeatures


def features(rows, rows_per_case=1):
    rows = np.asarray(rows, float)
    cases = len(rows) // rows_per_case
    return CaseFeatures(rows, np.repeat(np.arange(cases), rows_per_case), tuple(f"c{n}" for n in range(cases)))


def measure(function, real, fake, *, resamples=40, seed=0):
    return function(real, fake, seed=seed, resamples=resamples, on_resample=lambda: None)


def normal(seed, n, width, *, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, width)) * scale + shift


def test_frechet_of_gaussians_with_equal_axes_is_that_of_their_deviations():
    turn, _ = np.linalg.qr(normal(0, 3, 3))
    first, second = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    covariances = [turn @ np.diag(deviations**2) @ turn.T for deviations in (first, second)]
    value = frechet_distance(np.array([1.0, 0, 0]), covariances[0], np.array([0, 2.0, 0]), covariances[1])
    assert value == pytest.approx((1 + 4) + (1 + 0 + 6.25), rel=1e-12)


def test_frechet_of_lines_is_known_though_their_covariances_are_singular():
    """Rank 1: 4 u u' and 9 v v' with an angle of 60 degrees between u and v; the last trace is 2 * 3 * cos 60."""
    u, v = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.5, np.sqrt(0.75), 0.0, 0.0])
    value = frechet_distance(np.zeros(4), 4 * np.outer(u, u), np.zeros(4), 9 * np.outer(v, v))
    assert value == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.5, rel=1e-12)


def test_frechet_agrees_with_scipys_root_monai_and_torchmetrics_where_covariances_are_regular():
    from monai.metrics.fid import get_fid_score
    from torchmetrics.image.fid import _compute_fid

    real, fake = normal(1, 60, 5), normal(2, 50, 5, shift=0.3) @ normal(3, 5, 5)
    value = measure(frechet, features(real), features(fake), resamples=1).value
    moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (real, fake)]
    root = scipy.linalg.sqrtm(moments[0][1] @ moments[1][1]).real
    offset = moments[0][0] - moments[1][0]
    by_root = offset @ offset + np.trace(moments[0][1] + moments[1][1] - 2 * root)
    assert value == pytest.approx(by_root, rel=1e-9)
    tensors = [torch.from_numpy(array) for of_set in moments for array in of_set]
    assert value == pytest.approx(float(_compute_fid(*tensors)), rel=1e-9)
    try:
        by_monai = float(get_fid_score(torch.from_numpy(fake), torch.from_numpy(real)))
    except (TypeError, ValueError):
        pytest.skip("this MONAI calls scipy's sqrtm with an argument that this scipy no longer has")
    assert value == pytest.approx(by_monai, rel=1e-9)


def test_equal_sets_have_no_distance_with_fewer_rows_than_features():
    rows = normal(4, 6, 40)
    found = measure(frechet, features(rows), features(rows[::-1]))
    assert found.value == pytest.approx(0, abs=1e-10)
    assert found.p == 1.0


def test_a_shift_is_its_square_in_any_number_of_features():
    rows = normal(5, 8, 30)
    assert measure(frechet, features(rows), features(rows + 2.0)).value == pytest.approx(30 * 4.0)


@pytest.mark.parametrize("rows_per_case", [1, 3])
@pytest.mark.parametrize("width", [4, 40])
def test_resamples_are_in_components_that_lose_nothing(rows_per_case, width):
    """A resample's distance equals that of the rows written out, in all features."""
    real = features(normal(6, 6 * rows_per_case, width), rows_per_case)
    fake = features(normal(7, 5 * rows_per_case, width, shift=0.5), rows_per_case)
    weights = np.array([2, 0, 1, 1, 1, 1]), np.array([0, 3, 1, 0, 1])
    written_out = [
        np.repeat(of_set.rows, drawn[of_set.case_of_row], axis=0)
        for of_set, drawn in zip((real, fake), weights, strict=True)
    ]
    expected = frechet_distance(
        *(array for rows in written_out for array in (rows.mean(0), np.cov(rows, rowvar=False)))
    )
    moments = distances._Moments(real, fake)
    assert moments.variance == pytest.approx(1.0)
    value = frechet_distance(
        *moments.of(np.r_[weights[0], np.zeros(5)].astype(float)),
        *moments.of(np.r_[np.zeros(6), weights[1]].astype(float)),
    )
    assert value == pytest.approx(expected, rel=1e-9)


def test_the_share_of_variance_is_told_where_components_are_left_out(monkeypatch):
    monkeypatch.setattr(distances, "COMPONENTS", 1)
    rows = normal(8, 30, 2) * [2.0, 1.0]
    found = measure(frechet, features(rows[:15]), features(rows[15:]))
    values = np.linalg.eigvalsh(np.cov(rows, rowvar=False))
    assert found.resampled_variance == pytest.approx(values[-1] / values.sum())


def test_the_distance_by_chance_is_that_of_equal_distributions_with_so_few_cases():
    """The Fréchet distance of few rows is far from 0 for equal distributions; chance is that."""
    draws = [
        measure(frechet, features(normal(seed, 20, 10)), features(normal(100 + seed, 20, 10)), resamples=20)
        for seed in range(30)
    ]
    values = np.array([draw.value for draw in draws])
    assert values.mean() > 2
    assert np.mean([draw.by_chance for draw in draws]) == pytest.approx(values.mean(), rel=0.1)
    assert np.mean([draw.p < 0.05 for draw in draws]) < 0.2
    inside = np.mean([draw.low <= values.mean() <= draw.high for draw in draws])
    assert inside > 0.8


def test_chance_is_comparable_with_the_value_where_components_are_left_out(monkeypatch):
    """With equal distributions the value is chance; half of the components add to the value alone."""
    scale = np.arange(1, 11) ** -0.35

    def draws():
        return [
            measure(frechet, features(normal(seed, 20, 10) * scale), features(normal(100 + seed, 20, 10) * scale))
            for seed in range(10)
        ]

    in_all = np.mean([draw.by_chance for draw in draws()])
    monkeypatch.setattr(distances, "COMPONENTS", 5)
    found = draws()
    assert np.mean([draw.resampled_variance for draw in found]) < 0.8
    assert np.mean([draw.by_chance for draw in found]) == pytest.approx(in_all, rel=0.1)


@pytest.mark.parametrize("distance", [frechet, kernel])
def test_other_distributions_are_told_from_chance_and_seeds_repeat(distance):
    real, fake = features(normal(9, 20, 3)), features(normal(10, 20, 3, shift=1.5))
    found = measure(distance, real, fake)
    assert found.p == pytest.approx(1 / 41)
    assert found.low < found.value < found.high
    assert found.low > found.by_chance
    assert found == measure(distance, real, fake)
    assert found.low != measure(distance, real, fake, seed=1).low


def test_kernel_distance_is_torchmetrics_on_all_rows():
    from torchmetrics.image.kid import poly_mmd

    real, fake = normal(11, 12, 5), normal(12, 12, 5, scale=1.3)
    expected = float(poly_mmd(torch.from_numpy(real), torch.from_numpy(fake)))
    assert measure(kernel, features(real), features(fake), resamples=1).value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_for_equal_distributions():
    """The mean of 300 draws is 0 within 3 standard errors; with the pairs of rows with themselves it is far above."""
    values, biased = [], []
    for seed in range(300):
        real, fake = normal(seed, 8, 3), normal(1000 + seed, 6, 3)
        values.append(measure(kernel, features(real), features(fake), resamples=1).value)
        kernels = [(a @ b.T / 3 + 1) ** 3 for a, b in ((real, real), (fake, fake), (real, fake))]
        biased.append(kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean())
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(biased) > 10 * error


def test_kernel_distance_of_slices_has_no_pairs_within_a_case(monkeypatch):
    monkeypatch.setattr(distances, "_KERNEL_ROWS", 4)
    real, fake = features(normal(13, 6, 2), 2), features(normal(14, 9, 2, shift=1), 3)

    def mean(first, second, same_set):
        pairs = [
            np.mean([(x @ y / 2 + 1) ** 3 for x in first.rows[first.case_of_row == i]
                     for y in second.rows[second.case_of_row == j]])
            for i in range(3) for j in range(3) if not (same_set and i == j)
        ]  # fmt: skip
        return np.mean(pairs)

    expected = mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)
    assert measure(kernel, real, fake, resamples=1).value == pytest.approx(expected, rel=1e-9)


def test_few_cases_have_no_interval_and_too_few_no_distance():
    two = features(normal(15, 2, 3)), features(normal(16, 2, 3))
    for distance in (frechet, kernel):
        found = measure(distance, *two)
        assert np.isnan([found.low, found.high]).all() and np.isfinite([found.value, found.by_chance]).all()
        with pytest.raises(UserError, match="needs at least two"):
            measure(distance, features(normal(17, 1, 3)), two[1])


def test_ranks():
    assert distances.covariance_rank(normal(18, 5, 9)) == 4
    assert distances.covariance_rank(normal(19, 9, 5)) == 5
    assert distances.covariance_rank(np.ones((4, 3))) == 0
