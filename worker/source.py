"""Source datasets as tasks read them: a path that is still below a data root, or an upload fetched from the store.

Uploads are fetched once per worker into `data_dir/cache/uploads` and shared by its jobs. Nothing is unpacked. Decoded
images lie beside them, so that a distillation finds what its check has read.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import LabelledImages, load_images
from ppdd_core.errors import SourceError
from services.datasets import places
from services.datasets.models import SourceDataset
from services.datasets.service import DatasetRemovedError
from services.kit.db import READONLY
from services.kit.resources import Resources

CACHE_BYTES = 50 * 2**30  # of fetched uploads, beside those in use

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def open_dataset(
    resources: Resources, dataset: SourceDataset
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield where the dataset lies now and which rows of it are meant (`where` of `load_images`).

    The path holds inside the block only. DatasetRemovedError for a removed dataset; UnknownPathError where its path
    is not below a data root any more; StoreError where an upload cannot be fetched.
    """
    rows = {str(column): str(value) for column, value in dataset.rows.items()}
    if dataset.path is not None:
        yield places.find(resources.settings.data_roots, dataset.path), rows
    elif dataset.upload_sha256 is not None:
        with _fetched(resources, dataset.upload_sha256) as path:
            yield path, rows
    else:
        raise DatasetRemovedError(f"dataset {dataset.name} was removed")


def read_images(
    resources: Resources,
    dataset: SourceDataset,
    *,
    image_size: int,
    on_progress: Callable[[int, int], None],
    narrowed: Mapping[str, str] | None = None,
) -> tuple[LabelledImages, Findings]:
    """Return the dataset's images, decoded once, and what was found about them; refusals as in `load_images`.

    `narrowed` leaves further rows out; it cannot bring back what the dataset's own filter leaves out.
    A disk without room for them is an OSError: it says nothing about the dataset.
    """
    settings = resources.settings
    with open_dataset(resources, dataset) as (path, rows):
        try:
            return load_images(
                path,
                image_size=image_size,
                where={**(narrowed or {}), **rows} or None,
                cache_dir=settings.cache_dir,
                processes=settings.worker.processes or None,
                on_progress=on_progress,
            )
        except SourceError as fault:
            cause = fault.__context__
            if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
                raise cause from None
            raise


@contextmanager
def _fetched(resources: Resources, sha256: str) -> Iterator[Path]:
    """Yield the upload as a file that nobody removes inside the block."""
    folder = resources.settings.cache_dir / "uploads"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{sha256}.zip"
    with _locked(_lock_of(path, "used"), fcntl.LOCK_SH) as used:
        os.utime(
            used
        )  # when it was last used; touching the ZIP itself would make its images be read anew
        if not path.exists():
            with _locked(_lock_of(path, "fetch"), fcntl.LOCK_EX):  # one fetches, others wait for it
                if not path.exists():
                    for left in folder.glob(f".{path.name}.*"):  # by a process that was killed
                        left.unlink(missing_ok=True)
                    _make_room(resources, folder, resources.store.size(sha256))
                    resources.store.fetch(sha256, path)
        yield path


def _make_room(resources: Resources, folder: Path, needed: int) -> None:
    """Remove uploads whose dataset was removed, and those unused for longest until `needed` bytes fit."""
    with resources.sessions() as session:
        session.connection(execution_options={READONLY: True})
        wanted = set(
            session.scalars(
                select(SourceDataset.upload_sha256).where(SourceDataset.upload_sha256.is_not(None))
            )
        )
    there = sorted(folder.glob("*.zip"), key=_last_used)
    total = needed + sum(path.stat().st_size for path in there)
    for path in there:
        if total > CACHE_BYTES or path.stem not in wanted:
            size = path.stat().st_size
            with suppress(BlockingIOError):  # in use
                with _locked(_lock_of(path, "used"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()
                total -= size


def _last_used(path: Path) -> float:
    lock = _lock_of(path, "used")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _lock_of(path: Path, what: str) -> Path:
    return path.with_suffix(f".{what}")


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
