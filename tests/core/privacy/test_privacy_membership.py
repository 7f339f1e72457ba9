"""Who is compared with whom, and scores that survive saturated networks."""

import numpy as np
import pytest
import torch

from ppdd_core.privacy.membership import Scored, auc, fit_score, matched_rows, true_positives


def labels(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("members", "others", "limit", "ratio", "per_class"),
    [
        pytest.param((80, 40), (10, 30), 1000, 1, ((10, 30), (10, 30)), id="as many of each"),
        pytest.param((80, 130), (10, 30), 1000, 4, ((40, 120), (10, 30)), id="four to one"),
        pytest.param((500, 900), (300, 100), 40, 4, ((30, 10), (30, 10)), id="limited"),
        pytest.param(
            (50, 0, 9), (20, 20, 3), 1000, 1, ((20, 0, 3), (20, 0, 3)), id="a class on one side"
        ),
        pytest.param((5, 5), (0, 0), 1000, 1, ((0, 0), (0, 0)), id="nobody held out"),
    ],
)
def test_both_sides_have_the_same_class_proportions(
    members: tuple[int, ...],
    others: tuple[int, ...],
    limit: int,
    ratio: int,
    per_class: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    label_M, label_N = labels(*members), labels(*others)
    rows = matched_rows(label_M, label_N, limit=limit, ratio=ratio, seed=0)
    for drawn, label, expected in zip(rows, (label_M, label_N), per_class, strict=True):
        assert np.bincount(label[drawn], minlength=len(expected)).tolist() == list(expected)
        assert len(set(drawn.tolist())) == len(drawn)


def test_the_seed_decides_who_is_drawn() -> None:
    first, again, other = (
        matched_rows(labels(90, 90), labels(90, 90), limit=40, ratio=1, seed=seed)[0]
        for seed in (0, 0, 1)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_score_is_the_logit_of_the_own_class_and_tells_certain_from_more_certain() -> None:
    p = torch.tensor([[0.8, 0.15, 0.05], [0.8, 0.15, 0.05]])
    expected = [np.log(0.8 / 0.2), np.log(0.15 / 0.85)]
    assert fit_score(p, np.array([0, 1])) == pytest.approx(expected, abs=1e-5)
    saturated = torch.tensor([[1.0, 1e-9], [1.0, 1e-12]])
    low, high = fit_score(saturated, np.array([0, 0]))
    assert low < high < np.inf


def test_a_class_that_is_easier_for_the_network_is_no_shortcut() -> None:
    rng = np.random.default_rng(0)
    label = labels(200, 200)
    member, other = (Scored(rng.normal(20.0 * label, 1), label) for _ in range(2))
    value, (low, high) = auc(member, other)
    assert low < 0.5 < high
    assert true_positives(member, other, rng)[0] < 0.05
    leaking = Scored(other.score_R + 3.0, label)
    assert auc(leaking, other)[0] > 0.95
    assert true_positives(leaking, other, rng)[0] > 0.3
    assert value != 0.5
