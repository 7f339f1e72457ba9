"""Following a job as server-sent events, from any event on; the stream holds no connection to the database.

This is the one place of the node that is asynchronous: a stream that waits must not hold a thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from services.jobs import repository
from services.jobs.models import ENDED, Job, JobEvent
from services.kit.errors import ServiceError, UnavailableError
from services.kit.resources import Resources

LOOK_SECONDS = 0.7  # between two looks at the table
KEEP_ALIVE_SECONDS = 15.0  # proxies give up silent connections
RECHECK_SECONDS = 10.0  # between two looks at whether the caller may still read
RETRY_MILLISECONDS = 2_000  # when a browser comes back after a lost connection
MOST_STREAMS = 200  # of one process
AT_ONCE = 500  # events of one look

log = structlog.get_logger(__name__)
_open = 0  # streams of this process; changed by the event loop's thread alone


@dataclass(frozen=True, slots=True)
class _Look:
    state: str
    events: list[dict[str, Any]]


def require_room() -> None:
    """Raise UnavailableError where this process has as many streams open as it serves."""
    if _open >= MOST_STREAMS:
        raise UnavailableError(
            "too many clients follow jobs; read the events as pages (Accept: application/json)",
            headers={"Retry-After": "30"},
        )


def event_json(event: JobEvent) -> dict[str, Any]:
    """Return an event as clients see it, in a stream and in a page."""
    at = event.at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return {"id": event.id, "at": at, "kind": event.kind, "data": event.data}


async def follow(
    resources: Resources,
    job_id: UUID,
    after: int,
    *,
    permitted: Callable[[], object],
    seconds: float,
) -> AsyncIterator[bytes]:
    """Yield the job's events after an id, then new ones as they come, and `end` when the job has ended.

    The stream ends without `end` after `seconds`, and as soon as `permitted` raises a ServiceError: the client comes
    back with the id it has, or is refused.
    """
    global _open
    _open += 1
    try:
        began = spoken = asked = time.monotonic()
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        while time.monotonic() - began < seconds:
            if time.monotonic() - asked >= RECHECK_SECONDS:
                if not await run_sync(_still, permitted):
                    return
                asked = time.monotonic()
            look = await run_sync(_look, resources, job_id, after)
            for event in look.events if look else ():
                after, spoken = event["id"], time.monotonic()
                yield format_sse_event(
                    data_str=json.dumps(event, ensure_ascii=False),
                    event=event["kind"],
                    id=str(after),
                )
            if look and look.state in ENDED and not look.events:
                yield format_sse_event(data_str=json.dumps({"state": look.state}), event="end")
                return
            if time.monotonic() - spoken >= KEEP_ALIVE_SECONDS:
                spoken = time.monotonic()
                yield KEEPALIVE_COMMENT
            if not look or not look.events:
                await anyio.sleep(LOOK_SECONDS)
    finally:
        _open -= 1


def _look(resources: Resources, job_id: UUID, after: int) -> _Look | None:
    """Return the state, and what follows `after`: read later, so that an ended job's last events are not missed.

    None where the database does not answer: the stream waits for it.
    """
    try:
        with resources.reading() as session:
            state = session.execute(select(Job.state).where(Job.id == job_id)).scalar_one()
            events = repository.events_after(session, job_id, after, AT_ONCE)
            return _Look(state, [event_json(event) for event in events])
    except DBAPIError as err:
        log.warning("follow.database", error=type(err.orig).__name__)
        return None


def _still(permitted: Callable[[], object]) -> bool:
    try:
        permitted()
    except ServiceError:
        return False
    except DBAPIError:  # unknown; asked again after the next interval
        return True
    return True
