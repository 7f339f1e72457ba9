"""Intervals and ranks: what a sample says about a share, an AUC, a true-positive rate, a mean.

NumPy only, no images and no networks. All intervals are 95 %.

Shape suffixes: M members, N non-members, S strata, T bootstrap trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

Z_95 = 1.959963984540054
TRIALS = 1000  # bootstrap resamples


def wilson(share: float, trials: float) -> Interval:
    """Return Wilson's score interval of a share; `trials` is their effective number, whole or not."""
    z2 = Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * (share * (1 - share) / trials + z2 / (4 * trials**2)) ** 0.5
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def effective_trials(groups: Iterable[Hashable]) -> float:
    """Return how many independent trials the given ones are worth, when all of one group fall alike."""
    sizes = np.array(list(Counter(groups).values()), dtype=np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def delong(members_M: Floats, others_N: Floats) -> tuple[float, float]:
    """Return the AUC (ties count half) and its variance after DeLong et al. (1988).

    The variance is 0 where either side has fewer than two scores.
    """
    placed_M = _share_below(members_M, others_N)
    placed_N = 1.0 - _share_below(others_N, members_M)
    if len(members_M) < 2 or len(others_N) < 2:
        return float(placed_M.mean()), 0.0
    variance = placed_M.var(ddof=1) / len(members_M) + placed_N.var(ddof=1) / len(others_N)
    return float(placed_M.mean()), float(variance)


def stratified_auc(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[float, Interval]:
    """Return the AUC within strata, weighted by the members in each, and its interval.

    Each stratum is (scores of members, scores of non-members); only scores of one stratum are ever
    compared. At least one stratum must have both; those that lack one side are left out.
    """
    usable = [(m, n) for m, n in pairs if len(m) and len(n)]
    weight_S = np.array([len(members) for members, _ in usable], dtype=np.float64)
    weight_S /= weight_S.sum()
    auc_S, variance_S = np.array([delong(m, n) for m, n in usable]).T
    auc = float(weight_S @ auc_S)
    half = Z_95 * float(weight_S**2 @ variance_S) ** 0.5
    return auc, (max(0.0, auc - half), min(1.0, auc + half))


def tpr_at_fpr(members_M: Floats, others_N: Floats, rate: float) -> float:
    """Return the share of members above the threshold that at most `rate` of the others exceed."""
    allowed = int(rate * len(others_N) + 1e-9)
    threshold = np.sort(others_N)[-1 - allowed]
    return float((members_M > threshold).mean())


def bootstrap_tpr(
    members_M: Floats, others_N: Floats, rate: float, rng: np.random.Generator
) -> Interval:
    """Return the percentile interval of `tpr_at_fpr`, members and others resampled alike.

    Unlike a binomial interval it knows that the threshold is an estimate too.
    """
    rates_T = np.array(
        [
            tpr_at_fpr(_resample(members_M, rng), _resample(others_N, rng), rate)
            for _ in range(TRIALS)
        ]
    )
    return around(tpr_at_fpr(members_M, others_N, rate), rates_T)


def bootstrap_mean(values: Floats, rng: np.random.Generator) -> Interval | None:
    """Return the percentile interval of the mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    means_T = values[rng.integers(0, len(values), (TRIALS, len(values)))].mean(1)
    return around(float(values.mean()), means_T)


def around(value: float, trials_T: Floats) -> Interval:
    """Return the middle 95 % of the trials, widened where it does not hold the value itself."""
    low, high = np.quantile(trials_T, (0.025, 0.975))
    return min(value, float(low)), max(value, float(high))


def _resample(values: Floats, rng: np.random.Generator) -> Floats:
    return values[rng.integers(0, len(values), len(values))]


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left")
    up_to = np.searchsorted(ordered, values, "right")
    placed: Floats = (below + up_to) / (2.0 * len(others))
    return placed
