"""Rules of a job's parts: the teachers of one distillation, trained side by side by all workers of the queue.

The worker that runs the job plans the parts, takes some itself and waits for the rest. A part is `queued → running →
succeeded | failed`, claimed, held and fenced as a job is. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.jobs.errors import LostJobError, LostPartError
from services.jobs.models import ENDED, Job, Part, State
from services.jobs.repository import changed
from services.kit.db import now
from services.kit.queue import TEACH, enqueue
from services.kit.text import clean
from services.settings import JobSettings

MOST_RINGS = 16  # for one job at a time; a worker that comes takes parts until none is left


@dataclass(frozen=True, slots=True)
class PartClaim:
    """What a worker holds after claiming a part: to be named with every change of it."""

    part_id: UUID
    job_id: UUID
    number: int
    fence: int


def plan(session: Session, job_id: UUID, fence: int, numbers: Iterable[int]) -> list[Part]:
    """Return the job's parts of these numbers, in order; ring for idle workers where some are to be done.

    Parts that an earlier attempt of the job finished stay finished, and running ones go on; failed ones are queued
    again. Only who holds the job may plan: LostJobError otherwise.
    """
    job = session.get_one(Job, job_id, with_for_update=True, populate_existing=True)
    if job.state != State.RUNNING.value or job.fence != fence:
        raise LostJobError(f"job {job_id} is not held under fence {fence} any more")
    wanted = sorted(set(numbers))
    known = {part.number: part for part in parts_of(session, job_id)}
    for number in wanted:
        part = known.get(number)
        if part is None:
            part = Part(job_id=job_id, number=number, state=State.QUEUED.value, fence=0, attempts=0)
            session.add(part)
            known[number] = part
        elif part.state == State.FAILED.value:
            part.state, part.attempts, part.error = State.QUEUED.value, 0, None
    session.flush()
    planned = [known[number] for number in wanted]
    _ring(session, job_id, sum(part.state == State.QUEUED.value for part in planned))
    return planned


def claim_part(
    session: Session,
    job_id: UUID,
    worker: str,
    settings: JobSettings,
    *,
    at: datetime | None = None,
) -> PartClaim | None:
    """Return the claim on the job's first queued part, or None where there is none or the job does not run."""
    at = at or now()
    runs = (
        select(Job.id)
        .where(
            Job.id == job_id, Job.state == State.RUNNING.value, Job.cancel_requested_at.is_(None)
        )
        .exists()
    )
    part = session.scalar(
        select(Part)
        .where(Part.job_id == job_id, Part.state == State.QUEUED.value, runs)
        .order_by(Part.number)
        .limit(1)
        .with_for_update(of=Part, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if part is None:
        return None
    fence = part.fence + 1
    taken = changed(
        session,
        update(Part)
        .where(Part.id == part.id, Part.state == State.QUEUED.value, Part.fence == part.fence)
        .values(
            state=State.RUNNING.value,
            fence=fence,
            attempts=Part.attempts + 1,
            lease_owner=worker,
            lease_expires_at=at + timedelta(seconds=settings.lease_seconds),
            error=None,
        ),
    )
    return PartClaim(part.id, job_id, part.number, fence) if taken == 1 else None


def claimed(session: Session, job_id: UUID, number: int, fence: int) -> PartClaim:
    """Return the claim as a worker's process knows it, by number and fence; LostPartError where it is not held."""
    part = session.scalar(
        select(Part)
        .where(Part.job_id == job_id, Part.number == number, Part.fence == fence)
        .where(Part.state == State.RUNNING.value)
    )
    if part is None:
        raise LostPartError(
            f"part {number} of job {job_id} is not held under fence {fence} any more"
        )
    return PartClaim(part.id, job_id, number, fence)


def heartbeat_part(
    session: Session, claim: PartClaim, settings: JobSettings, *, at: datetime | None = None
) -> bool:
    """Renew the lease and return whether to stop, because the job has ended or shall; LostPartError if not ours."""
    at = at or now()
    _change(session, claim, lease_expires_at=at + timedelta(seconds=settings.lease_seconds))
    state, cancel = session.execute(
        select(Job.state, Job.cancel_requested_at).where(Job.id == claim.job_id)
    ).one()
    return state in ENDED or cancel is not None


def finish_part(session: Session, claim: PartClaim, sha256: str) -> None:
    """End a part well: its trajectory lies in the store under `sha256`. LostPartError where it is not ours any more."""
    _change(
        session,
        claim,
        state=State.SUCCEEDED.value,
        sha256=sha256,
        lease_owner=None,
        lease_expires_at=None,
    )


def fail_part(session: Session, claim: PartClaim, detail: str, *, retry: bool) -> bool:
    """End an attempt at a part badly; return whether it is queued again: where asked for, as often as the job may be.

    LostPartError where it is not ours any more.
    """
    part = session.get(Part, claim.part_id, with_for_update=True, populate_existing=True)
    if part is None:
        raise _lost(claim)
    again = retry and part.attempts < _most_attempts(session, claim.job_id)
    state = State.QUEUED if again else State.FAILED
    _change(
        session,
        claim,
        state=state.value,
        error=clean(detail),
        lease_owner=None,
        lease_expires_at=None,
    )
    if again:
        _ring(session, claim.job_id, 1)
    return again


def give_part_back(session: Session, claim: PartClaim) -> None:
    """Queue a part again that its worker cannot go on with (a shutdown): no attempt is spent."""
    _change(
        session,
        claim,
        state=State.QUEUED.value,
        attempts=Part.attempts - 1,
        lease_owner=None,
        lease_expires_at=None,
    )
    _ring(session, claim.job_id, 1)


def parts_of(session: Session, job_id: UUID) -> Sequence[Part]:
    """Return the job's parts as they are now, by number."""
    return session.scalars(
        select(Part)
        .where(Part.job_id == job_id)
        .order_by(Part.number)
        .execution_options(populate_existing=True)
    ).all()


def forget_trajectories(session: Session, job_id: UUID) -> None:
    """Let the store drop what the parts of a finished job made; that they were made stays known."""
    changed(session, update(Part).where(Part.job_id == job_id).values(sha256=None))


def sweep_parts(session: Session, *, at: datetime | None = None, rings: int = MOST_RINGS) -> None:
    """Queue parts again whose worker fell silent; ring for running jobs with parts to be done, up to `rings`."""
    at = at or now()
    lost = session.scalars(
        select(Part)
        .where(Part.state == State.RUNNING.value, Part.lease_expires_at < at)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    for part in lost:
        again = part.attempts < _most_attempts(session, part.job_id)
        part.state = State.QUEUED.value if again else State.FAILED.value
        part.error = f"worker {part.lease_owner} was not heard of any more"
        part.lease_owner = part.lease_expires_at = None
    session.flush()
    waiting = session.execute(
        select(Part.job_id)
        .join(Job, Job.id == Part.job_id)
        .where(Part.state == State.QUEUED.value, Job.state == State.RUNNING.value)
        .group_by(Part.job_id)
        .order_by(Part.job_id)
        .limit(max(0, rings))
    ).scalars()
    for job_id in waiting:
        _ring(session, job_id, 1)


def _change(session: Session, claim: PartClaim, **values: object) -> None:
    held = update(Part).where(
        Part.id == claim.part_id, Part.fence == claim.fence, Part.state == State.RUNNING.value
    )
    if changed(session, held.values(values)) != 1:
        raise _lost(claim)


def _lost(claim: PartClaim) -> LostPartError:
    return LostPartError(
        f"part {claim.number} of job {claim.job_id} is not held under fence {claim.fence} any more"
    )


def _most_attempts(session: Session, job_id: UUID) -> int:
    return session.get_one(Job, job_id).max_attempts


def _ring(session: Session, job_id: UUID, times: int) -> None:
    for _ in range(min(times, MOST_RINGS)):
        enqueue(session, job_id, TEACH)
