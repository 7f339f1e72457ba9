"""Parts of a job: planned by who holds it, claimed by anybody, fenced, kept over the job's attempts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.jobs import parts
from services.jobs import service as jobs
from services.jobs.errors import LostJobError, LostPartError
from services.jobs.models import Job, Part
from services.jobs.parts import PartClaim
from services.jobs.service import Failure
from services.kit.db import now
from services.kit.resources import Resources
from tests.services.conftest import Bell
from tests.services.jobs.conftest import Make, add_job, person

DIGEST = "a" * 64


def running(resources: Resources, job: Job) -> int:
    """Let the job run, and return its fence."""
    with resources.sessions.begin() as session:
        claim = jobs.claim(session, job.id, worker="w1", settings=resources.settings.jobs)
    assert claim is not None
    return claim.fence


def plan(resources: Resources, job_id: UUID, fence: int, count: int = 3) -> list[str]:
    with resources.transaction() as session:
        return [part.state for part in parts.plan(session, job_id, fence, range(count))]


def claim(
    resources: Resources, job_id: UUID, worker: str = "w2", ago: float = 0
) -> PartClaim | None:
    with resources.sessions.begin() as session:
        return parts.claim_part(
            session, job_id, worker, resources.settings.jobs, at=now() - timedelta(seconds=ago)
        )


def held(resources: Resources, job_id: UUID, ago: float = 0) -> PartClaim:
    got = claim(resources, job_id, ago=ago)
    assert got is not None
    return got


def states(resources: Resources, job_id: UUID) -> list[str]:
    with resources.sessions() as session:
        return [part.state for part in parts.parts_of(session, job_id)]


@pytest.fixture
def job(make: Make) -> Job:
    return make()


def test_planned_parts_ring_for_idle_workers(resources: Resources, bell: Bell, job: Job) -> None:
    fence = running(resources, job)
    bell.rung.clear()
    assert plan(resources, job.id, fence) == ["queued"] * 3
    assert bell.rung == [("ppdd.teach", job.id)] * 3


def test_only_who_holds_the_job_plans(resources: Resources, job: Job) -> None:
    fence = running(resources, job)
    with pytest.raises(LostJobError):
        plan(resources, job.id, fence - 1)
    assert states(resources, job.id) == []


def test_every_part_is_claimed_once(node: Resources) -> None:
    job = add_job(node, person(node))
    plan(node, job.id, running(node, job), 4)
    gate = threading.Barrier(6)

    def take(number: int) -> PartClaim | None:
        gate.wait()
        return claim(node, job.id, f"w{number}")

    with ThreadPoolExecutor(6) as pool:
        taken = [one for one in pool.map(take, range(6)) if one is not None]
    while one := claim(node, job.id):  # who came while the rows were locked comes again
        taken.append(one)
    assert sorted(one.number for one in taken) == [0, 1, 2, 3]


def test_parts_of_a_job_that_does_not_run_are_not_claimed(resources: Resources, job: Job) -> None:
    fence = running(resources, job)
    plan(resources, job.id, fence)
    with resources.sessions.begin() as session:
        jobs.give_back(session, job.id, fence, "bye")
    assert claim(resources, job.id) is None
    running(resources, job)
    assert claim(resources, job.id) is not None


def test_a_part_is_made_once(resources: Resources, job: Job) -> None:
    plan(resources, job.id, running(resources, job))
    old = held(resources, job.id, ago=3600)
    with resources.transaction() as session:
        parts.sweep_parts(session)
    new = held(resources, job.id)
    assert (new.number, new.fence) == (old.number, old.fence + 1)
    settings = resources.settings.jobs
    with resources.sessions.begin() as session:
        for late in (
            lambda: parts.heartbeat_part(session, old, settings),
            lambda: parts.finish_part(session, old, "b" * 64),
            lambda: parts.fail_part(session, old, "x", retry=False),
            lambda: parts.give_part_back(session, old),
        ):
            with pytest.raises(LostPartError):
                late()
        parts.finish_part(session, new, DIGEST)
        with pytest.raises(LostPartError):
            parts.finish_part(session, new, "b" * 64)
    with resources.sessions() as session:
        assert [part.sha256 for part in parts.parts_of(session, job.id)] == [DIGEST, None, None]


def test_a_part_is_to_stop_when_its_job_is(resources: Resources, job: Job) -> None:
    fence = running(resources, job)
    plan(resources, job.id, fence)
    part, settings = held(resources, job.id), resources.settings.jobs
    with resources.sessions.begin() as session:
        assert not parts.heartbeat_part(session, part, settings)
        jobs.cancelled(session, job.id, fence)
        assert parts.heartbeat_part(session, part, settings)


def test_a_failing_part_is_tried_as_often_as_its_job_may_be(
    resources: Resources, bell: Bell, job: Job
) -> None:
    plan(resources, job.id, running(resources, job), 1)
    outcomes = []
    for _ in range(resources.settings.jobs.max_attempts):
        part = held(resources, job.id)
        with resources.transaction() as session:
            outcomes.append(parts.fail_part(session, part, "no memory", retry=True))
    assert outcomes == [True] * 4 + [False]
    assert states(resources, job.id) == ["failed"]


def test_a_part_given_back_has_spent_no_attempt(resources: Resources, job: Job) -> None:
    plan(resources, job.id, running(resources, job), 1)
    with resources.transaction() as session:
        parts.give_part_back(session, held_in(session, resources, job.id))
    with resources.sessions() as session:
        (part,) = session.scalars(select(Part))
        assert (part.state, part.attempts) == ("queued", 0)


def held_in(session: Session, resources: Resources, job_id: UUID) -> PartClaim:
    got = parts.claim_part(session, job_id, "w", resources.settings.jobs)
    assert got is not None
    return got


def test_the_next_attempt_keeps_what_is_made_and_tries_what_failed(
    resources: Resources, bell: Bell, job: Job
) -> None:
    fence = running(resources, job)
    plan(resources, job.id, fence, 2)
    done, failed = held(resources, job.id), held(resources, job.id)
    with resources.transaction() as session:
        parts.finish_part(session, done, DIGEST)
        parts.fail_part(session, failed, "x", retry=False)
        jobs.fail(session, job.id, fence, Failure("store", "away", retry=True))
    with resources.sessions.begin() as session:
        again = jobs.claim(
            session,
            job.id,
            worker="w3",
            settings=resources.settings.jobs,
            at=now() + timedelta(hours=1),
        )
    assert again is not None
    bell.rung.clear()
    assert plan(resources, job.id, again.fence) == ["succeeded", "queued", "queued"]
    assert len(bell.rung) == 2


def test_the_sweep_rings_for_parts_that_wait(resources: Resources, bell: Bell, job: Job) -> None:
    plan(resources, job.id, running(resources, job))
    held(resources, job.id, ago=3600)
    bell.rung.clear()
    with resources.transaction() as session:
        jobs.sweep(session)
    assert states(resources, job.id) == ["queued"] * 3
    assert bell.rung == [("ppdd.teach", job.id)]


def test_after_the_job_its_trajectories_may_go(resources: Resources, job: Job) -> None:
    fence = running(resources, job)
    plan(resources, job.id, fence, 1)
    part = held(resources, job.id)
    with resources.sessions.begin() as session:
        parts.finish_part(session, part, DIGEST)
        jobs.succeed(session, job.id, fence, result={})
    with resources.sessions() as session:
        (row,) = parts.parts_of(session, job.id)
        assert (row.state, row.sha256) == ("succeeded", None)
