"""Failed logins are counted, per account and per address; so are refusals of callers who are nobody.

An attempt is counted *before* the password is looked at, so that a hundred attempts at once are not a hundred guesses;
one that succeeds takes its count back. Names are counted as they are typed, by their digest: what is answered does not
depend on whether there is such an account.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import threading
from collections import OrderedDict
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from services.auth.models import LoginThrottle
from services.kit.errors import TooManyError
from services.settings import SessionSettings

# A ward sits behind one address; and a forgotten password must not lock out a hospital.
ADDRESS_FACTOR = 4


class LoginThrottledError(TooManyError):
    """Too many failed logins: wait before the next."""

    slug, title = "login-throttled", "Too many failed logins"


def take(
    session: Session, username: str, address: str, settings: SessionSettings, at: datetime
) -> None:
    """Count an attempt; LoginThrottledError, the same for every account, if it must wait.

    Commit before the password is looked at.
    """
    rows = [
        (_row(session, key, at), limit)
        for key, limit in (
            (account_key(username), settings.login_attempts),
            (address_key(address), settings.login_attempts * ADDRESS_FACTOR),
        )
    ]
    waits = [row.waits_until for row, _ in rows if row.waits_until and row.waits_until > at]
    if waits:
        raise LoginThrottledError(
            "too many failed logins of this account or from this address; wait, then try again",
            retry_after=math.ceil((max(waits) - at).total_seconds()),
        )
    wait = timedelta(minutes=settings.login_wait_minutes)
    for row, limit in rows:
        if row.waits_until is not None or row.updated_at + wait <= at:
            row.failures, row.waits_until = (
                0,
                None,
            )  # the wait is over, or the last failure long ago
        row.failures += 1
        row.updated_at = at
        if row.failures >= limit:
            row.waits_until = at + wait
    session.flush()


def give_back(
    session: Session, username: str, address: str, settings: SessionSettings, at: datetime
) -> None:
    """Take back the count of an attempt that succeeded: the account's failures are forgotten, the address's stay."""
    _forget_old(session, at)
    forget_account(session, username)
    row = session.scalar(
        select(LoginThrottle).where(LoginThrottle.key == address_key(address)).with_for_update()
    )
    if row is not None:
        row.failures = max(0, row.failures - 1)
        if row.failures < settings.login_attempts * ADDRESS_FACTOR:
            row.waits_until = None


def forget_account(session: Session, username: str) -> None:
    """Forget the failures of an account: it proved itself, or has a new password."""
    session.execute(delete(LoginThrottle).where(LoginThrottle.key == account_key(username)))


def account_key(username: str) -> str:
    """Return what an account's failures are counted under; the name itself is not kept: it may be a password."""
    return f"account:{hashlib.sha256(username.encode('utf-8', 'replace')).hexdigest()}"


def address_key(address: str) -> str:
    """Return what an address's failures are counted under; of IPv6 the network, which is what one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address[:60]}"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return f"address:{ip.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((ip, 64), strict=False)}"
    return f"address:{ip}"


def _row(session: Session, key: str, at: datetime) -> LoginThrottle:
    """Return the row of a key, made if there is none, and held against others who count."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    session.execute(
        insert(LoginThrottle)
        .values(key=key, failures=0, waits_until=None, updated_at=at)
        .on_conflict_do_nothing(index_elements=["key"])
    )
    held = select(LoginThrottle).where(LoginThrottle.key == key).with_for_update()
    return session.scalars(held.execution_options(populate_existing=True)).one()


def _forget_old(session: Session, at: datetime) -> None:
    old = (
        select(LoginThrottle.key)
        .where(LoginThrottle.updated_at < at - timedelta(days=1))
        .with_for_update(skip_locked=True)
    )
    keys = session.scalars(old).all()
    session.execute(delete(LoginThrottle).where(LoginThrottle.key.in_(keys)))


class RefusalMeter:
    """Decides which refusals of callers who are nobody become audit events: one per address and minute, few in all.

    Without it, anybody could fill the disk with invalid tokens. What is left out is counted in the next event.
    """

    EVERY = 60.0  # seconds
    IN_ALL = 20  # events per EVERY
    ADDRESSES = 4096  # remembered at once

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[str, float] = OrderedDict()
        self._began = -math.inf
        self._written = self._left_out = 0

    def note(self, address: str, at: float) -> int | None:
        """Return how many refusals went unrecorded since the last event if this one is to be one, else None."""
        key = address_key(address)
        with self._lock:
            if at - self._began >= self.EVERY:
                self._began, self._written = at, 0
            known = self._last.get(key, -math.inf)
            if at - known < self.EVERY or self._written >= self.IN_ALL:
                self._left_out += 1
                return None
            self._last[key] = at
            self._last.move_to_end(key)
            while len(self._last) > self.ADDRESSES:
                self._last.popitem(last=False)
            self._written += 1
            left_out, self._left_out = self._left_out, 0
            return left_out
