"""Small datasets for tests: grey noise in class folders, as files or in a ZIP."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("COVID", "Normal")


@cache
def picture(seed: int, side: int = 24) -> bytes:
    """Return one PNG of grey noise, a radiograph as far as statistics can tell."""
    noise = np.random.default_rng(seed).integers(40, 200, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def class_files(classes: Sequence[str] = CLASSES, each: int = 4) -> dict[str, bytes]:
    """Return files of class folders by name."""
    return {
        f"{label}/patient-{at}.png": picture(1000 * number + at)
        for number, label in enumerate(classes)
        for at in range(each)
    }


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def zip_bytes(files: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a ZIP; names are taken as they are, hostile ones too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return file.getvalue()
