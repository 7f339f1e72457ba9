"""Grey pixels to network input, and back to pixels.

Shape suffixes: R real images, B mini-batch, C H W channel height width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppdd_core.data.distilled import Normalisation

if TYPE_CHECKING:
    from ppdd_core.data.dataset import LabelledImages


def measure_normalisation(data: LabelledImages) -> Normalisation:
    """Return mean and standard deviation of all pixels, on the scale [0, 1]."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(
        0, len(data), 1024
    ):  # one block at a time: the pixels may be larger than memory
        counts += np.bincount(data.pixels_RHW[start : start + 1024].reshape(-1), minlength=256)
    level = np.arange(256) / 255
    mean = float((counts * level).sum() / counts.sum())
    variance = float((counts * (level - mean) ** 2).sum() / counts.sum())
    return Normalisation(mean=mean, std=max(variance**0.5, 1 / 255))


def pixels_tensor(data: LabelledImages) -> Tensor:
    """Return the grey pixels as they are, uint8 [R, 1, H, W], in memory."""
    return torch.from_numpy(np.array(data.pixels_RHW)).unsqueeze(1)


def labels_tensor(data: LabelledImages) -> Tensor:
    """Return the class numbers, int64 [R]."""
    return torch.from_numpy(np.array(data.labels_R, dtype=np.int64))


def normalise(pixels_BCHW: Tensor, normalisation: Normalisation) -> Tensor:
    """Return uint8 pixels as float32 network input."""
    scale = 1 / (255 * normalisation.std)
    return pixels_BCHW.float().mul_(scale).sub_(normalisation.mean / normalisation.std)


def to_tensor(data: LabelledImages, normalisation: Normalisation) -> Tensor:
    """Return all images as network input, float32 [R, 1, H, W]."""
    return normalise(pixels_tensor(data), normalisation)
