"""People with passwords, and browsers that are logged in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from services.audit.actor import SYSTEM
from services.auth import passwords, service
from services.auth.dependencies import CSRF_HEADER
from services.auth.permissions import Role
from services.kit.resources import Resources

PASSWORD = "lantern-orbit-velvet-27"


@cache
def _quick() -> PasswordHash:
    return PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash as in earnest but a thousand times cheaper: a login in earnest takes a tenth of a second."""
    monkeypatch.setattr(passwords, "_hasher", _quick)
    passwords._nobody.cache_clear()


def add_person(resources: Resources, username: str, role: str = "researcher") -> None:
    with resources.sessions.begin() as session:
        user = service.create_user(
            session, SYSTEM, username=username, display_name=username.title(), role=Role(role)
        )
        user.password_hash = passwords.hash_password(PASSWORD)


@dataclass
class Browser:
    """A client with cookies of its own, and what it sends once it is logged in."""

    client: TestClient
    csrf: str = ""

    def log_in(self, username: str, password: str = PASSWORD, **body: Any) -> Response:
        answer = self.client.post(
            "/api/v1/sessions", json={"username": username, "password": password, **body}
        )
        if answer.status_code == 201:
            self.csrf = answer.json()["csrf"]
        return answer

    def ask(self, method: str, path: str, **options: Any) -> Response:
        headers = {CSRF_HEADER: self.csrf, **options.pop("headers", {})}
        return self.client.request(method, f"/api/v1{path}", headers=headers, **options)


NewBrowser = Callable[[], Browser]


@pytest.fixture
def new_browser(client: TestClient) -> NewBrowser:
    """Return a function that opens a browser without cookies, on the same node."""
    return lambda: Browser(TestClient(client.app, raise_server_exceptions=False))


@pytest.fixture
def browser(new_browser: NewBrowser) -> Browser:
    return new_browser()
