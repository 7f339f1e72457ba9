"""Augmentation: a draw is a value, every operation does what it says, per image, differentiably."""

import pytest
import torch

from ppdd_core.data.augment import Draw, augment, draw
from ppdd_core.errors import BadConfigError

OPERATIONS = ["color", "crop", "cutout", "flip", "scale", "rotate"]
IMAGES = torch.rand(6, 1, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def one(operation: str, u: list[float]) -> Draw:
    return Draw(operation, torch.tensor([u] * len(IMAGES), dtype=torch.float64))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_draw_applied_twice_gives_the_same_and_differs_between_images(operation: str) -> None:
    drawn = draw(operation, 6, torch.Generator().manual_seed(3))
    same = IMAGES[:1].expand(6, -1, -1, -1)
    assert torch.equal(augment(same, drawn), augment(same, drawn))
    assert len({tuple(image.flatten().tolist()) for image in augment(same, drawn)}) > 1
    assert augment(IMAGES, drawn).shape == IMAGES.shape


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_differentiable_in_the_images(operation: str) -> None:
    drawn = draw(operation, 2, torch.Generator().manual_seed(1))
    x = IMAGES[:2, :, :6, :6].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda images: augment(images, drawn), (x,))


def test_no_strategy_changes_nothing() -> None:
    assert augment(IMAGES, draw("", 6, torch.Generator())) is IMAGES


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(BadConfigError, match="color, crop"):
        draw("crop_sharpen", 2, torch.Generator())


@pytest.mark.parametrize("operation", ["scale", "rotate", "color"])
def test_the_middle_of_the_range_is_nearly_the_identity(operation: str) -> None:
    middle = (1 - 1 / 1.2) / (1.2 - 1 / 1.2) if operation == "scale" else 0.5
    torch.testing.assert_close(augment(IMAGES, one(operation, [middle] * 4)), IMAGES)


def test_crop_shifts_and_fills_with_zero() -> None:
    shifted = augment(IMAGES, one("crop", [0.0, 0.999, 0, 0]))  # pad: 1 row, 2 columns
    assert torch.equal(shifted[:, :, 1:, :-2], IMAGES[:, :, :-1, 2:])
    assert not shifted[:, :, 0].any()
    assert not shifted[:, :, :, -2:].any()


def test_cutout_erases_one_square_of_half_the_side() -> None:
    erased = augment(IMAGES + 1, one("cutout", [0.5, 0.5, 0, 0])) == 0
    assert erased[0, 0].sum() == 4 * 6


def test_flip_mirrors_half_of_the_draws() -> None:
    assert torch.equal(augment(IMAGES, one("flip", [0.4, 0, 0, 0])), IMAGES.flip(3))
    assert torch.equal(augment(IMAGES, one("flip", [0.6, 0, 0, 0])), IMAGES)
