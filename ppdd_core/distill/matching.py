"""Which parameters are matched (parameter pruning), and how far the student is from the teacher.

The paper prunes parameters "if the similarity of parameters in θ̃ and θ is less than a threshold σ" and gives
no formula; no public code holds one. So the similarity is a named choice: `SIMILARITIES` lists the readings that
make sense. Each is a pure function (start_P, student_P, target_P) -> [P], larger = more alike.

The mask is a constant: no gradient flows through it. It is applied to student, target and start alike.

Shape suffix: P flat network parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _ratio(a_P: Tensor, b_P: Tensor) -> Tensor:
    small_P, large_P = torch.minimum(a_P.abs(), b_P.abs()), torch.maximum(a_P.abs(), b_P.abs())
    return torch.where(large_P > 0, small_P / large_P, torch.ones_like(large_P))


def signed_ratio(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return min/max of the absolute values, 0 where the signs differ, 1 where both are zero. The default."""
    del start_P
    return torch.where(student_P * target_P < 0, 0.0, _ratio(student_P, target_P))


def ratio(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return min/max of the absolute values, whatever the signs."""
    del start_P
    return _ratio(student_P, target_P)


def relative_difference(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return 1 - |a - b| / max(|a|, |b|): the same set as `signed_ratio` for every σ > 0."""
    del start_P
    large_P = torch.maximum(student_P.abs(), target_P.abs())
    difference_P = (student_P - target_P).abs()
    return torch.where(large_P > 0, 1 - difference_P / large_P, torch.ones_like(large_P))


def displacement(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return the signed ratio of the ways gone: student - start against target - start.

    Prunes about a third at σ = 0.1, and changes the objective most.
    """
    return signed_ratio(start_P, student_P - start_P, target_P - start_P)


def difference(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return 1 - |a - b|: depends on the scale of the weights; at σ = 0.1 it prunes next to nothing."""
    del start_P
    return 1 - (student_P - target_P).abs()


def difference_rank(start_P: Tensor, student_P: Tensor, target_P: Tensor) -> Tensor:
    """Return the rank of |a - b| in [0, 1], 1 for the closest: σ is then exactly the share pruned."""
    del start_P
    order = (student_P - target_P).abs().argsort(descending=True, stable=True)
    rank_P = torch.empty_like(student_P)
    rank_P[order] = (torch.arange(len(order), device=order.device) + 0.5).to(rank_P.dtype) / len(
        order
    )
    return rank_P


SIMILARITIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "signed_ratio": signed_ratio,
    "ratio": ratio,
    "relative_difference": relative_difference,
    "displacement": displacement,
    "difference": difference,
    "difference_rank": difference_rank,
}


@torch.no_grad()
def keep_mask(
    start_P: Tensor,
    student_P: Tensor,
    target_P: Tensor,
    *,
    similarity: str,
    prune_below: float,
    min_keep: float,
) -> Tensor:
    """Return True where a parameter is matched, False where it is pruned.

    `prune_below` = 0 keeps all (MTT). Where less than the share `min_keep` would stay ("pruning too many
    parameters would cause the model training to crash"), the most similar ones are kept instead.
    """
    if prune_below == 0:
        return torch.ones_like(student_P, dtype=torch.bool)
    similarity_P = SIMILARITIES[similarity](start_P, student_P, target_P)
    keep_P = similarity_P >= prune_below
    least = max(1, round(min_keep * len(similarity_P)))
    if int(keep_P.sum()) < least:
        keep_P = torch.zeros_like(keep_P)
        keep_P[similarity_P.topk(least).indices] = True
    return keep_P


def matching_loss(start_P: Tensor, student_P: Tensor, target_P: Tensor, keep_P: Tensor) -> Tensor:
    """Return the squared distance left to go, as a share of the teacher's way (equation 3)."""
    left = ((student_P - target_P) * keep_P).square().sum()
    total = ((start_P - target_P) * keep_P).square().sum()
    return left / total


@torch.no_grad()
def matching_gradient(
    start_P: Tensor, student_P: Tensor, target_P: Tensor, keep_P: Tensor
) -> Tensor:
    """Return the derivative of `matching_loss` in `student_P`, [P]."""
    total = ((start_P - target_P) * keep_P).square().sum()
    return 2 * (student_P - target_P) * keep_P / total
