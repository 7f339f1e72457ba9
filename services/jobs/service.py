"""Rules of jobs: creating, claiming, holding and ending them. Nothing here commits.

A job is `queued → running → succeeded | failed | cancelled`; one whose worker fell silent is queued again. Every
change is one conditional UPDATE. A claim raises the job's `fence`, and whoever works names the fence they claimed
with: a worker that was given up for lost can change nothing any more, whatever it still does.

Two orders are kept. A job's row is locked before an event of it is added, so that its events become visible in the
order of their ids; and it is locked before the audit log is, so that nobody waits in a circle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.auth.principal import Principal
from services.jobs import parts
from services.jobs.errors import LostJobError as LostJobError
from services.jobs.models import ENDED, Attempt, Job, JobEvent, Kind, LogLine, State
from services.jobs.repository import changed
from services.kit.db import now
from services.kit.errors import ConflictError, NotFoundError, UnprocessableError
from services.kit.queue import FETCH, WORK, enqueue
from services.kit.secrets import Vault
from services.kit.text import clean, plain
from services.settings import JobSettings

MAX_LOG_LINES = 20_000  # of one job
MAX_LINE = 2_000  # characters
MAX_DETAIL = 4_000  # characters, of why an attempt ended
FIRST_RETRY = timedelta(seconds=10)  # doubled with every attempt
LONGEST_RETRY = timedelta(minutes=10)


class IdempotencyConflictError(ConflictError):
    """The same key was used for something else."""

    slug, title = "idempotency-conflict", "This Idempotency-Key was used for another request"


class JobEndedError(ConflictError):
    """The job has ended, so this cannot be done to it any more."""

    slug, title = "job-ended", "The job has ended"


class NotResumableError(ConflictError):
    """The job has not ended badly, or would end the same way again."""

    slug, title = "not-resumable", "The job cannot go on"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended. `resumable`: another goes on from what is kept; `retry`: and may start by itself."""

    slug: str
    detail: str
    resumable: bool = True
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker holds after claiming: the job and the fence to name with every change."""

    job: Job
    fence: int  # also the number of the attempt: it counts claims


# ------------------------------------------------------------------------------------------ creating


def create(
    session: Session,
    settings: JobSettings,
    owner: Principal,
    *,
    kind: Kind,
    title: str,
    spec: Mapping[str, Any],
    dataset_id: UUID | None = None,
    idempotency_key: str | None = None,
    credential: str | None = None,
    vault: Vault | None = None,
) -> tuple[Job, bool]:
    """Return the queued job, and whether it is new: the same key with the same request returns the job it made.

    `credential` is sealed by `vault` for this job alone. Another request under a known key raises
    IdempotencyConflictError, also where both come at the same moment; numbers that JSON cannot carry raise
    UnprocessableError.
    """
    asked = _request_sha256(kind, spec)
    known = known_request(session, owner, idempotency_key, kind, spec)
    if known is not None:
        return known, False
    job = Job(
        kind=kind.value, state=State.QUEUED.value, title=clean(title, 300), owner_id=owner.user_id,
        dataset_id=dataset_id, spec=dict(spec), idempotency_key=idempotency_key, request_sha256=asked,
        attempts=0, max_attempts=settings.max_attempts, fence=0,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:
        known = known_request(session, owner, idempotency_key, kind, spec)
        if known is None:  # not the key's fault
            raise
        return known, False
    if credential is not None:
        assert vault is not None
        job.sealed = vault.seal(credential, purpose_of(job.id))
    tell(session, job.id, "state", {"state": job.state})
    audit.record(session, owner.actor, "job.create", str(job.id), detail={"kind": kind.value})
    _ring(session, job)
    return job, True


def known_request(
    session: Session,
    owner: Principal,
    idempotency_key: str | None,
    kind: Kind,
    spec: Mapping[str, Any],
) -> Job | None:
    """Return the job that this key made, None without one; IdempotencyConflictError if it was asked otherwise."""
    if idempotency_key is None:
        return None
    known = session.scalar(
        select(Job).where(Job.owner_id == owner.user_id, Job.idempotency_key == idempotency_key)
    )
    if known is not None and known.request_sha256 != _request_sha256(kind, spec):
        raise IdempotencyConflictError(
            f"that key made job {known.id}; send a new key for a new request"
        )
    return known


def purpose_of(job_id: UUID) -> str:
    """Return what a job's credential is sealed for."""
    return f"job:{job_id}"


def get(session: Session, job_id: UUID) -> Job:
    """Return the job; NotFoundError if there is none."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job


def has_ended(job: Job) -> bool:
    """Whether nothing more will happen to the job unless it is resumed."""
    return job.state in ENDED


# ------------------------------------------------------------------------------------------ holding


def claim(
    session: Session,
    job_id: UUID,
    *,
    worker: str,
    settings: JobSettings,
    at: datetime | None = None,
) -> Claim | None:
    """Return the claim on a queued job, or None where it is not queued, not due yet, or asked to be cancelled."""
    at = at or now()
    values = {
        "state": State.RUNNING.value,
        "fence": Job.fence + 1,
        "attempts": Job.attempts + 1,
        "lease_owner": worker,
        "lease_expires_at": at + timedelta(seconds=settings.lease_seconds),
        "retry_at": None,
        "error": None,
    }
    due = or_(Job.retry_at.is_(None), Job.retry_at <= at)
    open_to_claim = and_(
        Job.id == job_id, Job.state == State.QUEUED.value, Job.cancel_requested_at.is_(None), due
    )
    if changed(session, update(Job).where(open_to_claim).values(values)) != 1:
        return None
    job = session.get_one(Job, job_id, populate_existing=True)
    job.started_at = job.started_at or at
    session.add(Attempt(job_id=job.id, number=job.fence, worker=worker))
    tell(session, job.id, "state", {"state": job.state, "attempt": job.attempts, "worker": worker})
    return Claim(job, job.fence)


def heartbeat(
    session: Session, job_id: UUID, fence: int, *, settings: JobSettings, at: datetime | None = None
) -> bool:
    """Renew the lease and return whether the job shall be cancelled; LostJobError where it is not ours any more."""
    at = at or now()
    _change(session, job_id, fence, lease_expires_at=at + timedelta(seconds=settings.lease_seconds))
    return session.scalar(select(Job.cancel_requested_at).where(Job.id == job_id)) is not None


def note_progress(session: Session, job_id: UUID, fence: int, progress: Mapping[str, Any]) -> None:
    """Record where the job is; followers are told. LostJobError as in `heartbeat`."""
    progress = plain(progress)
    _change(session, job_id, fence, progress=progress)
    tell(session, job_id, "progress", progress)


def require_held(session: Session, job_id: UUID, fence: int) -> None:
    """Lock the job until the transaction ends. LostJobError as in `heartbeat`."""
    _held(session, job_id, fence)


def note_estimate(session: Session, job_id: UUID, fence: int, estimate: Mapping[str, Any]) -> None:
    """Record what the job is expected to take. LostJobError as in `heartbeat`."""
    _change(session, job_id, fence, estimate=plain(estimate))


def add_log(session: Session, job_id: UUID, attempt: int, lines: list[str]) -> None:
    """Keep lines a job wrote, up to MAX_LOG_LINES of MAX_LINE characters; the last one says if there were more."""
    at = now()
    kept = select(func.count()).select_from(LogLine).where(LogLine.job_id == job_id)
    room = MAX_LOG_LINES - session.execute(kept).scalar_one()
    if room <= 0:
        return
    if len(lines) >= room:
        lines = [*lines[: room - 1], f"more than {MAX_LOG_LINES:,} lines: the rest is not kept"]
    session.add_all(
        LogLine(job_id=job_id, attempt=attempt, at=at, text=clean(line, MAX_LINE)) for line in lines
    )


def tell(session: Session, job_id: UUID, kind: str, data: Mapping[str, Any]) -> None:
    """Add an event for those who follow the job. The caller has changed or locked the job's row before."""
    session.add(JobEvent(job_id=job_id, at=now(), kind=kind, data=plain(data)))


# ------------------------------------------------------------------------------------------ ending


def succeed(
    session: Session,
    job_id: UUID,
    fence: int,
    *,
    result: Mapping[str, Any],
    actual: Mapping[str, Any] | None = None,
) -> None:
    """End a job well; LostJobError where it is somebody else's by now, so that nothing is completed twice.

    What the job made is written in the same transaction, after this.
    """
    _end(
        session,
        job_id,
        fence,
        State.SUCCEEDED,
        "succeeded",
        result=plain(result),
        actual=plain(actual or {}),
    )
    parts.forget_trajectories(session, job_id)


def fail(
    session: Session, job_id: UUID, fence: int, failure: Failure, *, exit_code: int | None = None
) -> None:
    """End an attempt badly: the job is queued again where that may help and attempts are left, else it has failed.

    LostJobError where it is somebody else's by now.
    """
    job = _held(session, job_id, fence)
    detail = clean(failure.detail, MAX_DETAIL)
    error = {"slug": failure.slug, "detail": detail, "resumable": failure.resumable}
    if failure.retry and job.attempts < job.max_attempts and job.cancel_requested_at is None:
        wait = min(FIRST_RETRY * 2 ** (job.attempts - 1), LONGEST_RETRY)
        _requeue(
            session, job, outcome="failed", detail=detail, exit_code=exit_code, error=error,
            retry_at=now() + wait,
        )  # fmt: skip
        return
    _end(
        session, job_id, fence, State.FAILED, "failed", detail=detail, exit_code=exit_code, error=error
    )  # fmt: skip


def cancelled(session: Session, job_id: UUID, fence: int) -> None:
    """End a job that was asked to stop and did; LostJobError where it is somebody else's by now."""
    _end(session, job_id, fence, State.CANCELLED, "cancelled")


def give_back(session: Session, job_id: UUID, fence: int, detail: str) -> None:
    """Queue a job again that its worker cannot go on with (a shutdown): no attempt is spent.

    One that was asked to stop is cancelled instead. LostJobError where it is somebody else's by now.
    """
    job = _held(session, job_id, fence)
    if _requeue(session, job, outcome="stopped", detail=detail, attempts=Job.attempts - 1):
        _ring(session, job)


def request_cancel(session: Session, principal: Principal, job_id: UUID) -> Job:
    """Ask a job to stop; a queued one is cancelled at once. JobEndedError where it has ended."""
    job = get(session, job_id)
    principal.require_own(job.owner_id, "job")
    session.refresh(job, with_for_update=True)
    if job.state in ENDED:
        raise JobEndedError(f"job {job_id} is {job.state} already")
    if job.cancel_requested_at is not None:
        return job
    at = now()
    job.cancel_requested_at = at
    waits = job.state == State.QUEUED.value
    if waits:
        job.state, job.finished_at, job.sealed = State.CANCELLED.value, at, None
    tell(session, job_id, "state", {"state": job.state, **({} if waits else {"cancelling": True})})
    audit.record(session, principal.actor, "job.cancel", str(job_id))
    return job


def resume(session: Session, principal: Principal, job_id: UUID) -> Job:
    """Queue a failed or cancelled job again; it goes on from what its attempts left, with as many attempts as at first.

    NotResumableError for any other, and for one that failed for a reason that would be the same again.
    """
    job = get(session, job_id)
    principal.require_own(job.owner_id, "job")
    session.refresh(job, with_for_update=True)
    if job.state not in (State.FAILED, State.CANCELLED):
        raise NotResumableError(
            f"job {job_id} is {job.state}; only a failed or cancelled one goes on"
        )
    if job.error is not None and not job.error.get("resumable", True):
        raise NotResumableError(f"job {job_id} would fail again: {job.error['detail']}")
    if job.kind == Kind.PULL.value and job.sealed is None:
        raise UnprocessableError(
            "a pull's token is not kept after the job; ask for a new pull, with the token"
        )
    if job.kind == Kind.PREDICT.value:
        raise NotResumableError("an image is not kept after its job; send it again")
    job.state, job.attempts = State.QUEUED.value, 0
    job.cancel_requested_at = job.finished_at = job.retry_at = job.error = None
    tell(session, job_id, "state", {"state": job.state})
    audit.record(session, principal.actor, "job.resume", str(job_id))
    _ring(session, job)
    return job


# ------------------------------------------------------------------------------------------ reconciling


def sweep(session: Session, *, at: datetime | None = None, rings: int = 1000) -> list[UUID]:
    """Give up leases that ran out, and ring for jobs that wait, up to `rings`; returns who was rung for.

    A job that lost its worker `max_attempts` times has failed; one that was to be cancelled is. Rows that somebody is
    changing at this moment are left for the next sweep, so any number of processes may sweep at once.
    """
    at = at or now()
    lost = session.scalars(
        select(Job)
        .where(Job.state == State.RUNNING.value, Job.lease_expires_at < at)
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    parts.sweep_parts(session, at=at, rings=min(rings, parts.MOST_RINGS))
    for job in lost:
        _give_up(session, job)
    due = or_(Job.retry_at.is_(None), Job.retry_at <= at)
    # each apart: those who may fetch must not wait for those who compute
    fetches = Job.kind == Kind.PULL.value
    waiting = [
        job
        for kinds in (~fetches, fetches)
        for job in session.scalars(
            select(Job)
            .where(Job.state == State.QUEUED.value, due, kinds)
            .order_by(Job.id)
            .limit(max(0, rings))
        )
    ]
    for job in waiting:
        _ring(session, job)
    return [job.id for job in waiting]


def _ring(session: Session, job: Job) -> None:
    enqueue(session, job.id, FETCH if job.kind == Kind.PULL.value else WORK)


def _give_up(session: Session, job: Job) -> None:
    detail = f"worker {job.lease_owner} was not heard of any more"
    if job.attempts < job.max_attempts or job.cancel_requested_at is not None:
        _requeue(session, job, outcome="lost", detail=detail)
        return
    times = f"{detail}, {job.attempts} times in a row"
    error = {"slug": "worker-lost", "detail": times, "resumable": True}
    _end(session, job.id, job.fence, State.FAILED, "lost", detail=detail, error=error)


# ------------------------------------------------------------------------------------------ one UPDATE each


def _held(session: Session, job_id: UUID, fence: int) -> Job:
    """Return the job as it is, locked until the transaction ends; LostJobError where it is not ours any more."""
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.state != State.RUNNING.value or job.fence != fence:
        raise _lost(job_id, fence)
    return job


def _change(session: Session, job_id: UUID, fence: int, **values: Any) -> None:
    """Change a running job held under `fence`; LostJobError where it is not."""
    held = and_(Job.id == job_id, Job.fence == fence, Job.state == State.RUNNING.value)
    if changed(session, update(Job).where(held).values(values)) != 1:
        raise _lost(job_id, fence)


def _lost(job_id: UUID, fence: int) -> LostJobError:
    return LostJobError(f"job {job_id} is not held under fence {fence} any more")


def _end(
    session: Session, job_id: UUID, fence: int, state: State, outcome: str,
    *, detail: str | None = None, exit_code: int | None = None, **values: Any,
) -> None:  # fmt: skip
    at = now()
    _change(
        session, job_id, fence,
        state=state.value, finished_at=at, lease_owner=None, lease_expires_at=None, sealed=None, **values,
    )  # fmt: skip
    _end_attempt(session, job_id, at, outcome, detail, exit_code)
    error = {"error": values["error"]} if "error" in values else {}
    tell(session, job_id, "state", {"state": state.value, **error})
    audit.record(session, SYSTEM, f"job.{state.value}", str(job_id))


def _requeue(
    session: Session, job: Job, *, outcome: str, detail: str, exit_code: int | None = None, **values: Any
) -> bool:  # fmt: skip
    """Queue a locked job again and return True; one that was asked to stop is cancelled: False."""
    if job.cancel_requested_at is not None:
        _end(
            session, job.id, job.fence, State.CANCELLED, outcome, detail=detail, exit_code=exit_code
        )
        return False
    _change(
        session, job.id, job.fence,
        state=State.QUEUED.value, lease_owner=None, lease_expires_at=None, **values,
    )  # fmt: skip
    _end_attempt(session, job.id, now(), outcome, detail, exit_code)
    tell(session, job.id, "state", {"state": State.QUEUED.value, "detail": detail})
    return True


def _end_attempt(
    session: Session,
    job_id: UUID,
    at: datetime,
    outcome: str,
    detail: str | None,
    exit_code: int | None,
) -> None:
    values = {
        "ended_at": at,
        "outcome": outcome,
        "detail": None if detail is None else clean(detail, MAX_DETAIL),
        "exit_code": exit_code,
    }
    open_attempts = and_(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
    changed(session, update(Attempt).where(open_attempts).values(values))


def _request_sha256(kind: Kind, spec: Mapping[str, Any]) -> str:
    try:
        asked = rfc8785.dumps({"kind": kind.value, "spec": dict(spec)})
    except rfc8785.CanonicalizationError:
        asked = None
    if asked is None or plain(json.loads(asked)) != json.loads(asked):
        raise UnprocessableError(
            "numbers must be finite, whole ones at most 2^53 - 1, and texts Unicode without NUL"
        )
    return hashlib.sha256(asked).hexdigest()
