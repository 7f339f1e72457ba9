"""The whole report: planted leaks are found, sets that hold no patient pass, nothing private is written."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppdd_core.config import DetectorConfig, NetConfig, PrivacyConfig
from ppdd_core.data.dataset import LabelledImages, labelled_images
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.data.tensors import to_tensor
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.nets.functional import FlatNet
from ppdd_core.privacy.measure import measure_privacy
from ppdd_core.privacy.report import PrivacyReport, recompute_verdict

CLASSES = ("ill", "well")
SIDE = 16
NET = NetConfig(width=8, depth=2)
SCALE = Normalisation(mean=0.4, std=0.25)


def patients(
    count: int, seed: int, site: str, *, labels: np.ndarray | None = None
) -> LabelledImages:
    """Smooth images with a common shape, brighter on the left where ill; one per patient."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count) if labels is None else labels
    line = np.linspace(-1, 1, SIDE)
    common = 0.5 * np.exp(-3 * ((np.abs(line)[None] - 0.5) ** 2 + 0.5 * line[:, None] ** 2))
    own = 0.12 * rng.normal(0, 1, (count, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    sign = 0.15 * (labels == 0)[:, None, None] * (line < 0)[None, None]
    pixels = ((common + own + sign + 0.2).clip(0, 1) * 255).astype(np.uint8)
    names = [f"{site}-{row}" for row in range(count)]
    return labelled_images(
        pixels, labels, classes=CLASSES, patients=names, digests=names, splits=["train"] * count
    )


def distilled_set(images_ICHW: Tensor, labels: list[int]) -> DistilledSet:
    return DistilledSet(
        images=images_ICHW,
        labels=torch.tensor(labels),
        learning_rate=0.02,
        classes=CLASSES,
        normalisation=SCALE,
        net=NET,
        augment="",
    )


def noise(images: int, seed: int = 0) -> Tensor:
    return torch.randn(images, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def measure(distilled: DistilledSet, **changes: Any) -> PrivacyReport:
    arguments: dict[str, Any] = {
        "train": patients(150, 1, "a"),
        "held_out": patients(120, 2, "b"),
        "initial_ICHW": noise(len(distilled)),
        "init_sources": ((),) * len(distilled),
        "net_config": NET,
        "privacy": PrivacyConfig(),
        "detector": DetectorConfig(epochs=3, seeds=1, augment=""),
        "init": "noise",
        "seed": 5,
        "device": torch.device("cpu"),
    }
    return measure_privacy(distilled, **{**arguments, **changes})


def figure(report: PrivacyReport, name: str) -> Any:
    return next(m for m in report.measurements if m.name == name)


def test_noise_passes_and_its_json_gives_the_same_verdict() -> None:
    report = measure(
        distilled_set(noise(12), [0] * 6 + [1] * 6),
        train=patients(400, 10, "a"),
        held_out=patients(250, 20, "b"),
    )
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (report.verdict, value["reasons"]) == ("passed", [])
    assert recompute_verdict(value, PrivacyConfig()) == ("passed", [])
    assert figure(report, "near_copies").value == 0
    low, high = figure(report, "membership_inference_auc").interval
    assert low < 0.5 < high < 0.6
    for name in ("nearest_real_neighbour_ssim", "nearest_real_neighbour_features"):
        low, high = figure(report, name).interval
        assert low < 0.5 < high
    residual = figure(report, "initialisation_residual_correlation")
    assert residual.value == pytest.approx(1)  # it did not move from its noise
    assert figure(report, "initialisation_source_recognised").value is None


def test_copied_patients_are_found_by_every_figure_that_can() -> None:
    train = patients(150, 1, "a")
    rows = [
        *np.flatnonzero(train.labels_R == 0)[:5].tolist(),
        *np.flatnonzero(train.labels_R == 1)[:5].tolist(),
    ]
    images_ICHW = 0.8 * to_tensor(
        train.select(np.array(rows)), SCALE
    )  # less contrast hides nothing
    report = measure(
        distilled_set(images_ICHW, [0] * 5 + [1] * 5),
        train=train,
        init="real",
        init_sources=tuple((row,) for row in rows),
        initial_ICHW=to_tensor(train.select(np.array(rows)), SCALE),
    )
    assert report.verdict == "failed"
    assert figure(report, "near_copies").value == 10
    assert "near-copies" in report.to_dict()["reasons"][0]
    assert figure(report, "initialisation_source_recognised").value == 1
    assert figure(report, "initialisation_source_recognised").details["chance"] < 0.01
    assert figure(report, "initialisation_residual_correlation").value == pytest.approx(1)
    assert report.nearest_train_rows == tuple(rows)


def test_a_set_that_memorises_its_patients_fails_membership_inference() -> None:
    """Labels tossed by coin: whoever is predicted right was seen."""
    coins = np.random.default_rng(9).integers(0, 2, 240)
    train = patients(120, 3, "a", labels=coins[:120])
    images_ICHW = to_tensor(train, SCALE)
    report = measure(
        replace(distilled_set(images_ICHW, train.labels_R.tolist()), learning_rate=0.1),
        train=train,
        held_out=replace(patients(120, 4, "b"), labels_R=coins[120:]),
        init="real",
        init_sources=tuple((row,) for row in range(120)),
        initial_ICHW=images_ICHW,
        detector=DetectorConfig(epochs=30, seeds=1, augment="", batch_size=32),
    )
    auc = figure(report, "membership_inference_auc")
    assert auc.interval[0] > 0.6
    assert auc.passed is False
    assert figure(report, "membership_inference_initialisation_auc").passed is False
    assert figure(report, "nearest_real_neighbour_ssim").interval[0] > 0.9
    assert figure(report, "nearest_real_neighbour_features").interval[0] > 0.9


def test_the_seed_decides_every_number() -> None:
    distilled = distilled_set(noise(4), [0, 0, 1, 1])
    first, again, other = (measure(distilled, seed=seed).to_dict() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_networks_are_trained_under_the_augmentation_the_set_was_distilled_under() -> None:
    images = distilled_set(noise(12), [0] * 6 + [1] * 6)
    one, same = (
        measure(images, detector=DetectorConfig(epochs=3, seeds=1, augment=recipe)).to_dict()
        for recipe in ("", "crop_rotate")
    )
    assert one == same
    other = measure(replace(images, augment="crop_rotate")).to_dict()
    assert one != other


def test_networks_at_hand_are_used_instead_of_new_ones() -> None:
    net = FlatNet(NET, classes=2, image_size=SIDE)
    report = measure(
        distilled_set(noise(4), [0, 0, 1, 1]), trained=[net.initial(seed) for seed in range(3)]
    )
    assert figure(report, "membership_inference_auc").details["networks"] == 3


def test_progress_rises_to_the_end() -> None:
    heard: list[tuple[int, int]] = []
    measure(distilled_set(noise(2), [0, 1]), on_progress=lambda *done: heard.append(done))
    assert heard == sorted(set(heard))
    assert heard[-1] == (100, 100)
    assert len(heard) >= 5


@pytest.mark.parametrize(
    ("held_out", "auc_is_measured", "verdict"),
    [
        pytest.param(90, True, "passed", id="too few for 1 % false alarms"),
        pytest.param(10, False, "failed", id="too few for an AUC"),
        pytest.param(0, False, "failed", id="nobody held out"),
    ],
)
def test_what_cannot_be_measured_is_said(
    held_out: int, auc_is_measured: bool, verdict: str
) -> None:
    lax = PrivacyConfig(max_membership_auc=0.7)
    report = measure(
        distilled_set(noise(4), [0, 0, 1, 1]), held_out=patients(held_out, 2, "b"), privacy=lax
    )
    tpr, auc = (figure(report, f"membership_inference_{name}") for name in ("tpr_at_1_fpr", "auc"))
    assert tpr.value is None
    assert tpr.passed is None
    assert "held-out" in tpr.details["not_measured"]
    assert (auc.value is not None) == auc_is_measured
    assert report.verdict == verdict
    assert any("held-out" in reason for reason in report.to_dict()["reasons"])


@pytest.mark.parametrize(
    ("ill", "needed", "value", "passed"),
    [
        pytest.param(57, 20, 50, True, id="rounded down"),
        pytest.param(25, 25, 25, True, id="the policy's minimum is met"),
        pytest.param(12, 5, 5, True, id="no more than the policy's minimum is said"),
        pytest.param(12, 20, None, False, id="suppressed"),
        pytest.param(27, 40, 20, False, id="not enough"),
    ],
)
def test_the_smallest_class_is_judged_without_its_exact_number(
    ill: int, needed: int, value: int | None, passed: bool
) -> None:
    report = measure(
        distilled_set(noise(2), [0, 1]),
        train=patients(200, 1, "a", labels=np.repeat([0, 1], [ill, 200 - ill])),
        privacy=PrivacyConfig(min_class_size=needed),
    )
    assert figure(report, "smallest_class").value == value
    assert figure(report, "smallest_class").passed is passed


def test_images_of_one_patient_count_once() -> None:
    train = patients(200, 1, "a", labels=np.repeat([0, 1], [100, 100]))
    few = replace(train, patients=tuple(f"a-{row // 10}" for row in range(200)))
    report = measure(distilled_set(noise(2), [0, 1]), train=few, privacy=PrivacyConfig())
    assert figure(report, "smallest_class").value is None  # ten patients
    assert figure(report, "membership_inference_auc").details["training_images"] == 20


def test_held_out_copies_of_training_images_are_left_out() -> None:
    train, others = patients(150, 1, "a"), patients(120, 2, "b")
    both = labelled_images(
        np.concatenate([others.pixels_RHW, train.pixels_RHW[:100]]),
        np.concatenate([others.labels_R, train.labels_R[:100]]),
        classes=CLASSES,
        patients=[*others.patients, *(f"renamed-{row}" for row in range(100))],
        digests=[*others.digests, *train.digests[:100]],
        splits=["validation"] * 220,
    )
    distilled = distilled_set(noise(2), [0, 1])
    with_copies = measure(distilled, train=train, held_out=both).to_dict()
    assert with_copies == measure(distilled, train=train, held_out=others).to_dict()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        pytest.param(
            {"held_out": patients(50, 2, "a")}, SourceError, "both sides", id="shared patients"
        ),
        pytest.param(
            {"held_out": replace(patients(50, 2, "b"), classes=("a", "b"))},
            SourceError,
            "classes",
            id="other classes",
        ),
        pytest.param(
            {"train": replace(patients(9, 2, "c"), pixels_RHW=np.zeros((9, 8, 8), np.uint8))},
            SourceError,
            "pixels",
            id="other size",
        ),
        pytest.param({"train": patients(0, 2, "c")}, SourceError, "at least one", id="no images"),
        pytest.param(
            {"initial_ICHW": noise(3)}, BadConfigError, "initial images", id="initial images"
        ),
        pytest.param({"init_sources": ((),)}, BadConfigError, "sources", id="sources per image"),
        pytest.param(
            {"init_sources": ((1,), ())}, BadConfigError, "noise", id="noise with sources"
        ),
        pytest.param({"init": "real"}, BadConfigError, "real", id="real without sources"),
        pytest.param(
            {"init": "real", "init_sources": ((1,), (150,))},
            BadConfigError,
            "rows",
            id="unknown row",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        measure(distilled_set(noise(2), [0, 1]), **changes)


@pytest.mark.gpu
def test_a_gpu_measures_the_same() -> None:
    train = patients(150, 1, "a")
    images_ICHW = to_tensor(train.select(np.arange(4)), SCALE)
    arguments: dict[str, Any] = {
        "train": train,
        "init": "real",
        "init_sources": tuple((row,) for row in range(4)),
        "trained": [FlatNet(NET, classes=2, image_size=SIDE).initial(0)],
    }
    distilled = distilled_set(images_ICHW, train.labels_R[:4].tolist())
    here, there = (
        measure(distilled, device=torch.device(device), **arguments) for device in ("cpu", "cuda")
    )
    assert here.nearest_train_rows == there.nearest_train_rows
    for one, other in zip(here.measurements, there.measurements, strict=True):
        assert one.value == pytest.approx(other.value, abs=0.01)
        assert one.passed is other.passed
