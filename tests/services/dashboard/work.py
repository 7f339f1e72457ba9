"""Datasets and jobs for tests of their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from services.auth.permissions import Role
from services.auth.principal import Principal
from services.datasets.models import SourceDataset, Thumbnail
from services.jobs import service as jobs
from services.jobs.models import Job, Kind
from services.kit.db import new_id, now
from services.kit.resources import Resources
from tests.services.dashboard.conftest import Browser

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
FOUND: dict[str, Any] = {
    "refusal": None,
    "images": 1234,
    "patients": 321,
    "patients_by_split": {"train": 250, "test": 71},
    "classes": {"COVID": 800, "Normal": 434},
    "splits": {},
    "unreadable": {"COVID": 2},
    "unreadable_reasons": {"is cut off": 2},
    "masks_left_out": 0,
    "passed_over": {},
    "sizes": {
        "width": {"smallest": 299, "median": 1024, "largest": 2048},
        "height": {"smallest": 299, "median": 1000, "largest": 2000},
        "bits": {"8": 1234},
    },
    "grey": {"mean": 120.0, "sd": 60.0, "histogram": [1] * 256},
    "grey_by_class": {},
    "findings": [
        {
            "code": "duplicates",
            "severity": "warning",
            "message": "7 images are copies of others.",
            "advice": "Remove the copies.",
            "count": 7,
        }
    ],
}


def as_caller(browser: Browser, role: Role = Role.RESEARCHER) -> Principal:
    """Return who is logged in, as services know them."""
    assert browser.user_id is not None
    return Principal(browser.user_id, role.value, role, "session", new_id())


def add_dataset(resources: Resources, owner_id: UUID, name: str = "chests", **given: Any) -> UUID:
    """Add a dataset that was checked, with a thumbnail."""
    values = {
        "title": name.title(), "path": f"/images/{name}", "rows": {}, "state": "ready",
        "checked_at": now(), "image_size": 112, "fingerprint": "f" * 64, "findings": FOUND, **given,
    }  # fmt: skip
    with resources.sessions.begin() as session:
        row = SourceDataset(name=name, owner_id=owner_id, **values)
        session.add(row)
        session.flush()
        if row.checked_at is not None:
            session.add(Thumbnail(dataset_id=row.id, label="COVID", number=0, sha256="0" * 64))
    return row.id


def add_job(resources: Resources, owner: Principal, **given: Any) -> Job:
    """Add a queued job."""
    values = {"kind": Kind.CHECK, "title": "Check chests", "spec": {"image_size": 32}, **given}
    with resources.transaction() as session:
        job, _ = jobs.create(session, resources.settings.jobs, owner, **values)
    return job


def claimed(resources: Resources, job: Job) -> int:
    """Let a worker take the job; return its fence."""
    with resources.sessions.begin() as session:
        held = jobs.claim(session, job.id, worker="gpu@one", settings=resources.settings.jobs)
    assert held is not None
    return held.fence


def reported(resources: Resources, job: Job, fence: int, *reports: Mapping[str, Any]) -> None:
    """Let the worker report progress."""
    with resources.sessions.begin() as session:
        for report in reports:
            jobs.note_progress(session, job.id, fence, report)
