"""How alike two grey images are: SSIM, correlation, and a descriptor that finds candidates for SSIM.

Pixels are float32 in [0, 1]. Which images are compared is for `neighbours`.

Shape suffixes: B pairs or images, H W height and width, V positions where the whole window fits, F features.

SSIM after Wang, Bovik, Sheikh, Simoncelli (2004): Gaussian window of 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03,
population covariance, the mean over all places where the window lies inside the image. It equals
`skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=1)`. Images under 22 pixels get a window of half their side, sigma in proportion.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # of SSIM, for pixels in [0, 1]
Moments = tuple[Tensor, Tensor]  # mean, and mean of the square, in each window: [B, V, V]
DESCRIPTOR_SIDE = 64  # larger images are averaged down to at most this before they are described


def window_size(side: int) -> int:
    """Return the odd width of SSIM's window for images of `side` pixels: 11, or less for tiny ones."""
    return min(11, (side // 2 - 1) | 1)


def ssim(x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    """Return the structural similarity of each pair, [B], 1 for equal images."""
    return _ssim(moments(x_BHW), moments(y_BHW), _blur(x_BHW * y_BHW))


def likeness(image_BHW: Tensor, real_BHW: Tensor, real: Moments | None = None) -> Tensor:
    """Return the larger of two SSIM of each pair, [B]: as shown, and with grey levels matched.

    As shown: pixels clipped to [0, 1]. Matched: the image, not clipped, shifted and scaled to the real image's
    mean and standard deviation, and inverted where the two are correlated negatively; so a copy with changed
    contrast, or a negative, is a copy. One image [1, H, W] may be compared with many; then `real`, which is
    `moments(real_BHW)`, need not be made again for the next.
    """
    shown_BHW = image_BHW.clamp(0, 1)
    real = real or moments(real_BHW)
    as_shown = _ssim(moments(shown_BHW), real, _blur(shown_BHW * real_BHW))
    sign = torch.where(correlation(image_BHW, real_BHW) < 0, -1.0, 1.0)[:, None, None]
    spread = image_BHW.std((1, 2), keepdim=True).clamp_min(1e-6)
    scale = sign * real_BHW.std((1, 2), keepdim=True) / spread
    shift = real_BHW.mean((1, 2), keepdim=True) - scale * image_BHW.mean((1, 2), keepdim=True)
    mean, square = moments(image_BHW)  # blurring is linear: the matched image need not be made
    matched = scale * mean + shift, scale**2 * square + 2 * scale * shift * mean + shift**2
    product = scale * _blur(image_BHW * real_BHW) + shift * real[0]
    return torch.maximum(as_shown, _ssim(matched, real, product))


def moments(x_BHW: Tensor) -> Moments:
    """Return what SSIM needs to know of one side."""
    return _blur(x_BHW), _blur(x_BHW * x_BHW)


def _ssim(x: Moments, y: Moments, product_BVV: Tensor) -> Tensor:
    (mean_x, square_x), (mean_y, square_y) = x, y
    between, own_x, own_y = mean_x * mean_y, mean_x * mean_x, mean_y * mean_y
    luminance = (2 * between + C1) / (own_x + own_y + C1)
    structure = (2 * (product_BVV - between) + C2) / (square_x - own_x + square_y - own_y + C2)
    return (luminance * structure).mean((1, 2))


def correlation(x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    """Return Pearson's correlation of the pixels of each pair, [B]; 0 where an image is constant."""
    return (_unit(x_BHW.flatten(1)) * _unit(y_BHW.flatten(1))).sum(1)


def describe(images_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return two unit vectors per image, [B, F] each; their inner products are cheap similarities.

    The first is the image less its mean (inner product: correlation), the second the image with local mean
    and contrast taken out (inner product: close to the structure term of SSIM).
    """
    shrink = -(-images_BHW.shape[-1] // DESCRIPTOR_SIDE)
    x_BHW = F.avg_pool2d(images_BHW[:, None], shrink)[:, 0] if shrink > 1 else images_BHW
    mean, square = _blur_same(x_BHW), _blur_same(x_BHW * x_BHW)
    local_BHW = (x_BHW - mean) / ((square - mean**2).clamp_min(0) + C2).sqrt()
    return _unit(x_BHW.flatten(1)), _unit(local_BHW.flatten(1))


def _unit(x_BF: Tensor) -> Tensor:
    return F.normalize(x_BF - x_BF.mean(1, keepdim=True), dim=1, eps=1e-6)


def _blur(x_BHW: Tensor) -> Tensor:
    blur_VH = _weights(x_BHW.shape[-1]).to(x_BHW)
    return blur_VH @ x_BHW @ blur_VH.T  # as matrices: faster than a one-channel convolution


def _blur_same(x_BHW: Tensor) -> Tensor:
    blur_VH = _weights(x_BHW.shape[-1]).to(x_BHW)
    edge = (x_BHW.shape[-1] - len(blur_VH)) // 2
    return F.pad((blur_VH @ x_BHW @ blur_VH.T)[:, None], (edge,) * 4, mode="replicate")[:, 0]


@functools.cache
def _weights(side: int) -> Tensor:
    """Return the Gaussian window as a matrix [V, H] that blurs along one side; float64, CPU."""
    size = window_size(side)
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    gauss = torch.exp(-(offset**2) / (2 * (1.5 * size / 11) ** 2))
    gauss /= gauss.sum()
    blur_VH = torch.zeros(side - size + 1, side, dtype=torch.float64)
    for row in range(len(blur_VH)):
        blur_VH[row, row : row + size] = gauss
    return blur_VH
