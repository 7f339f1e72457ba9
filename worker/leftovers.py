"""Folders in `work_dir` that nobody needs any more: of jobs that succeeded, or ended long ago, or are gone."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs.models import ENDED, Job, State
from services.kit.db import now
from services.kit.resources import Resources

KEPT = timedelta(days=14)  # of a failed or cancelled job, for it to be resumed from
log = structlog.get_logger(__name__)


def remove_leftovers(resources: Resources) -> None:
    """Remove the folders of jobs that will not go on; one that is resumed later all the same starts anew."""
    for folder in resources.settings.work_dir.glob("*/"):
        try:
            job_id = UUID(folder.name.partition(".")[0])
        except ValueError:
            continue
        try:
            with resources.sessions.begin() as session:
                needed = _needed(session, job_id, folder)
        except DBAPIError:
            return
        if not needed:
            shutil.rmtree(folder, ignore_errors=True)
            log.info("folder.removed", job_id=str(job_id))


def _needed(session: Session, job_id: UUID, folder: Path) -> bool:
    job = session.get(Job, job_id)
    if job is None or job.state == State.SUCCEEDED.value:
        return False
    if "." in folder.name:  # teachers trained for another worker's job
        return job.state not in ENDED
    return job.finished_at is None or now() - job.finished_at < KEPT
