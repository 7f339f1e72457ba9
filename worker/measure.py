"""What a run will take, in the form that a job keeps."""

from __future__ import annotations

from typing import Any

import torch

from ppdd_core.config import Recipe
from ppdd_core.data.dataset import Split
from ppdd_core.estimate import estimate_run

# Pixels looked at by all networks of a run: below it, measuring takes longer than what it would tell.
WORTH_MEASURING = 20_000_000


def measure(
    recipe: Recipe, split: Split, *, device: torch.device, processes: int
) -> dict[str, Any]:
    """Return seconds by stage and in all, and bytes of memory, disk and package, measured on this device."""
    found = estimate_run(recipe, split, device=device, processes=processes)
    return {
        "seconds": found.seconds,
        "total_seconds": found.total_seconds,
        "peak_bytes": found.peak_bytes,
        "disk_bytes": found.disk_bytes,
        "package_bytes": found.package_bytes,
        "device": device.type,
    }


def worth_measuring(recipe: Recipe, split: Split) -> bool:
    """Return whether a run is long enough to be measured before (which takes some ten seconds)."""
    taught = recipe.teacher.teachers * recipe.used_epochs * len(split.train)
    synthetic = recipe.distill.images_per_class * len(split.train.classes)
    distilled = recipe.distill.iterations * recipe.distill.student_steps * synthetic
    return (taught + distilled) * recipe.image_size**2 > WORTH_MEASURING
