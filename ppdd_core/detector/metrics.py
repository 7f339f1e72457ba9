"""How good a classifier's probabilities are, with intervals. Numbers in, numbers out: no torch here.

Intervals are Wilson's at 95 % (Wilson 1927) and treat images as independent; where patients have several
images they are too narrow. Which network was trained on what is the business of `evaluate`.

Shape suffixes: R images, K classes, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppdd_core.errors import SourceError, TrainingError

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
BINS = 15  # of the calibration error
DIGITS = 6  # of every number in `to_dict`
ROC_STEPS = 50  # of the false positive rate, 0 to 1, at which a ROC curve is kept

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class against the rest; None where the test images cannot say."""

    name: str
    images: int
    sensitivity: float | None  # None: no image of this class
    sensitivity_interval: Interval | None
    specificity: float | None  # None: no image of any other class
    specificity_interval: Interval | None
    auroc: float | None  # None: one of the two is missing
    roc: tuple[float, ...] | None  # true positive rate at each step of the false positive rate


@dataclass(frozen=True, slots=True)
class Metrics:
    """What one network reached on one set of images."""

    images: int
    accuracy: float
    accuracy_interval: Interval
    balanced_accuracy: float  # mean sensitivity of the classes that occur
    macro_auroc: (
        float | None
    )  # mean one-vs-rest AUROC of the classes that occur; None with one class only
    calibration_error: (
        float  # expected calibration error of the top probability, 15 bins of equal width
    )
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: true class; columns: predicted class

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as one entry of evaluation.json has them, rounded to six digits."""
        return {
            "accuracy": _rounded(self.accuracy),
            "accuracy_interval": _rounded_pair(self.accuracy_interval),
            "balanced_accuracy": _rounded(self.balanced_accuracy),
            "macro_auroc": _rounded(self.macro_auroc),
            "calibration_error": _rounded(self.calibration_error),
            "per_class": [
                {
                    "class": one.name,
                    "images": one.images,
                    "sensitivity": _rounded(one.sensitivity),
                    "sensitivity_interval": _rounded_pair(one.sensitivity_interval),
                    "specificity": _rounded(one.specificity),
                    "specificity_interval": _rounded_pair(one.specificity_interval),
                    "auroc": _rounded(one.auroc),
                    "roc": None if one.roc is None else [round(rate, DIGITS) for rate in one.roc],
                }
                for one in self.per_class
            ],
            "confusion": [list(row) for row in self.confusion],
        }


def measure(labels_R: np.ndarray, probabilities_RK: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Return the metrics of predicted `probabilities_RK` (rows sum to 1) against true class numbers.

    The predicted class is the most probable one, the first of equals. No images, or labels outside the
    classes, raise SourceError; probabilities of another shape or that are not probabilities, TrainingError.
    """
    labels_R = np.asarray(labels_R)
    probabilities_RK = np.asarray(probabilities_RK, dtype=np.float64)
    _check(labels_R, probabilities_RK, len(classes))
    predicted_R = probabilities_RK.argmax(axis=1)
    confusion_KK = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion_KK, (labels_R, predicted_R), 1)
    right = int(np.trace(confusion_KK))
    per_class = tuple(
        _class_metrics(name, k, confusion_KK, labels_R, probabilities_RK[:, k])
        for k, name in enumerate(classes)
    )
    return Metrics(
        images=len(labels_R),
        accuracy=right / len(labels_R),
        accuracy_interval=wilson(right, len(labels_R)),
        balanced_accuracy=_mean([c.sensitivity for c in per_class if c.sensitivity is not None])
        or 0.0,
        macro_auroc=_mean([c.auroc for c in per_class if c.auroc is not None]),
        calibration_error=calibration_error(labels_R, probabilities_RK),
        per_class=per_class,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_KK),
    )


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % interval of a proportion; `trials` must be at least 1."""
    share = successes / trials
    shrink = 1 + Z95**2 / trials
    centre = (share + Z95**2 / (2 * trials)) / shrink
    half = Z95 / shrink * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def auroc(positive_R: np.ndarray, score_R: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs with the positive scored higher, ties counting half.

    From mean ranks (Mann and Whitney 1947); both kinds must occur.
    """
    _, place_R, counts = np.unique(score_R, return_inverse=True, return_counts=True)
    rank_R = (np.cumsum(counts) - (counts - 1) / 2)[place_R]
    positives = int(positive_R.sum())
    pairs = positives * (len(positive_R) - positives)
    return float((rank_R[positive_R].sum() - positives * (positives + 1) / 2) / pairs)


def roc(positive_R: np.ndarray, score_R: np.ndarray) -> tuple[float, ...]:
    """Return the true positive rates at `ROC_STEPS` + 1 equal steps of the false positive rate, from 0 to 1.

    However many images there are, a curve is that long. Equal scores are one step of the threshold, so the curve goes
    straight between them, as `auroc` counts them; where it rises straight up, its upper end is taken.
    """
    scores, place_R = np.unique(-np.asarray(score_R), return_inverse=True)
    hits_T = np.bincount(place_R, weights=positive_R, minlength=len(scores))
    alarms_T = np.bincount(place_R, weights=~positive_R, minlength=len(scores))
    up_T = np.concatenate([[0.0], np.cumsum(hits_T) / hits_T.sum()])
    along_T = np.concatenate([[0.0], np.cumsum(alarms_T) / alarms_T.sum()])
    return tuple(_at(along_T, up_T, step / ROC_STEPS) for step in range(ROC_STEPS + 1))


def calibration_error(
    labels_R: np.ndarray, probabilities_RK: np.ndarray, *, bins: int = BINS
) -> float:
    """Return the expected calibration error (Naeini 2015, Guo 2017): mean over images of |hits - confidence|.

    Images are put into `bins` bins of equal width, closed above, by the probability of their predicted class.
    """
    confidence_R = probabilities_RK.max(axis=1)
    right_R = probabilities_RK.argmax(axis=1) == labels_R
    bin_R = np.clip(np.ceil(confidence_R * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(bin_R, weights=right_R - confidence_R, minlength=bins)
    return float(np.abs(surplus).sum() / len(labels_R))


def _class_metrics(
    name: str, k: int, confusion_KK: np.ndarray, labels_R: np.ndarray, score_R: np.ndarray
) -> ClassMetrics:
    total = int(confusion_KK.sum())
    positives = int(confusion_KK[k].sum())
    negatives = total - positives
    hits = int(confusion_KK[k, k])
    rejected = negatives - (int(confusion_KK[:, k].sum()) - hits)
    both = positives > 0 and negatives > 0
    return ClassMetrics(
        name=name,
        images=positives,
        sensitivity=hits / positives if positives else None,
        sensitivity_interval=wilson(hits, positives) if positives else None,
        specificity=rejected / negatives if negatives else None,
        specificity_interval=wilson(rejected, negatives) if negatives else None,
        auroc=auroc(labels_R == k, score_R) if both else None,
        roc=roc(labels_R == k, score_R) if both else None,
    )


def _at(along_T: np.ndarray, up_T: np.ndarray, rate: float) -> float:
    """Return how high the curve is at `rate`, at the upper end of a rise; `along_T` begins with 0 and ends with 1."""
    before = int(np.searchsorted(along_T, rate + 1e-12, side="right")) - 1
    if before == len(along_T) - 1:
        return float(up_T[before])
    share = (rate - along_T[before]) / (along_T[before + 1] - along_T[before])
    return float(up_T[before] + max(0.0, share) * (up_T[before + 1] - up_T[before]))


def _check(labels_R: np.ndarray, probabilities_RK: np.ndarray, classes: int) -> None:
    if labels_R.ndim != 1 or len(labels_R) == 0:
        raise SourceError("there are no test images; an evaluation needs at least one")
    if labels_R.min() < 0 or labels_R.max() >= classes:
        raise SourceError(
            f"labels must lie in 0 … {classes - 1}, found {labels_R.min()} … {labels_R.max()}"
        )
    if probabilities_RK.shape != (len(labels_R), classes):
        raise TrainingError(
            f"{len(labels_R)} images of {classes} classes need as many rows and columns of probabilities, "
            f"got {probabilities_RK.shape}"
        )
    sums_R = probabilities_RK.sum(axis=1)
    if not (np.all(probabilities_RK >= 0) and np.allclose(sums_R, 1, rtol=0, atol=1e-3)):
        raise TrainingError(
            "the network's output is no probability (not finite, negative or not summing to 1)"
        )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _rounded_pair(value: Interval | None) -> list[float] | None:
    return None if value is None else [round(edge, DIGITS) for edge in value]
