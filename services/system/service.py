"""What the node knows of itself: which of its parts work, what it is, what it holds."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.catalogue.models import PackageVersion
from services.datasets.models import SourceDataset
from services.detectors.models import Detector
from services.jobs import workers
from services.jobs.models import Job
from services.kit.db import READONLY
from services.kit.queue import celery_client
from services.kit.resources import Resources
from services.kit.storage import StoreError
from services.settings import Settings

NEEDED = ("database", "store")  # without these a request cannot be served
FRESH_SECONDS = (
    3.0  # anybody may ask; nobody may make the node write to its store more often than so
)
log = structlog.get_logger(__name__)


@dataclass
class Health:
    """Which parts work. Looked at when asked, at most every FRESH_SECONDS, by one caller at a time."""

    resources: Resources
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: tuple[float, dict[str, str | None]] | None = None

    def faults(self) -> dict[str, str | None]:
        """Return each part's fault in words, None where it works."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > FRESH_SECONDS:
                found = {name: look(self.resources) for name, look in PARTS.items()}
                self._seen = (time.monotonic(), found)
            return self._seen[1]


def database_fault(resources: Resources) -> str | None:
    """Return what is wrong with the database, if anything."""
    try:
        with resources.sessions() as session:
            session.connection(execution_options={READONLY: True})
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as err:
        log.warning("database.fault", error=type(err).__name__)
        return "the database does not answer"
    return None


def store_fault(resources: Resources) -> str | None:
    """Return what is wrong with the object store, if anything."""
    try:
        resources.store.check()
    except StoreError as err:
        log.warning("store.fault", slug=err.slug, detail=err.detail)
        return "nothing can be written to the object store and read back"
    return None


def broker_fault(resources: Resources) -> str | None:
    """Return what is wrong with the message broker, if anything."""
    settings = resources.settings
    try:
        client = celery_client(settings)
        if settings.broker.url:
            with client.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=3)
        elif not os.access(settings.data_dir / "queue" / "messages", os.W_OK):
            return "the folder of messages cannot be written to"
    except (OperationalError, OSError) as err:
        log.warning("broker.fault", error=type(err).__name__)
        return "the message broker does not answer; new jobs wait until it does"
    return None


def worker_fault(resources: Resources) -> str | None:
    """Return what is wrong with the workers, if anything."""
    try:
        with resources.sessions() as session:
            session.connection(execution_options={READONLY: True})
            if workers.living(session):
                return None
    except DBAPIError:
        return "no worker can be heard of without the database"
    return f"no worker was heard of for {workers.SILENT.seconds} seconds; queued jobs wait for one"


PARTS: dict[str, Callable[[Resources], str | None]] = {
    "database": database_fault,
    "store": store_fault,
    "broker": broker_fault,
    "worker": worker_fault,
}


@dataclass(frozen=True, slots=True)
class Disk:
    """Room where the node keeps its data, in bytes."""

    free: int
    total: int


def disk(settings: Settings) -> Disk:
    """Return how much room there is where the node keeps its data."""
    usage = shutil.disk_usage(settings.data_dir)
    return Disk(free=usage.free, total=usage.total)


def counts(session: Session) -> dict[str, dict[str, int]]:
    """Return how many jobs, package versions, datasets and detectors there are in each state."""
    columns: dict[str, InstrumentedAttribute[Any]] = {
        "jobs": Job.state,
        "packages": PackageVersion.state,
        "datasets": SourceDataset.state,
        "detectors": Detector.state,
    }
    return {name: _by_state(session, column) for name, column in columns.items()}


def _by_state(session: Session, column: InstrumentedAttribute[Any]) -> dict[str, int]:
    rows = session.execute(select(column, func.count()).group_by(column).order_by(column))
    return {str(state): int(count) for state, count in rows}
