"""Failed logins are counted before they are looked at, per account and address, whether the account exists or not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from services.auth import throttle
from services.auth.models import LoginThrottle
from services.auth.throttle import LoginThrottledError, RefusalMeter
from services.kit.resources import Resources

AT = datetime(2026, 11, 25, 9, tzinfo=UTC)


def attempt(resources: Resources, name: str, address: str, at: datetime = AT) -> None:
    with resources.sessions.begin() as session:
        throttle.take(session, name, address, resources.settings.session, at)


def succeed(resources: Resources, name: str, address: str, at: datetime = AT) -> None:
    with resources.sessions.begin() as session:
        throttle.give_back(session, name, address, resources.settings.session, at)


def test_the_sixth_attempt_waits_a_quarter_of_an_hour_from_wherever_it_comes(
    resources: Resources,
) -> None:
    for number in range(5):
        attempt(resources, "maria", f"10.0.0.{number}")
    with pytest.raises(LoginThrottledError) as refused:
        attempt(resources, "maria", "10.0.0.9", AT + timedelta(minutes=5))
    assert refused.value.headers["Retry-After"] == "600"
    attempt(resources, "maria", "10.0.0.9", AT + timedelta(minutes=15))
    attempt(resources, "paolo", "10.0.0.9")


def test_an_address_that_tries_many_accounts_waits_too(resources: Resources) -> None:
    for number in range(20):
        attempt(resources, f"user{number}", "10.0.0.1")
    with pytest.raises(LoginThrottledError):
        attempt(resources, "somebody", "10.0.0.1")
    attempt(resources, "somebody", "10.0.0.2")


def test_one_success_forgets_the_account_but_not_the_address(resources: Resources) -> None:
    for number in range(19):
        attempt(resources, f"user{number}", "10.0.0.1")
    for _ in range(3):  # with an account of one's own, between guesses
        attempt(resources, "mine", "10.0.0.1")
        succeed(resources, "mine", "10.0.0.1")
    attempt(resources, "user20", "10.0.0.1")
    with pytest.raises(LoginThrottledError):
        attempt(resources, "user21", "10.0.0.1")


def test_failures_of_long_ago_do_not_count(resources: Resources) -> None:
    for number in range(12):
        attempt(resources, "maria", "10.0.0.1", AT + timedelta(minutes=16 * number))


def test_attempts_at_once_are_no_more_guesses(resources: Resources) -> None:
    def one(_: int) -> bool:
        try:
            attempt(resources, "maria", "10.0.0.1")
        except LoginThrottledError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(24))) == 5


def test_rows_of_a_day_ago_are_removed(resources: Resources) -> None:
    for number in range(10):
        attempt(resources, f"user{number}", "10.0.0.1")
    succeed(resources, "maria", "10.0.0.2", AT + timedelta(days=2))
    with resources.sessions() as session:
        assert session.scalar(select(func.count()).select_from(LoginThrottle)) == 0


def test_a_name_is_kept_as_its_digest_only(resources: Resources) -> None:
    attempt(resources, "my password by mistake", "10.0.0.1")
    with resources.sessions() as session:
        keys = session.scalars(select(LoginThrottle.key)).all()
    assert all("password" not in key for key in keys)
    assert all(len(key) <= 80 for key in keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::2"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
def test_addresses_of_one_customer_count_together(one: str, other: str) -> None:
    assert throttle.address_key(one) == throttle.address_key(other)


def test_addresses_of_different_customers_count_apart() -> None:
    assert throttle.address_key("2001:db8:0:1::1") != throttle.address_key("2001:db8:0:2::1")
    assert throttle.address_key("10.0.0.1") != throttle.address_key("10.0.0.2")
    assert throttle.address_key("x" * 500) == f"address:{'x' * 60}"


def test_the_meter_lets_one_refusal_per_address_and_minute_through_and_counts_the_others() -> None:
    meter = RefusalMeter()
    assert [meter.note("10.0.0.1", at) for at in (0, 1, 59)] == [0, None, None]
    assert meter.note("10.0.0.2", 59) == 2
    assert meter.note("10.0.0.1", 60) == 0


def test_the_meter_lets_few_through_in_all_and_remembers_few() -> None:
    meter = RefusalMeter()
    noted = [meter.note(f"10.{n // 256}.{n % 256}.1", 0) for n in range(10_000)]
    assert sum(one is not None for one in noted) == meter.IN_ALL
    for minute in range(1, 500):
        for n in range(meter.IN_ALL):
            meter.note(f"{minute}-{n}", minute * 60)
    assert len(meter._last) <= meter.ADDRESSES
