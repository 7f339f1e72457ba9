"""Membership inference: can networks trained on the package tell training images from other patients'?

The attacker knows the package, trains networks on it, has an image with its label, and asks how well the
networks fit it. Scores are compared within classes only, so class proportions are no shortcut.

Shape suffixes: R images scored, K classes, M members, N non-members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppdd_core.privacy.intervals import Floats, Interval, bootstrap_tpr, stratified_auc, tpr_at_fpr

FALSE_ALARMS = 0.01
FEWEST_OTHERS = 100  # non-members that a false-alarm rate of 1 % needs
FEWEST_FOR_AUC = 20  # members, and non-members


@dataclass(frozen=True, slots=True)
class Scored:
    """Images with a score each (larger: more like a member) and their classes."""

    score_R: Floats
    label_R: np.ndarray

    def among(self, keep_R: np.ndarray) -> Scored:
        """Return some of the images."""
        return Scored(self.score_R[keep_R], self.label_R[keep_R])

    def shares_class_with(self, other: Scored) -> bool:
        """Return whether any score of the one can be compared with one of the other."""
        return bool(np.isin(self.label_R, other.label_R).any())


def matched_rows(
    labels_M: np.ndarray, labels_N: np.ndarray, *, limit: int, ratio: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of members and of non-members with the same class proportions, at random, sorted.

    At most `limit` of each, and per class up to `ratio` members for one non-member. Classes that lack one
    side are left out.
    """
    rng = np.random.default_rng(seed)
    classes = np.intersect1d(labels_M, labels_N)
    members = np.array([(labels_M == c).sum() for c in classes], dtype=np.int64)
    others = np.array([(labels_N == c).sum() for c in classes], dtype=np.int64)
    if not len(classes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    paired = np.minimum(members, others)
    if paired.sum() > limit:
        paired = np.maximum(1, paired * limit // paired.sum())
    times = max(1, min(ratio, int((members // paired).min()), limit // int(paired.sum())))
    drawn_M = [_draw(labels_M, c, times * n, rng) for c, n in zip(classes, paired, strict=True)]
    drawn_N = [_draw(labels_N, c, n, rng) for c, n in zip(classes, paired, strict=True)]
    return np.sort(np.concatenate(drawn_M)), np.sort(np.concatenate(drawn_N))


def fit_score(probabilities_RK: Tensor, labels_R: np.ndarray) -> Floats:
    """Return log(p / (1 - p)) of each image's own class, float64 [R].

    A monotone function of the loss, but with nearly normal spread, so that networks can be averaged
    (Carlini et al. 2022). 1 - p is summed from the other classes: it stays exact where p rounds to 1.
    """
    p_RK = probabilities_RK.double().cpu().numpy()
    own = np.arange(p_RK.shape[1])[None] == labels_R[:, None]
    tiny = 1e-30
    score: Floats = np.log(p_RK[own] + tiny) - np.log(np.where(own, 0.0, p_RK).sum(1) + tiny)
    return score


def auc(members: Scored, others: Scored) -> tuple[float, Interval]:
    """Return the AUC within classes with its DeLong interval; one class must have both sides."""
    classes = np.intersect1d(members.label_R, others.label_R)
    return stratified_auc(
        [
            (members.score_R[members.label_R == c], others.score_R[others.label_R == c])
            for c in classes
        ]
    )


def true_positives(
    members: Scored, others: Scored, rng: np.random.Generator
) -> tuple[float, Interval]:
    """Return the share of members found at 1 % false alarms and its bootstrap interval.

    Scores are first centred and scaled within each class over both sides (which `matched_rows` gives the same
    class proportions), so that one threshold serves all classes.
    """
    members_M, others_N = _calibrated(members, others)
    found = tpr_at_fpr(members_M, others_N, FALSE_ALARMS)
    return found, bootstrap_tpr(members_M, others_N, FALSE_ALARMS, rng)


def _calibrated(members: Scored, others: Scored) -> tuple[Floats, Floats]:
    score_M, score_N = members.score_R.copy(), others.score_R.copy()
    for c in np.union1d(members.label_R, others.label_R):
        at_M, at_N = members.label_R == c, others.label_R == c
        both = np.concatenate([score_M[at_M], score_N[at_N]])
        centre, spread = np.median(both), both.std() or 1.0
        score_M[at_M] = (score_M[at_M] - centre) / spread
        score_N[at_N] = (score_N[at_N] - centre) / spread
    return score_M, score_N


def _draw(labels: np.ndarray, c: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.flatnonzero(labels == c))[:count]
