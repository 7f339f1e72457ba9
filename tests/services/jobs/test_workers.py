"""Workers report themselves, and are forgotten when they are silent."""

from __future__ import annotations

from datetime import timedelta

from services.jobs import workers
from services.kit.db import new_id, now
from services.kit.resources import Resources


def note(resources: Resources, name: str, **given: object) -> None:
    values = {"device": "cpu", "version": "0.1", "free_disk_bytes": 10, **given}
    with resources.sessions.begin() as session:
        workers.note_worker(session, name, **values)  # type: ignore[arg-type]


def living(resources: Resources) -> dict[str, bool]:
    """Return the living workers, and whether they have a job."""
    with resources.sessions() as session:
        return {worker.name: worker.job_id is not None for worker in workers.living(session)}


def test_a_worker_is_known_as_it_was_last_heard_of(resources: Resources) -> None:
    note(resources, "gpu-1")
    note(resources, "gpu-1", job_id=new_id())
    assert living(resources) == {"gpu-1": True}
    note(resources, "gpu-1")
    assert living(resources) == {"gpu-1": False}


def test_a_silent_worker_does_not_live_and_is_forgotten_later(resources: Resources) -> None:
    note(resources, "old", at=now() - timedelta(minutes=2))
    note(resources, "older", at=now() - timedelta(days=8))
    note(resources, "new")
    assert living(resources) == {"new": False}
    with resources.sessions.begin() as session:
        assert workers.forget_old(session) == 1
        assert workers.forget_old(session) == 0
