"""Image files to class probabilities: PNG, JPEG and DICOM, read as the training images were.

A file that cannot be read is reported beside the others and stops none of them.

Shape suffixes: R images, H W height width, K classes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppdd_core.data.images import read_grey
from ppdd_core.detector.model import Detector
from ppdd_core.errors import BadImageError

MAX_FILE_BYTES = 256 << 20
BLOCK = 64  # files held at a time


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the detector says about one file: probabilities in the order of its classes, or why not."""

    path: Path
    probabilities: tuple[float, ...] | None
    problem: str | None = None


def predict_files(
    detector: Detector,
    paths: Sequence[Path],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Return one prediction per path, in order. Research use only: not for diagnosis."""
    results: list[Prediction] = []
    for start in range(0, len(paths), BLOCK):
        read = [_read(path, detector.image_size) for path in paths[start : start + BLOCK]]
        readable = [one for one in read if isinstance(one, np.ndarray)]
        rows = iter(detector.probabilities(np.stack(readable)) if readable else ())
        for path, one in zip(paths[start : start + BLOCK], read, strict=True):
            if isinstance(one, str):
                results.append(Prediction(path, None, one))
            else:
                results.append(Prediction(path, tuple(float(value) for value in next(rows))))
        if on_progress:
            on_progress(len(results), len(paths))
    return results


def _read(path: Path, image_size: int) -> np.ndarray | str:
    """Return the image [H, W], or the reason why there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no pipe
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            return "it is not a plain file"
        with os.fdopen(handle, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            return f"it is larger than {MAX_FILE_BYTES >> 20} MiB"
        return read_grey(data, name=path.name, image_size=image_size)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except BadImageError as error:
        return str(error)
