"""One transaction, then the message: what a request decided is committed before anybody is told.

The broker is a doorbell that carries a task name and an id. It may ring twice or not at all; the jobs table is the
truth and the reconciler rings again, so a broker that is down delays work and loses none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from uuid import UUID

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from services.kit.db import Sessions
from services.kit.folder_broker import SCHEME
from services.settings import Settings

WORK = "ppdd.work"  # the task that runs a job
FETCH = (
    "ppdd.fetch"  # the same for a job that speaks to other hospitals, which not every worker may
)
TEACH = "ppdd.teach"  # the task that does parts of a job which another worker runs

Send = Callable[[str, UUID], None]
log = structlog.get_logger(__name__)


@contextmanager
def transaction(sessions: Sessions, send: Send) -> Iterator[Session]:
    """Commit on exit, then ring for what `enqueue` noted; on an error roll back and ring for nothing."""
    with sessions.begin() as session:
        outbox = session.info.setdefault("outbox", [])
        yield session
    for task, job_id in outbox:
        send(task, job_id)


def enqueue(session: Session, job_id: UUID, task: str = WORK) -> None:
    """Note that `task` is to be rung for `job_id` once this transaction is committed."""
    session.info.setdefault("outbox", []).append((task, job_id))


def celery_client(settings: Settings, name: str = "ppdd") -> Celery:
    """Return a Celery app that speaks to the node's broker; the worker adds its tasks to one like it."""
    app = Celery(name, set_as_current=False)
    app.conf.update(
        broker_url=broker_url(settings),
        task_default_queue=settings.broker.queue,
        task_routes={FETCH: {"queue": fetch_queue(settings)}},
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=3,
        broker_transport_options=_transport(settings),
        enable_utc=True,
        timezone="UTC",
    )
    return app


def fetch_queue(settings: Settings) -> str:
    """Return the queue of the jobs that speak to other hospitals."""
    return f"{settings.broker.queue}-fetch"


def doorbell(settings: Settings) -> Send:
    """Return the function that rings; a broker that does not answer is logged, not raised."""
    app = celery_client(settings)
    # A request waits for its ring, so one more try is all: whoever is not rung for now is rung for by the reconciler.
    app.conf.broker_transport_options |= {"max_retries": 1, "interval_start": 0, "interval_max": 0}

    def ring(task: str, job_id: UUID) -> None:
        try:
            app.send_task(task, args=[str(job_id)], retry=False)
        except (OperationalError, OSError) as err:
            log.warning("broker.unreachable", job_id=str(job_id), error=type(err).__name__)

    return ring


def broker_url(settings: Settings) -> str:
    """Return the broker's URL with its password in place."""
    url, password = settings.broker.url, settings.broker.password
    if not url:
        return f"{SCHEME}://localhost"  # no host is asked; without a name kombu warns that it takes this one
    if password is None:
        return url
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user if at else ''}:{quote(password.get_secret_value(), safe='')}@{host}"


def _transport(settings: Settings) -> dict[str, Any]:
    if settings.broker.url:
        return {"visibility_timeout": 3600, "socket_connect_timeout": 3, "socket_timeout": 30}
    folders = {
        name: settings.data_dir / "queue" / name for name in ("messages", "processed", "control")
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "data_folder_in": str(folders["messages"]),
        "data_folder_out": str(folders["messages"]),
        "processed_folder": str(folders["processed"]),
        "control_folder": str(folders["control"]),
        "store_processed": False,
    }
