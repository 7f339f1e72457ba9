"""What PostgreSQL does differently: triggers, numbers in JSONB, and many who write at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.audit import anchoring, protection, service
from services.audit.actor import SYSTEM
from services.auth import throttle
from services.auth.throttle import LoginThrottledError
from services.kit.db import Base, now
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.services.audit.test_chain import HOSTILE, check
from tests.services.conftest import Bell


@pytest.fixture
def node(postgres_url: str, tmp_path: Path, bell: Bell) -> Iterator[Resources]:
    settings = load_settings({}, data_dir=tmp_path / "node", database={"url": postgres_url})
    with open_resources(settings, send=bell) as made:
        Base.metadata.create_all(made.engine)
        yield made


def test_the_log_holds_together_and_cannot_be_changed(node: Resources) -> None:
    def one(number: int) -> None:
        with node.sessions.begin() as session:
            service.record(session, SYSTEM, "thing.do", "s\x00", detail={**HOSTILE, "n": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))
    anchoring.anchor_node(node)
    found = check(node)
    assert (found.intact, found.events, found.anchored_seq) == (True, 40, 40), found.problem

    with node.engine.begin() as connection:
        protection.install(connection)
    for statement in (
        "UPDATE audit_events SET subject = 'x' WHERE seq = 1",
        "UPDATE audit_events SET subject = 'x' WHERE seq = 0",
        "DELETE FROM audit_events",
        "DELETE FROM audit_heads",
        "TRUNCATE audit_events",
        "TRUNCATE audit_heads, audit_events",
        "INSERT INTO audit_events SELECT * FROM audit_events WHERE seq = 1 "
        "ON CONFLICT (seq) DO UPDATE SET subject = 'x'",
    ):
        with pytest.raises(DBAPIError, match="append-only"), node.engine.begin() as connection:
            connection.execute(text(statement))
    one(40)
    assert check(node).events == 41

    with node.engine.begin() as connection:
        protection.remove(connection)
        connection.execute(text("DELETE FROM audit_events WHERE seq > 20"))
        protection.install(connection)
    assert check(node).first_bad == 21


def test_logins_at_once_are_no_more_guesses(node: Resources) -> None:
    def attempt(_: int) -> bool:
        try:
            with node.sessions.begin() as session:
                throttle.take(session, "maria", "10.0.0.1", node.settings.session, now())
        except LoginThrottledError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(24))) == 5
    with node.sessions.begin() as session:
        throttle.give_back(session, "maria", "10.0.0.1", node.settings.session, now())
    assert attempt(0)
