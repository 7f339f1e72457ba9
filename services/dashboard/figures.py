"""From an evaluation's JSON to what a page shows of it. What comes from other hospitals may hold anything.

`verify` looks at the shape of an evaluation only as far as it can be computed again, so here every value is taken for
what it should be or for nothing, and lists are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.dashboard.charts import Bar, Series

MOST_ROWS = 40  # of a summary
MOST_RESULTS = 400  # networks
MOST_CLASSES = 12  # in the table of classes and in a confusion matrix
MOST_CURVES = 6
OURS = "distilled"
METHODS = {
    OURS: "this package",
    "random_real": "as many random real images",
    "k_centre": "as many real ones, k-centre",
    "mtt_unpruned": "without pruning (MTT)",
    "full_data": "all real images",
}
_ORDER = tuple(METHODS)

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over networks."""

    mean: float
    sd: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """What networks that were trained on one thing reached."""

    method: str  # English words, or what the report calls it
    network: str
    per_class: int | None  # None: all images
    networks: int | None
    accuracy: Spread | None
    accuracy_interval: Pair | None
    balanced: Spread | None
    balanced_interval: Pair | None
    auroc: Spread | None
    calibration: Spread | None


@dataclass(frozen=True, slots=True)
class OfClass:
    """One class against the rest, over networks."""

    name: str
    sensitivity: float | None
    sensitivity_interval: Pair | None
    specificity: float | None
    specificity_interval: Pair | None
    auroc: float | None
    images: int | None


@dataclass(frozen=True, slots=True)
class Figures:
    """An evaluation as a page shows it."""

    split: str
    images: int | None  # of the test
    rows: Sequence[Row]
    classes: Sequence[OfClass]  # of networks trained on this package
    bars: Sequence[tuple[str, Sequence[Bar]]]  # by network: balanced accuracy
    curves: Sequence[Series]
    names: Sequence[str]  # of the confusion matrix
    confusion: Sequence[Sequence[float]]
    networks: int  # behind classes, curves and confusion
    suppressed: Sequence[str]  # classes too small for their figures to be told


def read_evaluation(report: Mapping[str, Any], network: str) -> Figures:
    """Return what a page shows of an `evaluation.json`; `network` is the architecture that it was distilled for."""
    results = _objects(report.get("results"))[:MOST_RESULTS]
    rows = [_row(one, results) for one in _objects(report.get("summary"))[:MOST_ROWS]]
    rows.sort(key=lambda row: (row.network != network, row.network, row.per_class is None))
    of_ours = [
        one for one in results if one.get("method") == OURS and one.get("architecture") == network
    ]
    names = [_text(name) for name in _list(report.get("classes"))][:MOST_CLASSES]
    return Figures(
        split=_text(report.get("split")),
        images=_whole(report.get("images")),
        rows=rows,
        classes=of_classes([_objects(one.get("per_class")) for one in of_ours]),
        bars=_bars(rows),
        curves=curves([_objects(one.get("per_class")) for one in of_ours]),
        names=names,
        confusion=_mean_matrix([one.get("confusion") for one in of_ours], len(names)),
        networks=len(of_ours),
        suppressed=[_text(name) for name in _list(report.get("suppressed_classes"))][:MOST_CLASSES],
    )


def of_classes(per_class: Sequence[Sequence[Mapping[str, Any]]]) -> list[OfClass]:
    """Return each class over several networks: means, and from the lowest to the highest bound of their intervals."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for rows in per_class:
        for row in rows[:MOST_CLASSES]:
            found.setdefault(_text(row.get("class")), []).append(row)
    return [
        OfClass(
            name,
            _mean(_number(row.get("sensitivity")) for row in rows),
            _widest(_pair(row.get("sensitivity_interval")) for row in rows),
            _mean(_number(row.get("specificity")) for row in rows),
            _widest(_pair(row.get("specificity_interval")) for row in rows),
            _mean(_number(row.get("auroc")) for row in rows),
            _whole(rows[0].get("images")),
        )
        for name, rows in list(found.items())[:MOST_CLASSES]
    ]


def curves(per_class: Sequence[Sequence[Mapping[str, Any]]]) -> list[Series]:
    """Return the ROC curve of each class, its mean over networks at every step; none where none was recorded."""
    found: dict[str, list[list[float]]] = {}
    for rows in per_class:
        for row in rows:
            rates = [_number(rate) for rate in _list(row.get("roc"))]
            if len(rates) > 1 and None not in rates:
                found.setdefault(_text(row.get("class")), []).append(
                    [r for r in rates if r is not None]
                )
    series = []
    for name, several in list(found.items())[:MOST_CURVES]:
        alike = [one for one in several if len(one) == len(several[0])]
        last = len(alike[0]) - 1
        points = [
            (step / last, sum(one[step] for one in alike) / len(alike)) for step in range(last + 1)
        ]
        series.append(Series(name, [(0.0, 0.0), *points]))
    return series


def balanced_interval(per_class: Sequence[Mapping[str, Any]], balanced: float) -> Pair | None:
    """Return the 95 % interval of a balanced accuracy out of those of the classes' sensitivities (MOVER).

    Zou and Donner 2008: the limits of a mean from the limits of its parts. None where a part was not told.
    """
    below = above = 0.0
    counted = 0
    for row in per_class:
        share, interval = _number(row.get("sensitivity")), _pair(row.get("sensitivity_interval"))
        if share is None or interval is None:
            if row.get("images") == 0:
                continue  # no image of this class: it is no part of the mean
            return None
        below += (share - interval[0]) ** 2
        above += (interval[1] - share) ** 2
        counted += 1
    if not counted:
        return None
    return (
        max(0.0, balanced - math.sqrt(below) / counted),
        min(1.0, balanced + math.sqrt(above) / counted),
    )


def confusion_of(counts: Any, names: Sequence[str]) -> list[list[float]]:
    """Return a confusion matrix, or nothing where it is too large to be read or is none."""
    return _mean_matrix([counts], len(names)) if len(names) <= MOST_CLASSES else []


# ------------------------------------------------------------------------------------------ parts


def _row(summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Row:
    keys = ("method", "architecture", "images_per_class")
    behind = [one for one in results if all(one.get(key) == summary.get(key) for key in keys)]
    balanced = [
        balanced_interval(_objects(one.get("per_class")), share)
        for one in behind
        if (share := _number(one.get("balanced_accuracy"))) is not None
    ]
    method = _text(summary.get("method"))
    return Row(
        method=METHODS.get(method, method),
        network=_text(summary.get("architecture")),
        per_class=_whole(summary.get("images_per_class")),
        networks=_whole(summary.get("networks")),
        accuracy=_spread(summary.get("accuracy")),
        accuracy_interval=_middle([_pair(one.get("accuracy_interval")) for one in behind]),
        balanced=_spread(summary.get("balanced_accuracy")),
        balanced_interval=_middle(balanced),
        auroc=_spread(summary.get("macro_auroc")),
        calibration=_spread(summary.get("calibration_error")),
    )


def _bars(rows: Sequence[Row]) -> list[tuple[str, list[Bar]]]:
    """Return the bars of each network, this package first, then what it is compared with."""
    order = {METHODS[method]: place for place, method in enumerate(_ORDER)}
    by_network: dict[str, list[Row]] = {}
    for row in rows:
        by_network.setdefault(row.network, []).append(row)
    return [
        (
            network,
            [
                Bar(row.method, row.balanced.mean, *(row.balanced_interval or (None, None)))
                for row in sorted(some, key=lambda row: order.get(row.method, len(order)))
                if row.balanced is not None
            ],
        )
        for network, some in by_network.items()
    ]


def _mean_matrix(matrices: Sequence[Any], side: int) -> list[list[float]]:
    square = [one for one in matrices if _is_square(one, side)]
    if not square or len(square) != len(matrices):
        return []
    return [
        [round(sum(one[down][across] for one in square) / len(square), 1) for across in range(side)]
        for down in range(side)
    ]


def _is_square(value: Any, side: int) -> bool:
    return (
        side > 0
        and isinstance(value, list)
        and len(value) == side
        and all(
            isinstance(line, list)
            and len(line) == side
            and all(_number(count) is not None for count in line)
            for line in value
        )
    )


def _spread(value: Any) -> Spread | None:
    if not isinstance(value, Mapping):
        return None
    mean = _number(value.get("mean"))
    return None if mean is None else Spread(mean, _number(value.get("sd")))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _middle(pairs: Sequence[Pair | None]) -> Pair | None:
    """Return the mean of the lower and of the upper bounds: the networks were tried on the same images."""
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) != len(pairs):
        return None
    return sum(low for low, _ in known) / len(known), sum(high for _, high in known) / len(known)


def _widest(pairs: Iterable[Pair | None]) -> Pair | None:
    known = [pair for pair in pairs if pair is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _number(value: Any) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_one else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pair(value: Any) -> Pair | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)


def _text(value: Any) -> str:
    return value[:100] if isinstance(value, str) else "?"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, Mapping)]
