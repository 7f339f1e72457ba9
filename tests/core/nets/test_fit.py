"""The one SGD loop, against torch.optim.SGD."""

import pytest
import torch
import torch.nn.functional as F

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.errors import TrainingError
from ppdd_core.nets.fit import predict, train_epoch, train_on_set
from ppdd_core.nets.functional import FlatNet

NET = FlatNet(NetConfig(width=4, depth=2), classes=3, image_size=8)
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "weights"),
    [(0.0, 0.0, None), (0.9, 5e-4, None), (0.9, 0.0, [1.0, 2.0, 0.5])],
)
def test_an_epoch_takes_the_steps_of_sgd(
    momentum: float, weight_decay: float, weights: list[float] | None
) -> None:
    weights_K = None if weights is None else torch.tensor(weights)
    theta_P, velocity_P = NET.initial(0), torch.zeros(NET.parameters)
    expected_P = theta_P.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([expected_P], lr=0.05, momentum=momentum, weight_decay=weight_decay)
    batches = [(IMAGES[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)]
    for x, y in batches:
        optimiser.zero_grad()
        F.cross_entropy(NET(expected_P, x), y, weight=weights_K).backward()
        optimiser.step()
    train_epoch(
        NET, theta_P, velocity_P, batches, lr=0.05, momentum=momentum, weight_decay=weight_decay,
        class_weights_K=weights_K,
    )  # fmt: skip
    torch.testing.assert_close(theta_P, expected_P.detach())
    assert not theta_P.requires_grad


def test_the_mean_of_an_epoch_is_that_of_the_parameters_after_its_steps() -> None:
    batches = [(IMAGES[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)]
    theta_P, mean_P = NET.initial(0), torch.full((NET.parameters,), 7.0)
    after = theta_P.clone()
    velocity_P, steps = torch.zeros_like(theta_P), []
    train_epoch(NET, theta_P, velocity_P, batches, lr=0.05, momentum=0.5, mean_P=mean_P)
    velocity_P.zero_()
    for batch in batches:
        train_epoch(NET, after, velocity_P, [batch], lr=0.05, momentum=0.5)
        steps.append(after.clone())
    torch.testing.assert_close(mean_P, torch.stack(steps).mean(0))


def test_a_diverging_training_is_refused() -> None:
    theta_P = NET.initial(0) * float("nan")
    with pytest.raises(TrainingError, match="smaller"):
        train_epoch(NET, theta_P, torch.zeros_like(theta_P), [(IMAGES, LABELS)], lr=0.1)


def test_training_on_a_set_learns_it_and_leaves_the_start_alone() -> None:
    start_P = NET.initial(0)
    before = start_P.clone()
    config = DetectorConfig(epochs=60, augment="")
    theta_P = train_on_set(NET, start_P, IMAGES, LABELS, config=config, lr=0.02, seed=0)
    assert torch.equal(start_P, before)
    probabilities = predict(NET, theta_P, IMAGES, batch_size=5)
    assert (probabilities.argmax(1) == LABELS).all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(12))


def test_soft_labels_that_are_certain_equal_hard_ones() -> None:
    config = DetectorConfig(epochs=3)
    trained = [
        train_on_set(NET, NET.initial(0), IMAGES, labels, config=config, lr=0.01, seed=1)
        for labels in (LABELS, F.one_hot(LABELS).float())
    ]
    torch.testing.assert_close(*trained)


def test_the_seed_decides_the_result() -> None:
    config = DetectorConfig(epochs=2)
    one, same, other = (
        train_on_set(NET, NET.initial(0), IMAGES, LABELS, config=config, lr=0.01, seed=s)
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
