"""The worker as a program: takes a ring off the broker, notes that it lives, leaves in order, without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from services.jobs.models import Worker
from services.kit.queue import TEACH, WORK, doorbell
from services.settings import load_settings
from tests.worker.conftest import Node, wait_until
from worker.app import make_worker, queues
from worker.board import Board
from worker.device import Place


def test_its_configuration_is_the_one_that_was_decided(node: Node) -> None:
    app = make_worker(node.settings, Place("cpu@test", "", "CPU"), Board())
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_acks_late is False
    assert (app.conf.worker_concurrency, app.conf.worker_prefetch_multiplier) == (1, 1)
    assert app.conf.worker_enable_remote_control is False
    assert {WORK, TEACH} <= set(app.tasks)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("all", ["ppdd", "ppdd-fetch"]),
        ("compute", ["ppdd"]),
        ("pull", ["ppdd-fetch"]),
    ],
)
def test_it_listens_to_what_it_does(kinds: str, expected: list[str]) -> None:
    assert queues(load_settings({}, worker={"kinds": kinds})) == expected


def test_it_does_not_need_torch() -> None:
    program = "import worker.__main__, worker.run, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_database_without_tables_is_refused_in_one_line(make_node: Callable[..., Node]) -> None:
    node = make_node()
    fresh = node.environ | {"PPDD_DATA_DIR": node.environ["PPDD_DATA_DIR"] + "-fresh"}
    done = subprocess.run(
        [sys.executable, "-m", "worker"], env=fresh, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ppdd node migrate" in done.stderr and "Traceback" not in done.stderr


@contextmanager
def running(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "worker"], env=node.environ, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_ring_is_answered_and_a_signal_gives_the_job_back(node: Node) -> None:
    first, second = node.check(), node.check(image_size=256)
    ring = doorbell(node.settings)
    with running(node) as process:
        ring(WORK, first)
        ring(WORK, second)
        wait_until(lambda: node.job(first).state == "succeeded", "the first job")
        with node.resources.sessions() as session:
            (row,) = session.scalars(select(Worker)).all()
        assert row.name.startswith("cpu") and row.free_disk_bytes > 0
        wait_until(lambda: bool(node.job(second).progress), "the second one to begin")
        os.killpg(process.pid, signal.SIGTERM)  # as a service manager does: to all of them
        assert process.wait(60) == 0
    job = node.job(second)
    assert (job.state, job.attempts) in {("queued", 0), ("succeeded", 1)}
