"""How long lists take: 50 readers at once of `/packages` and `/jobs`, 10,000 rows each, on PostgreSQL.

    python benchmarks/list_latency.py [--seconds 40] [--readers 50] [--rows 10000] [--processes 1 2] [--pause 1]

PostgreSQL, the API (in processes of its own that share a socket) and the readers all run on this machine and share its
cores. Every reader goes on to the next page, jobs and packages in turn, and begins again at the first one now and then.
A reader checks each status and looks for the next page's cursor in the bytes; parsing JSON would take cores away from
what is measured. Beside the times: the processor time of a page, which others on the machine disturb less.
First with a pause between two pages, as people and programs that follow something do: how long a page takes. Then
without: how many pages there are in a second, which is all that the latency says then (readers over pages a second).
Last, one reader alone goes through all pages in order: the time of the first ones beside that of later ones. Printed as
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
from sqlalchemy import insert

from ppdd_core.presets import quick
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role, role_scopes
from services.catalogue.models import Package, PackageVersion
from services.jobs.models import Job, JobEvent
from services.kit.db import new_id, now
from services.kit.migrate import upgrade
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings
from tests.servers import HOST, Server, postgres_server

DATABASE = "latency"
PATHS = ("/api/v1/packages", "/api/v1/jobs")
LIMIT = 50  # rows of a page, as it is where nobody says otherwise
WARM_UP = 2.0  # seconds that are not counted
# uvicorn's `fd=` would take the socket for a local one, and leave Nagle's algorithm on: 40 ms an answer.
SERVE = """
import socket, sys, uvicorn
from services.app import create_app
from services.kit.resources import open_resources
from services.settings import load_settings
with open_resources(load_settings()) as resources:
    config = uvicorn.Config(create_app(resources), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
NEXT = re.compile(rb'"next":(?:"([0-9a-f-]{36})"|null)\}$')
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and print what was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=40)
    options.add_argument("--readers", type=int, default=50)
    options.add_argument("--rows", type=int, default=10_000)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--pause", type=float, default=1.0, help="mean seconds between two pages")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the servers end with this
    with postgres_server() as postgres, tempfile.TemporaryDirectory() as folder:
        settings = _settings(postgres, Path(folder))
        with open_resources(settings, send=lambda *_: None) as resources:
            token = _fill(resources, chosen.rows)
        each = chosen.seconds / len(chosen.processes) / 2
        found = {
            f"{count} process{'es' if count > 1 else ''}": _measure(
                settings, token, count, chosen.readers, each, chosen.pause, postgres.pid
            )
            for count in chosen.processes
        }
    sys.stdout.write(
        json.dumps(
            {
                "readers": chosen.readers,
                "rows": chosen.rows,
                "page": LIMIT,
                "cores": os.cpu_count(),
                **found,
            },
            indent=2,
        )
        + "\n"
    )


# ---------------------------------------------------------------------------------------------- rows


def _settings(postgres: Server, folder: Path) -> Settings:
    admin = f"host={HOST} port={postgres.port} user=postgres dbname=postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    url = f"postgresql+psycopg://postgres@{HOST}:{postgres.port}/{DATABASE}"
    return load_settings({}, site_id="bench", data_dir=folder, database={"url": url})


def _fill(resources: Resources, rows: int) -> str:
    """Add jobs and package versions as large as real ones; return the token of somebody who may read both."""
    upgrade(resources.settings)
    with resources.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username="reader", display_name="Reader", role=Role.RESEARCHER
        )
        scopes = role_scopes(Role.RESEARCHER)
        _, token = auth.issue_token(session, SYSTEM, user, name="bench", scopes=scopes, days=1)
    recipe = quick(10).to_dict()
    for start in range(0, rows, 1000):
        numbers = range(start, min(start + 1000, rows))
        jobs = [_job(number, user.id, recipe) for number in numbers]
        packages = [
            {"id": new_id(), "created_at": now(), "site": "bench", "name": f"chest-{number}"}
            for number in numbers
        ]
        with resources.sessions.begin() as session:
            session.execute(insert(Job), jobs)
            session.execute(insert(JobEvent), [_event(job["id"]) for job in jobs])
            session.execute(insert(Package), packages)
            versions = [_version(package, recipe) for package in packages]
            session.execute(insert(PackageVersion), versions)
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    return token


def _job(number: int, owner_id: UUID, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": new_id(), "created_at": now(), "kind": "distill", "title": f"Distil chests {number}",
        "state": random.choice(("succeeded", "failed", "cancelled")),  # noqa: S311 - nothing secret
        "owner_id": owner_id, "spec": {"recipe": recipe, "dataset": "chests"},
        "attempts": 1, "max_attempts": 5, "fence": 1, "started_at": now(), "finished_at": now(),
        "progress": {"stage": "package", "done": 1, "total": 1, "eta_seconds": 0.0, "note": "", "numbers": {}},
        "estimate": {"seconds": dict.fromkeys(("teachers", "distillation"), 60.0)},
        "result": {"version_id": str(new_id()), "accuracy": 0.8},
    }  # fmt: skip


def _event(job_id: UUID) -> dict[str, Any]:
    return {"job_id": job_id, "at": now(), "kind": "state", "data": {"state": "queued"}}


def _version(package: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    files = [{"path": f"previews/{n}.png", "sha256": f"{n:064x}", "size": n} for n in range(40)]
    return {
        "id": new_id(), "created_at": now(), "package_id": package["id"], "version": "1.0.0",
        "state": "released", "digest": package["id"].hex * 2, "key": "0" * 64, "site_name": "Bench",
        "manifest": {"recipe": recipe, "files": files, "classes": list("abcd")},
        "classes": list("abcd"), "images_per_class": 10, "image_size": 112, "archive_sha256": package["id"].hex * 2,
        "archive_size": 300_000, "verdict": "passed", "origin": "made",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- measuring


def _measure(
    settings: Settings,
    token: str,
    processes: int,
    readers: int,
    seconds: float,
    pause: float,
    postgres: int,
) -> dict[str, Any]:
    with _serving(settings, processes) as (port, serving):
        crowds = {
            name: asyncio.run(_crowd(port, token, readers, seconds, between, serving, postgres))
            for name, between in ((f"{pause:g} s between two pages", pause), ("no pause", 0.0))
        }
        alone = {path: asyncio.run(_alone(port, token, path)) for path in PATHS}
    return {**crowds, "one reader, page by page": alone}


@contextmanager
def _serving(settings: Settings, processes: int) -> Iterator[tuple[int, list[int]]]:
    """Run the API in processes that take connections from one socket; yield its port, and their ids."""
    with socket.create_server((HOST, 0), backlog=256) as listening:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path.cwd()),
            "PPDD_SITE_ID": settings.site_id,
            "PPDD_DATA_DIR": str(settings.data_dir),
            "PPDD_DATABASE__URL": settings.database_url,
        }
        command = [sys.executable, "-c", SERVE, str(listening.fileno())]
        running = [
            subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])  # noqa: S603 - our own
            for _ in range(processes)
        ]
        try:
            port = int(listening.getsockname()[1])
            _await_answer(port)
            yield port, [process.pid for process in running]
        finally:
            for process in running:
                process.kill()
            for process in running:
                process.wait()


def _await_answer(port: int) -> None:
    request = b"GET /api/v1/system/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection((HOST, port), timeout=60) as connection:
        connection.sendall(request)
        if not connection.recv(100).startswith(b"HTTP/1.1 200"):
            raise SystemExit("the API does not answer")


async def _crowd(
    port: int,
    token: str,
    readers: int,
    seconds: float,
    pause: float,
    serving: list[int],
    postgres: int,
) -> dict[str, Any]:
    crowd = [_Reader(number, token, pause) for number in range(readers)]
    for reader in crowd:
        await asyncio.get_running_loop().create_connection(
            functools.partial(_same, reader), HOST, port
        )
    await asyncio.sleep(WARM_UP)
    for reader in crowd:
        reader.taken = {path: [] for path in PATHS}
    before = _processor_seconds(serving, postgres)
    await asyncio.sleep(seconds)
    after = _processor_seconds(serving, postgres)
    for reader in crowd:
        reader.close()
    times = {path: [one for reader in crowd for one in reader.taken[path]] for path in PATHS}
    every = [one for path in PATHS for one in times[path]]
    used = {name: 1000 * (after[name] - before[name]) / len(every) for name in before}
    return {
        **{path: _figures(times[path]) for path in PATHS},
        "all": _figures(every),
        "requests a second": round(len(every) / seconds),
        "errors": sum(reader.errors for reader in crowd),
        "processor ms a page": {name: round(value, 2) for name, value in used.items()},
    }


class _Reader(asyncio.Protocol):
    """Asks for page after page over one connection that stays open; `taken` are the seconds of each list's pages."""

    def __init__(self, number: int, token: str, pause: float) -> None:
        self.chance = random.Random(number)  # noqa: S311 - nothing secret
        self.token, self.pause, self.turn, self.errors = token, pause, number, 0
        self.cursors: dict[str, str | None] = dict.fromkeys(PATHS)
        self.taken: dict[str, list[float]] = {path: [] for path in PATHS}
        self.received, self.whole, self.closed = b"", 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.loop = transport, asyncio.get_running_loop()
        self.loop.call_later(self.chance.uniform(0, self.pause), self.ask)

    def ask(self) -> None:
        if self.closed:
            return
        self.path = PATHS[self.turn % len(PATHS)]
        self.turn += 1
        self.asked = time.perf_counter()
        self.transport.write(_request(_target(self.path, self.cursors[self.path]), self.token))

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.whole:
            end = self.received.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            length = LENGTH.search(self.received, 0, end)
            assert length is not None
            self.whole = end + int(length[1])
        if len(self.received) >= self.whole:
            self.taken[self.path].append(time.perf_counter() - self.asked)
            self.answered(self.received)
            self.received, self.whole = b"", 0
            between = self.chance.uniform(0.5, 1.5) * self.pause
            self.loop.call_later(between, self.ask) if between else self.ask()

    def answered(self, answer: bytes) -> None:
        """Note an error; else where the next page is, or now and then that it is to be the first one again."""
        end = NEXT.search(answer, len(answer) - 80) if answer[9:12] == b"200" else None
        if end is None:
            self.errors += 1
        ended = end is None or end[1] is None or self.chance.random() < 0.1
        self.cursors[self.path] = None if ended or end is None else end[1].decode()

    def connection_lost(self, _: Exception | None) -> None:
        self.errors += not self.closed

    def close(self) -> None:
        self.closed = True
        self.transport.close()


def _same(reader: _Reader) -> _Reader:
    return reader


def _processor_seconds(serving: list[int], postgres: int) -> dict[str, float]:
    """Return what the API, PostgreSQL and the readers have used of the processors so far."""
    return {
        "API": sum(_used(pid) for pid in serving),
        "PostgreSQL": _used(postgres) + sum(_used(pid) for pid in _children(postgres)),
        "readers": time.process_time(),
    }


def _used(pid: int) -> float:
    """Return the seconds of a process and of its children that have ended; 0 for one that has just gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:15]) / TICKS


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _alone(port: int, token: str, path: str) -> dict[str, Any]:
    """Return the median milliseconds of a page near the start, and of later ones; three walks through all pages."""
    walks = []
    for _ in range(3):
        stream, cursor, walk = await asyncio.open_connection(HOST, port), None, []
        while True:
            asked = time.perf_counter()
            status, body = await _get(stream, _target(path, cursor), token)
            walk.append(time.perf_counter() - asked)
            if status != 200:
                raise SystemExit(f"{path} answered {status}")
            cursor = json.loads(body)["next"]
            if cursor is None:
                break
        walks.append(walk)
        stream[1].close()
    pages = [1000 * min(of) for of in zip(*walks, strict=True)]
    near = {f"pages {at + 1} to {at + 20}": pages[at : at + 20] for at in (1, 50, 100, 150, 175)}
    return {name: round(statistics.median(some), 2) for name, some in near.items() if some}


def _target(path: str, cursor: str | None) -> str:
    return f"{path}?limit={LIMIT}" + (f"&cursor={quote(cursor)}" if cursor else "")


def _request(target: str, token: str) -> bytes:
    return (
        f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )


async def _get(
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], target: str, token: str
) -> tuple[int, bytes]:
    """Ask over a connection that stays open."""
    reader, writer = stream
    writer.write(_request(target, token))
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    assert length is not None
    return int(head[9:12]), await reader.readexactly(int(length[1]))


def _figures(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    ordered = sorted(1000 * one for one in seconds)
    last = len(ordered) - 1
    found = {f"p{share}": ordered[round(share / 100 * last)] for share in (50, 95, 99)}
    return {name: round(value, 1) for name, value in {**found, "max": ordered[-1]}.items()}


if __name__ == "__main__":
    main()
