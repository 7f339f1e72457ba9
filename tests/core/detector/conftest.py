"""Tiny labelled images a small network can learn: every class is bright in another place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from ppdd_core.config import NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.data.tensors import measure_normalisation, to_tensor

NET = NetConfig(width=8, depth=2)


def make_images(
    counts: Sequence[int],
    *,
    seed: int = 0,
    size: int = 16,
    classes: tuple[str, ...] = ("COVID", "Normal", "Viral"),
    noise: float = 40.0,
) -> LabelledImages:
    generator = np.random.default_rng(seed)
    labels_R = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    pixels_RHW = generator.normal(90, noise, (len(labels_R), size, size))
    half = size // 2
    for row, label in enumerate(labels_R):
        top, left = half * (label // 2 % 2), half * (label % 2)
        pixels_RHW[row, top : top + half, left : left + half] += 70
    return LabelledImages(
        pixels_RHW=pixels_RHW.clip(0, 255).astype(np.uint8),
        labels_R=labels_R,
        classes=classes,
        patients=tuple(f"p{row}" for row in range(len(labels_R))),
        digests=tuple(f"{seed}-{row}" for row in range(len(labels_R))),
        splits=("",) * len(labels_R),
        fingerprint=f"{seed:064d}",
    )


def make_set(
    *,
    classes: tuple[str, ...] = ("COVID", "Normal", "Viral"),
    seed: int = 1,
    per_class: int = 2,
    size: int = 16,
    learning_rate: float = 0.02,
    normalisation: Normalisation | None = None,
    augment: str = "crop",
) -> DistilledSet:
    """Return a set that stands for a distilled one: a few clean images of every class."""
    data = make_images(
        [per_class] * len(classes), seed=seed, size=size, classes=classes, noise=10.0
    )
    normalisation = normalisation or measure_normalisation(data)
    return DistilledSet(
        images=to_tensor(data, normalisation),
        labels=torch.from_numpy(data.labels_R),
        learning_rate=learning_rate,
        classes=classes,
        normalisation=normalisation,
        net=NET,
        augment=augment,
    )


@pytest.fixture
def images() -> Callable[..., LabelledImages]:
    return make_images


@pytest.fixture
def distilled() -> Callable[..., DistilledSet]:
    return make_set


@pytest.fixture
def small_net() -> NetConfig:
    return NET
