"""What is left of the images that distillation started from.

Shape suffixes: I distilled images, R real training images, C H W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppdd_core.privacy.neighbours import Ranking, likeness_to_rows
from ppdd_core.privacy.similarity import correlation


def residual_correlation(final_ICHW: Tensor, initial_ICHW: Tensor) -> np.ndarray:
    """Return Pearson's correlation of each final image with the one it started from, float64 [I]."""
    return correlation(final_ICHW.mean(1), initial_ICHW.mean(1)).double().cpu().numpy()


def source_ranks(ranking: Ranking, sources: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return the best rank of any own source of each image among all training images, int64 [I].

    1 is the most similar; the better of the two descriptors counts, as someone looking would take it.
    Every image needs at least one source.
    """
    best = []
    for image, rows in enumerate(sources):
        at = torch.tensor(rows)
        ranks = [
            int((similarity_R > similarity_R[at].max()).sum()) + 1
            for similarity_R in (ranking.correlation_IR[image], ranking.structure_IR[image])
        ]
        best.append(min(ranks))
    return np.array(best, dtype=np.int64)


def source_likeness(
    images_IHW: Tensor, pixels_RHW: np.ndarray, sources: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return the largest SSIM of each image to one of its own sources, float64 [I]."""
    return np.array(
        [
            likeness_to_rows(images_IHW[image : image + 1], pixels_RHW, np.array([rows])).max()
            for image, rows in enumerate(sources)
        ]
    )
