"""A toy grid over drawn X-rays: seconds, and every kind of piece."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.pipeline import Source
from ppdd_core.sweep.grid import Grid
from ppdd_core.sweep.run import Standing
from ppdd_core.sweep.whole import sweep

TOY = {
    "image_size": "16",
    "net.width": "4",
    "net.depth": "2",
    "teacher.teachers": "1",
    "teacher.epochs": "4",
    "teacher.lr": "0.05",
    "teacher.epoch_images": "160",
    "distill.iterations": "12",
    "distill.student_steps": "2",
    "distill.max_start_epoch": "3",
    "detector.epochs": "3",
    "detector.seeds": "2",
    "evaluation.step_sizes": "0.01",
    "evaluation.full_epochs": "1",
    "evaluation.full_epoch_images": "64",
    "privacy.min_class_size": "1",
}
BASELINES = ("random_real", "k_centre", "full_data")


def toy_grid(**changes: Any) -> Grid:
    given: dict[str, Any] = {
        "preset": "quick",
        "per_class": (1,),
        "seeds": (0, 1),
        "sigmas": (0.0, 0.1),
        "settings": TOY,
        "baselines": BASELINES,
    }
    return Grid(**(given | changes))


def figures(value: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on when, how often interrupted, or by how many processes it was computed."""
    found = value["figures"]
    cells = [
        {
            **{name: cell[name] for name in ("seed", "images_per_class", "label", "why")},
            "result": {
                name: cell["result"][name]
                for name in ("learning_rate", "matching_loss", "pruned", "rollbacks", "bytes")
            },
        }
        for cell in found["cells"]
    ]
    return {
        "table": found["table"],
        "chosen": found["chosen"],
        "cells": cells,
        "teachers": [one["balanced_accuracy"] for one in found["teachers"]],
    }


@dataclass(frozen=True)
class Ground:
    """Where toy sweeps run, and one that came to its end undisturbed."""

    images: Path
    cache: Path
    whole: Path
    value: dict[str, Any]

    def sweep(
        self,
        out: Path,
        grid: Grid | None = None,
        *,
        on_standing: Callable[[Standing], None] = lambda _: None,
        **settings: Any,
    ) -> dict[str, Any]:
        return run_toy(self.images, self.cache, out, grid, on_standing=on_standing, **settings)

    def with_its_teachers(self, out: Path) -> Path:
        shutil.copytree(self.whole / "teachers", out / "teachers")
        return out


def run_toy(
    images: Path,
    cache: Path,
    out: Path,
    grid: Grid | None = None,
    *,
    on_standing: Callable[[Standing], None] = lambda _: None,
    **settings: Any,
) -> dict[str, Any]:
    return sweep(
        grid or toy_grid(),
        Source(path=images),
        out,
        report_to=out,
        command="ppdd sweep --data images",
        device_name="cpu",
        cache_dir=cache,
        on_standing=on_standing,
        **{"calibrate": False, "processes": 1, **settings},
    )


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("sweep")
    write_phantoms(
        folder / "images",
        images=240,
        image_size=32,
        seed=0,
        proportions=dict.fromkeys(CLASSES, 1.0),
    )
    images, cache, whole = folder / "images", folder / "cache", folder / "whole"
    return Ground(images, cache, whole, run_toy(images, cache, whole))
