from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ForeignKey, String, select, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.kit.db import (
    READONLY,
    Json,
    Sessions,
    UtcDateTime,
    connect,
    make_sessions,
    new_id,
    now,
)
from services.settings import Settings, load_settings


class _Own(DeclarativeBase):
    """Tables of these tests, apart from the node's."""

    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: Json}


class Note(_Own):
    __tablename__ = "notes"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=lambda: new_id())
    at: Mapped[datetime | None]
    data: Mapped[dict[str, Any] | None]
    count: Mapped[int] = mapped_column(default=0)
    about: Mapped[UUID | None] = mapped_column(ForeignKey("notes.id"))
    name: Mapped[str | None] = mapped_column(String(10))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def sessions(url: str, tmp_path: Path) -> Iterator[Sessions]:
    settings = load_settings({}, data_dir=tmp_path / "node", database={"url": url})
    engine = connect(settings)
    _Own.metadata.create_all(engine)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def sqlite(settings: Settings) -> Iterator[Sessions]:
    engine = connect(settings)
    _Own.metadata.create_all(engine)
    yield make_sessions(engine)
    engine.dispose()


def test_moments_come_back_in_utc_whatever_zone_they_had(sessions: Sessions) -> None:
    berlin = datetime(2026, 7, 1, 12, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with sessions.begin() as session:
        session.add_all([Note(at=berlin), Note(at=None)])
    with sessions() as session:
        found = session.scalars(select(Note.at).order_by(Note.id)).all()
        assert session.scalar(select(Note.count).where(Note.at == berlin)) == 0
        assert session.scalar(select(Note.count).where(Note.at < berlin)) is None
    assert found == [datetime(2026, 7, 1, 10, 30, 0, 123456, tzinfo=UTC), None]
    assert found[0] is not None
    assert found[0].tzinfo is UTC


def test_a_moment_without_zone_is_refused(sessions: Sessions) -> None:
    with sessions() as session, pytest.raises(StatementError, match="needs its zone"):
        session.scalar(select(Note).where(Note.at == datetime(2026, 1, 1)))  # noqa: DTZ001 - the fault


def test_json_comes_back_and_none_is_null(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Note(data={"ä": [1, {"b": None}]}), Note(data=None)])
    with sessions() as session:
        assert session.scalars(select(Note.data).order_by(Note.id)).all() == [
            {"ä": [1, {"b": None}]},
            None,
        ]
        assert len(session.scalars(select(Note).where(Note.data.is_(None))).all()) == 1


def test_a_row_that_refers_to_nothing_is_refused(sessions: Sessions) -> None:
    with pytest.raises(IntegrityError), sessions.begin() as session:
        session.add(Note(about=new_id()))


def test_rows_stay_readable_after_their_commit(sessions: Sessions) -> None:
    with sessions.begin() as session:
        note = Note(name="kept")
        session.add(note)
    assert note.name == "kept"


def test_the_database_speaks_utc(sessions: Sessions) -> None:
    with sessions() as session:
        if session.get_bind().dialect.name == "postgresql":
            assert session.scalar(text("SHOW timezone")) == "UTC"
            assert session.scalar(text("SHOW lock_timeout")) == "20s"
        else:
            assert session.scalar(text("PRAGMA journal_mode")) == "wal"
            assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_the_password_is_kept_out_of_the_url(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "PPDD_DATABASE__URL": "postgresql+psycopg://ppdd@127.0.0.1:1/ppdd",
            "PPDD_DATABASE__PASSWORD": "kV5nW2rQ8xT3@mZ7/yB4",
        },
        data_dir=tmp_path,
    )
    engine = connect(settings)
    assert engine.url.password == "kV5nW2rQ8xT3@mZ7/yB4"
    assert "kV5n" not in str(engine.url)
    assert "kV5n" not in repr(settings)
    engine.dispose()


# ------------------------------------------------------------------------------------------------ ids


def test_ids_are_of_version_7_and_tell_their_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_increase_strictly_also_within_a_millisecond() -> None:
    made = [new_id() for _ in range(20_000)]  # more than a millisecond's counter holds
    assert all(one < other for one, other in zip(made, made[1:], strict=False))


def test_ids_of_many_threads_differ() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [
            one
            for many in pool.map(lambda _: [new_id() for _ in range(500)], range(16))
            for one in many
        ]
    assert len(set(made)) == 8000


def test_ids_increase_though_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    yesterday = time.time_ns() - 24 * 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    assert new_id() > first


def test_now_is_in_utc() -> None:
    assert now().tzinfo is UTC
    assert abs(now().timestamp() - time.time()) < 5


# --------------------------------------------------------------------------------------- transactions


def test_writers_wait_for_each_other_and_lose_nothing(sqlite: Sessions) -> None:
    with sqlite.begin() as session:
        session.add(Note(name="counter"))

    def count(_: int) -> None:
        with sqlite.begin() as session:  # reads, then writes: a deferred transaction fails here
            note = session.scalars(select(Note)).one()
            time.sleep(0.005)
            note.count += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(24)))
    with sqlite() as session:
        assert session.scalar(select(Note.count)) == 24


def test_readers_do_not_wait_for_a_writer(sqlite: Sessions) -> None:
    with sqlite.begin() as writer:
        writer.add(Note(name="new"))
        writer.flush()
        began = time.monotonic()
        with sqlite() as reader:
            reader.connection(execution_options={READONLY: True})
            assert reader.scalars(select(Note)).all() == []
        assert time.monotonic() - began < 5


def test_a_reader_sees_one_moment(sqlite: Sessions) -> None:
    with sqlite() as reader:
        reader.connection(execution_options={READONLY: True})
        assert reader.scalars(select(Note)).all() == []
        thread = threading.Thread(target=lambda: _add(sqlite))
        thread.start()
        thread.join()
        assert reader.scalars(select(Note)).all() == []
    with sqlite() as reader:
        assert len(reader.scalars(select(Note)).all()) == 1


def _add(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Note())
