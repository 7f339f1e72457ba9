"""What an evaluation may say about small classes when it leaves the hospital. Torch-free.

A package rounds class sizes and gives none below a minimum. An evaluation would give them away again: as counts, in
the confusion matrix, as the denominator of a sensitivity, or as what is missing from a total.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

ROUNDED_DOWN_TO = 10
TELLING = (
    "sensitivity",
    "sensitivity_interval",
    "auroc",
)  # of a small class: fractions of its size


def without_small_classes(evaluation: dict[str, Any], small: Collection[str]) -> dict[str, Any]:
    """Return evaluation.json without what tells the size of the classes in `small`; unchanged if there are none.

    No class keeps its count, its row of the confusion matrix (the missing one could be computed from the others) or
    its ROC curve (whose steps are fractions of counts), the total is rounded down, and small classes lose the figures
    whose denominator they are.
    """
    if not small:
        return evaluation
    return {
        **evaluation,
        "images": evaluation["images"] - evaluation["images"] % ROUNDED_DOWN_TO,
        "suppressed_classes": sorted(small),
        "results": [_result(entry, small) for entry in evaluation["results"]],
    }


def _result(entry: dict[str, Any], small: Collection[str]) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name != "confusion"}
    kept["per_class"] = [
        {**row, "images": None, "roc": None}
        | (dict.fromkeys(TELLING) if row["class"] in small else {})
        for row in entry["per_class"]
    ]
    return kept
