"""SSIM against its formula written out, and copies that changed their grey levels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ppdd_core.privacy.similarity import correlation, describe, likeness, ssim, window_size


def images(count: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 6, 6, dtype=torch.float64, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bicubic", align_corners=False)[
        :, 0
    ]
    return (0.8 * smooth + 0.1).clamp(0, 1)


def ssim_by_hand(x: np.ndarray, y: np.ndarray, size: int) -> float:
    offset = np.arange(size) - size // 2
    line = np.exp(-(offset**2) / (2 * (1.5 * size / 11) ** 2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for row in range(len(x) - size + 1):
        for column in range(len(x) - size + 1):
            a, b = (i[row : row + size, column : column + size] for i in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return float(np.mean(values))


@pytest.mark.parametrize(("side", "size"), [(24, 11), (22, 11), (16, 7), (9, 3), (8, 3)])
def test_ssim_is_the_formula_of_wang(side: int, size: int) -> None:
    x, y = images(2, side, 0), images(2, side, 1)
    assert window_size(side) == size
    by_hand = [ssim_by_hand(a.numpy(), b.numpy(), size) for a, b in zip(x, y, strict=True)]
    assert ssim(x, y).tolist() == pytest.approx(by_hand, abs=1e-12)
    assert ssim(x.float(), y.float()).tolist() == pytest.approx(by_hand, abs=1e-5)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: 0.3 * x + 0.5, id="less contrast, brighter"),
        pytest.param(lambda x: 1 - x, id="negative"),
        pytest.param(lambda x: 4 * x - 1.5, id="beyond black and white"),
    ],
)
def test_a_copy_with_other_grey_levels_is_a_copy(change) -> None:  # type: ignore[no-untyped-def]
    real = images(3, 24, 2)
    assert ssim(change(real).clamp(0, 1), real).max() < 0.95
    assert likeness(change(real), real).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_likeness_is_the_larger_ssim_of_shown_and_matched() -> None:
    image, real = images(4, 24, 3) * 1.6 - 0.2, images(4, 24, 4)
    matched = torch.stack(
        [
            (a - a.mean())
            / a.std()
            * b.std()
            * torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].sign()
            + b.mean()
            for a, b in zip(image, real, strict=True)
        ]
    )
    expected = torch.maximum(ssim(image.clamp(0, 1), real), ssim(matched, real))
    assert torch.allclose(likeness(image, real), expected)
    one_with_many = likeness(image[:1], real)
    assert one_with_many[0] == pytest.approx(float(expected[0]))


def test_correlation_is_pearsons_and_zero_for_a_constant_image() -> None:
    x, y = images(1, 16, 5), images(1, 16, 6)
    expected = np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1]
    assert correlation(x, y).item() == pytest.approx(expected)
    assert correlation(torch.full_like(x, 0.5), y).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", [8, 32, 112])
def test_descriptors_are_unit_vectors_of_bounded_size(side: int) -> None:
    for vectors in describe(images(2, side, 7)):
        assert vectors.shape[1] <= 64 * 64
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2, dtype=torch.float64))
