"""Evaluations of others may hold anything: a page shows what it can read, and nothing breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dashboard.charts import bars, grid, lines
from services.dashboard.figures import balanced_interval, read_evaluation

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["class", "sensitivity", "sensitivity_interval", "roc", "auroc", "mean", "sd", "images"]),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
ROW = st.dictionaries(
    st.sampled_from(
        ["method", "architecture", "images_per_class", "networks", "accuracy", "balanced_accuracy", "macro_auroc",
         "per_class", "confusion", "accuracy_interval"]
    ),
    JUNK | st.sampled_from(["distilled", "convnet"]),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "results": st.lists(ROW, max_size=4) | JUNK,
            "summary": st.lists(ROW, max_size=4) | JUNK,
            "classes": JUNK,
            "images": JUNK,
            "split": JUNK,
            "suppressed_classes": JUNK,
        },
    )
)
def test_whatever_an_evaluation_holds_it_can_be_shown(report: dict[str, Any]) -> None:
    found = read_evaluation(report, "convnet")
    for _, some in found.bars:
        bars("x", some, y="y", numbers="In numbers")
    lines("x", found.curves, x="x", y="y", between=(0, 1), numbers="In numbers")
    if found.confusion:
        grid("x", found.names, found.confusion, down="a", across="b")


def test_the_interval_of_a_mean_is_made_of_those_of_its_parts() -> None:
    rows: list[dict[str, Any]] = [
        {"sensitivity": 0.8, "sensitivity_interval": [0.7, 0.9]},
        {"sensitivity": 0.6, "sensitivity_interval": [0.3, 0.9]},
        {"sensitivity": None, "sensitivity_interval": None, "images": 0},
    ]
    low, high = balanced_interval(rows, 0.7) or (0, 0)
    assert low == pytest.approx(0.7 - (0.01 + 0.09) ** 0.5 / 2)
    assert high == pytest.approx(0.7 + (0.01 + 0.09) ** 0.5 / 2)
    hidden: dict[str, Any] = {"sensitivity": None, "sensitivity_interval": None, "images": None}
    assert balanced_interval([*rows, hidden], 0.7) is None


def test_curves_and_matrices_are_means_over_networks() -> None:
    def result(rate: float, right: int) -> dict[str, Any]:
        row = {"class": "a", "roc": [0.0, rate, 1.0]}
        return {
            "method": "distilled", "architecture": "convnet", "per_class": [row], "confusion": [[right, 4], [0, 9]],
        }  # fmt: skip

    report = {"classes": ["a", "b"], "results": [result(0.4, 5), result(0.8, 6)], "summary": []}
    found = read_evaluation(report, "convnet")
    assert found.curves[0].points == [(0.0, 0.0), (0.0, 0.0), (0.5, pytest.approx(0.6)), (1.0, 1.0)]
    assert found.confusion == [[5.5, 4.0], [0.0, 9.0]]
