"""Small classes: nothing in the evaluation tells their size."""

import json

import numpy as np

from ppdd_core.detector.disclosure import without_small_classes
from ppdd_core.detector.metrics import measure

CLASSES = ("common", "rare")
LABELS = np.array([0] * 40 + [1] * 7)


def evaluation() -> dict[str, object]:
    chance = np.random.default_rng(0).random((47, 2))
    figures = measure(LABELS, chance / chance.sum(1, keepdims=True), CLASSES).to_dict()
    entry = {"method": "distilled", "architecture": "convnet", "seed": 0, **figures}
    return {"format_version": 1, "images": 47, "classes": list(CLASSES), "results": [entry]}


def test_without_small_classes_nothing_changes() -> None:
    assert without_small_classes(evaluation(), ()) == evaluation()


def test_the_size_of_a_small_class_is_nowhere() -> None:
    said = without_small_classes(evaluation(), {"rare"})
    text = json.dumps(said)
    assert said["images"] == 40
    assert "confusion" not in text
    (entry,) = said["results"]
    assert [row["images"] for row in entry["per_class"]] == [None, None]
    assert [row["roc"] for row in entry["per_class"]] == [None, None]
    rare = entry["per_class"][1]
    assert rare["sensitivity"] is None
    assert rare["sensitivity_interval"] is None
    assert entry["per_class"][0]["sensitivity"] is not None
    assert entry["accuracy"] is not None
