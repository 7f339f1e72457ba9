"""Whether the node's disk has room, before anything is written to it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from services.kit.errors import ServiceError


class DiskFullError(ServiceError):
    """The node's disk has no room for it."""

    status, slug, title = 507, "disk-full", "There is no room on the node's disk"


@dataclass(frozen=True, slots=True)
class Room:
    """The disk that holds `folder`, of which `reserve` bytes stay free."""

    folder: Path
    reserve: int

    def require(self, more: int) -> None:
        """Raise DiskFullError unless `more` bytes fit and the reserve stays free."""
        free = shutil.disk_usage(self.folder).free
        if free - more < self.reserve:
            raise DiskFullError(
                f"{free >> 20:,} MiB are free and {self.reserve >> 20:,} MiB of them stay reserved; this needs "
                f"{more >> 20:,} MiB more. Make room where the node keeps its data, or ask for less."
            )
