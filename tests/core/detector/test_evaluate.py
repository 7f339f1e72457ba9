"""evaluation.json: what is compared, what choices may see, and that the numbers are decided by the seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from ppdd_core.config import Balance, DetectorConfig, NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.detector.evaluate import (
    FullDataConfig,
    FullNetwork,
    Train,
    evaluate_sets,
    summarise,
)
from ppdd_core.errors import BadConfigError, SourceError

Images = Callable[..., LabelledImages]
Distilled = Callable[..., DistilledSet]

CONFIG = DetectorConfig(epochs=20, batch_size=64, augment="crop", seeds=2)
FULL = FullDataConfig(
    max_epochs=4, patience=2, batch_size=16, augment="crop", step_sizes=(0.01, 0.05)
)


def run(sets: list[tuple[str, DistilledSet]], images: Images, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "train": images([20, 12, 8], seed=10),
        "validation": images([6, 6, 6], seed=11),
        "test": images([8, 6, 4], seed=12),
        "config": CONFIG,
        "seed": 4,
        "step_sizes": (0.003, 0.02),
        "full_data": FULL,
    }
    return evaluate_sets(sets, **(arguments | changes))


def test_every_method_is_reported_for_every_seed_and_learns(
    images: Images, distilled: Distilled
) -> None:
    seen: list[tuple[int, int]] = []
    value = run(
        [("distilled", distilled())],
        images,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    assert [(e["method"], e["seed"], e["images_per_class"]) for e in value["results"]] == [
        ("distilled", 4, 2),
        ("distilled", 5, 2),
        ("random_real", 4, 2),
        ("random_real", 5, 2),
        ("k_centre", 4, 2),
        ("k_centre", 5, 2),
        ("full_data", 4, None),
        ("full_data", 5, None),
    ]
    assert {e["learning_rate"] for e in value["results"][:2]} == {0.02}  # the set's own
    assert all(e["balanced_accuracy"] > 0.5 for e in value["results"] if e["method"] != "full_data")
    assert [s["networks"] for s in value["summary"]] == [2, 2, 2, 2]
    assert (value["split"], value["images"], value["classes"]) == (
        "test",
        18,
        ["COVID", "Normal", "Viral"],
    )
    assert value["protocol"]["epochs"] == 20
    assert value["protocol"]["full_data"]["balance"] == "sampler"
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    # 2 of the set; 2 choices + 2 of three baselines each; the count is complete before the end
    assert seen == [(number, 14) for number in range(14)]


def test_choices_do_not_see_the_test_images(images: Images, distilled: Distilled) -> None:
    """With wrong labels on the test images a network that learned nothing would look better there."""
    test = images([6, 6, 6], seed=12)
    wrong = dataclasses.replace(test, labels_R=(test.labels_R + 1) % 3)
    value = run(
        [("distilled", distilled())],
        images,
        test=wrong,
        baselines=("random_real", "full_data"),
        step_sizes=(1e-9, 0.02),
        full_data=dataclasses.replace(FULL, step_sizes=(1e-9, 0.004), max_epochs=8, patience=8),
        config=dataclasses.replace(CONFIG, seeds=1),
    )
    _, random_real, full_data = value["results"]
    assert (random_real["learning_rate"], full_data["learning_rate"]) == (0.02, 0.004)
    assert full_data["epochs"] > 1
    assert full_data["balanced_accuracy"] < 0.2


def test_the_seed_decides_every_number(images: Images, distilled: Distilled) -> None:
    sets = [("distilled", distilled())]
    short: dict[str, Any] = {
        "baselines": ("random_real",),
        "config": dataclasses.replace(CONFIG, epochs=8),
    }
    once = run(sets, images, **short)
    assert run(sets, images, **short) == once
    assert run(sets, images, **short, seed=40)["results"] != once["results"]


def test_other_architectures_choose_their_step_size_with_alpha_among_the_choices(
    images: Images, distilled: Distilled
) -> None:
    sets = [("distilled", distilled(learning_rate=0.05))]
    value = run(
        sets,
        images,
        baselines=(),
        step_sizes=(1e-7,),
        other_nets=(NetConfig(width=4, depth=1),),
        config=dataclasses.replace(CONFIG, seeds=1),
    )
    assert [e["learning_rate"] for e in value["results"]] == [0.05, 0.05]  # 1e-7 teaches nothing


def test_a_diverging_step_size_is_no_candidate(images: Images, distilled: Distilled) -> None:
    value = run(
        [("distilled", distilled())],
        images,
        baselines=("random_real",),
        step_sizes=(0.02, 1e30),
        config=dataclasses.replace(CONFIG, seeds=1, weight_decay=0.9),
    )
    assert value["results"][1]["learning_rate"] == 0.02


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_full_data_trains_with_the_class_handling_named(
    images: Images, distilled: Distilled, balance: Balance
) -> None:
    full = dataclasses.replace(FULL, balance=balance, step_sizes=(0.03,))
    value = run(
        [("distilled", distilled())],
        images,
        baselines=("full_data",),
        full_data=full,
        config=dataclasses.replace(CONFIG, epochs=1),
    )
    assert value["protocol"]["full_data"]["balance"] == balance
    assert value["results"][-1]["balanced_accuracy"] > 0.5
    assert 1 <= value["results"][-1]["epochs"] <= 4


def test_an_epoch_of_full_data_may_be_a_part_of_it(images: Images, distilled: Distilled) -> None:
    sets = [("distilled", distilled())]
    short: dict[str, Any] = {
        "baselines": ("full_data",),
        "config": dataclasses.replace(CONFIG, epochs=1, seeds=1),
    }
    whole = run(sets, images, **short)
    part = run(sets, images, **short, full_data=dataclasses.replace(FULL, epoch_images=6))
    assert part["protocol"]["full_data"]["epoch_images"] == 6
    assert part["results"][1] != whole["results"][1]


def test_the_summary_is_mean_and_sample_standard_deviation() -> None:
    def entry(accuracy: float, auroc: float | None) -> dict[str, Any]:
        return {
            "method": "distilled", "architecture": "convnet", "images_per_class": 1, "accuracy": accuracy,
            "balanced_accuracy": 0.5, "macro_auroc": auroc, "calibration_error": 0.1,
        }  # fmt: skip

    (summary,) = summarise([entry(0.6, 0.7), entry(0.7, None), entry(0.8, 0.9)])
    assert summary["accuracy"] == {"mean": 0.7, "sd": 0.1}
    assert summary["macro_auroc"] == {"mean": None, "sd": None}
    assert summarise([entry(0.6, 0.7)])[0]["accuracy"] == {"mean": 0.6, "sd": None}


def test_sets_that_do_not_fit_are_refused(images: Images, distilled: Distilled) -> None:
    good = ("distilled", distilled())
    other_net = dataclasses.replace(distilled(), net=NetConfig(width=4, depth=1))
    with pytest.raises(BadConfigError, match="has images of 32 pixels, the real ones have 16"):
        run([("distilled", distilled(size=32))], images)
    with pytest.raises(BadConfigError, match="has the classes A, B, C"):
        run([("distilled", distilled(classes=("A", "B", "C")))], images)
    with pytest.raises(BadConfigError, match="another network"):
        run([good, ("mtt_unpruned", other_net)], images)
    with pytest.raises(BadConfigError, match="no baseline 'herding'"):
        run([good], images, baselines=("herding",))
    with pytest.raises(SourceError, match="validation split has no images"):
        run([good], images, validation=images([0, 0, 0]))


def test_an_evaluation_may_be_done_in_parts(images: Images, distilled: Distilled) -> None:
    """A sweep evaluates set by set and baseline by baseline; nothing depends on what runs beside it."""
    one = distilled()
    whole = run([("distilled", one)], images)["results"]
    kept: list[FullNetwork] = []

    def remembered(train: Train) -> list[FullNetwork]:
        kept.extend([] if kept else train())
        return kept

    parts: list[dict[str, Any]] = run([("distilled", one)], images, baselines=())["results"]
    for name in ("random_real", "k_centre"):
        parts += run([], images, net=one.net, sizes=(2,), baselines=(name,), remembered=remembered)[
            "results"
        ]
    known = len(kept)
    parts += run([], images, net=one.net, baselines=("full_data",), remembered=remembered)[
        "results"
    ]
    assert parts == whole
    assert len(kept) == known == 2  # trained once, for k-centre and for itself
    with pytest.raises(BadConfigError, match="no distilled set"):
        run([], images)


def test_the_score_to_choose_by_is_of_the_validation_images(
    images: Images, distilled: Distilled
) -> None:
    sets = [("distilled", distilled())]
    test = images([8, 6, 4], seed=12)
    plain = run(sets, images, baselines=(), test=test)["results"]
    scored = run(sets, images, baselines=(), test=test, score_validation=True)["results"]
    on_itself = run(sets, images, baselines=(), test=images([6, 6, 6], seed=11))["results"]
    for before, entry, expected in zip(plain, scored, on_itself, strict=True):
        assert entry.pop("validation_balanced_accuracy") == expected["balanced_accuracy"]
        assert entry == before
