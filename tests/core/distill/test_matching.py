"""Similarities, masks and the loss, at their edges."""

import pytest
import torch

from ppdd_core.distill.matching import (
    SIMILARITIES,
    keep_mask,
    matching_gradient,
    matching_loss,
)

START = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0])
STUDENT = torch.tensor([0.0, 1.0, 1.0, 0.05, 0.2])
TARGET = torch.tensor([0.0, 2.0, -1.0, 1.0, 0.1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("signed_ratio", [1.0, 0.5, 0.0, 0.05, 0.5]),
        ("ratio", [1.0, 0.5, 1.0, 0.05, 0.5]),
        ("relative_difference", [1.0, 0.5, -1.0, 0.05, 0.5]),
        ("displacement", [1.0, 0.0, 0.0, 0.0, 0.5]),
        ("difference", [1.0, 0.0, -1.0, 0.05, 0.9]),
        ("difference_rank", [0.9, 0.3, 0.1, 0.5, 0.7]),
    ],
)
def test_similarity_values(name: str, expected: list[float]) -> None:
    found = SIMILARITIES[name](START, STUDENT, TARGET)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_signed_ratio_and_relative_difference_prune_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    start, student, target = (torch.randn(5000, generator=generator) for _ in range(3))
    masks = [
        keep_mask(start, student, target, similarity=name, prune_below=0.1, min_keep=0.01)
        for name in ("signed_ratio", "relative_difference")
    ]
    assert torch.equal(*masks)
    assert (
        0.4 < masks[0].float().mean() < 0.5
    )  # half the signs differ, and a tenth of the ratios are small


def test_sigma_zero_prunes_nothing() -> None:
    keep = keep_mask(
        START, STUDENT, TARGET, similarity="displacement", prune_below=0.0, min_keep=0.05
    )
    assert keep.all()


def test_the_rank_similarity_prunes_the_share_sigma() -> None:
    generator = torch.Generator().manual_seed(0)
    start, student, target = (torch.randn(1000, generator=generator) for _ in range(3))
    keep = keep_mask(
        start, student, target, similarity="difference_rank", prune_below=0.3, min_keep=0.05
    )
    assert int(keep.sum()) == 700
    dropped = (student - target).abs()[~keep].min()
    assert dropped >= (student - target).abs()[keep].max()


def test_where_all_would_be_pruned_the_most_similar_stay() -> None:
    student, target = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.tensor([-1.0, 2.0, -3.0, 4.0])
    keep = keep_mask(
        student * 0, student, target, similarity="difference", prune_below=0.99, min_keep=0.5
    )
    assert keep.tolist() == [True, True, False, False]


def test_loss_runs_from_one_at_the_start_to_zero_at_the_target() -> None:
    all_kept = torch.ones(5, dtype=torch.bool)
    assert matching_loss(START, START, TARGET, all_kept) == 1
    assert matching_loss(START, TARGET, TARGET, all_kept) == 0


def test_the_mask_applies_to_student_target_and_start() -> None:
    keep = torch.tensor([True, True, False, True, False])
    expected = matching_loss(START[keep], STUDENT[keep], TARGET[keep], keep[keep])
    torch.testing.assert_close(matching_loss(START, STUDENT, TARGET, keep), expected)


def test_the_written_gradient_is_that_of_the_loss() -> None:
    keep = torch.tensor([True, True, False, True, True])
    student = STUDENT.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(
        matching_loss(START.double(), student, TARGET.double(), keep), student
    )
    found = matching_gradient(START.double(), STUDENT.double(), TARGET.double(), keep)
    torch.testing.assert_close(found, expected)
