"""Connections that are kept: found dead before they are used; and sessions that only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, text

from services.auth.models import OneTimeLink
from services.kit import db
from services.kit.db import Base, now
from services.kit.resources import Resources, open_resources
from services.settings import Settings


@pytest.fixture
def postgres_node(settings: Settings, postgres_url: str) -> Iterator[Resources]:
    database = settings.database.model_copy(update={"url": postgres_url})
    with open_resources(settings.model_copy(update={"database": database}), send=print) as made:
        Base.metadata.create_all(made.engine)
        yield made


def link() -> OneTimeLink:
    return OneTimeLink(purpose="setup", sha256="0" * 64, expires_at=now())


def test_connections_that_died_while_idle_are_replaced_without_an_error(
    postgres_node: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "IDLE_SECONDS", 0)
    engine = postgres_node.engine
    with engine.connect() as one, engine.connect() as other:
        pids = [c.execute(text("SELECT pg_backend_pid()")).scalar_one() for c in (one, other)]
    with engine.connect() as killer:
        mine = killer.execute(text("SELECT pg_backend_pid()")).scalar_one()
        for pid in pids:
            if pid != mine:
                killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with engine.connect() as killed_next:
        killed_next.connection.driver_connection.pgconn.finish()  # type: ignore[union-attr]
    for _ in range(3):
        with postgres_node.reading() as session, postgres_node.sessions.begin() as writing:
            assert session.execute(select(1)).scalar_one() == 1
            assert writing.execute(select(1)).scalar_one() == 1


def test_a_busy_connection_is_not_tried(
    postgres_node: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "IDLE_SECONDS", 1e9)
    tried: list[object] = []
    monkeypatch.setattr(postgres_node.engine.dialect, "do_ping", tried.append)
    for _ in range(3):
        with postgres_node.reading() as session:
            session.execute(select(1))
    assert tried == []


def test_a_reading_session_refuses_to_write(resources: Resources, postgres_node: Resources) -> None:
    for node in (resources, postgres_node):
        with node.reading() as session:
            session.add(link())
            with pytest.raises(RuntimeError, match="only reads"):
                session.flush()
        with node.reading() as session:
            assert session.scalars(select(OneTimeLink)).all() == []


def test_a_reader_on_sqlite_waits_for_no_writer(resources: Resources) -> None:
    with resources.sessions.begin() as writing:
        writing.add(link())
        writing.flush()
        with resources.reading() as session:
            assert session.scalars(select(OneTimeLink)).all() == []
