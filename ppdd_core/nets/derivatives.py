"""What distillation asks of a network: ∇_θ ℓ, and the gradient of its product with a direction. One seam for both.

A ConvNet on the CPU has its derivatives by hand (`convnet_by_hand`); everything else has autograd's, which are the
same to rounding.

Shape suffixes: P flat network parameters, B mini-batch, C H W channel height width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.nets import convnet_by_hand
from ppdd_core.nets.convnet_by_hand import Room
from ppdd_core.nets.functional import FlatNet

__all__ = ["Net", "Room", "gradient_along", "loss_gradient", "loss_gradient_in_graph"]

Net = Callable[[Tensor, Tensor], Tensor]


def loss_gradient(
    net: Net, theta_P: Tensor, x_BCHW: Tensor, labels_B: Tensor, room: Room | None = None
) -> Tensor:
    """Return the gradient in θ of the mean cross entropy, [P]; `room` is memory to use again."""
    theta_P = theta_P.detach()
    if _is_by_hand(net, theta_P):
        return convnet_by_hand.loss_gradient(
            net.split(theta_P), x_BCHW.detach(), labels_B, room or Room()
        )
    return loss_gradient_in_graph(net, theta_P.requires_grad_(True), x_BCHW, labels_B, keep=False)


def loss_gradient_in_graph(
    net: Net, theta_P: Tensor, x_BCHW: Tensor, labels_B: Tensor, *, keep: bool = True
) -> Tensor:
    """Return the same by autograd, differentiable itself where `keep` is set."""
    loss = F.cross_entropy(net(theta_P, x_BCHW), labels_B)
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=keep)
    return grad_P


def gradient_along(
    net: Net,
    theta_P: Tensor,
    lambda_P: Tensor,
    x_BCHW: Tensor,
    labels_B: Tensor,
    room: Room | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return s = λᵀ∇_θ ℓ, a scalar, and its gradients in the images [B, C, H, W] and in θ [P]."""
    theta_P, x_BCHW = theta_P.detach(), x_BCHW.detach()
    if _is_by_hand(net, theta_P):
        parts, direction = net.split(theta_P), net.split(lambda_P)
        return convnet_by_hand.gradient_along(parts, direction, x_BCHW, labels_B, room or Room())
    theta_P.requires_grad_(True)
    x_BCHW.requires_grad_(True)
    s = torch.dot(loss_gradient_in_graph(net, theta_P, x_BCHW, labels_B), lambda_P)
    grad_BCHW, grad_P = torch.autograd.grad(s, (x_BCHW, theta_P))
    return s.detach(), grad_BCHW, grad_P


def _is_by_hand(net: Net, theta_P: Tensor) -> TypeGuard[FlatNet]:
    return (
        isinstance(net, FlatNet)
        and net.config.architecture == "convnet"
        and theta_P.device.type == "cpu"
    )
