"""The bare decode that an ingest is compared with: Pillow alone, one process per core, nothing checked, nothing kept.

`python -m ppdd_core.benchmark.bare` reads its share from stdin as JSON (path, names, size) and prints how many images
it decoded. It imports what it needs and no more: its start is part of what is measured. Torch-free.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    """Decode a share: to grey, resized as our ingest resizes, as an array of bytes."""
    share = json.load(sys.stdin)
    read, size, done = _reader(Path(share["path"])), int(share["size"]), 0
    for name in share["names"]:
        with Image.open(io.BytesIO(read(name))) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        done += np.asarray(grey).shape == (size, size)
    sys.stdout.write(str(done))


def _reader(path: Path) -> Callable[[str], bytes]:
    if path.is_dir():
        return lambda name: (path / name).read_bytes()
    return zipfile.ZipFile(path).read


if __name__ == "__main__":
    main()
