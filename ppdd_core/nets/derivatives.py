"""What training and distillation ask of a network: ∇_θ ℓ, and the gradient of its product with a direction. One seam.

A ConvNet on the CPU has its derivatives by hand (`convnet_by_hand`); everything else has autograd's, which are the
same to rounding.

ℓ = -Σ t log p, with targets t [B, K] that hold the weight of each image and class: `mean_targets` makes them.

Shape suffixes: P flat network parameters, B mini-batch, C H W channel height width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.nets import convnet_by_hand
from ppdd_core.nets.convnet_by_hand import Kept, Room
from ppdd_core.nets.functional import FlatNet

__all__ = [
    "Along",
    "First",
    "Net",
    "Room",
    "gradient_along",
    "kept_bytes",
    "loss_gradient",
    "loss_gradient_in_graph",
    "mean_targets",
]

Net = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class First:
    """ℓ, ∇_θ ℓ [P], and what was kept of the way there."""

    loss: Tensor
    grad_P: Tensor
    kept: Kept = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Along:
    """s = λᵀ∇_θ ℓ, a scalar, and its gradients in images [B, C, H, W], θ [P] and targets [B, K]."""

    s: Tensor
    grad_x_BCHW: Tensor
    grad_P: Tensor
    grad_targets_BK: Tensor


def mean_targets(labels: Tensor, classes: int, class_weights_K: Tensor | None = None) -> Tensor:
    """Return targets [B, K] whose ℓ is the mean cross entropy, as `torch.nn.functional.cross_entropy` has it.

    `labels` are class numbers [B] or probabilities [B, K]; weights belong to class numbers only.
    """
    if labels.ndim == 2:
        return labels / len(labels)
    hot_BK = F.one_hot(labels, classes).float()
    if class_weights_K is None:
        return hot_BK / len(labels)
    weighted_BK = hot_BK * class_weights_K
    return weighted_BK / weighted_BK.sum()


def loss_gradient(
    net: Net,
    theta_P: Tensor,
    x_BCHW: Tensor,
    targets_BK: Tensor,
    room: Room | None = None,
    *,
    keep: bool = False,
) -> First:
    """Return ℓ and its gradient in θ; `room` is memory to use again.

    Where `keep` is set and the derivatives are by hand, what `gradient_along` at the same place can use comes with it.
    """
    theta_P = theta_P.detach()
    if _is_by_hand(net, theta_P):
        loss, grad_P, kept = convnet_by_hand.loss_gradient(
            net.split(theta_P), x_BCHW.detach(), targets_BK, room or Room(), keep=keep
        )
        return First(loss, grad_P, kept)
    loss, grad_P = loss_gradient_in_graph(
        net, theta_P.requires_grad_(True), x_BCHW, targets_BK, keep=False
    )
    return First(loss.detach(), grad_P)


def loss_gradient_in_graph(
    net: Net, theta_P: Tensor, x_BCHW: Tensor, targets_BK: Tensor, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the same two by autograd, differentiable themselves where `keep` is set."""
    loss = -(targets_BK * net(theta_P, x_BCHW).log_softmax(1)).sum()
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=keep)
    return loss, grad_P


def gradient_along(
    net: Net,
    theta_P: Tensor,
    lambda_P: Tensor,
    x_BCHW: Tensor,
    targets_BK: Tensor,
    room: Room | None = None,
    kept: Kept | None = None,
) -> Along:
    """Return s = λᵀ∇_θ ℓ and its gradients; `kept` is what `loss_gradient` kept at the same θ, x and t."""
    theta_P, x_BCHW, targets_BK = theta_P.detach(), x_BCHW.detach(), targets_BK.detach()
    if _is_by_hand(net, theta_P):
        parts, direction = net.split(theta_P), net.split(lambda_P)
        return Along(
            *convnet_by_hand.gradient_along(
                parts, direction, x_BCHW, targets_BK, room or Room(), kept or []
            )
        )
    for one in (theta_P, x_BCHW, targets_BK):
        one.requires_grad_(True)
    _, grad_P = loss_gradient_in_graph(net, theta_P, x_BCHW, targets_BK)
    s = torch.dot(grad_P, lambda_P)
    of_x, of_theta, of_targets = torch.autograd.grad(s, (x_BCHW, theta_P, targets_BK))
    return Along(s.detach(), of_x, of_theta, of_targets)


def kept_bytes(net: Net, x_BCHW: Tensor) -> int:
    """Return the memory of what `loss_gradient` keeps of such a mini-batch; 0 where it keeps nothing."""
    if not _is_by_hand(net, x_BCHW):
        return 0
    return convnet_by_hand.kept_bytes(net.config.width, net.config.depth, x_BCHW)


def _is_by_hand(net: Net, on: Tensor) -> TypeGuard[FlatNet]:
    return (
        isinstance(net, FlatNet)
        and net.config.architecture == "convnet"
        and on.device.type == "cpu"
    )
