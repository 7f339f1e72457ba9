"""What the worker's two lasting processes tell each other: one page of memory, made before the fork.

The main process (Celery's consumer) takes signals and reports that the worker lives; the other one supervises jobs. A
plain page can be written in a signal handler, where a lock could wait for ever.
"""

from __future__ import annotations

import mmap
from uuid import UUID

_NONE = bytes(16)


class Board:
    """Whether the worker shall stop, and which job it has."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 17)

    def stop(self) -> None:
        """Ask whoever supervises to give its job back."""
        self._page[0] = 1

    def stopping(self) -> bool:
        """Return whether that was asked."""
        return self._page[0] == 1

    @property
    def job_id(self) -> UUID | None:
        """The job that is worked on, None while the worker waits."""
        data = self._page[1:17]
        return None if data == _NONE else UUID(bytes=data)

    @job_id.setter
    def job_id(self, job_id: UUID | None) -> None:
        self._page[1:17] = _NONE if job_id is None else job_id.bytes
