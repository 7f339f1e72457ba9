"""Stochastic gradient descent on one flat parameter vector: the only training loop there is.

Teachers, detectors, evaluation and membership inference all train through `train_epoch`.

Shape suffixes: P flat parameters, B mini-batch, I images of a small set, R real images, C H W, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ppdd_core.config import DetectorConfig
from ppdd_core.data.augment import augment, draw
from ppdd_core.errors import TrainingError
from ppdd_core.nets.derivatives import Room, loss_gradient, mean_targets
from ppdd_core.nets.functional import FlatNet
from ppdd_core.seeding import derive

Batch = tuple[Tensor, Tensor]


def train_epoch(
    net: FlatNet,
    theta_P: Tensor,
    velocity_P: Tensor,
    batches: Iterable[Batch],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    class_weights_K: Tensor | None = None,
    mean_P: Tensor | None = None,
) -> float:
    """Take one SGD step per batch, changing `theta_P` and `velocity_P` in place; return the mean loss.

    `mean_P`, where given, becomes the mean of the parameters after each step.
    Same arithmetic as `torch.optim.SGD` (tested). A loss that is not finite raises TrainingError.
    """
    total, steps, seen, room = torch.zeros((), device=theta_P.device), 0, 0, Room()
    for x_BCHW, labels_B in batches:
        targets_BK = mean_targets(labels_B, net.classes, class_weights_K)
        first = loss_gradient(net, theta_P, x_BCHW, targets_BK, room)
        grad_P = first.grad_P
        if weight_decay:
            grad_P = grad_P.add(theta_P, alpha=weight_decay)
        if momentum:
            velocity_P.mul_(momentum).add_(grad_P)
            grad_P = velocity_P
        theta_P.sub_(grad_P, alpha=lr)
        steps += 1
        if mean_P is not None:
            mean_P.lerp_(theta_P, 1 / steps)
        total += first.loss * len(x_BCHW)
        seen += len(x_BCHW)
    mean = float(total) / max(seen, 1)
    if not math.isfinite(mean):
        raise TrainingError(
            f"the training loss is not finite at step size {lr:g}; use a smaller one"
        )
    return mean


def train_on_set(
    net: FlatNet,
    theta_P: Tensor,
    images_ICHW: Tensor,
    labels_I: Tensor,
    *,
    config: DetectorConfig,
    lr: float,
    seed: int,
    on_epoch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return parameters trained on a small set by MTT's evaluation protocol, starting from `theta_P`.

    `config.epochs` epochs of SGD with momentum and weight decay, the step size divided by ten and the
    momentum forgotten half way; `labels_I` are class numbers [I] or probabilities [I, K].
    """
    theta_P, velocity_P = theta_P.clone(), torch.zeros_like(theta_P)
    generator = torch.Generator().manual_seed(derive(seed, "train on set"))
    half = config.epochs // 2 + 1
    for epoch in range(config.epochs):
        if epoch == half:
            velocity_P.zero_()
        train_epoch(
            net,
            theta_P,
            velocity_P,
            _augmented(images_ICHW, labels_I, config.batch_size, config.augment, generator),
            lr=lr if epoch < half else lr / 10,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        if on_epoch:
            on_epoch(epoch + 1, config.epochs)
    return theta_P


def _augmented(
    images_ICHW: Tensor,
    labels_I: Tensor,
    batch_size: int,
    strategy: str,
    generator: torch.Generator,
) -> Iterator[Batch]:
    order_I = torch.randperm(len(images_ICHW), generator=generator).to(images_ICHW.device)
    for rows_B in order_I.split(batch_size):
        drawn = draw(strategy, len(rows_B), generator)
        yield augment(images_ICHW[rows_B], drawn), labels_I[rows_B]


@torch.no_grad()
def predict(net: FlatNet, theta_P: Tensor, images_RCHW: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return the probability of every class for every image, float32 [R, K]."""
    parts = [
        net(theta_P, x_BCHW.to(theta_P.device)).float().softmax(1)
        for x_BCHW in images_RCHW.split(batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, net.classes)
