"""DistilledSet: synthetic images, their labels and the learned step size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppdd_core.config import NetConfig


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Pixels in [0, 1] become (pixel - mean) / std; both over the training images of one source."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class DistilledSet:
    """What a package teaches: a few images, ready for a `DataLoader` (it is a map-style dataset).

    `images` [I, C, H, W] float32, normalised with `normalisation`; `labels` [I] int64, or
    [I, K] float32 where they are soft; `learning_rate` is the step size α distilled with the images.
    """

    images: Tensor
    labels: Tensor
    learning_rate: float
    classes: tuple[str, ...]
    normalisation: Normalisation
    net: NetConfig  # the network it was distilled for
    augment: str  # augmentation it was distilled under; train with the same

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[-1])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def grey_IHW(self) -> Tensor:
        """Return the images as pixels in [0, 1], uint8-ready: [I, H, W] float32, clipped."""
        grey = self.images.mean(dim=1) * self.normalisation.std + self.normalisation.mean
        return torch.clamp(grey, 0.0, 1.0)
