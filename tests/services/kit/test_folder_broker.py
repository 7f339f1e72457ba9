"""The broker in a folder: messages are whole or absent, and what is no message stops nobody."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from queue import Empty

import pytest

from services.kit.db import new_id
from services.kit.queue import WORK, celery_client, doorbell
from services.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({}, data_dir=tmp_path / "node")


def queue_of(settings: Settings) -> Path:
    return settings.data_dir / "queue"


def taken(settings: Settings) -> list[str]:
    app, found = celery_client(settings), []
    with (
        app.connection_for_read() as connection,
        connection.SimpleQueue(settings.broker.queue) as waiting,
        suppress(Empty),
    ):
        while message := waiting.get_nowait():
            found.append(message.decode()[0][0])
            message.ack()
    app.close()
    return found


def test_messages_come_in_order_and_leave_nothing_behind(settings: Settings) -> None:
    ring, jobs = doorbell(settings), [new_id() for _ in range(5)]
    for job_id in jobs:
        ring(WORK, job_id)
    assert taken(settings) == [str(job_id) for job_id in jobs]
    assert not list((queue_of(settings) / "messages").iterdir())
    assert not list((queue_of(settings) / "processed").iterdir())


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"properties": {}}'])
def test_what_is_no_message_is_passed_over(settings: Settings, damage: bytes) -> None:
    job_id = new_id()
    doorbell(settings)(WORK, job_id)
    (queue_of(settings) / "messages" / "0_first.ppdd.msg").write_bytes(damage)
    assert taken(settings) == [str(job_id)]


def test_a_table_of_queues_left_half_written_is_made_anew(settings: Settings) -> None:
    with celery_client(settings).connection_for_write() as connection:
        channel = connection.default_channel
        channel._queue_bind("jobs", "ppdd", "", "ppdd")
        bound = channel.get_table("jobs")
        (queue_of(settings) / "control" / "jobs.exchange").write_bytes(b"")
        assert channel.get_table("jobs") == []
        channel._queue_bind("jobs", "ppdd", "", "ppdd")
        assert channel.get_table("jobs") == bound != []
