"""Holding on to a job while its process works: a thread that renews the lease.

It is a thread because a database that does not answer can hold a caller for longer than the lease lasts, and somebody
must be there to end the process in time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs.errors import LostJobError
from services.kit.db import Sessions
from services.settings import JobSettings

RETRY_SECONDS = 1.0  # between two tries while the database does not answer
log = structlog.get_logger(__name__)


class Lease(threading.Thread):
    """Calls `renew` every heartbeat until closed. `renew` returns whether to stop; LostJobError ends it."""

    def __init__(
        self, sessions: Sessions, settings: JobSettings, renew: Callable[[Session], bool]
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self._sessions, self._settings, self._renew = sessions, settings, renew
        self._closed = threading.Event()
        self.taken = False  # somebody said so, in the table
        self._until = time.monotonic() + self._seconds
        self.stop_asked = False

    @property
    def lost(self) -> bool:
        """Whether the job is, or must by now be taken to be, somebody else's."""
        return self.taken or time.monotonic() > self._until

    def run(self) -> None:
        """Renew until closed or lost."""
        wait = self._settings.heartbeat_seconds
        while not self._closed.wait(wait):
            asked_at = time.monotonic()
            try:
                with self._sessions.begin() as session:
                    self.stop_asked = self._renew(session)
                if time.monotonic() > self._until:
                    log.warning("lease.late", seconds=round(time.monotonic() - asked_at, 1))
                self._until = asked_at + self._seconds
                wait = self._settings.heartbeat_seconds
            except LostJobError as err:
                self.taken = True
                log.info("lease.ended", reason=err.detail)
                return
            except DBAPIError as err:
                log.warning("lease.unrenewed", error=type(err).__name__)
                wait = min(RETRY_SECONDS, self._settings.heartbeat_seconds)

    def close(self) -> None:
        """Let the lease run out."""
        self._closed.set()

    @property
    def _seconds(self) -> float:
        """How long after a renewal the job is surely ours: less than the lease, for ending a process takes time."""
        return self._settings.lease_seconds * 0.9
