"""Ranks and intervals, against scipy, scikit-learn and the formulas written out."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from ppdd_core.privacy.intervals import (
    bootstrap_mean,
    bootstrap_tpr,
    delong,
    effective_trials,
    stratified_auc,
    tpr_at_fpr,
    wilson,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 10), (10, 10), (87, 200)])
def test_wilson_is_the_one_of_scipy(successes: int, trials: int) -> None:
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes / trials, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_trials_that_fall_together_count_as_one() -> None:
    assert effective_trials([1, 2, 3, 4]) == 4
    assert effective_trials([7, 7, 7, 7]) == 1
    assert effective_trials([1, 1, 1, 2]) == pytest.approx(1.6)


def scores(seed: int, members: int, others: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.4, 1, members).round(1), rng.normal(0, 1, others).round(1)  # with ties


def test_auc_is_the_one_of_scikit_learn_with_ties() -> None:
    members, others = scores(1, 70, 90)
    truth = np.r_[np.ones(70), np.zeros(90)]
    assert delong(members, others)[0] == pytest.approx(roc_auc_score(truth, np.r_[members, others]))


def test_delong_variance_is_the_formula_over_all_pairs() -> None:
    members, others = scores(2, 30, 40)
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    written_out = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 40
    assert delong(members, others)[1] == pytest.approx(written_out)


def test_auc_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(300):
        _, (low, high) = stratified_auc([scores(seed, 60, 60)])
        held += low <= 0.6114 <= high  # P(a > b) for normals 0.4 apart
    assert 0.91 <= held / 300 <= 0.985


def test_scores_that_only_tell_classes_apart_give_no_auc() -> None:
    rng = np.random.default_rng(3)
    frequent = rng.normal(5, 1, 200), rng.normal(5, 1, 20)  # members are mostly of this class
    rare = rng.normal(0, 1, 20), rng.normal(0, 1, 200)
    pooled = delong(np.r_[frequent[0], rare[0]], np.r_[frequent[1], rare[1]])[0]
    value, (low, high) = stratified_auc([frequent, rare])
    assert pooled > 0.85
    assert low < 0.5 < high
    assert abs(value - 0.5) < 0.1


def test_a_class_without_one_side_is_left_out() -> None:
    pair = scores(4, 20, 20)
    assert stratified_auc([pair, (np.array([9.0]), np.array([]))]) == stratified_auc([pair])


def test_true_positive_rate_is_the_point_of_the_roc_curve() -> None:
    members, others = scores(5, 500, 400)
    fpr, tpr, _ = roc_curve(
        np.r_[np.ones(500), np.zeros(400)], np.r_[members, others], drop_intermediate=False
    )
    assert tpr_at_fpr(members, others, 0.01) == pytest.approx(tpr[fpr <= 0.01].max())


def test_true_positives_of_guessing_are_as_many_as_false_alarms() -> None:
    rng = np.random.default_rng(6)
    members, others = rng.normal(size=1000), rng.normal(size=1000)
    low, high = bootstrap_tpr(members, others, 0.01, np.random.default_rng(0))
    assert low <= 0.01 <= high
    assert high < 0.05


def test_bootstrap_of_the_mean_is_close_to_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(7).normal(2, 1, 200)
    low, high = bootstrap_mean(values, np.random.default_rng(0)) or (0, 0)
    half = 1.96 * values.std(ddof=1) / 200**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_mean(values, np.random.default_rng(0)) == (low, high)
    assert bootstrap_mean(values[:1], np.random.default_rng(0)) is None
