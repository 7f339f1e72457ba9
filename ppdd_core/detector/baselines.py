"""Which real images to train on instead of distilled ones, at the same number per class. No torch here.

The rows returned index the training images; they never leave the site.

Shape suffixes: R real images, D features, B chosen images.
"""

from __future__ import annotations

import numpy as np

from ppdd_core.data.dataset import LabelledImages
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.seeding import derive


def random_real(train: LabelledImages, per_class: int, seed: int) -> np.ndarray:
    """Return the rows of `per_class` images of every class, drawn without replacement; int64, sorted.

    A class with fewer images gives all it has; one with none raises SourceError.
    """
    generator = np.random.default_rng(derive(seed, "random real"))
    chosen = [
        generator.choice(rows, size=min(per_class, len(rows)), replace=False)
        for rows in _rows_by_class(train.labels_R, per_class, train.classes)
    ]
    return np.sort(np.concatenate(chosen))


def k_centre(
    features_RD: np.ndarray, labels_R: np.ndarray, per_class: int, seed: int
) -> np.ndarray:
    """Return the rows of `per_class` images of every class that cover it best; int64, sorted.

    Greedy k-centre (Gonzalez 1985): the image nearest to its class mean, then again and again the one
    farthest from all chosen so far. The seed breaks ties. A class with fewer images gives all it has; a class
    number without images raises SourceError, features of another length BadConfigError.
    """
    features_RD = np.asarray(features_RD, dtype=np.float64)
    if features_RD.ndim != 2 or len(features_RD) != len(labels_R):
        raise BadConfigError(
            f"features {features_RD.shape} do not belong to {len(labels_R)} labels"
        )
    generator = np.random.default_rng(derive(seed, "k-centre"))
    names = (
        tuple(f"number {k}" for k in range(int(labels_R.max()) + 1))
        if len(labels_R)
        else ("number 0",)
    )
    chosen = []
    for rows in _rows_by_class(labels_R, per_class, names):
        mixed = generator.permutation(rows)
        chosen.append(mixed[_spread(features_RD[mixed], min(per_class, len(mixed)))])
    return np.sort(np.concatenate(chosen))


def _spread(points_RD: np.ndarray, count: int) -> np.ndarray:
    first = int(np.square(points_RD - points_RD.mean(axis=0)).sum(axis=1).argmin())
    chosen_B = np.empty(count, dtype=np.int64)
    nearest_R = np.full(len(points_RD), np.inf)
    for place in range(count):
        chosen_B[place] = first if place == 0 else int(nearest_R.argmax())
        nearest_R = np.minimum(
            nearest_R, np.square(points_RD - points_RD[chosen_B[place]]).sum(axis=1)
        )
        nearest_R[chosen_B[: place + 1]] = -1.0  # never twice, even among equal images
    return chosen_B


def _rows_by_class(
    labels_R: np.ndarray, per_class: int, names: tuple[str, ...]
) -> list[np.ndarray]:
    if per_class < 1:
        raise BadConfigError(f"images per class must be at least 1, got {per_class}")
    found = [np.flatnonzero(np.asarray(labels_R) == k) for k in range(len(names))]
    empty = [name for name, rows in zip(names, found, strict=True) if len(rows) == 0]
    if empty:
        raise SourceError(f"class {empty[0]} has no training images to choose from")
    return found
