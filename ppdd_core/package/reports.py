"""The reports that travel with a package, evaluation.json and privacy.json: do they hold together?

Torch-free. They are measured elsewhere; here their shape is checked, and everything that can be recomputed from
the file itself: a verdict from its measurements, a mean from its results, an accuracy from its confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ppdd_core.package.manifest import Manifest

_MOST = 20  # faults named per report
_CURVE = 51  # points of a ROC curve: `metrics.ROC_STEPS` + 1
_SHARES = ("accuracy", "balanced_accuracy", "macro_auroc", "calibration_error")


def find_evaluation_faults(value: Any, manifest: Manifest) -> list[str]:
    """Return what is wrong with a parsed evaluation.json, one sentence each."""
    if not isinstance(value, dict) or value.get("format_version") != 1:
        return ["it is not an evaluation report of format version 1"]
    faults: list[str] = []
    if value.get("classes") != list(manifest.classes):
        faults.append("its classes are not those of the manifest, in order")
    if value.get("split") not in ("test", "validation"):
        faults.append("it does not say on which split it was measured")
    results, summary = value.get("results"), value.get("summary")
    if not _is_list_of_objects(results) or not _is_list_of_objects(summary):
        return [*faults, "results and summary must be lists of objects"]
    for index, row in enumerate(results or []):
        faults += [
            f"results[{index}]: {fault}" for fault in _result_faults(row, len(manifest.classes))
        ]
    for index, row in enumerate(summary or []):
        faults += [f"summary[{index}]: {fault}" for fault in _summary_faults(row, results or [])]
    return faults[:_MOST]


def find_privacy_faults(value: Any, manifest: Manifest) -> list[str]:
    """Return what is wrong with a parsed privacy.json, one sentence each.

    A failed verdict is not wrong; a verdict that its own measurements contradict is.
    """
    if not isinstance(value, dict) or value.get("format_version") != 1:
        return ["it is not a privacy report of format version 1"]
    faults: list[str] = []
    measurements = value.get("measurements")
    if not _is_list_of_objects(measurements) or not measurements:
        faults.append("it holds no measurements")
        measurements = []
    if not isinstance(value.get("thresholds"), dict) or not value["thresholds"]:
        faults.append("it does not say by which thresholds it was judged")
    wanted = manifest.recipe.get("distill", {}).get("init", "noise")
    if value.get("initialisation") != wanted:
        faults.append(
            f"it was measured for initialisation {value.get('initialisation')!a}, the recipe says {wanted}"
        )
    for index, row in enumerate(measurements):
        faults += [f"measurements[{index}]: {fault}" for fault in _measurement_faults(row)]
    return [*faults, *_verdict_faults(value, measurements)][:_MOST]


def _verdict_faults(value: Mapping[str, Any], measurements: list[Mapping[str, Any]]) -> list[str]:
    verdict, reasons = value.get("verdict"), value.get("reasons")
    if verdict not in ("passed", "failed"):
        return ["its verdict must be passed or failed"]
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        return ["its reasons must be a list of sentences"]
    beyond = [str(row.get("name"))[:60] for row in measurements if row.get("passed") is False]
    if verdict == "passed" and beyond:
        return [
            f"its verdict is passed, but {', '.join(ascii(name) for name in beyond)} did not pass"
        ]
    if verdict == "failed" and not reasons:
        return ["its verdict is failed, but it gives no reason"]
    return []


def _measurement_faults(row: Mapping[str, Any]) -> list[str]:
    faults = [
        f"it has no {name}"
        for name in ("name", "title", "method", "does_not_show")
        if not _is_text(row.get(name))
    ]
    for name in ("value", "threshold"):
        if row.get(name) is not None and not _is_number(row[name]):
            faults.append(f"its {name} is not a number")
    if row.get("interval") is not None and not _is_interval(row["interval"]):
        faults.append("its interval is not [low, high]")
    passed = row.get("passed")
    if passed not in (True, False, None) or "passed" not in row:
        faults.append("passed must be true, false or null")
    if passed is True and (row.get("value") is None or row.get("threshold") is None):
        faults.append("it passed without a value or without a threshold")
    if row.get("value") is None and row.get("interval") is not None:
        faults.append("it has an interval and no value")
    return faults


def _result_faults(row: Mapping[str, Any], classes: int) -> list[str]:
    faults = _share_faults(row)
    if not _is_text(row.get("method")) or not _is_text(row.get("architecture")):
        faults.append("it has no method or no architecture")
    if not _is_interval(row.get("accuracy_interval")):
        faults.append("accuracy_interval is not [low, high]")
    elif _is_number(row.get("accuracy")) and not _within(row["accuracy"], row["accuracy_interval"]):
        faults.append("its accuracy lies outside its own interval")
    per_class = row.get("per_class")
    if not _is_list_of_objects(per_class) or len(per_class or []) != classes:
        faults.append("per_class does not have one object per class")
    else:
        faults += [
            f"per_class[{index}]: {fault}"
            for index, one in enumerate(per_class or [])
            for fault in _curve_faults(one)
        ]
    confusion = row.get("confusion")
    if confusion is None:
        return faults
    if not _is_square(confusion, classes):
        return [*faults, "its confusion matrix is not a square of whole numbers"]
    total = sum(map(sum, confusion))
    right = sum(confusion[index][index] for index in range(classes)) / max(1, total)
    if total and _is_number(row.get("accuracy")) and abs(right - row["accuracy"]) > 1e-3:
        faults.append(
            f"its accuracy is {row['accuracy']:.4g}, its confusion matrix says {right:.4g}"
        )
    return faults


def _curve_faults(row: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a class's ROC curve; reports of before there were any have none."""
    curve, area = row.get("roc"), row.get("auroc")
    if curve is None:
        return []
    if (
        not isinstance(curve, list)
        or len(curve) != _CURVE
        or not all(_is_number(rate) and 0 <= rate <= 1 for rate in curve)
        or curve != sorted(curve)
    ):
        return [f"its ROC curve is not {_CURVE} rates from 0 to 1 that never fall"]
    least, most = sum(curve[:-1]) / (_CURVE - 1), sum(curve[1:]) / (_CURVE - 1)
    if area is None or not _is_number(area) or not least - 1e-3 <= area <= most + 1e-3:
        return ["its AUROC is not the area under its ROC curve"]
    return []


def _summary_faults(row: Mapping[str, Any], results: list[Mapping[str, Any]]) -> list[str]:
    faults: list[str] = []
    keys = ("method", "architecture", "images_per_class")
    behind = [result for result in results if all(result.get(key) == row.get(key) for key in keys)]
    if row.get("networks") != len(behind):
        faults.append(f"it says {row.get('networks')!a} networks, the results hold {len(behind)}")
    for name in _SHARES:
        spread = row.get(name)
        values = [result[name] for result in behind if _is_number(result.get(name))]
        if spread is None or not values:
            continue
        if not isinstance(spread, dict) or not _is_number(spread.get("mean")):
            faults.append(f"{name} must be an object with a mean")
        elif abs(spread["mean"] - sum(values) / len(values)) > 1e-3:
            faults.append(
                f"its mean {name} is {spread['mean']:.4g}, the results say {sum(values) / len(values):.4g}"
            )
    return faults


def _share_faults(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} must be a number from 0 to 1"
        for name in _SHARES
        if row.get(name) is not None and not (_is_number(row[name]) and 0 <= row[name] <= 1)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_number, value))
        and bool(value[0] <= value[1])
    )


def _within(value: float, interval: list[float]) -> bool:
    return interval[0] - 1e-6 <= value <= interval[1] + 1e-6


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_square(value: Any, side: int) -> bool:
    if not isinstance(value, list) or len(value) != side:
        return False
    if not all(isinstance(line, list) and len(line) == side for line in value):
        return False
    return all(type(count) is int and count >= 0 for line in value for count in line)
