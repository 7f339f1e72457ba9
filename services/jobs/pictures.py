"""Rules of a job's pictures: what it shows on the way, for those of this hospital who may see images.

They never enter a package, and no other hospital gets them. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.audit import service as audit
from services.auth.principal import Principal
from services.jobs import service as jobs
from services.jobs.models import JobPicture
from services.kit.db import now
from services.kit.errors import NotFoundError
from services.kit.keyset import AnyRow
from services.kit.text import clean, plain

MOST_BYTES = 200_000  # of one picture


class Shows(StrEnum):
    """What a picture shows."""

    STEP = "step"  # distilled images after `number` steps
    NEIGHBOUR = "neighbour"  # the real image most like distilled image `number`


MOST = {Shows.STEP: 12, Shows.NEIGHBOUR: 200}  # of one job


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with its place among the job's pictures; `label` is the class, where it is of one."""

    kind: Shows
    number: int
    png: bytes
    label: str = ""
    caption: Mapping[str, int | float | str] = field(default_factory=dict)


def add(session: Session, job_id: UUID, fence: int, pictures: Sequence[Picture]) -> int:
    """Keep those of the pictures whose places are free, as many as a job may have; return how many.

    An attempt that goes over the same step again adds nothing. LostJobError where the job is not held under `fence`;
    ValueError for more than MOST_BYTES.
    """
    jobs.require_held(session, job_id, fence)
    known = select(JobPicture.kind, JobPicture.number).where(JobPicture.job_id == job_id)
    taken = {(kind, number) for kind, number in session.execute(known)}
    added = 0
    for one in pictures:
        if len(one.png) > MOST_BYTES:
            raise ValueError(f"a picture has at most {MOST_BYTES:,} bytes, got {len(one.png):,}")
        full = sum(kind == one.kind for kind, _ in taken) >= MOST[one.kind]
        if full or (one.kind, one.number) in taken:
            continue
        taken.add((one.kind, one.number))
        session.add(
            JobPicture(
                job_id=job_id, kind=one.kind.value, number=one.number, label=clean(one.label, 200),
                caption=plain(one.caption), png=one.png, created_at=now(),
            )
        )  # fmt: skip
        added += 1
    return added


def listed(session: Session, job_id: UUID) -> Sequence[AnyRow]:
    """Return the job's pictures without their bytes, by kind and number; NotFoundError without the job."""
    jobs.get(session, job_id)
    columns = (
        JobPicture.kind, JobPicture.number, JobPicture.label, JobPicture.caption, JobPicture.created_at
    )  # fmt: skip
    found = select(*columns).where(JobPicture.job_id == job_id)
    return session.execute(found.order_by(JobPicture.kind, JobPicture.number)).all()


def show(session: Session, principal: Principal, job_id: UUID) -> Sequence[AnyRow]:
    """Return the same; that somebody looked is audited."""
    found = listed(session, job_id)
    detail = {"pictures": len(found)}
    audit.record(session, principal.actor, "job.view", str(job_id), detail=detail)
    return found


def count(session: Session, job_id: UUID) -> int:
    """Return how many pictures the job has."""
    of_job = select(func.count()).select_from(JobPicture).where(JobPicture.job_id == job_id)
    return session.execute(of_job).scalar_one()


def read(session: Session, job_id: UUID, kind: Shows, number: int) -> bytes:
    """Return one picture, a PNG; NotFoundError if there is none."""
    png = session.scalar(
        select(JobPicture.png).where(
            JobPicture.job_id == job_id,
            JobPicture.kind == kind.value,
            JobPicture.number == number,
        )
    )
    if png is None:
        raise NotFoundError(f"job {job_id} has no such picture")
    return png
