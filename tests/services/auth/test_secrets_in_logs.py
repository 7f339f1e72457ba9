"""Nothing that is secret reaches the log or the audit log, whatever people do with it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from urllib.parse import urlsplit

import pyotp
import pytest
import structlog
from sqlalchemy import select

from services.audit.models import AuditEvent
from services.audit.service import facts_of
from services.auth import service
from services.kit.logging import configure
from services.kit.resources import Resources
from services.settings import LogSettings
from tests.services.auth.conftest import PASSWORD, NewBrowser


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that any logger writes, down to debug, as the node would write it."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level, text = root.level, io.StringIO()
    configure(LogSettings(format="json", level="debug"))
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(text)
    yield text
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_day_of_logins_and_tokens_leaves_no_secret_in_any_log(
    written: io.StringIO, resources: Resources, new_browser: NewBrowser
) -> None:
    with resources.sessions.begin() as session:
        link = service.open_setup_link(session, resources.settings)
    assert link is not None
    secrets = [PASSWORD, urlsplit(link).fragment]
    browser = new_browser()
    person = {"username": "maria", "display_name": "Maria", "password": PASSWORD}
    made = browser.ask("POST", "/setup", json={"token": secrets[1], **person})
    browser.csrf = made.json()["csrf"]
    wrong = ["wrong-lantern-password", "9-wrong-name-that-is-a-password"]
    browser.log_in("maria", wrong[0])
    browser.log_in(wrong[1], "x")
    browser.ask("POST", "/setup", json={"token": "ppdd_wrong-link-token", **person})
    totp = browser.ask("POST", "/account/totp", json={"password": PASSWORD}).json()["secret"]
    codes = browser.ask("POST", "/account/totp/confirm", json={"code": pyotp.TOTP(totp).now()})
    token = browser.ask("POST", "/tokens", json={"name": "x", "scopes": ["jobs:read"]}).json()[
        "token"
    ]
    headers = {"Authorization": f"Bearer {token}"}
    browser.client.get("/api/v1/users", headers=headers)
    browser.client.get("/api/v1/users", headers={"Authorization": f"Bearer {token[:-1]}x"})
    browser.client.get(f"/api/v1/users?token={token}")
    user = browser.ask(
        "POST", "/users", json={"username": "paolo", "display_name": "P", "role": "auditor"}
    )
    reset = urlsplit(user.json()["password_link"]["url"]).fragment
    browser.ask("POST", "/sessions/password", json={"token": reset, "password": "paolo"})
    cookie = browser.client.cookies["ppdd_session"]
    secrets += [*wrong, totp, *codes.json()["recovery_codes"], token, reset, cookie, browser.csrf]
    logging.getLogger("uvicorn.error").info(
        "GET /x?token=%s", token
    )  # a library that says too much
    structlog.get_logger("x").info("x", authorization=token, note=f"Bearer {cookie}")
    try:
        raise RuntimeError(f"a bug that holds {token}")
    except RuntimeError:
        structlog.get_logger("x").exception("bug")

    with resources.sessions() as session:
        audited = repr([facts_of(event) for event in session.scalars(select(AuditEvent))])
    assert "user.create" in audited
    assert "bug" in written.getvalue()
    for secret in secrets:
        assert secret not in written.getvalue()
        assert secret not in audited
