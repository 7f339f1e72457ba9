"""A node whose jobs are done by real processes: settings in an environment, a dataset of drawn X-rays, toy recipes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.package.build import Usage
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.datasets.models import SourceDataset
from services.jobs import service as jobs
from services.jobs import submit
from services.jobs.models import Job, JobEvent, LogLine
from services.kit.db import Base, new_id
from services.kit.migrate import upgrade
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings
from worker import supervise
from worker.supervise import Post

TOY: dict[str, str | int | float] = {
    "image_size": 16,
    "net.width": 4,
    "net.depth": 2,
    "teacher.teachers": 2,
    "teacher.epochs": 4,
    "teacher.lr": 0.05,
    "teacher.epoch_images": 160,
    "distill.iterations": 20,
    "distill.student_steps": 2,
    "distill.max_start_epoch": 3,
    "detector.epochs": 4,
    "detector.seeds": 1,
    "evaluation.full_epochs": 1,
    "evaluation.full_epoch_images": 64,
    "privacy.members": 20,
}
USAGE = Usage(licence="research use only", purposes=("DUO:0000042",))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with one dataset in it, `xrays`."""
    root = tmp_path_factory.mktemp("root")
    write_phantoms(
        root / "xrays", images=300, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    return root


@dataclass
class Bell:
    """A doorbell that nobody hears."""

    rung: list[tuple[str, UUID]]

    def __call__(self, task: str, job_id: UUID) -> None:
        self.rung.append((task, job_id))


@dataclass
class Node:
    """A node on a folder, one dataset, one researcher; jobs are made and looked at through it."""

    environ: dict[str, str]
    settings: Settings
    resources: Resources
    owner: Principal
    dataset: str

    def distill(self, version: str = "1.0.0", seed: int = 0, teachers: int = 2) -> UUID:
        """Return the id of a new toy distillation."""
        work = submit.Work(
            dataset=self.dataset,
            preset="quick",
            images_per_class=1,
            settings=TOY | {"teacher.teachers": teachers},
            seed=seed,
        )
        identity = submit.Identity(name="toy", version=version, usage=USAGE)
        with self.resources.transaction() as session:
            job, _ = submit.submit_distill(
                session, self.settings, self.owner, work, identity, idempotency_key=None
            )
            return job.id

    def check(self, image_size: int = 16) -> UUID:
        """Return the id of a new check of the dataset: a job without torch."""
        with self.resources.transaction() as session:
            job, _ = submit.submit_check(
                session, self.settings, self.owner, self.dataset, image_size=image_size,
                idempotency_key=None,
            )  # fmt: skip
            return job.id

    def job(self, job_id: UUID) -> Job:
        """Return the job as it is now."""
        with self.resources.sessions() as session:
            return jobs.get(session, job_id)

    def log(self, job_id: UUID) -> list[str]:
        """Return the lines of the job's log."""
        with self.resources.sessions() as session:
            lines = select(LogLine.text).where(LogLine.job_id == job_id).order_by(LogLine.id)
            return list(session.scalars(lines))

    def events(self, job_id: UUID) -> list[dict[str, Any]]:
        """Return what followers of the job were told."""
        with self.resources.sessions() as session:
            events = select(JobEvent.data).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
            return list(session.scalars(events))

    def change(self, job_id: UUID, values: Mapping[str, Any]) -> None:
        """Change a job's row as nobody else may."""
        with self.resources.sessions.begin() as session:
            row = jobs.get(session, job_id)
            for name, value in values.items():
                setattr(row, name, value)

    def post(self, worker: str = "cpu@test", stopping: Callable[[], bool] = lambda: False) -> Post:
        """Return the place of one worker."""
        return Post(self.resources, worker, self.environ, stopping)


def children() -> list[int]:
    """Return the processes that this one has started."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(pid) for pid in task.read_text().split()]
    return found


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Return as soon as it is true."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@contextmanager
def supervised(post: Post, job_id: UUID) -> Iterator[int]:
    """Supervise the job in a thread; yield its process's id as soon as it reports progress, and wait for its end."""
    thread = threading.Thread(target=supervise.work, args=(post, job_id))
    before = set(children())
    thread.start()
    try:
        wait_until(lambda: bool(_progress(post, job_id)), "progress")
        (child,) = set(children()) - before
        yield child
    finally:
        thread.join(120)
        assert not thread.is_alive()


def _progress(post: Post, job_id: UUID) -> Any:
    with post.resources.sessions() as session:
        return jobs.get(session, job_id).progress


@pytest.fixture
def make_node(tmp_path: Path, phantoms: Path) -> Iterator[Callable[..., Node]]:
    """Return a function that makes a node; its arguments are settings by their variables' names."""
    opened = []

    def make(**variables: str) -> Node:
        given = {
            "PPDD_DATA_DIR": str(tmp_path / "node"),
            "PPDD_DATA_ROOTS": str(phantoms),
            "PPDD_SITE_ID": "hospital-a",
            "PPDD_LIMITS__DISK_RESERVE_BYTES": "0",
            "PPDD_JOBS__LEASE_SECONDS": "10",
            "PPDD_JOBS__HEARTBEAT_SECONDS": "0.3",
            "PPDD_JOBS__CANCEL_GRACE_SECONDS": "20",
            "PPDD_WORKER__DEVICE": "cpu",
            "PPDD_WORKER__PROCESSES": "1",
        } | variables
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PPDD_")} | given
        settings = load_settings(given)
        upgrade(settings)
        context = open_resources(settings, send=Bell([]))
        resources = context.__enter__()
        Base.metadata.create_all(resources.engine)
        opened.append(context)
        return Node(environ, settings, resources, *_people(resources, phantoms))

    yield make
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """Return an embedded node whose doorbell rings for nobody."""
    return make_node()


def _people(resources: Resources, phantoms: Path) -> tuple[Principal, str]:
    with resources.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username="rita", display_name="Rita", role=Role.RESEARCHER
        )
        session.flush()
        session.add(
            SourceDataset(
                name="xrays", title="Drawn X-rays", owner_id=user.id, path=str(phantoms / "xrays"),
                rows={}, state="registered",
            )
        )  # fmt: skip
    return Principal(user.id, "rita", Role.RESEARCHER, "token", new_id()), "xrays"
