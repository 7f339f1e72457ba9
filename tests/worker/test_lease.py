"""Holding on to a job: renewed in time, given up in time, whatever the database does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from services.jobs.errors import LostJobError
from services.kit.db import Sessions
from services.kit.resources import open_resources
from services.settings import JobSettings, load_settings
from tests.worker.conftest import wait_until
from worker.lease import Lease, own_sessions

Renew = Callable[[Session], bool]


@pytest.fixture
def hold() -> Callable[[Renew, float], Lease]:
    def started(renew: Renew, lease_seconds: float) -> Lease:
        settings = JobSettings(lease_seconds=lease_seconds, heartbeat_seconds=0.02)
        lease = Lease(Sessions(), settings, renew)
        lease.start()
        return lease

    return started


def test_it_is_renewed_until_closed(hold: Callable[[Renew, float], Lease]) -> None:
    beats: list[int] = []

    def beat(_: Session) -> bool:
        beats.append(1)
        return False

    lease = hold(beat, 3.0)
    wait_until(lambda: len(beats) > 180, "beats")  # longer than one lease lasts
    assert not lease.lost
    lease.close()
    wait_until(lambda: lease.lost, "the end", seconds=10)


def test_it_hears_that_the_job_shall_stop(hold: Callable[[Renew, float], Lease]) -> None:
    lease = hold(lambda _: True, 60)
    wait_until(lambda: lease.stop_asked, "the wish")
    assert not lease.lost
    lease.close()


def test_a_job_given_to_another_is_lost_at_once(hold: Callable[[Renew, float], Lease]) -> None:
    def taken(_: Session) -> bool:
        raise LostJobError("another has it")

    lease = hold(taken, 60)
    wait_until(lambda: lease.lost, "the loss")


def test_a_database_that_comes_back_in_time_costs_nothing(
    hold: Callable[[Renew, float], Lease],
) -> None:
    tries: list[int] = []

    def flaky(_: Session) -> bool:
        tries.append(1)
        if len(tries) < 10:
            raise OperationalError("select", {}, Exception("away"))
        return False

    lease = hold(flaky, 30)
    wait_until(lambda: len(tries) > 12, "tries")
    assert not lease.lost
    lease.close()


def test_a_database_that_stays_away_costs_the_job_before_another_may_have_it(
    hold: Callable[[Renew, float], Lease],
) -> None:
    def away(_: Session) -> bool:
        raise OperationalError("select", {}, Exception("away"))

    lease = hold(away, 1.0)
    wait_until(lambda: lease.lost, "the loss", seconds=10)
    assert lease._seconds < 1.0, "before the lease of the table ends"
    lease.close()


def test_a_database_that_answers_nothing_at_all_does_too(
    hold: Callable[[Renew, float], Lease],
) -> None:
    for_ever = threading.Event()
    lease = hold(lambda _: for_ever.wait(), 1.0)
    wait_until(lambda: lease.lost, "the loss", seconds=5)
    for_ever.set()
    lease.close()


def test_a_lease_has_room_for_several_heartbeats_however_it_is_set() -> None:
    beats: list[int] = []

    def beat(_: Session) -> bool:
        beats.append(1)
        return False

    lease = Lease(Sessions(), JobSettings(lease_seconds=2.0, heartbeat_seconds=60), beat)
    lease.start()
    wait_until(lambda: lease.lost or len(beats) > 5, "beats", seconds=20)
    assert not lease.lost
    lease.close()


def test_a_renewal_that_came_late_says_how_late_and_why(
    hold: Callable[[Renew, float], Lease],
) -> None:
    beats: list[float] = []

    def slow_once(_: Session) -> bool:
        beats.append(time.monotonic())
        if len(beats) == 2:
            time.sleep(0.5)
        return False

    with capture_logs() as lines:
        lease = hold(slow_once, 60)
        wait_until(lambda: len(beats) > 3, "beats")
        lease.close()
    late = next(line for line in lines if line["write_seconds"] >= 0.5)
    assert (late["event"], late["lost"]) == ("lease.late", False)
    assert late["late_seconds"] >= late["write_seconds"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_try_does_not_wait_for_others_until_the_lease_is_over(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given: dict[str, object] = {"data_dir": tmp_path, "jobs": {"lease_seconds": 4.0}}
    if kind == "postgresql":
        given["database"] = {"url": request.getfixturevalue("postgres_url")}
    lock = text("SELECT pg_advisory_xact_lock(1)" if kind == "postgresql" else "SELECT 1")
    settings = load_settings({}, **given)
    with (
        open_resources(settings, send=print) as resources,
        own_sessions(settings) as own,
        resources.sessions.begin() as holder,
    ):
        holder.execute(lock)  # on SQLite, beginning is enough
        began = time.monotonic()
        with pytest.raises(OperationalError), own.begin() as session:
            session.execute(lock)
        assert time.monotonic() - began < 3.0, "several tries fit into the lease"
