"""Detectors from one set, from several, with local images; and what does not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.detector.train import train_detector
from ppdd_core.errors import BadConfigError, TrainingError
from ppdd_core.nets.fit import train_on_set
from ppdd_core.nets.functional import FlatNet
from ppdd_core.seeding import derive

Images = Callable[..., LabelledImages]
Distilled = Callable[..., DistilledSet]

CONFIG = DetectorConfig(epochs=20, batch_size=64, augment="crop")


def test_one_set_is_trained_exactly_by_the_evaluation_protocol(
    distilled: Distilled, small_net: NetConfig
) -> None:
    one = distilled()
    detector = train_detector([one], net=small_net, config=CONFIG, seed=7)
    flat = FlatNet(small_net, classes=3, image_size=16)
    start_P = flat.initial(derive(7, "fresh network"))
    expected_P = train_on_set(
        flat, start_P, one.images, one.labels, config=CONFIG, lr=one.learning_rate, seed=7
    )
    assert torch.equal(detector.theta_P, expected_P)
    assert detector.normalisation == one.normalisation


def test_a_detector_from_two_sets_knows_the_classes_of_both(
    distilled: Distilled, images: Images, small_net: NetConfig
) -> None:
    # the class's place in its source decides where an image is bright; joined, the order is another
    first = distilled(classes=("Viral", "Normal"), learning_rate=0.02)
    second = distilled(
        classes=("flu", "Healthy", "covid-19"),
        seed=2,
        learning_rate=0.01,
        normalisation=Normalisation(mean=0.2, std=0.4),
    )
    detector = train_detector(
        [first, second],
        net=small_net,
        config=CONFIG,
        seed=0,
        class_map={"covid-19": "COVID", "Healthy": "Normal", "flu": "Viral"},
        names=[("a/x", "1.0.0", "11"), ("b/y", "2.0.0", "22")],
    )
    assert detector.classes == ("COVID", "Normal", "Viral")
    test = images([10, 10, 10], seed=5, classes=("Viral", "Normal", "COVID"))
    assert detector.evaluate(test).balanced_accuracy > 0.8
    assert [(s.name, s.learning_rate, s.classes) for s in detector.sources] == [
        ("a/x", 0.02, ("Viral", "Normal")),
        ("b/y", 0.01, ("flu", "Healthy", "covid-19")),
    ]
    assert detector.class_map == (("Healthy", "Normal"), ("covid-19", "COVID"), ("flu", "Viral"))


def test_sets_with_different_normalisation_meet_on_one_pixel_scale(
    distilled: Distilled, small_net: NetConfig
) -> None:
    """The same pixels, stored under two normalisations, teach the same."""
    low, high = Normalisation(mean=0.2, std=0.1), Normalisation(mean=0.6, std=0.5)
    middle = Normalisation(mean=0.4, std=0.25)
    once = train_detector(
        [distilled(normalisation=low), distilled(normalisation=high)],
        net=small_net,
        config=CONFIG,
        seed=0,
    )
    again = train_detector(
        [distilled(normalisation=high), distilled(normalisation=low)],
        net=small_net,
        config=CONFIG,
        seed=0,
    )
    assert once.normalisation == again.normalisation
    assert torch.allclose(once.theta_P, again.theta_P, atol=1e-4)
    assert once.normalisation.mean == pytest.approx(middle.mean)


def test_every_set_is_stepped_with_its_own_alpha(
    distilled: Distilled, small_net: NetConfig
) -> None:
    still = distilled(seed=2, learning_rate=1e-30)
    config = dataclasses.replace(CONFIG, epochs=3)
    both = train_detector([distilled(), still], net=small_net, config=config, seed=0)
    alone = train_detector([distilled()], net=small_net, config=config, seed=0)
    assert both.normalisation != alone.normalisation
    same_scale = dataclasses.replace(distilled(), normalisation=still.normalisation)
    both = train_detector([same_scale, still], net=small_net, config=config, seed=0)
    alone = train_detector([same_scale], net=small_net, config=config, seed=0)
    assert torch.equal(both.theta_P, alone.theta_P)


def test_soft_labels_teach_what_hard_ones_do(distilled: Distilled, small_net: NetConfig) -> None:
    hard = distilled()
    soft = dataclasses.replace(hard, labels=torch.nn.functional.one_hot(hard.labels, 3).float())
    a = train_detector([hard], net=small_net, config=CONFIG, seed=0)
    b = train_detector([soft], net=small_net, config=CONFIG, seed=0)
    assert torch.allclose(a.theta_P, b.theta_P, atol=1e-5)


def test_local_images_bring_their_classes_in(
    distilled: Distilled, images: Images, small_net: NetConfig
) -> None:
    local = images([3, 30, 20], seed=3, classes=("COVID", "Effusion", "Viral"))
    detector = train_detector(
        [distilled(classes=("COVID", "Normal"))],
        net=small_net,
        config=dataclasses.replace(CONFIG, batch_size=16),
        seed=0,
        local=local,
        class_map={"Effusion": "Normal"},
    )
    assert detector.classes == ("COVID", "Normal", "Viral")
    assert detector.sources[-1].name == "local images"
    assert detector.evaluate(images([10, 10, 10], seed=5)).balanced_accuracy > 0.8


def test_progress_counts_epochs_and_tells_the_loss(
    distilled: Distilled, small_net: NetConfig
) -> None:
    seen: list[tuple[int, int, float]] = []
    config = dataclasses.replace(CONFIG, epochs=30)
    train_detector(
        [distilled()], net=small_net, config=config, seed=0, on_progress=lambda *at: seen.append(at)
    )
    assert [at[:2] for at in seen] == [(epoch, 30) for epoch in range(1, 31)]
    assert 0 <= seen[-1][2] < seen[0][2]


def test_class_names_that_look_alike_must_be_mapped_or_kept_apart(
    distilled: Distilled, small_net: NetConfig
) -> None:
    sets = [distilled(classes=("COVID-19", "Normal")), distilled(classes=("Covid 19", "Normal"))]
    with pytest.raises(BadConfigError, match="'COVID-19' and 'Covid 19' look like one.*--map"):
        train_detector(sets, net=small_net, config=CONFIG, seed=0)
    config = dataclasses.replace(CONFIG, epochs=1)
    apart = train_detector(
        sets, net=small_net, config=config, seed=0, class_map={"COVID-19": "COVID-19"}
    )
    assert apart.classes == ("COVID-19", "Covid 19", "Normal")


@pytest.mark.parametrize(
    ("class_map", "says"),
    [
        pytest.param({"Covid": "COVID"}, "no package or local image has that class", id="unknown"),
        pytest.param(
            {"COVID": "Normal", "Normal": "Viral"}, "name the last one for both", id="chain"
        ),
        pytest.param({"COVID": " "}, "empty name", id="empty"),
        pytest.param({"COVID": "X", "Normal": "X", "Viral": "X"}, "at least two", id="one left"),
    ],
)
def test_maps_that_cannot_work_are_refused(
    distilled: Distilled, small_net: NetConfig, class_map: dict[str, str], says: str
) -> None:
    with pytest.raises(BadConfigError, match=says):
        train_detector([distilled()], net=small_net, config=CONFIG, seed=0, class_map=class_map)


def test_sets_of_different_size_are_refused_by_name(
    distilled: Distilled, small_net: NetConfig
) -> None:
    with pytest.raises(BadConfigError, match="b/y has images of 32 pixels, a/x of 16"):
        train_detector(
            [distilled(), distilled(size=32)],
            net=small_net,
            config=CONFIG,
            seed=0,
            names=[("a/x", "1", ""), ("b/y", "1", "")],
        )


def test_implausible_sets_are_refused(
    distilled: Distilled, images: Images, small_net: NetConfig
) -> None:
    one = distilled()
    three = dataclasses.replace(one, images=one.images.expand(-1, 3, -1, -1))
    outside = dataclasses.replace(one, labels=one.labels + 1)
    for bad, says in ((three, "3 colour channels"), (outside, "labels outside")):
        with pytest.raises(BadConfigError, match=says):
            train_detector([bad], net=small_net, config=CONFIG, seed=0)
    with pytest.raises(BadConfigError, match="at least one package"):
        train_detector([], net=small_net, config=CONFIG, seed=0)
    with pytest.raises(BadConfigError, match="step size nan"):
        train_detector(
            [distilled(learning_rate=float("nan"))], net=small_net, config=CONFIG, seed=0
        )
    with pytest.raises(BadConfigError, match="local images must have 16 pixels, got 32"):
        train_detector(
            [one], net=small_net, config=CONFIG, seed=0, local=images([2, 2, 2], size=32)
        )


def test_training_that_diverges_says_so(distilled: Distilled, small_net: NetConfig) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        train_detector([distilled(learning_rate=1e30)], net=small_net, config=CONFIG, seed=0)


def test_images_with_an_unknown_class_cannot_be_evaluated_until_renamed(
    distilled: Distilled, images: Images, small_net: NetConfig
) -> None:
    detector = train_detector([distilled()], net=small_net, config=CONFIG, seed=0)
    foreign = images([5, 5], seed=8, classes=("Healthy", "Viral"))
    with pytest.raises(
        BadConfigError, match="'Healthy'.*knows COVID, Normal, Viral.*mapping Healthy=CLASS.*--map"
    ):
        detector.evaluate(foreign)
    found = detector.evaluate(foreign, class_map={"Healthy": "COVID", "Viral": "Normal"})
    assert found.accuracy > 0.8
    assert found.per_class[2].sensitivity is None


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_recipe_takes_is_refused(
    distilled: Distilled, small_net: NetConfig, seed: int
) -> None:
    with pytest.raises(BadConfigError, match="seed must be from 0 to 2147483647"):
        train_detector([distilled()], net=small_net, config=CONFIG, seed=seed)


def test_the_same_package_twice_is_refused_and_two_of_one_name_are_not(
    distilled: Distilled, small_net: NetConfig
) -> None:
    once = dataclasses.replace(CONFIG, epochs=1)
    sets, first = [distilled(), distilled(seed=2)], ("a/x", "1.0.0", "11")
    with pytest.raises(BadConfigError, match=r"a/x 1\.0\.0 was given twice"):
        train_detector(sets, net=small_net, config=once, seed=0, names=[first, first])
    names = [first, ("a/x", "1.1.0", "22")]
    detector = train_detector(sets, net=small_net, config=once, seed=0, names=names)
    assert [source.digest for source in detector.sources] == ["11", "22"]
