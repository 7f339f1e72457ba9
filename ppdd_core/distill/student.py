"""The student: J differentiable SGD steps on the synthetic images, and the loss gradient through them.

Two engines give the same numbers: `unroll`, plain autograd through all J steps (the reference), and `reverse`, which
recomputes one step at a time backwards and so needs memory for one step whatever J is; of the last steps, as many as
`KEEP` holds, it keeps what it computed forwards. `reverse` is exact, unlike TESLA (Cui et al. 2023), which drops the
effect of an image on later steps' gradients.

Shape suffixes: I synthetic images, B one mini-batch of them, C H W channel height width, K classes,
P flat network parameters. θ_0 = start_P, θ_{j+1} = θ_j - α g_j. Labels are probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppdd_core.data.augment import Draw, augment
from ppdd_core.distill.matching import matching_gradient, matching_loss
from ppdd_core.nets.derivatives import (
    First,
    Net,
    Room,
    gradient_along,
    kept_bytes,
    loss_gradient,
    loss_gradient_in_graph,
    mean_targets,
)

KEEP = 256 * 2**20  # bytes of feature maps kept from the way there for the way back

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
    grad_labels_IK: Tensor
    grad_lr: Tensor  # scalar
    kept: Tensor  # scalar: share of parameters that were matched


def unroll(
    net: Net,
    start_P: Tensor,
    target_P: Tensor,
    images_ICHW: Tensor,
    labels_IK: Tensor,
    lr: Tensor,
    steps: tuple[Step, ...],
    mask: Mask,
) -> Matched:
    """Return loss and gradients by autograd through the whole student run; memory grows with J."""
    images_ICHW = images_ICHW.detach().requires_grad_(True)
    labels_IK = labels_IK.detach().requires_grad_(True)
    lr = lr.detach().requires_grad_(True)
    theta_P = start_P.detach().requires_grad_(True)
    for step in steps:
        x_BCHW = augment(images_ICHW[step.rows_B], step.drawn)
        _, grad_P = loss_gradient_in_graph(net, theta_P, x_BCHW, _targets(labels_IK, step))
        theta_P = theta_P - lr * grad_P
    keep_P = mask(start_P, theta_P.detach(), target_P)
    loss = matching_loss(start_P, theta_P, target_P, keep_P)
    of_images, of_labels, of_lr = torch.autograd.grad(loss, (images_ICHW, labels_IK, lr))
    return Matched(loss.detach(), of_images, of_labels, of_lr, keep_P.float().mean())


def reverse(
    net: Net,
    start_P: Tensor,
    target_P: Tensor,
    images_ICHW: Tensor,
    labels_IK: Tensor,
    lr: Tensor,
    steps: tuple[Step, ...],
    mask: Mask,
) -> Matched:
    """Return the same as `unroll`, exactly, with one step's graph alive at a time.

    Stores the J parameter vectors [J, P] of the forward run. Backwards, with λ_J = ∂L/∂θ_J:
    ∂L/∂α -= g_jᵀλ_{j+1};  ∂L/∂X_b -= α ∂(g_jᵀλ_{j+1})/∂X_b;  λ_j = λ_{j+1} - α ∂(g_jᵀλ_{j+1})/∂θ_j.
    """
    images_ICHW, labels_IK, lr = images_ICHW.detach(), labels_IK.detach(), lr.detach()
    # One block for all θ_j: kept apart from short-lived tensors, or the heap is left full of holes.
    thetas_JP = start_P.new_empty(len(steps), len(start_P))
    student_P, room = start_P.detach(), Room()
    firsts: list[First] = []
    for number, step in enumerate(steps):
        thetas_JP[number] = student_P
        x_BCHW = augment(images_ICHW[step.rows_B], step.drawn)
        keep = (len(steps) - number) * kept_bytes(net, x_BCHW) <= KEEP
        first = loss_gradient(net, student_P, x_BCHW, _targets(labels_IK, step), room, keep=keep)
        firsts.append(first)
        student_P = student_P - lr * first.grad_P
    keep_P = mask(start_P, student_P, target_P)
    loss = matching_loss(start_P, student_P, target_P, keep_P)

    lambda_P = matching_gradient(start_P, student_P, target_P, keep_P)
    grad_images_ICHW, grad_lr = torch.zeros_like(images_ICHW), torch.zeros_like(lr)
    grad_labels_IK = torch.zeros_like(labels_IK)
    for number in range(len(steps) - 1, -1, -1):
        step = steps[number]
        raw_BCHW = images_ICHW[step.rows_B].requires_grad_(True)
        x_BCHW = augment(raw_BCHW, step.drawn)
        along = gradient_along(
            net, thetas_JP[number], lambda_P, x_BCHW, _targets(labels_IK, step), room, firsts.pop().kept
        )  # fmt: skip
        (grad_B,) = torch.autograd.grad(x_BCHW, raw_BCHW, along.grad_x_BCHW)
        grad_lr -= along.s
        grad_images_ICHW.index_add_(0, step.rows_B, grad_B * -lr)
        grad_labels_BK = along.grad_targets_BK * (-lr / len(step.rows_B))
        grad_labels_IK.index_add_(0, step.rows_B, grad_labels_BK)
        lambda_P = lambda_P - lr * along.grad_P
    return Matched(loss, grad_images_ICHW, grad_labels_IK, grad_lr, keep_P.float().mean())


def _targets(labels_IK: Tensor, step: Step) -> Tensor:
    return mean_targets(labels_IK[step.rows_B], labels_IK.shape[1])


ENGINES: dict[str, Callable[..., Matched]] = {"reverse": reverse, "unroll": unroll}
