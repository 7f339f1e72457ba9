"""Waiting for a job's end."""

from __future__ import annotations

import threading
import time

import pytest

from services.jobs import service as jobs
from services.jobs import waiting
from services.kit.db import new_id
from services.kit.errors import NotFoundError
from services.kit.resources import Resources
from tests.services.jobs.conftest import Make


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("respond-async", 0.0),
        ("wait=10", 10.0),
        ('respond-async, wait="5"', 5.0),
        ("Wait = 7; q=1", 7.0),
        ("wait=999999", 60.0),
        ("wait=-1", 0.0),
        ("await=5", 0.0),
        ("wait=9999999999", 0.0),
    ],
)
def test_a_preference_is_read(header: str | None, seconds: float) -> None:
    assert waiting.preferred_wait(header) == seconds


def test_the_end_is_seen_when_it_comes(resources: Resources, make: Make) -> None:
    job = make()
    with resources.sessions.begin() as session:
        claim = jobs.claim(session, job.id, worker="w", settings=resources.settings.jobs)
    assert claim is not None

    def end() -> None:
        with resources.sessions.begin() as session:  # no waiter is in the way of a writer
            jobs.succeed(session, job.id, claim.fence, result={"x": 1})

    timer = threading.Timer(0.2, end)
    timer.start()
    seen = waiting.wait_for(resources, job.id, 30)
    timer.join()
    assert (seen.state, seen.result) == ("succeeded", {"x": 1})


def test_a_job_that_does_not_end_is_returned_as_it_is(resources: Resources, make: Make) -> None:
    began = time.monotonic()
    assert waiting.wait_for(resources, make().id, 0.2).state == "queued"
    assert time.monotonic() - began >= 0.2


def test_too_many_do_not_wait(
    resources: Resources, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waiter holds a thread, and other requests need some too."""
    monkeypatch.setattr(waiting, "_places", threading.BoundedSemaphore(1))
    job_id = make().id
    first = threading.Thread(target=waiting.wait_for, args=(resources, job_id, 5))
    first.start()
    while waiting._places._value:
        time.sleep(0.001)
    began = time.monotonic()
    assert waiting.wait_for(resources, job_id, 5).state == "queued"
    assert time.monotonic() - began < 4
    with resources.sessions.begin() as session:
        claim = jobs.claim(session, job_id, worker="w", settings=resources.settings.jobs)
        assert claim is not None
        jobs.succeed(session, job_id, claim.fence, result={})
    first.join(5)
    assert not first.is_alive()


def test_there_is_nothing_to_wait_for(resources: Resources) -> None:
    with pytest.raises(NotFoundError):
        waiting.wait_for(resources, new_id(), 1)
