"""Whether the disk has room for a job, and what is given up for it: decoded images that no job uses.

Refusing at the start is kinder than failing after hours.
"""

from __future__ import annotations

import shutil

import structlog

from ppdd_core.data import cache_folder
from services.kit.resources import Resources
from services.kit.room import DiskFullError
from services.settings import Settings

log = structlog.get_logger(__name__)


def trim_cache(settings: Settings, *, keep_free: int = 0) -> None:
    """Remove decoded images beyond `worker.cache_bytes`, and until `keep_free` bytes of the disk are free."""
    removed = cache_folder.make_room(
        settings.cache_dir, most_bytes=settings.worker.cache_bytes, keep_free=keep_free
    )
    if removed:
        log.info("images.removed", bytes=removed)


def require_room(resources: Resources, needed_bytes: int) -> None:
    """Return if `needed_bytes` leave the reserve free, after making room; DiskFullError says how much is missing."""
    settings = resources.settings
    reserve = settings.limits.disk_reserve_bytes
    trim_cache(settings, keep_free=needed_bytes + reserve)
    missing = needed_bytes + reserve - shutil.disk_usage(settings.work_dir).free
    if missing > 0:
        raise DiskFullError(
            f"the job needs {_gigabytes(needed_bytes)} on the worker's disk, besides the reserve of "
            f"{_gigabytes(reserve)}; {_gigabytes(missing)} are missing: free space, then resume the job"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
