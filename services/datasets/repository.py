"""Queries over source datasets and their thumbnails."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    Select,
    String,
    Uuid,
    column,
    delete,
    func,
    insert,
    select,
    table,
    update,
)
from sqlalchemy.orm import Session

from services.datasets.models import SourceDataset, Thumbnail

# Jobs lie downstream and may not be imported: their tables are asked, their rules are not.
_JOBS = table("jobs", column("id", Uuid()), column("dataset_id", Uuid()), column("state", String()))
_PICTURES = table("job_pictures", column("job_id", Uuid()))
_ACTIVE = ("queued", "running")


def by_name(session: Session, name: str) -> SourceDataset | None:
    """Return the dataset of this name, a removed one too."""
    return session.scalar(select(SourceDataset).where(SourceDataset.name == name))


def alike(
    session: Session, *, path: str | None, upload_sha256: str | None, rows: dict[str, str]
) -> SourceDataset | None:
    """Return a dataset that is there with the same images: the same place or upload, and the same rows of it."""
    place = (
        SourceDataset.path == path
        if upload_sha256 is None
        else SourceDataset.upload_sha256 == upload_sha256
    )
    found = session.scalars(
        select(SourceDataset).where(place, SourceDataset.state != "removed").limit(1000)
    )
    return next((one for one in found if one.rows == rows), None)


def listed(state: str | None) -> Select[SourceDataset]:
    """Return the statement for a list: datasets in a state, or all that are not removed."""
    wanted = SourceDataset.state != "removed" if state is None else SourceDataset.state == state
    return select(SourceDataset).where(wanted)


def count_active_jobs(session: Session, dataset_id: UUID) -> int:
    """Return how many jobs on the dataset wait or run."""
    on_it = (_JOBS.c.dataset_id == dataset_id) & _JOBS.c.state.in_(_ACTIVE)
    return session.scalars(select(func.count()).select_from(_JOBS).where(on_it)).one()


def change(session: Session, dataset_id: UUID, **values: Any) -> bool:
    """Change a dataset that is not removed; say whether it was there."""
    done = session.execute(
        update(SourceDataset)
        .where(SourceDataset.id == dataset_id, SourceDataset.state != "removed")
        .values(values)
        .execution_options(synchronize_session=False)
    )
    return bool(done.rowcount == 1)  # type: ignore[attr-defined]


def thumbnails(session: Session, dataset_id: UUID) -> list[Thumbnail]:
    """Return a dataset's thumbnails by class and number."""
    return list(
        session.scalars(
            select(Thumbnail)
            .where(Thumbnail.dataset_id == dataset_id)
            .order_by(Thumbnail.label, Thumbnail.number)
        )
    )


def thumbnail(session: Session, dataset_id: UUID, label: str, number: int) -> Thumbnail | None:
    """Return one thumbnail."""
    return session.scalar(
        select(Thumbnail).where(
            Thumbnail.dataset_id == dataset_id,
            Thumbnail.label == label,
            Thumbnail.number == number,
        )
    )


def drop_pictures(session: Session, dataset_id: UUID) -> None:
    """Delete what jobs on the dataset showed of its images."""
    on_it = select(_JOBS.c.id).where(_JOBS.c.dataset_id == dataset_id)
    session.execute(delete(_PICTURES).where(_PICTURES.c.job_id.in_(on_it)))


def replace_thumbnails(
    session: Session, dataset_id: UUID, digests: dict[tuple[str, int], str]
) -> None:
    """Let these (class, number) → sha256 be the dataset's thumbnails."""
    session.execute(delete(Thumbnail).where(Thumbnail.dataset_id == dataset_id))
    if digests:
        session.execute(
            insert(Thumbnail),
            [
                {"dataset_id": dataset_id, "label": label, "number": number, "sha256": sha256}
                for (label, number), sha256 in digests.items()
            ],
        )
