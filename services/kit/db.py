"""Tables and connections: what every model shares, and engines that behave alike on PostgreSQL and SQLite.

Ids are UUIDs of version 7 (RFC 9562): ordered by time, so that lists page by id alone. Times are UTC and aware.
Every transaction on SQLite begins as a writer unless its connection says `readonly`, because an upgrade from reader to
writer fails at once when somebody else wrote in between.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, DateTime, Dialect, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator

from services.settings import Settings

READONLY = "readonly"  # execution option: this transaction only reads
IDLE_SECONDS = 0.2  # after which a connection is tried before it is used; no server restarts faster
BUSY_SECONDS = 30.0  # how long a SQLite writer waits for another

Sessions = sessionmaker[Session]
Clock = Callable[[], datetime]


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: timestamptz on PostgreSQL; on SQLite, which forgets zones, UTC put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without zone: it would mean another hour on another machine."""
        del dialect
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a moment needs its zone, got {value!r}")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    """What every table has: a time-ordered id and the moment it was made; and names for its constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[str]: Json,
        list[Any]: Json,
    }


class Row(Base):
    """A table whose rows have an id of their own."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, default=lambda: new_id())
    created_at: Mapped[datetime] = mapped_column(default=lambda: now())


_id_lock = threading.Lock()
_last_ms, _count = 0, 0


def new_id() -> UUID:
    """Return a UUID of version 7; ids made by one process increase strictly."""
    global _last_ms, _count
    with _id_lock:
        ms = max(time.time_ns() // 1_000_000, _last_ms)
        _count = _count + 1 if ms == _last_ms else secrets.randbits(10)
        if _count >= 1 << 12:
            ms, _count = ms + 1, 0
        _last_ms = ms
        return UUID(
            int=(ms << 80) | (0x7 << 76) | (_count << 64) | (0b10 << 62) | secrets.randbits(62)
        )


def now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(UTC)


def connect(settings: Settings, *, patience: float | None = None) -> Engine:
    """Return the engine of a node's database; nothing is opened yet.

    With `patience` no statement waits longer than so many seconds, for a lock or for anything else: for who would
    rather ask again.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_engine(
            url, connect_args={"timeout": patience or BUSY_SECONDS, "check_same_thread": False}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if settings.database.password is not None:
        url = url.set(password=settings.database.password.get_secret_value())
    engine = create_engine(
        url,
        pool_size=settings.database.pool_size,
        max_overflow=settings.database.pool_size,
        pool_use_lifo=True,  # few connections are kept busy, and need no ping
        connect_args=_postgres_limits(patience),
    )
    _ping_idle_connections(engine)
    return engine


def _postgres_limits(patience: float | None) -> dict[str, Any]:
    zone = "-c timezone=UTC"
    if patience is None:
        return {"connect_timeout": 5, "options": f"{zone} -c lock_timeout=20000"}
    limit = max(1, round(patience * 1000))  # ms
    return {
        "connect_timeout": max(2, round(patience)),  # libpq takes no less
        "options": f"{zone} -c lock_timeout={limit} -c statement_timeout={limit}",
        "tcp_user_timeout": limit,  # a server that vanished answers nothing at all
    }


def make_sessions(engine: Engine) -> Sessions:
    """Return the maker of sessions; rows stay readable after their commit."""
    return sessionmaker(engine, expire_on_commit=False)


def _ping_idle_connections(engine: Engine) -> None:
    """Let a connection that lay idle be tried before it is used: a database that came back is found without an error.

    SQLAlchemy's own `pool_pre_ping` asks each time, which costs a busy API as much as a query.
    """

    def note(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["returned"] = time.monotonic()

    def ping(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info.get("returned", time.monotonic()) < IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            raise InvalidatePoolError from None  # the others are as old

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ping)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READONLY)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
