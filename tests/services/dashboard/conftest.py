"""People in browsers: logged in with a cookie, sending forms as a page's own form does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.passwords import hash_password
from services.auth.permissions import Role
from services.kit.resources import Resources
from tests.services.auth.conftest import PASSWORD
from tests.services.auth.conftest import quick_hashes as quick_hashes

Fields = Mapping[str, str | Sequence[str]]


@dataclass
class Browser:
    """A browser on the node; `csrf` is what its pages put into their forms."""

    client: TestClient
    csrf: str = ""
    user_id: UUID | None = None

    def get(self, path: str, **options: Any) -> Response:
        """Open an address, without following where it sends one."""
        headers = {"Accept": "text/html", **options.pop("headers", {})}
        return self.client.get(path, headers=headers, follow_redirects=False, **options)

    def post(self, path: str, fields: Fields | None = None, **options: Any) -> Response:
        """Send a form as the page has it, without following where it sends one."""
        headers = {"Accept": "text/html", **options.pop("headers", {})}
        data = {"csrf": self.csrf, **(fields or {})}
        return self.client.post(path, data=data, headers=headers, follow_redirects=False, **options)


NewBrowser = Callable[..., Browser]


@pytest.fixture
def browser(client: TestClient, resources: Resources) -> NewBrowser:
    """Return a function: `browser("steward")` is logged in, `browser()` is not; `username=` makes a second person."""

    def opened(role: str = "", username: str = "") -> Browser:
        made = Browser(TestClient(client.app, raise_server_exceptions=False))
        if role:
            log_in(resources, made, role, username or role)
        return made

    return opened


def log_in(resources: Resources, browser: Browser, role: str, username: str) -> None:
    """Start a session of a person, who is made with PASSWORD where there is none of that name."""
    with resources.sessions.begin() as session:
        user = auth.find_user(session, username)
        if user is None:
            user = auth.create_user(
                session, SYSTEM, username=username, display_name=username.title(), role=Role(role)
            )
            user.password_hash = hash_password(PASSWORD)
        signed_in = auth.start_session(
            session, user, resources.settings.session, user_agent="test", via="password"
        )
        browser.user_id, browser.csrf = user.id, signed_in.login.csrf
        browser.client.cookies.set("ppdd_session", signed_in.cookie)
