"""Chaos: short distillations over REST while processes of the node are killed without warning, again and again.

    python benchmarks/chaos.py [--jobs 50] [--per-job 1.5] [--every 8] [--workers 2] [--seed 0] [--out FILE]

A node of real parts on this machine: API, workers, PostgreSQL, Redis, an S3 server. At random moments one of these
gets SIGKILL and is started again at once: a job's process, a worker, the API, Redis, PostgreSQL. In the end every job
must have succeeded, been completed once, and made the very bytes of an undisturbed run of the same recipe with the
same name and moment. With `--visibility SECONDS` Redis gives messages out again after so long, and every ring is sent
three times. Writes `OUT.json` and `OUT.md`; exits with 1 where a job was lost, doubled, stuck, or made other bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg
import torch
from rich.console import Console
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from ppdd_core.config import Recipe
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.package.signature import load_or_create_key
from ppdd_core.pipeline import Identity, Source, distill_package
from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role, role_scopes
from services.catalogue.models import PackageVersion
from services.datasets.models import SourceDataset
from services.jobs.models import ENDED, Attempt, Job, State
from services.kit.migrate import upgrade
from services.kit.queue import WORK
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.servers import HOST, S3, Server, postgres_server, rclone_server, redis_server
from worker.recipes import identity_of, recipe_of

RECIPES = 3  # different ones; a job's seed is its number modulo this
TOY: dict[str, str | int | float] = {
    "image_size": 16,
    "net.width": 4,
    "net.depth": 2,
    "teacher.teachers": 2,
    "teacher.epochs": 4,
    "teacher.lr": 0.05,
    "teacher.epoch_images": 160,
    "distill.iterations": 40,
    "distill.student_steps": 2,
    "distill.max_start_epoch": 3,
    "detector.epochs": 4,
    "detector.seeds": 1,
    "evaluation.full_epochs": 1,
    "evaluation.full_epoch_images": 64,
    "privacy.members": 20,
}
PYTHON = sys.executable
API = [PYTHON, "-m", "ppdd_core.cli", "node", "serve", "--host", HOST, "--port"]
WORKER = [PYTHON, "-m", "worker"]
# A worker whose Redis believes after a moment that a message was lost.
FORGETFUL = """
import sys
from services.kit import queue
whole = queue._transport
short = {"visibility_timeout": int(sys.argv[1]), "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
queue._transport = lambda settings: whole(settings) | short
from worker.__main__ import main
sys.exit(main())
"""
FAULTS = ("process", "worker", "api", "redis", "postgres")
console = Console(stderr=True)


@dataclass
class Program:
    """One process of the node, which can be killed and started again."""

    command: list[str]
    environ: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the node's own programs
                self.command, env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it end in order, for a while."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()

    def descendants(self) -> list[int]:
        """Return the processes below it."""
        assert self.process is not None
        return _below(self.process.pid)


@dataclass
class Node:
    """Every part of the node, and where it is reached."""

    resources: Resources
    token: str
    url: str
    api: Program
    workers: list[Program]
    redis: Server
    postgres: Server
    images: Path
    folder: Path
    faults: Counter[str] = field(default_factory=Counter)

    def hit(self, what: str, chance: random.Random) -> None:
        """Kill one part and start it again."""
        if what == "process":
            found = [pid for worker in self.workers for pid in worker.descendants() if _is_job(pid)]
            if not found:
                return
            with suppress(ProcessLookupError):
                os.kill(chance.choice(found), signal.SIGKILL)
        elif what == "worker":
            _again(chance.choice(self.workers))
        elif what == "api":
            _again(self.api)
        else:
            _again(self.redis if what == "redis" else self.postgres)
        self.faults[what] += 1


def _again(part: Program | Server) -> None:
    part.kill()
    part.start()


def main() -> None:
    """Run, report, and exit with 1 where anything went wrong."""
    options = _options()
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, running(Path(name), options) as node:
        ids = disturbed(node, options)
        console.print("comparing with undisturbed runs")
        found = judged(node, ids)
        found |= {
            "faults": dict(node.faults),
            "seconds": round(time.time() - began),
            "audit_chain_intact": _audit_is_whole(node),
        }
    report = found | {
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "seed": options.seed,
        "workers": options.workers,
        "visibility": options.visibility,
        "load": [round(value, 1) for value in os.getloadavg()],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out.with_suffix(".json"), json_bytes(report) + b"\n")
    write_atomically(options.out.with_suffix(".md"), page(report).encode())
    sys.stdout.write(page(report))
    wrong = ("lost", "completed_twice", "stuck", "failed", "other_bytes")
    sys.exit(any(report[name] for name in wrong) or not report["audit_chain_intact"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument(
        "--per-job", type=float, default=1.5, help="most faults for every job that ends"
    )
    parser.add_argument("--every", type=float, default=8.0, help="mean seconds between two faults")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which a job is stuck")
    parser.add_argument("--visibility", type=int, default=0, help="seconds; Redis only")
    parser.add_argument("--out", type=Path, default=Path("docs/results/chaos"))
    return parser.parse_args()


# ------------------------------------------------------------------------------------------ the node


@contextmanager
def running(folder: Path, options: argparse.Namespace) -> Iterator[Node]:
    """Yield a whole node on `folder`, with a dataset and a researcher's token."""
    images = folder / "images"
    images.mkdir()
    write_phantoms(
        images / "xrays", images=300, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        _make_durable(postgres)
        redis, store = (stack.enter_context(one()) for one in (redis_server, rclone_server))
        assert isinstance(redis, Server)
        assert isinstance(store, S3)
        given = _settings(folder, postgres, redis, store)
        settings = load_settings(given)
        upgrade(settings)
        resources = stack.enter_context(open_resources(settings))
        token = _people(resources, images / "xrays")
        port = _free_port()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PPDD_")} | given
        worker = WORKER
        if options.visibility:
            worker = [PYTHON, "-c", FORGETFUL, str(options.visibility)]
        api = Program([*API, str(port)], environ, folder / "api.log")
        workers = [
            Program(worker, environ, folder / f"worker-{number}.log")
            for number in range(options.workers)
        ]
        for program in (api, *workers):
            program.start()
            stack.callback(program.stop)
        yield Node(
            resources, token, f"http://{HOST}:{port}/api/v1", api, workers, redis, postgres, images, folder,
        )  # fmt: skip


def _settings(folder: Path, postgres: Server, redis: Server, store: S3) -> dict[str, str]:
    return {
        "PPDD_SITE_ID": "hospital-a",
        "PPDD_DATA_DIR": str(folder / "node"),
        "PPDD_DATA_ROOTS": str(folder / "images"),
        "PPDD_DATABASE__URL": f"postgresql+psycopg://postgres@{HOST}:{postgres.port}/postgres",
        "PPDD_BROKER__URL": f"redis://{HOST}:{redis.port}/0",
        "PPDD_STORE__KIND": "minio",
        "PPDD_STORE__ENDPOINT": store.endpoint,
        "PPDD_STORE__ACCESS_KEY": store.access_key,
        "PPDD_STORE__SECRET_KEY": store.secret_key,
        "PPDD_STORE__SECURE": "false",
        "PPDD_STORE__BUCKET": "chaos",
        "PPDD_JOBS__LEASE_SECONDS": "8",
        "PPDD_JOBS__HEARTBEAT_SECONDS": "1",
        "PPDD_JOBS__SWEEP_SECONDS": "2",
        "PPDD_JOBS__MAX_ATTEMPTS": "50",  # nobody is unlucky five times in a row but here
        "PPDD_LIMITS__DISK_RESERVE_BYTES": "0",
        "PPDD_WORKER__DEVICE": "cpu",
        "PPDD_WORKER__PROCESSES": "1",
    }


def _make_durable(postgres: Server) -> None:
    """Let a commit be written before it is answered: the tests' server holds it back, and SIGKILL would lose it."""
    with psycopg.connect(
        host=HOST, port=postgres.port, user="postgres", autocommit=True
    ) as connection:
        connection.execute("ALTER ROLE postgres SET synchronous_commit = on")


def _people(resources: Resources, path: Path) -> str:
    with resources.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username="rita", display_name="Rita", role=Role.RESEARCHER
        )
        session.flush()
        session.add(
            SourceDataset(
                name="xrays", title="Drawn X-rays", owner_id=user.id, path=str(path), rows={}, state="registered",
            )
        )  # fmt: skip
        scopes = role_scopes(Role.RESEARCHER)
        _, token = auth.issue_token(session, SYSTEM, user, name="chaos", scopes=scopes, days=1)
        return token


# ------------------------------------------------------------------------------------------ the chaos


def disturbed(node: Node, options: argparse.Namespace) -> list[UUID]:
    """Submit the jobs and kill parts until all have ended, or the time is over; return the jobs' ids.

    Parts are started by this thread alone: a server of the tests ends with the thread that started it.
    """
    until = time.monotonic() + options.minutes * 60
    chance = random.Random(options.seed)  # noqa: S311 - reproducible, not secret
    ids: list[UUID] = []
    client = threading.Thread(target=_submit_all, args=(node, options, until, ids), daemon=True)
    client.start()
    next_fault, next_look, ended = _moment(chance, options.every), time.monotonic(), 0
    while time.monotonic() < until:
        due = node.faults.total() < options.per_job * (ended + options.workers)
        if due and time.monotonic() > next_fault:
            node.hit(chance.choice(FAULTS), chance)
            next_fault = _moment(chance, options.every)
        if time.monotonic() > next_look:
            states = _states(node)
            console.print(f"{dict(states)}  {dict(node.faults)}")
            ended = max(ended, sum(states[state] for state in ENDED))
            if ended == options.jobs:
                break
            next_look = time.monotonic() + 5
        time.sleep(0.1)
    client.join(60)
    return ids


def _moment(chance: random.Random, every: float) -> float:
    return time.monotonic() + min(max(chance.expovariate(1 / every), 0.5), 4 * every)


def _submit_all(node: Node, options: argparse.Namespace, until: float, ids: list[UUID]) -> None:
    with httpx2.Client(headers={"Authorization": f"Bearer {node.token}"}, timeout=20) as client:
        for number in range(options.jobs):
            ids.append(_submit(node, client, number, until))
            for _ in range(2 if options.visibility else 0):
                node.resources.send(WORK, ids[-1])


def _submit(node: Node, client: httpx2.Client, number: int, until: float) -> UUID:
    body = {
        "kind": "distill",
        "dataset": "xrays",
        "preset": "quick",
        "images_per_class": 1,
        "settings": TOY,
        "seed": number % RECIPES,
        "package": {
            "name": "chaos",
            "version": f"1.0.{number}",
            "licence": "research use only",
            "purposes": ["DUO:0000042"],
        },
    }
    answer = _until_answer(
        lambda: client.post(
            f"{node.url}/jobs", json=body, headers={"Idempotency-Key": f"chaos-{number}"}
        ),
        until,
    )
    return UUID(answer.json()["id"])


def _until_answer(ask: Callable[[], httpx2.Response], until: float) -> httpx2.Response:
    """Return the first answer that is one; whoever does not answer is asked again, as a client should."""
    while True:
        try:
            answer = ask()
            if answer.is_success:
                return answer
            reason = f"{answer.status_code} {answer.text[:200]}"
            if answer.status_code < 500 and answer.status_code != 429:
                raise SystemExit(f"the API refused: {reason}")
        except httpx2.TransportError as error:
            reason = str(error)
        if time.monotonic() > until:
            raise SystemExit(f"the API does not answer: {reason}")
        time.sleep(0.5)


def _states(node: Node) -> Counter[str]:
    try:
        with node.resources.sessions() as session:
            rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
            return Counter({row.state: row[1] for row in rows})
    except DBAPIError:
        return Counter()


# ------------------------------------------------------------------------------------------ the judgement


def judged(node: Node, ids: list[UUID]) -> dict[str, Any]:
    """Return what became of the jobs: counts of what must not be, and how often they were begun."""
    with node.resources.sessions() as session:
        rows = {job.id: job for job in session.scalars(select(Job))}
        ends = session.execute(select(Attempt.job_id, Attempt.outcome)).all()
        versions = session.execute(
            select(PackageVersion.job_id, PackageVersion.archive_sha256)
        ).all()
    completed = Counter(job_id for job_id, outcome in ends if outcome == "succeeded")
    published = Counter(job_id for job_id, _ in versions)
    states = Counter(rows[job_id].state for job_id in ids if job_id in rows)
    archives = {job_id: digest for job_id, digest in versions if job_id is not None}
    runs = Undisturbed(node)
    done = [job_id for job_id in ids if job_id in archives]
    different = [job_id for job_id in done if runs.archive(rows[job_id]) != archives[job_id]]
    return {
        "jobs": len(ids),
        "succeeded": states[State.SUCCEEDED.value],
        "failed": states[State.FAILED.value] + states[State.CANCELLED.value],
        "stuck": states[State.QUEUED.value] + states[State.RUNNING.value],
        "lost": len(ids) - len(set(ids) & set(rows)) + len(set(ids) - set(archives)),
        "completed_twice": sum(
            completed[job_id] > 1 or published[job_id] > 1 for job_id in set(ids)
        ),
        "other_bytes": len(different),
        "compared": len(done),
        "attempts": dict(Counter(str(outcome) for _, outcome in ends)),
        "most_attempts": max(Counter(job_id for job_id, _ in ends).values()),
    }


class Undisturbed:
    """Runs of the library itself, one per recipe, and the package each job should have made of them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._key = load_or_create_key(node.resources.settings.signing_key)
        self._made: dict[int, Path] = {}

    def archive(self, job: Job) -> str:
        """Return the sha256 of the archive that the job should have made."""
        recipe, identity = recipe_of(job), identity_of(job, self._node.resources)
        kept = self._made.get(recipe.seed)
        if kept is None:
            kept = self._node.folder / f"undisturbed-{recipe.seed}"
            self._run(kept, recipe, identity)
            self._made[recipe.seed] = kept
        folder = self._node.folder / "renamed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("package", "*.zip"))
        record = json.loads((folder / "run.json").read_text())
        write_atomically(folder / "run.json", json_bytes(record | {"created": identity.created}))
        return hashlib.sha256(self._run(folder, recipe, identity).read_bytes()).hexdigest()

    def _run(self, folder: Path, recipe: Recipe, identity: Identity) -> Path:
        return distill_package(
            Source(path=self._node.images / "xrays"),
            folder,
            recipe,
            identity,
            device=torch.device("cpu"),
            cache_dir=self._node.folder / "cache",
            processes=1,
        ).archive


def _audit_is_whole(node: Node) -> bool:
    with node.resources.sessions() as session:
        return audit.verify(session).intact


def page(report: dict[str, Any]) -> str:
    """Return the report for people."""
    faults = ", ".join(f"{name} {count}" for name, count in sorted(report["faults"].items()))
    rows = [
        ("jobs submitted over REST", report["jobs"]),
        ("succeeded", report["succeeded"]),
        ("lost", report["lost"]),
        ("completed twice", report["completed_twice"]),
        ("stuck", report["stuck"]),
        ("failed or cancelled", report["failed"]),
        ("packages with other bytes than the undisturbed run", f"{report['other_bytes']} of {report['compared']}"),
        ("kills (SIGKILL)", f"{sum(report['faults'].values())}: {faults}" if faults else 0),
        ("attempts by outcome", ", ".join(f"{k} {v}" for k, v in sorted(report["attempts"].items()))),
        ("most attempts of one job", report["most_attempts"]),
        ("audit log", "whole" if report["audit_chain_intact"] else "BROKEN"),
        ("seconds in all", report["seconds"]),
    ]  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    visibility = (
        f", Redis visibility timeout {report['visibility']} s, every ring sent three times"
        if report["visibility"]
        else ""
    )
    return (
        "# Jobs while the node's processes are killed\n\n"
        f"`{report['command']}`; commit {report['commit']}; {report['machine']}; load {report['load'][0]}; "
        f"seed {report['seed']}; {report['workers']} workers, PostgreSQL, Redis, S3 (rclone){visibility}.\n\n"
        f"| what | figure |\n|---|---|\n{table}\n"
    )


# ------------------------------------------------------------------------------------------ processes


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_below(child)]
    return found


def _is_job(pid: int) -> bool:
    try:
        return b"worker.run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _free_port() -> int:
    import socket

    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
