"""Rules of source datasets: naming them, keeping uploads, what a check found, removing them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ppdd_core.data.archive_source import ZipSource
from ppdd_core.errors import SourceError
from services.audit import service as audit
from services.auth.principal import Principal
from services.datasets import places, repository
from services.datasets.models import SourceDataset, Thumbnail
from services.kit.db import READONLY, now
from services.kit.errors import CORE, ConflictError, NotFoundError
from services.kit.holds import holding
from services.kit.keyset import page_rows
from services.kit.resources import Resources
from services.kit.storage import Spooled

State = Literal["registered", "ready", "faulty", "removed"]

# The directory of a ZIP with 250,000 entries takes 160 MiB to look at: one at a time.
_one_archive = threading.Lock()


class DatasetExistsError(ConflictError):
    """There is a dataset of this name, or of these images, already; `dataset_id` says which."""

    slug, title = "dataset-exists", "There is such a dataset already"


class DatasetRemovedError(ConflictError):
    """The dataset was removed."""

    slug, title = "dataset-removed", "The dataset was removed"


class DatasetInUseError(ConflictError):
    """Jobs on the dataset wait or run."""

    slug, title = "dataset-in-use", "Jobs on the dataset wait or run"


@dataclass(frozen=True, slots=True)
class Description:
    """What a person says of a dataset: its name, and which rows of its manifest are meant."""

    name: str
    title: str
    rows: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found. `thumbnails` are digests of stored pictures by class and number."""

    usable: bool
    image_size: int
    findings: dict[str, Any]
    fingerprint: str | None = None
    thumbnails: dict[tuple[str, int], str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------ reading


def get(session: Session, dataset_id: UUID) -> SourceDataset:
    """Return the dataset, a removed one too; NotFoundError if there is none."""
    dataset = session.get(SourceDataset, dataset_id)
    if dataset is None:
        raise NotFoundError(f"there is no dataset {dataset_id}")
    return dataset


def get_present(session: Session, dataset_id: UUID) -> SourceDataset:
    """Return the dataset; DatasetRemovedError where it was removed, NotFoundError if there is none."""
    dataset = get(session, dataset_id)
    if dataset.state == "removed":
        raise DatasetRemovedError(f"dataset {dataset.name} was removed; register it again")
    return dataset


def page(
    session: Session, *, state: State | None, cursor: str | None, limit: int
) -> tuple[Sequence[SourceDataset], str | None]:
    """Return a page of datasets, newest first; removed ones only where that state is asked for."""
    return page_rows(
        session, repository.listed(state), SourceDataset.id, cursor=cursor, limit=limit
    )


# ------------------------------------------------------------------------------------------ adding


def register(
    session: Session,
    principal: Principal,
    described: Description,
    roots: Sequence[Path],
    *,
    path: str,
    root: int | None = None,
) -> SourceDataset:
    """Add a dataset that lies below a data root; nothing of it is read yet.

    DatasetExistsError for a name or images that are there already; places.UnknownPathError for a path that is
    nothing, or not below a root.
    """
    found = str(places.find(roots, path, number=root))
    refuse_known(session, described, path=found)
    return _add(session, principal, described, "dataset.register", path=found)


def keep_upload(
    resources: Resources, principal: Principal, described: Description, upload: Spooled
) -> SourceDataset:
    """Add an uploaded ZIP as a dataset, its bytes in the store. Takes transactions of its own.

    A ZIP that is none, or hostile, is refused with SourceError before anything is stored.
    """
    try:
        with _one_archive:
            ZipSource(upload.path).close()
    except SourceError as fault:
        with resources.transaction() as session:
            _, _, slug, _ = next(row for row in CORE if isinstance(fault, row[0]))
            audit.record(
                session, principal.actor, "dataset.upload", described.name,
                outcome="refused", detail={"reason": slug, "bytes": upload.size},
            )  # fmt: skip
        raise
    with resources.sessions() as session:
        session.connection(execution_options={READONLY: True})
        refuse_known(session, described, upload_sha256=upload.sha256)
    with holding(resources.sessions, [upload.sha256]):
        resources.store.put_file(upload.path, upload.sha256)
        with resources.transaction() as session:
            refuse_known(session, described, upload_sha256=upload.sha256)
            return _add(
                session,
                principal,
                described,
                "dataset.upload",
                upload_sha256=upload.sha256,
                upload_size=upload.size,
            )


def refuse_known(
    session: Session,
    described: Description,
    *,
    path: str | None = None,
    upload_sha256: str | None = None,
) -> None:
    """Raise DatasetExistsError where there is a dataset of this name, or of the same images."""
    named = repository.by_name(session, described.name)
    if named is not None:
        was = "was used by a removed dataset" if named.state == "removed" else "is taken"
        raise DatasetExistsError(
            f"the name {described.name!r} {was}; choose another", dataset_id=str(named.id)
        )
    if path is None and upload_sha256 is None:
        return
    same = repository.alike(
        session, path=path, upload_sha256=upload_sha256, rows=dict(described.rows)
    )
    if same is not None:
        raise DatasetExistsError(
            f"dataset {same.name!r} has the same images; use that one", dataset_id=str(same.id)
        )


# ------------------------------------------------------------------------------------------ changing


def record_check(session: Session, dataset_id: UUID, checked: Checked) -> None:
    """Keep what a check found, and its thumbnails instead of those before."""
    there = repository.change(
        session,
        dataset_id,
        state="ready" if checked.usable else "faulty",
        checked_at=now(),
        image_size=checked.image_size,
        fingerprint=checked.fingerprint,
        findings=checked.findings,
    )
    if not there:
        raise DatasetRemovedError(f"dataset {dataset_id} was removed while it was checked")
    repository.replace_thumbnails(session, dataset_id, checked.thumbnails)


def remove(session: Session, principal: Principal, dataset_id: UUID) -> None:
    """Remove a dataset of the caller's own: its pictures and its upload go, the row stays for those made from it.

    Images below a data root are never touched. DatasetInUseError while jobs on it wait or run.
    """
    dataset = get(session, dataset_id)
    principal.require_own(dataset.owner_id, "dataset")
    if dataset.state == "removed":
        raise DatasetRemovedError(f"dataset {dataset.name} was removed already")
    active = repository.count_active_jobs(session, dataset_id)
    if active:
        raise DatasetInUseError(
            f"{active} {'job' if active == 1 else 'jobs'} on dataset {dataset.name} wait or run; cancel them first"
        )
    upload = dataset.upload_sha256
    # without the digest the collector of unreferenced objects takes the upload; the audit log keeps it
    repository.change(session, dataset_id, state="removed", upload_sha256=None)
    repository.replace_thumbnails(session, dataset_id, {})
    repository.drop_pictures(session, dataset_id)
    audit.record(
        session, principal.actor, "dataset.remove", str(dataset_id),
        detail={"name": dataset.name, **({"upload_sha256": upload} if upload else {})},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ thumbnails


def show_thumbnails(session: Session, principal: Principal, dataset_id: UUID) -> list[Thumbnail]:
    """Return the dataset's thumbnails; that somebody looked is audited."""
    dataset = get(session, dataset_id)
    found = repository.thumbnails(session, dataset_id)
    audit.record(
        session,
        principal.actor,
        "dataset.view",
        str(dataset.id),
        detail={"thumbnails": len(found)},
    )
    return found


def thumbnail(session: Session, dataset_id: UUID, label: str, number: int) -> Thumbnail:
    """Return one thumbnail; NotFoundError if there is none."""
    found = repository.thumbnail(session, dataset_id, label, number)
    if found is None:
        raise NotFoundError(f"dataset {dataset_id} has no such thumbnail; it may not be checked")
    return found


def _add(
    session: Session, principal: Principal, described: Description, action: str, **place: Any
) -> SourceDataset:
    dataset = SourceDataset(
        name=described.name, title=described.title, owner_id=principal.user_id, rows=dict(described.rows),
        state="registered", **place,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(dataset)
    except IntegrityError:  # somebody was quicker
        refuse_known(session, described)
        raise
    audit.record(
        session, principal.actor, action, str(dataset.id),
        detail={"name": described.name, "rows": len(described.rows), "bytes": place.get("upload_size")},
    )  # fmt: skip
    return dataset
