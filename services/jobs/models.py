"""Tables of jobs, their attempts, parts, events, log lines and pictures; and of the workers that do them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.kit.db import Base, Row

# SQLite counts up by itself only for INTEGER keys.
Sequence = BigInteger().with_variant(Integer, "sqlite")


class Kind(StrEnum):
    """What a job does."""

    CHECK = "check"
    DISTILL = "distill"
    PULL = "pull"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PREDICT = "predict"
    ESTIMATE = "estimate"


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Job(Row):
    """A unit of work. Changed by conditional UPDATEs only; `fence` counts the times it was claimed."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
        Index("ix_jobs_dataset_id_id", "dataset_id", "id"),
    )

    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    title: Mapped[str] = mapped_column(String(300))  # for people
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    dataset_id: Mapped[UUID | None] = mapped_column(ForeignKey("source_datasets.id"))
    spec: Mapped[dict[str, Any]]  # what to do; never a secret
    sealed: Mapped[str | None] = mapped_column(
        Text
    )  # a credential the job needs, sealed; gone when it ends
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    request_sha256: Mapped[str | None] = mapped_column(
        String(64), info={"object": False}
    )  # of what was asked under that key

    attempts: Mapped[int]
    max_attempts: Mapped[int]
    fence: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    retry_at: Mapped[datetime | None]  # not before then
    cancel_requested_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]  # of the first attempt
    finished_at: Mapped[datetime | None]

    progress: Mapped[dict[str, Any] | None]  # stage, done, total, eta_seconds, note
    estimate: Mapped[dict[str, Any] | None]
    actual: Mapped[dict[str, Any] | None]  # seconds by stage, peak bytes: beside the estimate
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]  # slug, detail, resumable


class Attempt(Row):
    """One time that a worker took a job."""

    __tablename__ = "job_attempts"
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    worker: Mapped[str] = mapped_column(String(200))
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(
        String(16)
    )  # succeeded, failed, cancelled, lost, stopped
    exit_code: Mapped[int | None]
    detail: Mapped[str | None] = mapped_column(Text)


class Part(Row):
    """One teacher of a distillation: claimed by any worker of the queue, as a job is."""

    __tablename__ = "job_parts"
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), index=True)
    fence: Mapped[int]
    attempts: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    sha256: Mapped[str | None] = mapped_column(
        String(64), index=True
    )  # the trajectory in the store
    error: Mapped[str | None] = mapped_column(Text)


class JobEvent(Base):
    """What a follower of a job is told, in order: state changes, progress with its numbers."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Sequence, primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(16))  # state, progress
    data: Mapped[dict[str, Any]]


class LogLine(Base):
    """One line that a job wrote. Kept after the job, whatever became of it."""

    __tablename__ = "job_log_lines"
    __table_args__ = (Index("ix_job_log_lines_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Sequence, primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    at: Mapped[datetime]
    text: Mapped[str] = mapped_column(Text)


class JobPicture(Base):
    """A picture that a job shows while it works: for those of this hospital who may see images, and for nobody else.

    `step`: distilled images after `number` steps. `neighbour`: the real image most like distilled image `number`.
    """

    __tablename__ = "job_pictures"
    __table_args__ = (UniqueConstraint("job_id", "kind", "number"),)

    id: Mapped[int] = mapped_column(Sequence, primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))  # step, neighbour
    number: Mapped[int]
    label: Mapped[str] = mapped_column(String(200))  # the class, where it is of one
    caption: Mapped[dict[str, Any]]  # numbers: the iteration, or how alike the two are
    png: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class Worker(Base):
    """A worker process, as it was last heard of."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    device: Mapped[str] = mapped_column(String(200))  # what it computes on, in words
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(index=True)
    free_disk_bytes: Mapped[int] = mapped_column(BigInteger)
    job_id: Mapped[UUID | None]
