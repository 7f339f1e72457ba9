"""What people and programs are shown of jobs: names beside ids, the place in the queue, the time left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.jobs import parts, repository, service
from services.jobs.models import Attempt, Job, JobEvent, Kind, LogLine, Part, State
from services.kit.keyset import AnyRow

# The stages of an estimate in the order they run; a JSON column does not keep it.
ROUGHLY, COURSE = 120, 250  # events that are looked at of a whole job, and of one stage of it
MOST_STAGES = 4  # that have numbers to show
STAGES = ("teachers", "distillation", "evaluation", "privacy")


@dataclass(frozen=True, slots=True)
class Detail:
    """A job with everything that is known of it."""

    job: Job
    owner: str
    dataset: str | None
    attempts: Sequence[Attempt]
    parts: Sequence[Part]
    position: int | None  # in the queue: 1 is next; None unless queued
    eta_seconds: float | None  # None unless running


def list_jobs(
    session: Session,
    *,
    kind: Kind | None = None,
    state: State | None = None,
    dataset: str | None = None,
    owner_id: UUID | None = None,
    cursor: str | None = None,
    limit: int,
) -> tuple[Sequence[AnyRow], str | None]:
    """Return a page of jobs, newest first, and the cursor of the next one; an unknown dataset has no jobs.

    The rows have the columns of `repository.summaries`.
    """
    dataset_id = None
    if dataset is not None:
        row = repository.dataset(session, dataset)
        if row is None:
            return [], None
        dataset_id = row.id
    pages = repository.summaries(
        kind=kind and kind.value,
        state=state and state.value,
        dataset_id=dataset_id,
        owner_id=owner_id,
    )
    return pages.read(session, cursor=cursor, limit=limit)


def read_job(session: Session, job_id: UUID) -> Detail:
    """Return a job with its attempts and parts; NotFoundError without one."""
    return describe(session, service.get(session, job_id))


def describe(session: Session, job: Job) -> Detail:
    """Return what is known of a job."""
    queued = job.state == State.QUEUED.value
    owner, name = repository.names_of(session, job)
    return Detail(
        job=job,
        owner=owner,
        dataset=name,
        attempts=repository.attempts_of(session, job.id),
        parts=parts.parts_of(session, job.id),
        position=repository.waiting_before(session, job) + 1 if queued else None,
        eta_seconds=seconds_left(job),
    )


def read_events(
    session: Session, job_id: UUID, *, after: int, limit: int, kind: str | None
) -> tuple[Sequence[JobEvent], bool]:
    """Return a job's events after an id, and whether there are more; NotFoundError without the job."""
    service.get(session, job_id)
    events = repository.events_after(session, job_id, after, limit + 1, kind)
    return events[:limit], len(events) > limit


def read_log(
    session: Session, job_id: UUID, *, after: int, limit: int
) -> tuple[Sequence[LogLine], bool]:
    """Return a job's log lines after an id, and whether there are more; NotFoundError without the job."""
    service.get(session, job_id)
    lines = repository.lines_after(session, job_id, after, limit + 1)
    return lines[:limit], len(lines) > limit


def read_log_end(session: Session, job_id: UUID, *, limit: int) -> Sequence[LogLine]:
    """Return a job's newest log lines, the oldest of them first."""
    return repository.last_lines(session, job_id, limit)


def read_course(session: Session, job_id: UUID) -> Sequence[JobEvent]:
    """Return progress events that show how a job went: few where little changes, up to COURSE of each stage.

    A stage shorter than a hundredth of the job may be missing.
    """
    ends = repository.ends_of_progress(session, job_id)
    if ends is None:
        return []
    rough = repository.some_progress(session, job_id, *ends, ROUGHLY)
    found = {event.id: event for event in rough}
    if len(rough) >= ROUGHLY // 2:  # else these are all there are
        for first, last in _stretches(rough, ends):
            for event in repository.some_progress(session, job_id, first, last, COURSE):
                found[event.id] = event
    return [found[one] for one in sorted(found)]


def _stretches(events: Sequence[JobEvent], ends: tuple[int, int]) -> list[tuple[int, int]]:
    """Return from which to which event each of the stages with numbers goes, at most."""
    stretches: dict[str, tuple[int, int]] = {}
    for at, event in enumerate(events):
        if not event.data.get("numbers"):
            continue
        before = events[at - 1].id if at else ends[0]
        after = events[at + 1].id if at + 1 < len(events) else ends[1]
        first, last = stretches.get(event.data.get("stage", ""), (before, after))
        stretches[event.data.get("stage", "")] = (min(first, before), max(last, after))
    return list(stretches.values())[:MOST_STAGES]


def seconds_left(job: Job) -> float | None:
    """Return what is left of the stage, and of the stages after it where an estimate is known; None if unknown."""
    progress: Mapping[str, Any] = job.progress or {}
    left = progress.get("eta_seconds")
    if job.state != State.RUNNING.value or not isinstance(left, int | float):
        return None
    expected = (job.estimate or {}).get("seconds")
    if not isinstance(expected, Mapping) or progress.get("stage") not in STAGES:
        return float(left)
    later = STAGES[STAGES.index(progress["stage"]) + 1 :]
    return float(left) + sum(float(expected.get(stage, 0.0)) for stage in later)
