"""What is measured, as values that pass to a child process as JSON. Torch-free.

Shape suffixes of this package: P flat network parameters, I synthetic images, B mini-batch, C H W channel height width.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdd_core.errors import BadConfigError

STRATEGY = "color_crop_cutout_scale_rotate"  # of both sides; MTT's own also flips, which swaps the heart's side
SIDES = ("ppdd", "reference")


@dataclass(frozen=True, slots=True)
class Case:
    """One side's share of a comparison."""

    what: str  # step, teachers
    side: str  # one of SIDES
    engine: str = "reverse"  # of our side
    image_size: int = 64
    width: int = 64
    depth: int = 4
    batch: int = 20  # images of a mini-batch
    images: int = 0  # synthetic (step) or real (teachers); 0 = as many as a mini-batch has
    student_steps: int = 10  # J
    classes: int = 4
    repeats: int = 3  # outer steps (step) or epochs (teachers), after one that is not counted
    augment: str = STRATEGY
    device: str = "cpu"
    dtype: str = "float32"
    reference: str = ""  # folder of the MTT code
    keep: str = ""  # where a step without augmentation leaves its gradient, to compare the sides

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise BadConfigError(f"side must be one of {', '.join(SIDES)}, got {self.side!r}")
        if self.image_size >> self.depth < 1:
            raise BadConfigError(
                f"--depth {self.depth} halves images of {self.image_size} pixels to nothing; give fewer blocks"
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """What one child process found."""

    seconds: tuple[float, ...]  # of each repeat
    peak_bytes: int  # above what the process had before the first repeat
    convolution_peak: float  # GFLOP/s of a 3x3 convolution of this width here
    work: float  # GFLOP of the convolutions of one repeat, of first order: forward and both backward passes
    device: str
    images: int = 0  # of one repeat, teachers

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """Return what a child printed."""
        found: dict[str, Any] = json.loads(text)
        return cls(**(found | {"seconds": tuple(found["seconds"])}))


def check_reference(folder: Path) -> None:
    """Raise BadConfigError where the MTT code is not in `folder`."""
    for name in ("networks.py", "reparam_module.py", "utils.py"):
        if not (folder / name).is_file():
            raise BadConfigError(
                f"--reference: {folder} has no {name}; give a clone of "
                "https://github.com/GeorgeCazenavette/mtt-distillation"
            )
