"""A node while it runs: the API in this process, workers beside it, one clean way to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from ppdd_core.errors import BadConfigError, PpddError
from services.app import create_app
from services.cli.crew import Crew
from services.kit.resources import Resources
from services.settings import Settings

LISTEN_QUEUE = 512
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_ANSWERS = 5  # seconds for requests that are being answered; event streams are broken off
WORKER_EXTRA = 10.0  # seconds beyond the grace of jobs until workers are killed
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the API is to be reached."""

    sock: socket.socket
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False

    @property
    def url(self) -> str:
        """Return the address, with the port that was really taken."""
        host, port = self.sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.certificate else 'http'}://{shown}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; PpddError where the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=LISTEN_QUEUE)
    except OSError as err:
        reason = os.strerror(err.errno) if err.errno else str(err)
        raise PpddError(
            f"nothing can listen on {host} port {port}: {reason}; choose another with --port"
        ) from None


@contextmanager
def alone_in(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for one node; BadConfigError where another holds it or it cannot be written."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / "node.lock").open("w")
    except OSError as err:
        raise BadConfigError(
            f"the data folder {data_dir} cannot be used: {err.strerror}; choose another with --data-dir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadConfigError(
                f"another node runs in {data_dir}; stop it, or choose another with --data-dir"
            ) from None
        yield


def run_node(
    resources: Resources,
    at: Listening,
    *,
    workers: int = 0,
    environ: Mapping[str, str] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then stop cleanly; a second signal stops without waiting for jobs.

    `on_ready` is called once requests are answered. PpddError if the API ends by itself.
    """
    server = uvicorn.Server(_config(resources, at))
    api = threading.Thread(target=server.run, args=([at.sock],), name="api", daemon=True)
    with _counting_signals() as received:
        api.start()
        crew = Crew(workers, environ or {})
        try:
            while not server.started and api.is_alive() and not received:
                time.sleep(0.02)
            if server.started and not received:
                on_ready()
            while not received and api.is_alive():
                crew.look_after()
                time.sleep(0.1)
            failed = not received
            log.info("node.stopping")
            server.should_exit = True
            _stop(crew, resources.settings, received)
        finally:
            crew.kill()
            server.force_exit = len(received) > 1
            server.should_exit = True
            api.join(LAST_ANSWERS + 5)
    if failed:
        raise PpddError("the API ended by itself; the lines above say why")


def _stop(crew: Crew, settings: Settings, received: list[int]) -> None:
    crew.ask_to_stop()
    until = time.monotonic() + settings.jobs.cancel_grace_seconds + WORKER_EXTRA
    while not crew.gone():
        if len(received) > 1 or time.monotonic() > until:
            crew.kill()
        time.sleep(0.05)


def _config(resources: Resources, at: Listening) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(resources),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        proxy_headers=at.behind_proxy,
        forwarded_allow_ips="*"
        if at.behind_proxy
        else None,  # only the proxy reaches the API there
        timeout_graceful_shutdown=LAST_ANSWERS,
        ssl_certfile=at.certificate,
        ssl_keyfile=at.key,
    )


@contextmanager
def _counting_signals() -> Iterator[list[int]]:
    """Let the signals that stop a node only be noted; yields those that came."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
