"""The Celery worker: takes rings off the broker, one at a time, and supervises one job for each.

Prefork with one slot: the main process talks to the broker and takes signals, the other one supervises (`supervise`) a
fresh process per job (`run`). Nothing computes here, so torch is never imported, and the supervising process need not
be replaced after each task: what a job used goes with its own process.

SIGTERM, SIGINT and SIGQUIT all stop softly: no new ring is taken, the job's process is asked to save what it has, the
job is queued again, and the worker leaves, at the latest `jobs.cancel_grace_seconds` and a few seconds later.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from celery import Celery, signals
from celery.exceptions import SecurityWarning
from celery.worker import state
from sqlalchemy.exc import DBAPIError

from ppdd_core import __version__
from services.jobs import workers
from services.kit.queue import FETCH, TEACH, WORK, celery_client, fetch_queue
from services.kit.resources import Resources, open_resources
from services.settings import Settings
from worker import supervise
from worker.board import Board
from worker.device import Place
from worker.leftovers import remove_leftovers

NOTE_SECONDS = 10.0  # between two lines of "I live"
LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
Body = Callable[[supervise.Post, UUID], None]
BODIES: dict[str, Body] = {WORK: supervise.work, FETCH: supervise.work, TEACH: supervise.teach}
log = structlog.get_logger(__name__)


def make_worker(settings: Settings, place: Place, board: Board) -> Celery:
    """Return the Celery app with its two tasks; their only argument is a job's id."""
    app = celery_client(settings)
    app.conf.update(
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=bool(
            settings.broker.url
        ),  # Redis: a busy worker holds no ring back
        worker_enable_remote_control=False,  # jobs are cancelled in their table
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=settings.jobs.cancel_grace_seconds,
        task_acks_late=False,  # what recovers a job is its lease
        broker_connection_max_retries=None,  # a broker may be away for as long as it likes
    )
    environ = supervise.environment(place.visible)

    def perform(body: Body, job_id: str) -> None:
        try:
            asked = UUID(job_id)
        except (ValueError, AttributeError, TypeError):
            log.warning("message.ignored", reason="no job id")
            return
        if board.stopping():  # what was just given back is for another worker
            return
        with open_resources(settings) as resources:
            board.job_id = asked
            # a service manager may send its signal to every process of the worker, not to the first alone
            signal.signal(signal.SIGTERM, lambda *_: board.stop())
            try:
                body(supervise.Post(resources, place.name, environ, board.stopping), asked)
            except DBAPIError as err:  # the reconciler rings again
                log.warning("message.dropped", job_id=job_id, error=type(err).__name__)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                board.job_id = None

    def add(name: str, body: Body) -> None:
        @app.task(name=name)  # type: ignore[untyped-decorator]
        def task(job_id: str) -> None:
            perform(body, job_id)

    for name, body in BODIES.items():
        add(name, body)
    return app


def queues(settings: Settings) -> list[str]:
    """Return what this worker listens to: jobs that compute, jobs that fetch from other hospitals, or both."""
    both = {"compute": settings.broker.queue, "pull": fetch_queue(settings)}
    kinds = settings.worker.kinds
    return list(both.values()) if kinds == "all" else [both[kinds]]


def run_worker(settings: Settings, place: Place) -> int:
    """Work until a signal asks to stop; return the exit code."""
    board, over = Board(), threading.Event()
    app = make_worker(settings, place, board)

    def ready(**_: Any) -> None:
        def leave(*_: Any) -> None:
            board.stop()
            state.should_stop = 0

        for number in LEAVE:
            signal.signal(number, leave)
        noting = threading.Thread(
            target=_keep_noting, args=(settings, place, board, over), name="noting", daemon=True
        )
        noting.start()
        log.info("worker.ready", worker=place.name, device=place.text)

    # it warns of root because messages may be pickles; ours are JSON, and nothing else is accepted
    warnings.simplefilter("ignore", SecurityWarning)
    # Celery would install its own logging unless somebody answers this signal
    signals.setup_logging.connect(_logging_is_set_up, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    worker = app.Worker(
        hostname=place.name,
        pool="prefork",
        concurrency=1,
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        queues=queues(settings),
        quiet=True,
    )
    worker.start()
    over.set()
    log.info("worker.stopped", worker=place.name)
    return int(worker.exitcode or 0)


def _logging_is_set_up(**_: Any) -> None:
    """Answer that logging is configured already; a line per message would only repeat ours."""
    logging.getLogger("celery").setLevel(logging.WARNING)


def _keep_noting(settings: Settings, place: Place, board: Board, over: threading.Event) -> None:
    """Say in the workers' table that this one lives, until it stops."""
    with open_resources(settings) as resources:
        remove_leftovers(resources)
        while True:
            _note(resources, place, board)
            if over.wait(NOTE_SECONDS):
                return


def _note(resources: Resources, place: Place, board: Board) -> None:
    free = shutil.disk_usage(resources.settings.work_dir).free
    try:
        with resources.sessions.begin() as session:
            workers.note_worker(
                session,
                place.name,
                device=place.text,
                version=__version__,
                free_disk_bytes=free,
                job_id=board.job_id,
            )
    except DBAPIError as err:
        log.warning("worker.unnoted", error=type(err).__name__)
