"""The worker processes, as they report themselves: for readiness, for the overview, and for whom to ring."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.jobs.models import Worker
from services.jobs.repository import changed
from services.kit.db import now

SILENT = timedelta(minutes=1)  # a worker not heard of for so long does not live
FORGOTTEN = timedelta(days=7)


def note_worker(
    session: Session,
    name: str,
    *,
    device: str,
    version: str,
    free_disk_bytes: int,
    job_id: UUID | None = None,
    at: datetime | None = None,
) -> None:
    """Remember that a worker lives: on what it computes, with how much disk, and which job it has (None: it waits)."""
    at = at or now()
    values = {
        "device": device[:200],
        "version": version[:64],
        "free_disk_bytes": free_disk_bytes,
        "job_id": job_id,
        "seen_at": at,
    }
    known = update(Worker).where(Worker.name == name).values(values)
    if changed(session, known) == 1:
        return
    try:
        with session.begin_nested():
            session.add(Worker(name=name, started_at=at, **values))
    except IntegrityError:  # two processes of one worker said so at the same moment
        changed(session, known)


def living(session: Session, at: datetime | None = None) -> Sequence[Worker]:
    """Return the workers heard of lately, by name."""
    since = (at or now()) - SILENT
    return session.scalars(
        select(Worker).where(Worker.seen_at >= since).order_by(Worker.name)
    ).all()


def forget_old(session: Session, at: datetime | None = None) -> int:
    """Forget workers that have been silent for a week; return how many."""
    return changed(session, delete(Worker).where(Worker.seen_at < (at or now()) - FORGOTTEN))
