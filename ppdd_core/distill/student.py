"""The student: J differentiable SGD steps on the synthetic images, and the loss gradient through them.

Two engines give the same numbers: `unroll`, plain autograd through all J steps (the reference), and `reverse`, which
recomputes one step at a time backwards and so needs memory for one step whatever J is. `reverse` is exact, unlike TESLA
(Cui et al. 2023), which drops the effect of an image on later steps' gradients.

Shape suffixes: I synthetic images, B one mini-batch of them, C H W channel height width, K classes,
P flat network parameters. θ_0 = start_P, θ_{j+1} = θ_j - α g_j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.data.augment import Draw, augment
from ppdd_core.distill.matching import matching_gradient, matching_loss

Net = Callable[[Tensor, Tensor], Tensor]
Mask = Callable[[Tensor, Tensor, Tensor], Tensor]  # (start_P, student_P, target_P) -> keep_P


@dataclass(frozen=True, slots=True)
class Step:
    """One student step: which images, under which augmentation."""

    rows_B: Tensor
    drawn: Draw


@dataclass(frozen=True, slots=True)
class Matched:
    """What one outer step learns."""

    loss: Tensor  # scalar
    grad_images_ICHW: Tensor
    grad_lr: Tensor  # scalar
    kept: Tensor  # scalar: share of parameters that were matched


def _student_gradient(
    net: Net, theta_P: Tensor, x_BCHW: Tensor, labels_B: Tensor, *, create_graph: bool
) -> Tensor:
    loss = F.cross_entropy(net(theta_P, x_BCHW), labels_B)
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=create_graph)
    return grad_P


def unroll(
    net: Net,
    start_P: Tensor,
    target_P: Tensor,
    images_ICHW: Tensor,
    labels_I: Tensor,
    lr: Tensor,
    steps: tuple[Step, ...],
    mask: Mask,
) -> Matched:
    """Return loss and gradients by autograd through the whole student run; memory grows with J."""
    images_ICHW = images_ICHW.detach().requires_grad_(True)
    lr = lr.detach().requires_grad_(True)
    theta_P = start_P.detach().requires_grad_(True)
    for step in steps:
        x_BCHW = augment(images_ICHW[step.rows_B], step.drawn)
        grad_P = _student_gradient(net, theta_P, x_BCHW, labels_I[step.rows_B], create_graph=True)
        theta_P = theta_P - lr * grad_P
    keep_P = mask(start_P, theta_P.detach(), target_P)
    loss = matching_loss(start_P, theta_P, target_P, keep_P)
    grad_images, grad_lr = torch.autograd.grad(loss, (images_ICHW, lr))
    return Matched(loss.detach(), grad_images, grad_lr, keep_P.float().mean())


def reverse(
    net: Net,
    start_P: Tensor,
    target_P: Tensor,
    images_ICHW: Tensor,
    labels_I: Tensor,
    lr: Tensor,
    steps: tuple[Step, ...],
    mask: Mask,
) -> Matched:
    """Return the same as `unroll`, exactly, with one step's graph alive at a time.

    Stores the J parameter vectors [J, P] of the forward run. Backwards, with λ_J = ∂L/∂θ_J:
    ∂L/∂α -= g_jᵀλ_{j+1};  ∂L/∂X_b -= α ∂(g_jᵀλ_{j+1})/∂X_b;  λ_j = λ_{j+1} - α ∂(g_jᵀλ_{j+1})/∂θ_j.
    """
    images_ICHW, lr = images_ICHW.detach(), lr.detach()
    # One block for all θ_j: kept apart from short-lived tensors, or the heap is left full of holes.
    thetas_JP = start_P.new_empty(len(steps), len(start_P))
    student_P = start_P.detach()
    for number, step in enumerate(steps):
        thetas_JP[number] = student_P
        theta_P = student_P.requires_grad_(True)
        x_BCHW = augment(images_ICHW[step.rows_B], step.drawn)
        step_P = _student_gradient(net, theta_P, x_BCHW, labels_I[step.rows_B], create_graph=False)
        student_P = theta_P.detach() - lr * step_P
    keep_P = mask(start_P, student_P, target_P)
    loss = matching_loss(start_P, student_P, target_P, keep_P)

    lambda_P = matching_gradient(start_P, student_P, target_P, keep_P)
    grad_images_ICHW, grad_lr = torch.zeros_like(images_ICHW), torch.zeros_like(lr)
    for number in range(len(steps) - 1, -1, -1):
        step = steps[number]
        along, grad_B, grad_P = _step_back(
            net,
            thetas_JP[number],
            images_ICHW[step.rows_B],
            labels_I[step.rows_B],
            step.drawn,
            lambda_P,
            first=number == 0,
        )
        grad_lr -= along
        grad_images_ICHW.index_add_(0, step.rows_B, grad_B * -lr)
        if grad_P is not None:
            lambda_P = lambda_P - lr * grad_P
    return Matched(loss, grad_images_ICHW, grad_lr, keep_P.float().mean())


def _step_back(
    net: Net,
    theta_P: Tensor,
    raw_BCHW: Tensor,
    labels_B: Tensor,
    drawn: Draw,
    lambda_P: Tensor,
    *,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return g_jᵀλ_{j+1} and its derivatives in the images and, but for the first step, in θ_j.

    A function of its own so that one step's graph is gone before the next one is built.
    """
    theta_P = theta_P.detach().requires_grad_(True)
    raw_BCHW = raw_BCHW.requires_grad_(True)
    x_BCHW = augment(raw_BCHW, drawn)
    grad_P = _student_gradient(net, theta_P, x_BCHW, labels_B, create_graph=True)
    along = torch.dot(grad_P, lambda_P)
    if first:  # nothing asks for λ_0
        (grad_B,) = torch.autograd.grad(along, raw_BCHW)
        return along.detach(), grad_B, None
    grad_B, next_P = torch.autograd.grad(along, (raw_BCHW, theta_P))
    return along.detach(), grad_B, next_P


ENGINES: dict[str, Callable[..., Matched]] = {"reverse": reverse, "unroll": unroll}
