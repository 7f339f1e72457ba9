"""Holding on to a job: renewed in time, given up in time, whatever the database does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from services.jobs.errors import LostJobError
from services.kit.db import Sessions
from services.settings import JobSettings
from tests.worker.conftest import wait_until
from worker.lease import Lease

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
