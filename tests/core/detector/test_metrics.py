"""Figures against numbers worked out by hand, and what happens where the test images cannot say."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from ppdd_core.detector.metrics import ROC_STEPS, auroc, calibration_error, measure, roc, wilson
from ppdd_core.errors import SourceError, TrainingError

CLASSES = ("COVID", "Normal", "Viral")


def probabilities(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_figures_equal_those_worked_out_by_hand() -> None:
    labels_R = np.array([0, 0, 1, 1, 1, 2])
    probabilities_RK = probabilities(
        (0.8, 0.1, 0.1),
        (0.3, 0.6, 0.1),  # a COVID taken for Normal
        (0.2, 0.7, 0.1),
        (0.1, 0.8, 0.1),
        (0.5, 0.4, 0.1),  # a Normal taken for COVID
        (0.1, 0.2, 0.7),
    )
    found = measure(labels_R, probabilities_RK, CLASSES)
    assert found.confusion == ((1, 1, 0), (1, 2, 0), (0, 0, 1))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    covid, normal, viral = found.per_class
    assert (covid.images, covid.sensitivity, covid.specificity) == (2, 1 / 2, 3 / 4)
    assert (normal.images, normal.specificity) == (3, 2 / 3)
    # one-vs-rest, pairs ordered rightly: COVID 7 of 8 (0.3 < 0.5); Normal 8 of 9 (0.4 < 0.6); Viral 5 of 5
    assert [one.auroc for one in found.per_class] == pytest.approx([7 / 8, 8 / 9, 1.0])
    assert found.macro_auroc == pytest.approx((7 / 8 + 8 / 9 + 1) / 3)


def test_wilson_equals_the_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263, and 1 of 29
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


def test_auroc_is_the_share_of_pairs_ordered_rightly_ties_counting_half() -> None:
    generator = np.random.default_rng(0)
    positive_R, score_R = generator.random(200) < 0.3, generator.integers(0, 12, 200) / 12
    pairs = score_R[positive_R][:, None] - score_R[~positive_R][None, :]
    expected = (np.sum(pairs > 0) + np.sum(pairs == 0) / 2) / pairs.size
    assert auroc(positive_R, score_R) == pytest.approx(expected, abs=1e-12)


def test_a_roc_curve_goes_up_where_positives_are_and_straight_through_ties() -> None:
    positive_R = np.array([True, False, True, False])
    curve = roc(positive_R, np.array([0.9, 0.7, 0.5, 0.5]))
    at = dict(zip((step / ROC_STEPS for step in range(ROC_STEPS + 1)), curve, strict=True))
    # one positive first, then a negative, then one of each at the same score
    assert (at[0.0], at[0.48], at[0.5], at[0.76], at[1.0]) == pytest.approx(
        (0.5, 0.5, 0.5, 0.76, 1)
    )


def test_a_roc_curve_has_the_auroc_below_it_however_many_images_there_are() -> None:
    generator = np.random.default_rng(1)
    positive_R = generator.random(5000) < 0.2
    score_R = np.round(generator.random(5000) + 0.4 * positive_R, 2)
    curve = roc(positive_R, score_R)
    assert len(curve) == ROC_STEPS + 1
    assert np.trapezoid(curve, dx=1 / ROC_STEPS) == pytest.approx(
        auroc(positive_R, score_R), abs=2e-3
    )


def test_calibration_error_is_the_distance_between_confidence_and_hits() -> None:
    sure = probabilities(*[(0.9, 0.1)] * 10)
    assert calibration_error(np.array([0] * 9 + [1]), sure) == pytest.approx(0.0, abs=1e-7)
    assert calibration_error(np.array([0] * 5 + [1] * 5), sure) == pytest.approx(0.4)


def test_calibration_error_does_not_cancel_between_bins() -> None:
    labels_R = np.array([0] * 10)
    probabilities_RK = probabilities(*[(0.95, 0.05)] * 5, *[(0.45, 0.55)] * 5)
    assert calibration_error(labels_R, probabilities_RK) == pytest.approx((0.05 + 0.55) / 2)


def test_a_class_without_test_images_is_none_and_left_out_of_the_means() -> None:
    labels_R = np.array([0, 0, 1])
    probabilities_RK = probabilities((0.8, 0.1, 0.1), (0.1, 0.2, 0.7), (0.2, 0.7, 0.1))
    found = measure(labels_R, probabilities_RK, CLASSES)
    absent = found.per_class[2]
    assert (absent.images, absent.sensitivity, absent.sensitivity_interval, absent.auroc) == (
        0,
        None,
        None,
        None,
    )
    assert absent.specificity == pytest.approx(2 / 3)
    assert found.balanced_accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert found.macro_auroc == pytest.approx((1 / 2 + 1) / 2)


def test_a_test_set_of_one_class_has_no_auroc_and_no_specificity() -> None:
    found = measure(np.array([0, 0]), probabilities((0.8, 0.1, 0.1), (0.1, 0.8, 0.1)), CLASSES)
    assert found.macro_auroc is None
    assert found.per_class[0].specificity is None
    assert found.balanced_accuracy == 0.5


def test_the_entry_is_json_with_the_agreed_keys() -> None:
    entry = measure(np.array([0, 1]), probabilities((0.8, 0.2), (0.4, 0.6)), CLASSES[:2]).to_dict()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert set(entry) == {
        "accuracy", "accuracy_interval", "balanced_accuracy", "macro_auroc", "calibration_error", "per_class",
        "confusion",
    }  # fmt: skip
    assert entry["per_class"][0]["class"] == "COVID"
    assert entry["per_class"][0]["roc"] == [1.0] * (ROC_STEPS + 1)
    assert entry["confusion"] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "rows", "error", "says"),
    [
        pytest.param([], np.empty((0, 3)), SourceError, "no test images", id="no images"),
        pytest.param(
            [3], [[0.2, 0.3, 0.5]], SourceError, "labels must lie in 0 … 2", id="label outside"
        ),
        pytest.param([0], [[0.5, 0.5]], TrainingError, "got \\(1, 2\\)", id="too few columns"),
        pytest.param([0], [[np.nan, 0.5, 0.5]], TrainingError, "no probability", id="not finite"),
        pytest.param([0], [[0.9, 0.9, 0.9]], TrainingError, "no probability", id="logits"),
    ],
)
def test_refuses(labels: list[int], rows: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        measure(np.array(labels, dtype=np.int64), np.asarray(rows), CLASSES)


def test_metrics_need_no_torch() -> None:
    program = "import sys, ppdd_core.detector.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
