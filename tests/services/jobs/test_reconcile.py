"""The reconciler: at once, again and again, whatever happens; and what is thinned out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import structlog
from sqlalchemy import func, select

from services.jobs import reconcile, repository, workers
from services.jobs import service as jobs
from services.jobs.models import Job, JobEvent
from services.kit.db import Base, now
from services.kit.resources import Resources, open_resources
from services.settings import Settings
from tests.services.conftest import Bell
from tests.services.jobs.conftest import Make, add_job, person, read


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about."""
    limit = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


@contextmanager
def reconciling(resources: Resources) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=reconcile.keep_reconciling, args=(resources, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def lost(resources: Resources, job: Job) -> None:
    with resources.sessions.begin() as session:
        jobs.claim(
            session,
            job.id,
            worker="w",
            settings=resources.settings.jobs,
            at=now() - timedelta(hours=1),
        )


def note(resources: Resources, name: str, **given: object) -> None:
    with resources.sessions.begin() as session:
        workers.note_worker(
            session,
            name,
            device="cpu",
            version="1",
            free_disk_bytes=1,
            **given,  # type: ignore[arg-type]
        )


def test_it_sweeps_at_once(resources: Resources, make: Make) -> None:
    job = make()
    lost(resources, job)
    with reconciling(resources):
        until(lambda: read(resources, job.id).state == "queued")


def test_an_outage_is_logged_once_and_survived(settings: Settings, bell: Bell) -> None:
    """A database without tables stands for one that is away: every statement fails, until it is there."""
    fast = settings.model_copy(
        update={"jobs": settings.jobs.model_copy(update={"sweep_seconds": 0.01})}
    )
    with (
        open_resources(fast, send=bell) as broken,
        structlog.testing.capture_logs() as logs,
        reconciling(broken),
    ):
        until(lambda: any(entry["event"] == "reconciler.failed" for entry in logs))
        time.sleep(0.1)  # several sweeps, which say nothing more
        Base.metadata.create_all(broken.engine)
        until(lambda: any(entry["event"] == "reconciler.recovered" for entry in logs))
        job = add_job(broken, person(broken))
        lost(broken, job)
        until(lambda: read(broken, job.id).state == "queued")
    events = [entry["event"] for entry in logs if entry["event"].startswith("reconciler")]
    assert events == ["reconciler.failed", "reconciler.recovered"]


def test_bells_do_not_pile_up_while_all_workers_are_busy(
    resources: Resources, bell: Bell, make: Make
) -> None:
    waiting = [make() for _ in range(8)]
    bell.rung.clear()
    reconcile.reconcile(resources)
    assert bell.rung == [("ppdd.work", waiting[0].id)]  # no worker is known: there may be one
    bell.rung.clear()
    note(resources, "busy", job_id=waiting[0].id)
    reconcile.reconcile(resources)
    assert bell.rung == []
    note(resources, "idle")
    reconcile.reconcile(resources)
    assert [job_id for _, job_id in bell.rung] == [job.id for job in waiting[:4]]


def test_the_progress_of_an_ended_job_is_thinned_evenly(
    node: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "KEPT_PROGRESS", 11)
    caller = person(node)
    ended, running = add_job(node, caller), add_job(node, caller)
    for job in (ended, running):
        with node.sessions.begin() as session:
            claim = jobs.claim(session, job.id, worker="w", settings=node.settings.jobs)
            assert claim is not None
            for done in range(101):
                jobs.tell(session, job.id, "progress", {"done": done})
    with node.sessions.begin() as session:
        jobs.succeed(session, ended.id, 1, result={})
    reconcile.tidy(node)
    with node.sessions() as session:
        left = {
            job.id: [
                event.data["done"]
                for event in session.scalars(
                    select(JobEvent)
                    .where(JobEvent.job_id == job.id, JobEvent.kind == "progress")
                    .order_by(JobEvent.id)
                )
            ]
            for job in (ended, running)
        }
        states = session.scalar(
            select(func.count()).where(JobEvent.job_id == ended.id, JobEvent.kind == "state")
        )
    assert left[ended.id] == list(range(0, 101, 10))
    assert left[running.id] == list(range(101))
    assert states == 3
    reconcile.tidy(node)
