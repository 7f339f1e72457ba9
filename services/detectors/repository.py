"""Queries on detectors, their evaluations, and images that wait for a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.datasets.models import SourceDataset
from services.detectors.models import Detector, DetectorState, Evaluation, PredictionImage
from services.jobs.models import ENDED, Job, Kind, State
from services.kit.keyset import page_rows


def list_detectors(
    session: Session, *, cursor: str | None, limit: int
) -> tuple[Sequence[Detector], str | None]:
    """Return a page of the detectors that were not removed, newest first."""
    statement = select(Detector).where(Detector.state != DetectorState.REMOVED.value)
    return page_rows(session, statement, Detector.id, cursor=cursor, limit=limit)


def find_by_name(session: Session, name: str) -> Detector | None:
    """Return the detector of that name that was not removed, or None."""
    return session.scalar(
        select(Detector).where(Detector.name == name, Detector.state != DetectorState.REMOVED.value)
    )


def find_by_job(session: Session, job_id: UUID) -> Detector | None:
    """Return the detector that a job trains, or None."""
    return session.scalar(select(Detector).where(Detector.job_id == job_id))


def jobs_by_id(session: Session, ids: Iterable[UUID]) -> dict[UUID, Job]:
    """Return the jobs of these ids."""
    return {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(list(ids))))}


def list_evaluations(
    session: Session, detector_id: UUID, *, cursor: str | None, limit: int
) -> tuple[Sequence[Evaluation], str | None]:
    """Return a page of a detector's evaluations, newest first."""
    statement = select(Evaluation).where(Evaluation.detector_id == detector_id)
    return page_rows(session, statement, Evaluation.id, cursor=cursor, limit=limit)


def unfinished(session: Session, kind: Kind, *, limit: int) -> Sequence[Job]:
    """Return jobs of a kind that have not ended, newest first."""
    states = [state.value for state in State if state not in ENDED]
    return session.scalars(
        select(Job)
        .where(Job.kind == kind.value, Job.state.in_(states))
        .order_by(Job.id.desc())
        .limit(limit)
    ).all()


def evaluations_on(
    session: Session, dataset_id: UUID, *, limit: int
) -> Sequence[tuple[Detector, Evaluation]]:
    """Return the latest evaluations on a dataset with their detectors, removed ones left out, newest first."""
    found = session.execute(
        select(Detector, Evaluation)
        .join(Detector, Detector.id == Evaluation.detector_id)
        .where(Evaluation.dataset_id == dataset_id, Detector.state != DetectorState.REMOVED.value)
        .order_by(Evaluation.id.desc())
        .limit(limit)
    )
    return [(row[0], row[1]) for row in found]


def dataset_names(session: Session, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the names of these datasets."""
    found = session.execute(
        select(SourceDataset.id, SourceDataset.name).where(SourceDataset.id.in_(list(ids)))
    )
    return {row.id: row.name for row in found}


def images_left(session: Session, *, limit: int) -> Sequence[PredictionImage]:
    """Return images whose job has ended."""
    return session.scalars(
        select(PredictionImage)
        .join(Job, Job.id == PredictionImage.job_id)
        .where(Job.state.in_([state.value for state in ENDED]))
        .limit(limit)
    ).all()
