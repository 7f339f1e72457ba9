"""Waiting for a job to end, for requests that would rather have the answer than its address (RFC 7240, `wait`)."""

from __future__ import annotations

import re
import threading
import time
from uuid import UUID

from services.jobs import service
from services.jobs.models import ENDED, Job
from services.kit.resources import Resources

LONGEST = 60.0  # seconds
MOST_WAITING = 12  # requests of one process: each holds one of its threads
FIRST_LOOK, SLOWEST_LOOK = 0.05, 0.5  # seconds between two looks

_places = threading.BoundedSemaphore(MOST_WAITING)
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)


def preferred_wait(prefer: str | None) -> float:
    """Return the seconds that a `Prefer` header asks to wait, at most LONGEST; 0 without such a wish."""
    found = _WAIT.search(prefer or "")
    return min(float(found[1]), LONGEST) if found else 0.0


def wait_for(resources: Resources, job_id: UUID, seconds: float) -> Job:
    """Return the job, detached, as soon as it has ended, or as it is after `seconds`; NotFoundError without one.

    No session is held between two looks, so call it without an open one. Where many wait already, it looks once.
    """
    if seconds <= 0 or not _places.acquire(blocking=False):
        return _look(resources, job_id)
    try:
        until, pause = time.monotonic() + min(seconds, LONGEST), FIRST_LOOK
        while True:
            job = _look(resources, job_id)
            left = until - time.monotonic()
            if job.state in ENDED or left <= 0:
                return job
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, SLOWEST_LOOK)
    finally:
        _places.release()


def _look(resources: Resources, job_id: UUID) -> Job:
    with resources.reading() as session:
        job = service.get(session, job_id)
        session.expunge(job)
        return job
