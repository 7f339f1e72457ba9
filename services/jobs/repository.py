"""Queries on the tables of jobs, and statements that say how many rows they met."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CursorResult,
    and_,
    case,
    column,
    delete,
    func,
    or_,
    select,
    values,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Delete, Update

from services.auth.models import User
from services.datasets.models import SourceDataset
from services.jobs.models import ENDED, Attempt, Job, JobEvent, Kind, LogLine, State
from services.kit.db import now
from services.kit.keyset import Pages

KEPT_PROGRESS = 2_000  # progress events of one ended job
AT_ONCE = 500  # rows of one DELETE


def changed(session: Session, statement: Update | Delete) -> int:
    """Run one UPDATE or DELETE and return how many rows it changed; rows held in memory are left as they are."""
    done: Any = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(done, CursorResult)
    return done.rowcount


def dataset(session: Session, name_or_id: str) -> SourceDataset | None:
    """Return the dataset of that name or id."""
    try:
        same = or_(SourceDataset.id == UUID(name_or_id), SourceDataset.name == name_or_id)
    except ValueError:
        same = SourceDataset.name == name_or_id
    return session.scalar(select(SourceDataset).where(same).limit(1))


def maker_of(session: Session, name: str, version: str) -> UUID | None:
    """Return the job that makes or made a version of a package here."""
    package = Job.spec["package"]
    living = [State.QUEUED.value, State.RUNNING.value, State.SUCCEEDED.value]
    return session.scalar(
        select(Job.id)
        .where(
            Job.kind == Kind.DISTILL.value,
            Job.state.in_(living),
            package["name"].as_string() == name,
            package["version"].as_string() == version,
        )
        .limit(1)
    )


def known_estimate(session: Session, dataset_id: UUID, workload: str) -> dict[str, Any] | None:
    """Return what the latest estimate for the same work on the same dataset said."""
    return session.scalar(
        select(Job.result)
        .where(
            Job.kind == Kind.ESTIMATE.value,
            Job.state == State.SUCCEEDED.value,
            Job.dataset_id == dataset_id,
            Job.spec["workload"].as_string() == workload,
        )
        .order_by(Job.id.desc())
        .limit(1)
    )


@functools.lru_cache(maxsize=64)
def summaries(
    *, kind: str | None, state: str | None, dataset_id: UUID | None, owner_id: UUID | None
) -> Pages:
    """Return a list of jobs with the columns that a `JobSummary` has fields, in their order."""
    ended = Job.state.in_([state.value for state in ENDED])
    stopping = and_(Job.state == State.RUNNING.value, Job.cancel_requested_at.is_not(None))
    statement = (
        select(
            Job.id, Job.kind, Job.state, Job.title,
            User.username.label("owner"), SourceDataset.name.label("dataset"),
            Job.created_at, Job.started_at, Job.finished_at, stopping.label("cancelling"),
            case((ended, None), else_=Job.progress).label("progress"),
        )
        .join(User, User.id == Job.owner_id)
        .outerjoin(SourceDataset, SourceDataset.id == Job.dataset_id)
    )  # fmt: skip
    filters = {
        Job.kind: kind,
        Job.state: state,
        Job.dataset_id: dataset_id,
        Job.owner_id: owner_id,
    }
    wanted = (column == value for column, value in filters.items() if value is not None)
    return Pages.of(statement.where(*wanted), Job.id)


def names_of(session: Session, job: Job) -> tuple[str, str | None]:
    """Return the names of a job's owner and of its dataset."""
    found = (
        select(User.username, SourceDataset.name)
        .select_from(Job)
        .join(User, User.id == Job.owner_id)
        .outerjoin(SourceDataset, SourceDataset.id == Job.dataset_id)
        .where(Job.id == job.id)
    )
    owner, name = session.execute(found).one()
    return owner, name


def attempts_of(session: Session, job_id: UUID) -> Sequence[Attempt]:
    """Return the attempts at a job, the first one first."""
    return session.scalars(
        select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
    ).all()


def waiting_before(session: Session, job: Job) -> int:
    """Return how many queued jobs are older than this one."""
    due = or_(Job.retry_at.is_(None), Job.retry_at <= now())
    count = (
        select(func.count())
        .select_from(Job)
        .where(Job.state == State.QUEUED.value, due, Job.id < job.id)
    )
    return session.execute(count).scalar_one()


def events_after(
    session: Session, job_id: UUID, after: int, limit: int, kind: str | None = None
) -> Sequence[JobEvent]:
    """Return a job's events that follow an event id, in order."""
    statement = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after)
    if kind is not None:
        statement = statement.where(JobEvent.kind == kind)
    return session.scalars(statement.order_by(JobEvent.id).limit(limit)).all()


def lines_after(session: Session, job_id: UUID, after: int, limit: int) -> Sequence[LogLine]:
    """Return a job's log lines that follow a line id, in order."""
    return session.scalars(
        select(LogLine)
        .where(LogLine.job_id == job_id, LogLine.id > after)
        .order_by(LogLine.id)
        .limit(limit)
    ).all()


def last_lines(session: Session, job_id: UUID, limit: int) -> Sequence[LogLine]:
    """Return a job's newest log lines, the oldest of them first."""
    found = session.scalars(
        select(LogLine).where(LogLine.job_id == job_id).order_by(LogLine.id.desc()).limit(limit)
    ).all()
    return found[::-1]


def ends_of_progress(session: Session, job_id: UUID) -> tuple[int, int] | None:
    """Return the ids of a job's first and last progress event; None where it has none."""
    ids = select(JobEvent.id).where(JobEvent.job_id == job_id, JobEvent.kind == "progress")
    first = session.scalar(ids.order_by(JobEvent.id).limit(1))
    last = session.scalar(ids.order_by(JobEvent.id.desc()).limit(1))
    return None if first is None or last is None else (first, last)


def some_progress(
    session: Session, job_id: UUID, first: int, last: int, most: int
) -> Sequence[JobEvent]:
    """Return at most so many progress events evenly out of those between two ids, in order.

    Each is looked for by the index: a job that reported for days is read as fast as a short one.
    """
    step = max(1.0, (last - first) / max(1, most - 1))
    places = {round(first + step * at) for at in range(most)}
    marks = values(column("at", BigInteger), name="marks").data(
        [(place,) for place in sorted(places) if place <= last]
    )
    mark = marks.cte("marks")
    next_one = (
        select(JobEvent.id)
        .where(JobEvent.job_id == job_id, JobEvent.id >= mark.c.at, JobEvent.kind == "progress")
        .order_by(JobEvent.id)
        .limit(1)
        .correlate(mark)
        .scalar_subquery()
    )
    found = select(JobEvent).where(JobEvent.id.in_(select(next_one).select_from(mark)))
    return session.scalars(found.order_by(JobEvent.id)).all()


def jobs_with_much_progress(session: Session) -> Sequence[UUID]:
    """Return ended jobs with more progress events than are kept."""
    return session.scalars(
        select(JobEvent.job_id)
        .join(Job, Job.id == JobEvent.job_id)
        .where(JobEvent.kind == "progress", Job.state.in_([state.value for state in ENDED]))
        .group_by(JobEvent.job_id)
        .having(func.count() > KEPT_PROGRESS)
        .limit(20)
    ).all()


def thin_progress(session: Session, job_id: UUID) -> int:
    """Delete progress events evenly, so that KEPT_PROGRESS are left, the last one among them; return how many went."""
    ids = session.scalars(
        select(JobEvent.id)
        .where(JobEvent.job_id == job_id, JobEvent.kind == "progress")
        .order_by(JobEvent.id)
    ).all()
    if len(ids) <= KEPT_PROGRESS:
        return 0
    last = len(ids) - 1
    kept = {ids[round(at * last / (KEPT_PROGRESS - 1))] for at in range(KEPT_PROGRESS)}
    gone = [one for one in ids if one not in kept]
    for some in _batches(gone):
        changed(session, delete(JobEvent).where(JobEvent.id.in_(some)))
    return len(gone)


def _batches(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))
