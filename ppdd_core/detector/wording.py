"""What the methods of an evaluation are called, and how their figures are written. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

METHODS = {
    "distilled": "distilled",
    "mtt_unpruned": "distilled, nothing pruned (MTT)",
    "random_real": "random real images",
    "k_centre": "k-centre real images",
    "full_data": "all real images",
}


def mean_sd(value: Mapping[str, float | None]) -> str:
    """Return `0.812 ± 0.013`; a dash for a figure that does not exist."""
    if value["mean"] is None:
        return "–"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{spread}"
