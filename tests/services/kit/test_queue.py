from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from services.kit.db import connect, make_sessions, new_id
from services.kit.queue import (
    FETCH,
    WORK,
    broker_url,
    celery_client,
    doorbell,
    enqueue,
    fetch_queue,
    transaction,
)
from services.kit.resources import Resources
from services.settings import Settings, load_settings
from tests.services.conftest import Bell

PASSWORD = "kV5nW2rQ8xT3@mZ7/yB4"


def _settings(tmp_path: Path, url: str) -> Settings:
    return load_settings({}, data_dir=tmp_path / "node", broker={"url": url})


def _messages(settings: Settings, queue: str = "ppdd") -> list[tuple[str, list[str]]]:
    """Take every message of the queue off the broker."""
    app = celery_client(settings)
    taken: list[tuple[str, list[str]]] = []
    with (
        app.connection_for_read() as connection,
        connection.SimpleQueue(queue) as waiting,
        suppress(Empty),
    ):
        while message := waiting.get_nowait():
            taken.append((message.headers["task"], message.decode()[0]))
            message.ack()
    app.close()
    return taken


def test_it_rings_after_the_commit(resources: Resources, bell: Bell) -> None:
    one, two = new_id(), new_id()
    with resources.transaction() as session:
        enqueue(session, one)
        enqueue(session, two, FETCH)
        assert bell.rung == []
    assert bell.rung == [(WORK, one), (FETCH, two)]


def test_a_transaction_rolled_back_rings_for_nobody(resources: Resources, bell: Bell) -> None:
    with pytest.raises(ValueError, match="no"):
        _enqueue_and_fail(resources)
    assert bell.rung == []


def _enqueue_and_fail(resources: Resources) -> None:
    with resources.transaction() as session:
        enqueue(session, new_id())
        raise ValueError("no")


def test_a_commit_that_fails_rings_for_nobody(settings: Settings) -> None:
    rung: list[UUID] = []
    engine = connect(settings)
    with pytest.raises(OperationalError):
        _write_nowhere(settings, lambda _task, job_id: rung.append(job_id))
    assert rung == []
    engine.dispose()


def _write_nowhere(settings: Settings, send: Any) -> None:
    engine = connect(settings)
    try:
        with transaction(make_sessions(engine), send) as session:
            enqueue(session, new_id())
            session.execute(text("INSERT INTO nowhere VALUES (1)"))
    finally:
        engine.dispose()


@pytest.mark.parametrize("kind", ["folder", "redis"])
def test_what_was_rung_reaches_the_broker(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = "" if kind == "folder" else str(request.getfixturevalue("redis_url"))
    settings = _settings(tmp_path, url)
    ring = doorbell(settings)
    one, two, three = new_id(), new_id(), new_id()
    for job_id in (one, two):
        ring(WORK, job_id)
    ring(FETCH, three)
    assert sorted(_messages(settings)) == sorted([(WORK, [str(one)]), (WORK, [str(two)])])
    assert _messages(settings, fetch_queue(settings)) == [(FETCH, [str(three)])]


def test_a_message_holds_a_name_and_an_id_and_nothing_else(tmp_path: Path) -> None:
    settings = _settings(tmp_path, "")
    job_id = new_id()
    doorbell(settings)(WORK, job_id)
    (path,) = (settings.data_dir / "queue" / "messages").iterdir()
    message = json.loads(path.read_bytes())
    assert message["content-type"] == "application/json"
    assert str(job_id) in json.dumps(message["headers"])


def test_a_broker_that_is_away_is_no_error_and_takes_seconds_at_most(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        ring = doorbell(_settings(tmp_path, f"redis://127.0.0.1:{taken.getsockname()[1]}/0"))
        began = time.monotonic()
        ring(WORK, new_id())
        assert time.monotonic() - began < 4


def test_a_broker_that_takes_no_more_is_no_error(tmp_path: Path, redis_url: str) -> None:
    ring = doorbell(_settings(tmp_path, redis_url))
    with _redis(redis_url) as redis:
        redis.config_set("maxmemory", 1)
        try:
            ring(WORK, new_id())  # "OOM command not allowed"
        finally:
            redis.config_set("maxmemory", 0)
    job_id = new_id()
    ring(WORK, job_id)
    assert _messages(_settings(tmp_path, redis_url)) == [(WORK, [str(job_id)])]


def test_a_broker_that_refuses_the_password_is_no_error(tmp_path: Path, redis_url: str) -> None:
    settings = load_settings(
        {"PPDD_BROKER__URL": redis_url, "PPDD_BROKER__PASSWORD": PASSWORD}, data_dir=tmp_path
    )
    doorbell(settings)(WORK, new_id())


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    settings = _settings(tmp_path, "")
    ring = doorbell(settings)
    folder = settings.data_dir / "queue" / "messages"
    folder.rmdir()
    folder.write_text("in the way")
    ring(WORK, new_id())


def _redis(url: str) -> Any:
    from redis import Redis

    return Redis.from_url(url)


def test_the_password_gets_into_the_url_quoted(tmp_path: Path) -> None:
    for url, expected in {
        "": "ppdd-folder://localhost",
        "redis://host:6379/0": "redis://:kV5nW2rQ8xT3%40mZ7%2FyB4@host:6379/0",
        "rediss://user@host/1": "rediss://user:kV5nW2rQ8xT3%40mZ7%2FyB4@host/1",
    }.items():
        given = load_settings(
            {"PPDD_BROKER__URL": url, "PPDD_BROKER__PASSWORD": PASSWORD}, data_dir=tmp_path
        )
        assert broker_url(given) == expected
    assert broker_url(_settings(tmp_path, "redis://host/0")) == "redis://host/0"


def test_only_json_is_spoken(tmp_path: Path) -> None:
    app = celery_client(_settings(tmp_path, ""))
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert app.conf.task_ignore_result
