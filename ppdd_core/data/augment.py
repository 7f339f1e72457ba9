"""Differentiable siamese augmentation (DSA, Zhao and Bilen 2021), shared by teacher, student and detector.

As MTT uses it: one operation for a whole batch, drawn anew each time, with parameters per image. A draw is
a value, so the same augmentation can be applied again (the reverse engine does) or to other images.
All operations are vectorised over the batch and differentiable in the images. On one grey channel MTT's
`saturation` does nothing and is left out. `flip` swaps the side of the heart: not in our presets.

Shape suffixes: B mini-batch, C H W channel height width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.config import check_augment

SHIFT = 0.125  # crop: largest shift, as a share of the side
CUTOUT = 0.5  # cutout: side of the erased square, as a share of the side
SCALE = 1.2
ROTATE = 15.0  # degrees, either way
BRIGHTNESS, CONTRAST = 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Draw:
    """One operation and, per image, four uniform numbers in [0, 1) that its parameters come from."""

    operation: str  # empty = identity
    uniform_B4: Tensor


def operations(strategy: str) -> tuple[str, ...]:
    """Return the operations of a strategy such as `color_crop_cutout`; BadConfigError for an unknown one."""
    check_augment(strategy)
    return tuple(part for part in strategy.split("_") if part)


def draw(strategy: str, batch_size: int, generator: torch.Generator) -> Draw:
    """Return one random augmentation of a batch; the (CPU) generator decides it."""
    choices = operations(strategy)
    if not choices:
        return Draw("", torch.empty(batch_size, 0))
    index = int(torch.randint(len(choices), (), generator=generator))
    return Draw(choices[index], torch.rand(batch_size, 4, generator=generator))


def augment(x_BCHW: Tensor, drawn: Draw) -> Tensor:
    """Return the augmented images, same shape, differentiable in `x_BCHW`."""
    if not drawn.operation:
        return x_BCHW
    u_B4 = drawn.uniform_B4.to(device=x_BCHW.device, dtype=x_BCHW.dtype)
    return _OPERATIONS[drawn.operation](x_BCHW, u_B4)


def _color(x: Tensor, u_B4: Tensor) -> Tensor:
    brighter = x + BRIGHTNESS * (u_B4[:, 0] - 0.5).view(-1, 1, 1, 1)
    mean = brighter.mean(dim=(1, 2, 3), keepdim=True)
    return (brighter - mean) * (u_B4[:, 1] + CONTRAST).view(-1, 1, 1, 1) + mean


def _crop(x: Tensor, u_B4: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    pad_h, pad_w = round(height * SHIFT), round(width * SHIFT)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    top_B = (u_B4[:, 0] * (2 * pad_h + 1)).long()
    left_B = (u_B4[:, 1] * (2 * pad_w + 1)).long()
    rows_BH = top_B[:, None] + torch.arange(height, device=x.device)
    cols_BW = left_B[:, None] + torch.arange(width, device=x.device)
    image_B = torch.arange(batch, device=x.device)
    shifted_BHWC = padded[image_B[:, None, None], :, rows_BH[:, :, None], cols_BW[:, None, :]]
    return shifted_BHWC.permute(0, 3, 1, 2)


def _cutout(x: Tensor, u_B4: Tensor) -> Tensor:
    def outside(side: int, u_B: Tensor) -> Tensor:
        size = round(side * CUTOUT)
        centre_B = (u_B * (side + (1 - size % 2))).long()
        at = torch.arange(side, device=x.device)
        first_B = centre_B - size // 2
        return (at < first_B[:, None]) | (at >= first_B[:, None] + size)

    rows_BH, cols_BW = outside(x.shape[2], u_B4[:, 0]), outside(x.shape[3], u_B4[:, 1])
    return x * (rows_BH[:, None, :, None] | cols_BW[:, None, None, :])


def _flip(x: Tensor, u_B4: Tensor) -> Tensor:
    return torch.where((u_B4[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)


def _warp(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    zero = torch.zeros_like(a)
    theta_B23 = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    grid = F.affine_grid(theta_B23, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


def _scale(x: Tensor, u_B4: Tensor) -> Tensor:
    low, high = 1 / SCALE, SCALE
    zero = torch.zeros_like(u_B4[:, 0])
    sx, sy = u_B4[:, 0] * (high - low) + low, u_B4[:, 1] * (high - low) + low
    return _warp(x, sx, zero, zero, sy)


def _rotate(x: Tensor, u_B4: Tensor) -> Tensor:
    angle = (u_B4[:, 0] - 0.5) * 2 * math.radians(ROTATE)
    return _warp(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
