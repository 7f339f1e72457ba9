"""People, a dataset and jobs on it, on SQLite; and nodes on both databases for what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.datasets.models import SourceDataset
from services.jobs import service as jobs
from services.jobs.models import Job, Kind
from services.kit.db import Base, new_id
from services.kit.resources import Resources, open_resources
from services.settings import Settings
from tests.services.conftest import Bell

Make = Callable[..., Job]


def person(resources: Resources, name: str = "ruth", role: Role = Role.RESEARCHER) -> Principal:
    """Add a user and return them as a caller."""
    with resources.sessions.begin() as session:
        user = auth.create_user(session, SYSTEM, username=name, display_name=name, role=role)
        return Principal(user.id, user.username, role, "token", new_id())


def add_job(resources: Resources, owner: Principal, **given: object) -> Job:
    """Add a queued job."""
    values = {"kind": Kind.CHECK, "title": "Check chests", "spec": {"image_size": 32}, **given}
    with resources.transaction() as session:
        job, _ = jobs.create(session, resources.settings.jobs, owner, **values)  # type: ignore[arg-type]
    return job


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, settings: Settings, bell: Bell) -> Iterator[Resources]:
    """A node on each of the two databases."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        settings = settings.model_copy(
            update={"database": settings.database.model_copy(update={"url": url})}
        )
    with open_resources(settings, send=bell) as made:
        Base.metadata.create_all(made.engine)
        yield made


@pytest.fixture
def owner(resources: Resources) -> Principal:
    return person(resources)


@pytest.fixture
def make(resources: Resources, owner: Principal) -> Make:
    """Return a function that adds a queued job of `owner`."""
    return lambda **given: add_job(resources, owner, **given)


@pytest.fixture
def dataset(resources: Resources, owner: Principal) -> SourceDataset:
    with resources.sessions.begin() as session:
        row = SourceDataset(
            name="chests",
            title="Chests",
            owner_id=owner.user_id,
            path="/images/chests",
            rows={},
            state="ready",
        )
        session.add(row)
    return row


def read(resources: Resources, job_id: UUID) -> Job:
    """Return the job as it is now."""
    with resources.sessions() as session:
        return jobs.get(session, job_id)
