"""Holding on to a job while its process works: a thread that renews the lease.

It is a thread because a database that does not answer can hold a caller for longer than the lease lasts, and somebody
must be there to end the process in time. It has a connection of its own, whose tries are short: within one lease
several fit, whoever else uses the database. When a renewal came late, the log says how late, and why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs.errors import LostJobError
from services.kit.db import Sessions, connect, make_sessions
from services.settings import JobSettings, Settings

RETRY_SECONDS = 1.0  # between two tries while the database does not answer
BEATS = 4  # that one lease has room for, however the heartbeat is set
TRIES = 8  # that wait their whole time fit into one lease
log = structlog.get_logger(__name__)


@contextmanager
def own_sessions(settings: Settings) -> Iterator[Sessions]:
    """Yield sessions over a connection that nobody else uses, on which nothing waits for long."""
    engine = connect(settings, patience=settings.jobs.lease_seconds / TRIES)
    try:
        yield make_sessions(engine)
    finally:
        engine.dispose()


class Lease(threading.Thread):
    """Calls `renew` every heartbeat until closed. `renew` returns whether to stop; LostJobError ends it."""

    def __init__(
        self, sessions: Sessions, settings: JobSettings, renew: Callable[[Session], bool]
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self._sessions, self._renew = sessions, renew
        # how long after a renewal the job is surely ours: less than the lease, for ending a process takes time
        self._seconds = settings.lease_seconds * 0.9
        self._every = min(settings.heartbeat_seconds, settings.lease_seconds / BEATS)
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
        due = next_try = time.monotonic() + self._every
        while not self._closed.wait(max(0.0, next_try - time.monotonic())):
            asked_at = time.monotonic()
            try:
                with self._sessions.begin() as session:
                    self.stop_asked = self._renew(session)
            except LostJobError as err:
                self.taken = True
                log.info("lease.ended", reason=err.detail)
                return
            except DBAPIError as err:
                next_try = time.monotonic() + min(RETRY_SECONDS, self._every)
                left = round(max(0.0, self._until - time.monotonic()), 1)
                log.warning("lease.unrenewed", error=type(err).__name__, left_seconds=left)
            else:
                self._say_if_late(due, asked_at)
                self._until = asked_at + self._seconds
                due = next_try = asked_at + self._every

    def close(self) -> None:
        """Let the lease run out, and a renewal that is under way end."""
        self._closed.set()
        if self.is_alive():
            self.join(RETRY_SECONDS)

    def _say_if_late(self, due: float, asked_at: float) -> None:
        written_at = time.monotonic()
        if written_at - due > self._every:
            log.warning(
                "lease.late",
                late_seconds=round(written_at - due, 1),
                until_asked_seconds=round(asked_at - due, 1),  # no processor, or tries that failed
                write_seconds=round(written_at - asked_at, 1),  # a slow database
                lost=written_at > self._until,
            )
