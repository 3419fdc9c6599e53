"""DeLong's covariance against scikit-learn, its definition by pairs, arithmetic and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fvae_nnunet.evaluation.delong import auc_difference, auc_interval, aucs, structural_components
from fvae_nnunet.evaluation.mean_auc import mean_aucs, weighted_aucs


def tied_scores(seed: int, models: int = 3, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Scores of few values, so that many are tied, and labels that they know something of."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    return np.round(rng.normal(positive, 1.0, (models, n)), 1), positive


def by_pairs(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The structural components of positive and negative cases, pair by pair (DeLong 1988, section 2)."""
    pairs = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in scores[~positive]] for x in scores[positive]])
    return pairs.mean(axis=1), pairs.mean(axis=0)


def obuchowski(scores: np.ndarray, positive: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The covariance as Obuchowski (1997) writes it, cluster by cluster."""
    components = [by_pairs(row, positive) for row in scores]
    m, n, names = positive.sum(), (~positive).sum(), np.unique(clusters)
    covariance = np.zeros((len(scores), len(scores)))
    for r, (above_r, below_r) in enumerate(components):
        for s, (above_s, below_s) in enumerate(components):
            area_r, area_s = above_r.mean(), above_s.mean()
            s10 = s01 = s11 = 0.0
            for name in names:
                x, y = clusters[positive] == name, clusters[~positive] == name
                up_r, up_s = above_r[x].sum() - x.sum() * area_r, above_s[x].sum() - x.sum() * area_s
                down_r, down_s = below_r[y].sum() - y.sum() * area_r, below_s[y].sum() - y.sum() * area_s
                s10, s01, s11 = s10 + up_r * up_s, s01 + down_r * down_s, s11 + up_r * down_s + up_s * down_r
            i10, i01 = len(np.unique(clusters[positive])), len(np.unique(clusters[~positive]))
            covariance[r, s] = (
                i10 / ((i10 - 1) * m) * s10 / m
                + i01 / ((i01 - 1) * n) * s01 / n
                + len(names) / (len(names) - 1) * s11 / (m * n)
            )
    return covariance


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_scikit_learn_and_covariance_that_of_the_pairs(seed):
    scores, positive = tied_scores(seed)
    found = aucs(scores, positive)
    assert found.values == pytest.approx([roc_auc_score(positive, row) for row in scores], abs=1e-12)
    pairs = [by_pairs(row, positive) for row in scores]
    expected = (
        np.cov([above for above, _ in pairs]) / positive.sum()
        + np.cov([below for _, below in pairs]) / (~positive).sum()
    )
    assert found.covariance == pytest.approx(expected, abs=1e-12)
    for row, (above, below) in zip(scores, pairs):
        components = structural_components(row, positive)
        assert components[positive] == pytest.approx(above) and components[~positive] == pytest.approx(below)


def test_four_cases_by_hand():
    # of the pairs 3>2, 3>0, 1<2, 1>0 three are in order; components 1, 1/2 and 1/2, 1; variances 1/8 over 2 each
    found = aucs(np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([True, True, False, False]))
    assert found.values[0] == 0.75
    assert found.covariance[0, 0] == pytest.approx(1 / 8)
    interval = auc_interval(found, 0)
    assert interval.low == pytest.approx(0.75 - 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert (interval.high, interval.method) == (1.0, "DeLong")


def test_scans_of_one_patient_are_summed_as_obuchowski_has_it():
    scores, positive = tied_scores(5)
    clusters = np.random.default_rng(5).integers(0, 18, len(positive))
    found = aucs(scores, positive, clusters)
    assert found.covariance == pytest.approx(obuchowski(scores, positive, clusters), abs=1e-12)
    assert found.values == pytest.approx(aucs(scores, positive).values)


def test_every_case_three_times_tells_no_more_than_once():
    scores, positive = tied_scores(6)
    once = aucs(scores, positive)
    thrice = aucs(np.tile(scores, 3), np.tile(positive, 3), np.tile(np.arange(len(positive)), 3))
    assert thrice.covariance == pytest.approx(once.covariance, abs=1e-12)
    assert np.diag(aucs(np.tile(scores, 3), np.tile(positive, 3)).covariance).max() < np.diag(once.covariance).min() / 2


def test_variance_is_that_of_repeated_studies_with_two_scans_of_each_patient():
    rng, values, clustered, naive = np.random.default_rng(7), [], [], []
    patients = np.repeat(np.arange(40), 2)
    for _ in range(400):
        positive = np.repeat(rng.random(40) < 0.5, 2)
        scores = np.repeat(rng.normal(positive[::2], 1.0), 2) + rng.normal(0, 0.3, 80)
        found = aucs(scores[None], positive, patients)
        values.append(found.values[0])
        clustered.append(found.covariance[0, 0])
        naive.append(aucs(scores[None], positive).covariance[0, 0])
    assert np.mean(clustered) == pytest.approx(np.var(values), rel=0.2)  # 400 studies know a variance to 7 %
    assert np.mean(naive) < 0.7 * np.var(values)


def test_difference_is_second_minus_first_with_a_test_by_the_normal_law():
    scores, positive = tied_scores(8)
    found = aucs(scores, positive)
    difference = auc_difference(found, 0, 2)
    c = found.covariance
    sd = math.sqrt(c[0, 0] + c[2, 2] - 2 * c[0, 2])
    assert difference.value == pytest.approx(roc_auc_score(positive, scores[2]) - roc_auc_score(positive, scores[0]))
    assert difference.p == pytest.approx(2 * norm.sf(abs(difference.value) / sd))
    assert difference.interval.high - difference.interval.low == pytest.approx(2 * norm.ppf(0.975) * sd)
    assert auc_difference(found, 2, 0).value == -difference.value


def test_models_that_order_alike_do_not_differ():
    scores, positive = tied_scores(9, models=1)
    found = aucs(np.concatenate([scores, np.exp(scores)]), positive)
    difference = auc_difference(found, 0, 1)
    assert (difference.value, difference.p, difference.interval.method) == (0.0, 1.0, "none")


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_without_both_kinds_of_cases_there_is_no_auc(labels):
    found = aucs(np.array([[0.1, 0.2, 0.3]]), np.array(labels) == 1)
    assert np.isnan(found.values).all() and np.isnan(found.covariance).all()
    assert auc_interval(found, 0).method == "none" and math.isnan(auc_difference(found, 0, 0).p)


def test_one_positive_patient_gives_an_auc_without_interval():
    found = aucs(np.array([[0.9, 0.8, 0.1, 0.85]]), np.array([True, True, False, False]), ["a", "a", "b", "c"])
    assert found.values[0] == 0.75
    assert auc_interval(found, 0).method == "none"
    # a perfect AUC has no spread either
    assert auc_interval(aucs(np.array([[3.0, 4.0, 1.0, 2.0]]), np.array([1, 1, 0, 0]) == 1), 0).method == "none"


def test_weighted_auc_is_that_of_scikit_learn_with_sample_weights():
    scores, positive = tied_scores(10, models=1)
    labels = positive.astype(float)
    labels[::7] = np.nan
    times = np.random.default_rng(10).integers(0, 4, (20, len(labels))).astype(float)
    known = ~np.isnan(labels)
    expected = [
        roc_auc_score(labels[known], scores[0, known], sample_weight=row[known]) for row in times
    ]  # fmt: skip
    assert weighted_aucs(scores[0], labels, times) == pytest.approx(expected, abs=1e-12)
    none = np.zeros((1, len(labels)))
    assert np.isnan(weighted_aucs(scores[0], labels, none)).all()


def mean_of_drawn(scores: np.ndarray, labels: np.ndarray, cases: np.ndarray) -> float:
    """Mean AUC over the findings that have one among these cases, by scikit-learn."""
    found = [
        roc_auc_score(column[cases], score[cases])
        for column, score in zip(labels.T, scores.T)
        if len(set(column[cases])) == 2
    ]
    return float(np.mean(found))


def test_mean_auc_is_resampled_patient_by_patient():
    rng = np.random.default_rng(11)
    patients = np.array([f"p{number}" for number in np.repeat(np.arange(12), [1, 2, 3] * 4)])
    labels = (rng.random((24, 3)) < [0.5, 0.3, 0.15]).astype(float)
    labels[0], labels[1] = 0, 1
    scores = rng.normal(labels, 1, (2, 24, 3))
    found = mean_aucs(scores, labels, patients, seed=3, resamples=50)
    assert found.values == pytest.approx([mean_of_drawn(row, labels, np.arange(24)) for row in scores])
    names = np.unique(patients)
    drawn = np.random.default_rng(3).integers(0, 12, (50, 12))
    cases = [np.concatenate([np.flatnonzero(patients == names[one]) for one in row]) for row in drawn]
    expected = [[mean_of_drawn(row, labels, some) for row in scores] for some in cases]
    assert found.resampled == pytest.approx(np.array(expected), abs=1e-12)
    assert found.interval(1).low == pytest.approx(np.quantile(np.array(expected)[:, 1], 0.025))
    lacking = [any(len(set(column[some])) < 2 for column in labels.T) for some in cases]
    assert found.incomplete == pytest.approx(np.mean(lacking)) and 0 < found.incomplete < 1
    differences = np.diff(np.array(expected), axis=1)[:, 0]
    tail = min((differences <= 1e-12).sum(), (differences >= -1e-12).sum())
    assert found.difference(0, 1).p == pytest.approx(min(1, 2 * (tail + 1) / 51))
    assert found.difference(0, 1).value == pytest.approx(found.values[1] - found.values[0])


def test_a_mean_that_is_always_better_has_the_smallest_p_and_an_equal_one_has_1():
    labels = np.tile([[0.0], [1.0]], (10, 1))
    scores = np.stack([-labels, labels * 2, np.exp(labels)])
    found = mean_aucs(scores, labels, [str(number) for number in range(20)], seed=0, resamples=199)
    better = found.difference(0, 1)
    assert better.value == 1 and better.interval.method == "none" and math.isnan(better.p)  # without spread
    assert found.difference(1, 2).p == 1
    noisy = scores + np.random.default_rng(0).normal(0, 0.9, scores.shape)
    better = mean_aucs(noisy, labels, [str(number) for number in range(20)], seed=0, resamples=199).difference(0, 1)
    assert better.p == pytest.approx(2 / 200) and better.interval.low > 0


def test_no_finding_with_both_kinds_of_cases_has_no_mean():
    found = mean_aucs(np.zeros((1, 3, 1)), np.ones((3, 1)), ["a", "b", "c"], seed=0, resamples=9)
    assert math.isnan(found.values[0]) and found.interval(0).method == "none"
