"""Gauges for Prometheus, read from the database when they are asked for. No ids and no names are labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.audit.models import AuditEvent
from services.catalogue.models import PackageVersion
from services.jobs import workers
from services.jobs.models import Job, State
from services.kit.db import now
from services.kit.metrics import REGISTRY
from services.settings import Settings


def render(session: Session, settings: Settings) -> bytes:
    """Return everything counted and measured, in Prometheus' text format."""
    gauges = CollectorRegistry()
    gauges.register(_Read([*_gauges(session, settings)]))
    return generate_latest(REGISTRY) + generate_latest(gauges)


class _Read:
    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def _gauges(session: Session, settings: Settings) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("ppdd_jobs", "Jobs by kind and state.", labels=["kind", "state"])
    for kind, state, count in session.execute(
        select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)
    ):
        jobs.add_metric([kind, state], count)
    yield jobs
    packages = GaugeMetricFamily("ppdd_packages", "Package versions by state.", labels=["state"])
    for state, count in session.execute(
        select(PackageVersion.state, func.count()).group_by(PackageVersion.state)
    ):
        packages.add_metric([state], count)
    yield packages
    yield _gauge(
        "ppdd_jobs_oldest_queued_seconds", "How long the oldest queued job waits.", _oldest(session)
    )
    yield _gauge("ppdd_workers_living", "Workers heard of lately.", len(workers.living(session)))
    yield _gauge(
        "ppdd_audit_events",
        "Length of the audit log.",
        session.scalar(select(func.max(AuditEvent.seq))) or 0,
    )
    yield _gauge(
        "ppdd_disk_free_bytes",
        "Free space where the node keeps its data.",
        shutil.disk_usage(settings.data_dir).free,
    )


def _oldest(session: Session) -> float:
    since = session.scalar(select(func.min(Job.created_at)).where(Job.state == State.QUEUED.value))
    return max(0.0, (now() - since).total_seconds()) if since else 0.0


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)
