"""Bytes a second into and out of each object store: the folder, and an S3 server on loopback (rclone's).

    python benchmarks/store_throughput.py [--megabytes 200] [--rounds 3]

Writing hashes the file and flushes it to disk; reading verifies the object. The medians are printed as JSON. rclone
stands in for a production server: it is real and on disk, but not built for speed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.kit.folder_store import FolderStore
from services.kit.minio_store import MinioStore
from services.kit.storage import ObjectStore
from tests.servers import rclone_server


def main() -> None:
    """Measure, and print what was found."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--megabytes", type=int, default=200)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, _stores(Path(folder)) as stores:
        path = Path(folder) / "object"
        sha256 = write_object(path, chosen.megabytes * 10**6)
        found = {name: _measure(store, path, sha256, chosen.rounds) for name, store in stores}
    sys.stdout.write(json.dumps(found | {"megabytes": chosen.megabytes}, indent=2) + "\n")


def write_object(path: Path, size: int) -> str:
    """Write `size` bytes of chance to `path`; return their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 10**6):
            piece = os.urandom(min(10**6, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def measure_direct(store: ObjectStore, sha256: str) -> float:
    """Return the bytes a second of reading an object whole, verified, from the store."""
    began = time.perf_counter()
    size = sum(len(piece) for piece in store.read(sha256))
    return size / (time.perf_counter() - began)


def measure_put(store: ObjectStore, path: Path, sha256: str) -> float:
    """Return the bytes a second of storing a file that is not there yet."""
    store.delete(sha256)
    began = time.perf_counter()
    store.put_file(path, sha256)
    return path.stat().st_size / (time.perf_counter() - began)


@contextmanager
def _stores(folder: Path) -> Iterator[list[tuple[str, ObjectStore]]]:
    with rclone_server() as server:
        yield [
            ("folder", FolderStore(folder / "objects")),
            ("rclone", MinioStore(server.settings("bench"))),
        ]


def _measure(store: ObjectStore, path: Path, sha256: str, rounds: int) -> dict[str, float]:
    speeds = [
        (measure_put(store, path, sha256), measure_direct(store, sha256)) for _ in range(rounds)
    ]
    return {
        name: round(statistics.median(values) / 1e6, 1)
        for name, values in zip(
            ("put_mb_per_s", "read_mb_per_s"), zip(*speeds, strict=True), strict=True
        )
    }


if __name__ == "__main__":
    main()
