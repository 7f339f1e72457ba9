"""A node in a temporary folder: its resources, its API, and people with tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.models import User
from services.auth.permissions import Role, role_scopes
from services.kit.db import Base
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings


@dataclass
class Bell:
    """A doorbell that only remembers who was rung for."""

    rung: list[tuple[str, UUID]] = field(default_factory=list)

    def __call__(self, task: str, job_id: UUID) -> None:
        self.rung.append((task, job_id))


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    roots = tmp_path / "images"
    roots.mkdir()
    return load_settings(
        {},
        site_id="hospital-a",
        site_name="Hospital A",
        data_dir=tmp_path / "node",
        data_roots=(roots,),
    )


@pytest.fixture
def resources(settings: Settings, bell: Bell) -> Iterator[Resources]:
    """A node on SQLite and a folder, whose doorbell rings for nobody."""
    with open_resources(settings, send=bell) as made:
        Base.metadata.create_all(made.engine)
        yield made


@pytest.fixture
def client(resources: Resources) -> Iterator[TestClient]:
    """The API without anybody logged in. Errors are answers, as for a real client."""
    with TestClient(create_app(resources), raise_server_exceptions=False) as made:
        yield made


Login = Callable[..., dict[str, str]]


@pytest.fixture
def login(resources: Resources) -> Login:
    """Return headers of a token: `login("researcher")`, or `login("researcher", username="eve")` for a second one."""

    def headers(
        role: str, *, username: str = "", scopes: frozenset[str] | None = None
    ) -> dict[str, str]:
        name = username or role
        with resources.sessions.begin() as session:
            user = session.scalar(select(User).where(User.username == name))
            user = user or auth.create_user(
                session, SYSTEM, username=name, display_name=name.title(), role=Role(role)
            )
            allowed = role_scopes(Role(role))
            chosen = (
                allowed
                if scopes is None
                else frozenset(scope for scope in allowed if scope in scopes)
            )
            _, text = auth.issue_token(session, SYSTEM, user, name="test", scopes=chosen, days=1)
        return {"Authorization": f"Bearer {text}"}

    return headers
