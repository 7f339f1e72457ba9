"""The nearest real image of each distilled one: among the training images, and among held-out patients'.

Every pair is compared by SSIM (`similarity.likeness`) where that is affordable; else all real images are
ranked by two cheap descriptors first, and the best candidates are compared. Verdicts and sentences are for `measure`.

Shape suffixes: I distilled (or queried) images, R real images, B pairs, H W, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.privacy.similarity import describe, likeness, moments

EXACT_COST = 1 << 33  # pairs times side cubed: about five seconds on one core
CANDIDATES = 16  # of each descriptor, compared at least where not all pairs can be
BLOCK_PIXELS = 1 << 20  # real pixels described at a time: small enough to stay in the cache


@dataclass(frozen=True, slots=True)
class Ranking:
    """Cheap similarity of every queried image to every real one, signs dropped: a negative is alike."""

    correlation_IR: Tensor
    structure_IR: Tensor

    def among(self, rows: np.ndarray) -> Ranking:
        """Return the ranking against some of the real images only, in the order of `rows`."""
        at = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.correlation_IR.device)
        return Ranking(self.correlation_IR[:, at], self.structure_IR[:, at])


@dataclass(frozen=True, slots=True)
class Nearest:
    """The most similar real image of each queried one: how similar, and its row."""

    similarity_I: np.ndarray
    row_I: np.ndarray


def pixels_of(pixels_RHW: np.ndarray, device: torch.device) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1] on the device; a copy."""
    return torch.from_numpy(np.array(pixels_RHW)).to(device).float().div_(255)


def rank(
    images_IHW: Tensor,
    pixels_RHW: np.ndarray,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Return how alike each image (pixels, need not be clipped) is to each real one (uint8), in blocks."""
    correlation_IF, structure_IF = describe(images_IHW.clamp(0, 1))
    unclipped_IF, _ = describe(images_IHW)
    correlations, structures = [], []
    for rows in _blocks(len(pixels_RHW), pixels_RHW[0].size if len(pixels_RHW) else 1):
        real_RF, real_structure_RF = describe(pixels_of(pixels_RHW[rows], images_IHW.device))
        correlations.append(
            torch.maximum((correlation_IF @ real_RF.T).abs(), (unclipped_IF @ real_RF.T).abs())
        )
        structures.append((structure_IF @ real_structure_RF.T).abs())
        if on_progress:
            on_progress(rows.stop, len(pixels_RHW))
    return Ranking(torch.cat(correlations, 1), torch.cat(structures, 1))


def is_exact(images: int, real: int, side: int, cost: int = EXACT_COST) -> bool:
    """Return whether every pair can be compared; else `nearest` compares candidates."""
    return images * real * side**3 <= cost


def nearest(
    images_IHW: Tensor, pixels_RHW: np.ndarray, ranking: Ranking, *, cost: int = EXACT_COST
) -> Nearest:
    """Return the most similar real image of each image; `ranking` is of the same images and rows.

    Over all real images where that is affordable, else over as many candidates of each descriptor as are, at
    least CANDIDATES. A near-copy is among them; of images that resemble nobody the best may be missed, which
    is alike for training and for held-out images.
    """
    side = images_IHW.shape[-1]
    if is_exact(len(images_IHW), len(pixels_RHW), side, cost):
        similarity_IR = _likeness_to_all(images_IHW, pixels_RHW)
        return Nearest(similarity_IR.max(1), similarity_IR.argmax(1))
    affordable = max(CANDIDATES, cost // (2 * len(images_IHW) * side**3))
    count = min(affordable, len(pixels_RHW))
    shortlists = [
        r.topk(count, dim=1).indices for r in (ranking.correlation_IR, ranking.structure_IR)
    ]
    rows_IB = torch.cat(shortlists, 1).cpu().numpy()
    similarity_IB = likeness_to_rows(images_IHW, pixels_RHW, rows_IB)
    best, each = similarity_IB.argmax(1), np.arange(len(rows_IB))
    return Nearest(similarity_IB[each, best], rows_IB[each, best])


def _likeness_to_all(images_IHW: Tensor, pixels_RHW: np.ndarray) -> np.ndarray:
    parts = []
    for rows in _blocks(len(pixels_RHW), images_IHW[0].numel() * 4):
        real_BHW = pixels_of(pixels_RHW[rows], images_IHW.device)
        known = moments(real_BHW)
        parts.append(torch.stack([likeness(image[None], real_BHW, known) for image in images_IHW]))
    return torch.cat(parts, 1).double().cpu().numpy()


def likeness_to_rows(images_IHW: Tensor, pixels_RHW: np.ndarray, rows_IB: np.ndarray) -> np.ndarray:
    """Return the SSIM of each image to each of its own rows, float64 [I, B]."""
    parts = [
        likeness(images_IHW[image : image + 1], pixels_of(pixels_RHW[rows_B], images_IHW.device))
        for image, rows_B in enumerate(rows_IB)
    ]
    return torch.stack(parts).double().cpu().numpy()


def nearest_features(
    features_IF: Tensor, real_RF: Tensor, centre_F: Tensor, spread_F: Tensor
) -> Nearest:
    """Return the real image of the largest cosine, features first centred and scaled."""
    one, other = (F.normalize((f - centre_F) / spread_F, dim=1) for f in (features_IF, real_RF))
    best = (one @ other.T).max(1)
    return Nearest(best.values.double().cpu().numpy(), best.indices.cpu().numpy())


def nearer_share(to_train: Nearest, to_others: Nearest) -> float:
    """Return the share of images more similar to a training image than to any other; ties count half."""
    nearer, even = (
        to_train.similarity_I > to_others.similarity_I,
        to_train.similarity_I == to_others.similarity_I,
    )
    return float((nearer + 0.5 * even).mean())


def _blocks(items: int, size: int) -> list[slice]:
    step = max(1, BLOCK_PIXELS // size)
    return [slice(start, min(start + step, items)) for start in range(0, items, step)]
