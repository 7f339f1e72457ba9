"""Holding objects that no row refers to yet, so that garbage collection leaves them alone.

Whoever publishes takes a hold (committed) before the first byte is stored, and gives it up with, or after, the
transaction that writes the rows. The collector looks at holds, then at rows, under a lock that keeps new holds waiting,
so every object it deletes is one that nobody counts on. Giving a hold up needs no lock: whoever finds it gone finds
the rows. A hold whose holder died ends by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import String, delete, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.kit.db import Base, Sessions, new_id, now
from services.kit.storage import require_digest

LOCK = 0x70706F62  # PostgreSQL's advisory lock: shared by those who take holds, exclusive for the collector
LASTS = timedelta(hours=24)  # a hold not renewed for so long belongs to a dead process
log = structlog.get_logger(__name__)


class ObjectHold(Base):
    """One object that one holder counts on."""

    __tablename__ = "object_holds"

    holder: Mapped[UUID] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, info={"object": False})
    expires_at: Mapped[datetime] = mapped_column(index=True)


@contextmanager
def holding(sessions: Sessions, digests: Iterable[str]) -> Iterator[UUID]:
    """Hold the objects of these digests while the block runs: store them, and commit their rows, inside it."""
    holder = hold(sessions, digests)
    try:
        yield holder
    finally:
        try:
            with sessions.begin() as session:
                release(session, holder)
        except DBAPIError as err:  # what was published stays published; the hold ends by itself
            log.warning("hold.kept", holder=str(holder), error=type(err).__name__)


def hold(sessions: Sessions, digests: Iterable[str], holder: UUID | None = None) -> UUID:
    """Hold objects from now on, also those that are not stored yet; return the holder's id for `release`.

    Given a `holder`, the objects are added to what it holds, or held for another while.
    """
    holder = holder or new_id()
    with sessions.begin() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": LOCK})
        for digest in sorted({require_digest(digest) for digest in digests}):
            session.merge(ObjectHold(holder=holder, sha256=digest, expires_at=now() + LASTS))
    return holder


def release(session: Session, holder: UUID) -> None:
    """Give the holder's holds up when this transaction, best the one that writes the rows, is committed."""
    session.execute(delete(ObjectHold).where(ObjectHold.holder == holder))


def close_to_new_holds(session: Session) -> None:
    """Let nobody take a hold until this transaction ends; every hold that was taken is visible to it.

    SQLite has one writer at a time, which is this transaction.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def held(session: Session, digests: Collection[str]) -> set[str]:
    """Return those of the objects that somebody holds."""
    return set(
        session.scalars(
            select(ObjectHold.sha256).where(
                ObjectHold.sha256.in_(digests), ObjectHold.expires_at > now()
            )
        )
    )


def drop_expired(session: Session) -> None:
    """Remove the holds of processes that died."""
    session.execute(delete(ObjectHold).where(ObjectHold.expires_at <= now()))
