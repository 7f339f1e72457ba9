"""Rules of jobs: creating, claiming, holding and ending them. Nothing here commits.

A job is `queued → running → succeeded | failed | cancelled`; one whose worker fell silent is queued again. Every
change is one conditional UPDATE. A claim raises the job's `fence`, and whoever works names the fence they claimed
with: a worker that was given up for lost can change nothing any more, whatever it still does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.auth.principal import Principal
from services.jobs.errors import LostJobError as LostJobError
from services.jobs.models import ENDED, Attempt, Job, JobEvent, Kind, LogLine, State
from services.kit.db import now
from services.kit.problems import ConflictError, NotFoundError, UnprocessableError
from services.kit.queue import enqueue
from services.kit.secrets import Vault
from services.settings import JobSettings

MAX_LOG_LINES = 20_000  # of one job
MAX_LINE = 2_000  # characters
FIRST_RETRY = timedelta(seconds=10)  # doubled with every attempt
LONGEST_RETRY = timedelta(minutes=10)


class IdempotencyConflictError(ConflictError):
    """The same key was used for something else."""

    slug, title = "idempotency-conflict", "This Idempotency-Key was used for another request"


class JobEndedError(ConflictError):
    """The job has ended, so this cannot be done to it any more."""

    slug, title = "job-ended", "The job has ended"


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
    IdempotencyConflictError.
    """
    asked = hashlib.sha256(rfc8785.dumps({"kind": kind.value, "spec": dict(spec)})).hexdigest()
    if idempotency_key is not None:
        known = session.scalar(
            select(Job).where(Job.owner_id == owner.user_id, Job.idempotency_key == idempotency_key)
        )
        if known is not None:
            if known.request_sha256 != asked:
                raise IdempotencyConflictError(
                    f"that key made job {known.id}; send a new key for a new request"
                )
            return known, False
    job = Job(
        kind=kind.value, state=State.QUEUED.value, title=title[:300], owner_id=owner.user_id, dataset_id=dataset_id,
        spec=dict(spec), idempotency_key=idempotency_key, request_sha256=asked,
        attempts=0, max_attempts=settings.max_attempts, fence=0,
    )  # fmt: skip
    session.add(job)
    session.flush()
    if credential is not None:
        assert vault is not None
        job.sealed = vault.seal(credential, purpose_of(job.id))
    tell(session, job.id, "state", {"state": job.state})
    audit.record(session, owner.actor, "job.create", str(job.id), detail={"kind": kind.value})
    enqueue(session, job.id)
    return job, True


def purpose_of(job_id: UUID) -> str:
    """Return what a job's credential is sealed for."""
    return f"job:{job_id}"


def get(session: Session, job_id: UUID) -> Job:
    """Return the job; NotFoundError if there is none."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job


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
    taken = session.execute(
        update(Job)
        .where(
            Job.id == job_id,
            Job.state == State.QUEUED.value,
            Job.cancel_requested_at.is_(None),
            due,
        )
        .values(values)
        .execution_options(synchronize_session=False)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
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
    _change(session, job_id, fence, progress=dict(progress))
    tell(session, job_id, "progress", progress)


def add_log(session: Session, job_id: UUID, attempt: int, lines: list[str]) -> None:
    """Keep lines a job wrote, up to MAX_LOG_LINES of MAX_LINE characters."""
    at = now()
    session.add_all(
        LogLine(job_id=job_id, attempt=attempt, at=at, text=line[:MAX_LINE]) for line in lines
    )


def tell(session: Session, job_id: UUID, kind: str, data: Mapping[str, Any]) -> None:
    """Add an event for those who follow the job."""
    session.add(JobEvent(job_id=job_id, at=now(), kind=kind, data=dict(data)))


# ------------------------------------------------------------------------------------------ ending


def succeed(
    session: Session,
    job_id: UUID,
    fence: int,
    *,
    result: Mapping[str, Any],
    actual: Mapping[str, Any] | None = None,
) -> None:
    """End a job well; LostJobError where it is somebody else's by now, so that nothing is completed twice."""
    _end(
        session,
        job_id,
        fence,
        State.SUCCEEDED,
        "succeeded",
        result=dict(result),
        actual=dict(actual or {}),
    )


def fail(
    session: Session, job_id: UUID, fence: int, failure: Failure, *, exit_code: int | None = None
) -> None:
    """End an attempt badly: the job is queued again where that may help and attempts are left, else it has failed."""
    job = session.get_one(Job, job_id, populate_existing=True)
    error = {"slug": failure.slug, "detail": failure.detail, "resumable": failure.resumable}
    if failure.retry and job.attempts < job.max_attempts and job.cancel_requested_at is None:
        wait = min(FIRST_RETRY * 2 ** (job.attempts - 1), LONGEST_RETRY)
        _requeue(
            session,
            job_id,
            fence,
            outcome="failed",
            detail=failure.detail,
            exit_code=exit_code,
            error=error,
            retry_at=now() + wait,
        )
        return
    _end(
        session,
        job_id,
        fence,
        State.FAILED,
        "failed",
        detail=failure.detail,
        exit_code=exit_code,
        error=error,
    )


def cancelled(session: Session, job_id: UUID, fence: int) -> None:
    """End a job that was asked to stop and did."""
    _end(session, job_id, fence, State.CANCELLED, "cancelled")


def give_back(session: Session, job_id: UUID, fence: int, detail: str) -> None:
    """Queue a job again that its worker cannot go on with (a shutdown): no attempt is spent."""
    _requeue(session, job_id, fence, outcome="stopped", detail=detail, attempts=Job.attempts - 1)
    enqueue(session, job_id)


def request_cancel(session: Session, principal: Principal, job_id: UUID) -> Job:
    """Ask a job to stop; a queued one is cancelled at once. JobEndedError where it has ended."""
    job = get(session, job_id)
    principal.require_own(job.owner_id, "job")
    if job.state in ENDED:
        raise JobEndedError(f"job {job_id} has {job.state} already")
    at = now()
    done = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state == State.QUEUED.value)
        .values(state=State.CANCELLED.value, cancel_requested_at=at, finished_at=at, sealed=None)
        .execution_options(synchronize_session=False)
    )
    if done.rowcount == 1:  # type: ignore[attr-defined]
        tell(session, job_id, "state", {"state": State.CANCELLED.value})
    else:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.state == State.RUNNING.value)
            .values(cancel_requested_at=at)
            .execution_options(synchronize_session=False)
        )
        tell(session, job_id, "state", {"state": State.RUNNING.value, "cancelling": True})
    audit.record(session, principal.actor, "job.cancel", str(job_id))
    session.refresh(job)
    return job


def resume(session: Session, principal: Principal, job_id: UUID) -> Job:
    """Queue a failed or cancelled job again; it goes on from what its attempts left. ConflictError for any other."""
    job = get(session, job_id)
    principal.require_own(job.owner_id, "job")
    if job.kind == Kind.PULL.value and job.sealed is None:
        raise UnprocessableError(
            "a pull's token is not kept after the job; start a new pull, it goes on with what was fetched"
        )
    taken = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_([State.FAILED.value, State.CANCELLED.value]))
        .values(
            state=State.QUEUED.value, cancel_requested_at=None, finished_at=None, error=None, retry_at=None,
            max_attempts=Job.attempts + Job.max_attempts,
        )
        .execution_options(synchronize_session=False)
    )  # fmt: skip
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        raise ConflictError(
            f"job {job_id} is {job.state}; only a failed or cancelled job can go on"
        )
    tell(session, job_id, "state", {"state": State.QUEUED.value})
    audit.record(session, principal.actor, "job.resume", str(job_id))
    enqueue(session, job_id)
    session.refresh(job)
    return job


# ------------------------------------------------------------------------------------------ reconciling


def sweep(session: Session, *, at: datetime | None = None) -> list[UUID]:
    """Give up leases that ran out and ring for every job that waits; returns who was rung for.

    A job that lost its worker `max_attempts` times has failed; one that was to be cancelled is.
    """
    at = at or now()
    lost = session.scalars(
        select(Job).where(Job.state == State.RUNNING.value, Job.lease_expires_at < at)
    ).all()
    for job in lost:
        _give_up(session, job, at)
    due = or_(Job.retry_at.is_(None), Job.retry_at <= at)
    waiting = list(
        session.scalars(
            select(Job.id).where(Job.state == State.QUEUED.value, due).order_by(Job.id).limit(1000)
        )
    )
    for job_id in waiting:
        enqueue(session, job_id)
    return waiting


def _give_up(session: Session, job: Job, at: datetime) -> None:
    detail = f"worker {job.lease_owner} was not heard of any more"
    still = and_(Job.lease_expires_at < at)
    if job.cancel_requested_at is not None:
        _end(session, job.id, job.fence, State.CANCELLED, "lost", still, detail=detail)
    elif job.attempts >= job.max_attempts:
        error = {
            "slug": "worker-lost",
            "detail": f"{detail}, for the {job.attempts}th time",
            "resumable": True,
        }
        _end(session, job.id, job.fence, State.FAILED, "lost", still, detail=detail, error=error)
    else:
        _requeue(session, job.id, job.fence, still, outcome="lost", detail=detail)


# ------------------------------------------------------------------------------------------ one UPDATE each


def _change(
    session: Session, job_id: UUID, fence: int, *conditions: ColumnElement[bool], **values: Any
) -> None:
    """Change a running job held under `fence`; LostJobError where it is not."""
    held = and_(Job.id == job_id, Job.fence == fence, Job.state == State.RUNNING.value, *conditions)
    done = session.execute(
        update(Job).where(held).values(values).execution_options(synchronize_session=False)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise LostJobError(f"job {job_id} is not held under fence {fence} any more")


def _end(
    session: Session, job_id: UUID, fence: int, state: State, outcome: str, *conditions: ColumnElement[bool],
    detail: str | None = None, exit_code: int | None = None, **values: Any,
) -> None:  # fmt: skip
    at = now()
    _change(
        session, job_id, fence, *conditions,
        state=state.value, finished_at=at, lease_owner=None, lease_expires_at=None, sealed=None, **values,
    )  # fmt: skip
    _end_attempt(session, job_id, at, outcome, detail, exit_code)
    tell(
        session,
        job_id,
        "state",
        {"state": state.value, **({"error": values["error"]} if "error" in values else {})},
    )
    audit.record(session, SYSTEM, f"job.{state.value}", str(job_id))


def _requeue(
    session: Session, job_id: UUID, fence: int, *conditions: ColumnElement[bool],
    outcome: str, detail: str, exit_code: int | None = None, **values: Any,
) -> None:  # fmt: skip
    _change(
        session, job_id, fence, *conditions,
        state=State.QUEUED.value, lease_owner=None, lease_expires_at=None, **values,
    )  # fmt: skip
    _end_attempt(session, job_id, now(), outcome, detail, exit_code)
    tell(session, job_id, "state", {"state": State.QUEUED.value, "detail": detail})


def _end_attempt(
    session: Session,
    job_id: UUID,
    at: datetime,
    outcome: str,
    detail: str | None,
    exit_code: int | None,
) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=at, outcome=outcome, detail=detail, exit_code=exit_code)
        .execution_options(synchronize_session=False)
    )
