"""Whether the disk has room for a job. Refusing at the start is kinder than failing after hours."""

from __future__ import annotations

import shutil

from services.kit.resources import Resources
from services.kit.room import DiskFullError


def require_room(resources: Resources, needed_bytes: int) -> None:
    """Return if `needed_bytes` leave the reserve free; DiskFullError says how much is missing."""
    reserve = resources.settings.limits.disk_reserve_bytes
    free = shutil.disk_usage(resources.settings.work_dir).free
    missing = needed_bytes + reserve - free
    if missing > 0:
        raise DiskFullError(
            f"the job needs {_gigabytes(needed_bytes)} on the worker's disk, besides the reserve of "
            f"{_gigabytes(reserve)}; {_gigabytes(missing)} are missing: free space, then resume the job"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
