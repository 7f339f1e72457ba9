"""A package becomes a `DistilledSet`, after every check has passed. The only part of `package` that needs torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ppdd_core.config import Recipe
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.package import manifest
from ppdd_core.package.tensors import read_tensors
from ppdd_core.package.verify import VerifiedPackage, open_verified


def load_package(path: Path | str, *, trusted_key: str | None = None) -> DistilledSet:
    """Return the distilled set of the package in `path`, a folder or a ZIP, ready for a `DataLoader`.

    Signature, hashes, bounds and values are checked first, on the very bytes that are loaded. `trusted_key`
    pins the signer's fingerprint. PackageError names the first faults; SignatureError where the signer is one.
    """
    return to_distilled_set(open_verified(path, trusted_key=trusted_key))


def to_distilled_set(package: VerifiedPackage) -> DistilledSet:
    """Return the distilled set of a package that was verified; images become float32."""
    stated = package.manifest
    arrays = read_tensors(package.files[manifest.TENSORS])
    recipe = Recipe.from_dict(stated.recipe)
    return DistilledSet(
        images=torch.from_numpy(arrays.images_ICHW.astype(np.float32)),
        labels=torch.from_numpy(arrays.labels.copy()),
        learning_rate=arrays.learning_rate,
        classes=stated.classes,
        normalisation=Normalisation(stated.mean, stated.std),
        net=recipe.net,
        augment=recipe.distill.augment,
    )
