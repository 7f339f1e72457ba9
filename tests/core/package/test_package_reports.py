from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ppdd_core.package import manifest
from ppdd_core.package.build import PackageContent
from ppdd_core.package.manifest import MANIFEST, Manifest
from ppdd_core.package.reports import find_evaluation_faults, find_privacy_faults

Change = Callable[[Any], object]


@pytest.fixture
def stated(built: Mapping[str, bytes]) -> Manifest:
    return manifest.read(built[MANIFEST])


def result(**changes: Any) -> Change:
    return lambda report: report["results"][0].update(changes)


def summary(**changes: Any) -> Change:
    return lambda report: report["summary"][0].update(changes)


def measured(**changes: Any) -> Change:
    return lambda report: report["measurements"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(format_version=2), "format version 1"),
        (lambda r: r.update(classes=["COVID", "Normal", "Lung_Opacity"]), "in order"),
        (lambda r: r.update(split="train"), "which split"),
        (lambda r: r.update(results=None), "lists of objects"),
        (lambda r: r.update(summary=[1]), "lists of objects"),
        (result(accuracy=1.2), "accuracy must be a number from 0 to 1"),
        (result(macro_auroc="high"), "macro_auroc must be"),
        (result(calibration_error=True), "calibration_error must be"),
        (result(method=""), "no method"),
        (result(architecture=None), "no architecture"),
        (result(accuracy_interval=None), "not [low, high]"),
        (result(accuracy_interval=[0.9, 0.7]), "not [low, high]"),
        (result(accuracy_interval=[0.1, 0.2]), "outside its own interval"),
        (result(per_class=[]), "one object per class"),
        (result(confusion=[[1, 2], [3, 4]]), "not a square"),
        (result(confusion=[[1, 2, 3], [4, 5, 6], [7, 8]]), "not a square"),
        (result(confusion=[[1.5, 0, 0], [0, 1, 0], [0, 0, 1]]), "not a square"),
        (result(confusion=[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), "not a square"),
        (result(confusion=[[0, 1, 0], [0, 1, 0], [0, 0, 1]]), "confusion matrix says 0.6667"),
        (summary(networks=3), "it says 3 networks, the results hold 2"),
        (summary(accuracy={"mean": 0.9, "sd": 0.0}), "its mean accuracy is 0.9"),
        (summary(macro_auroc=0.8), "macro_auroc must be an object"),
        (summary(method="full_data"), "the results hold 0"),
    ],
)
def test_an_evaluation_must_hold_together(
    stated: Manifest, content: PackageContent, change: Change, said: str
) -> None:
    report = copy.deepcopy(dict(content.evaluation))
    assert find_evaluation_faults(report, stated) == []
    change(report)
    assert any(said in fault for fault in find_evaluation_faults(report, stated))


RISING = [step / 50 for step in range(51)]


@pytest.mark.parametrize(
    ("curve", "area", "said"),
    [
        (RISING[:-1], 0.5, "is not 51 rates"),
        (RISING[::-1], 0.5, "that never fall"),
        ([*RISING[:-1], 1.5], 0.5, "from 0 to 1"),
        (["0"] * 51, 0.5, "is not 51 rates"),
        ({}, 0.5, "is not 51 rates"),
        (RISING, 0.9, "not the area"),
        (RISING, None, "not the area"),
    ],
)
def test_a_roc_curve_must_fit_its_area(
    stated: Manifest, content: PackageContent, curve: Any, area: Any, said: str
) -> None:
    report = copy.deepcopy(dict(content.evaluation))
    row = report["results"][0]["per_class"][0]
    row.update(roc=RISING, auroc=0.5)
    assert find_evaluation_faults(report, stated) == []
    row.update(roc=curve, auroc=area)
    assert any(said in fault for fault in find_evaluation_faults(report, stated))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(format_version=None), "format version 1"),
        (lambda r: r.update(measurements=[]), "no measurements"),
        (lambda r: r.update(measurements={}), "no measurements"),
        (lambda r: r.update(thresholds={}), "which thresholds"),
        (lambda r: r.update(initialisation="mean"), "the recipe says noise"),
        (lambda r: r.update(verdict="fine"), "passed or failed"),
        (lambda r: r.update(verdict="failed"), "no reason"),
        (lambda r: r.update(reasons="none"), "list of sentences"),
        (lambda r: r.update(reasons=[1]), "list of sentences"),
        (measured(passed=False), "did not pass"),
        (measured(passed="yes"), "true, false or null"),
        (lambda r: r["measurements"][0].pop("passed"), "true, false or null"),
        (measured(value="low"), "its value is not a number"),
        (measured(threshold=True), "its threshold is not a number"),
        (measured(threshold=None), "without a threshold"),
        (measured(value=None, interval=None), "without a value"),
        (measured(value=None, passed=None), "an interval and no value"),
        (measured(interval=[1]), "not [low, high]"),
        (measured(does_not_show=" "), "no does_not_show"),
        (measured(method=None), "no method"),
    ],
)
def test_a_privacy_report_must_hold_together(
    stated: Manifest, content: PackageContent, change: Change, said: str
) -> None:
    report = copy.deepcopy(dict(content.privacy))
    assert find_privacy_faults(report, stated) == []
    change(report)
    assert any(said in fault for fault in find_privacy_faults(report, stated))


@pytest.mark.parametrize("value", [None, [], "x", 1, {}])
def test_anything_else_is_no_report(stated: Manifest, value: Any) -> None:
    assert len(find_evaluation_faults(value, stated)) == 1
    assert len(find_privacy_faults(value, stated)) == 1


def test_what_was_not_measured_or_has_a_reason_beside_is_no_fault(
    stated: Manifest, content: PackageContent
) -> None:
    report = copy.deepcopy(dict(content.privacy))
    unmeasured = {**report["measurements"][0], "value": None, "interval": None, "passed": None}
    report["measurements"].append({**unmeasured, "threshold": None})
    report["reasons"] = ["not judged: TPR: too few images"]
    assert find_privacy_faults(report, stated) == []
    report["measurements"].append({**unmeasured, "passed": False})  # needed, and not there
    report.update(verdict="failed", reasons=["near-copies has no figure"])
    assert find_privacy_faults(report, stated) == []


def test_a_flood_of_faults_is_cut(stated: Manifest, content: PackageContent) -> None:
    report = {**content.evaluation, "results": [{}] * 1000}
    assert len(find_evaluation_faults(report, stated)) == 20
