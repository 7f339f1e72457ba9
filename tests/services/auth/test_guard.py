"""What the guard takes for a caller, what it refuses, and what is remembered of that."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from services.audit.models import AuditEvent
from services.auth.models import ApiToken, LoginThrottle
from services.auth.permissions import PERMISSIONS, Role, Scope, role_scopes
from services.kit.db import now
from services.kit.resources import Resources
from tests.services.auth.conftest import Browser, NewBrowser, add_person
from tests.services.conftest import Login

JOBS = "/api/v1/jobs"
INFO = "/api/v1/system/info"


def refusals(resources: Resources) -> list[AuditEvent]:
    with resources.sessions() as session:
        wanted = select(AuditEvent).where(AuditEvent.action == "request.refuse")
        return list(session.scalars(wanted.order_by(AuditEvent.seq)))


# ------------------------------------------------------------------------------------------ tokens


NO_TOKENS = (
    "Bearer ppdd_" + "A" * 43,
    "Bearer ppdd_" + "A" * 42,
    "Bearer ppdd_" + "A" * 60_000,
    "Bearer ppdd_" + "A" * 42 + "'",
    "Bearer ' OR 1=1 --",
    "Bearer eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.",
    "Bearer",
    "Bearer ",
    "Bearer \xff\xfe",
    "Basic YWRtaW46YWRtaW4=",
    "",
    "ppdd_" + "A" * 43,
)


def test_what_is_no_token_of_ours_is_refused_even_on_routes_for_anybody(client: TestClient) -> None:
    for header in NO_TOKENS:
        for path in (INFO, "/api/v1/setup"):
            answer = client.get(path, headers={b"Authorization": header.encode("latin-1")})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_token_works_in_the_authorization_header_and_nowhere_else(
    client: TestClient, login: Login
) -> None:
    token = login("admin")["Authorization"].removeprefix("Bearer ")
    assert client.get(INFO, headers={"Authorization": f"bearer  {token} "}).status_code == 200
    for name in ("token", "access_token", "authorization", "api_key"):
        assert client.get(INFO, params={name: token}).status_code == 401
        assert client.get(INFO, headers={f"X-{name}": token}).status_code == 401
    client.cookies.set("ppdd_session", token)
    assert client.get(INFO).status_code == 401


def test_identity_never_comes_from_another_header(client: TestClient, login: Login) -> None:
    headers = login("auditor")
    for name in ("X-User", "X-Forwarded-User", "X-Role", "X-Site-Id", "X-Remote-User"):
        sent = headers | {name: "admin"}
        assert client.post("/api/v1/users", headers=sent, json={}).status_code == 403


def test_of_two_credentials_the_token_counts(
    client: TestClient, resources: Resources, browser: Browser, login: Login
) -> None:
    add_person(resources, "anna", "admin")
    browser.log_in("anna")
    assert browser.ask("GET", "/users", headers=login("researcher")).status_code == 403
    assert browser.ask("GET", "/users", headers={"Authorization": "Bearer x"}).status_code == 401


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"expires_at": now() - timedelta(seconds=1)}, id="expired"),
        pytest.param({"revoked_at": now()}, id="revoked"),
    ],
)
def test_a_token_that_ended_is_refused(
    client: TestClient, resources: Resources, login: Login, change: dict[str, object]
) -> None:
    headers = login("admin")
    assert client.get(INFO, headers=headers).status_code == 200
    with resources.sessions.begin() as session:
        session.execute(update(ApiToken).values(**change))
    assert client.get(INFO, headers=headers).status_code == 401


def test_no_role_gives_a_token_its_account() -> None:
    assert all(Scope.ACCOUNT not in role_scopes(role) for role in Role)
    assert role_scopes(Role.PEER) == {Scope.PACKAGES_READ}
    assert all(rule.scope is not None for rule in PERMISSIONS.values() if rule.roles)


# ------------------------------------------------------------------------------------------ browsers


@pytest.mark.parametrize("sent", ["", "wrong", None])
def test_a_request_that_changes_something_needs_the_sessions_csrf_value(
    resources: Resources, browser: Browser, sent: str | None
) -> None:
    add_person(resources, "anna", "admin")
    browser.log_in("anna")
    headers = {} if sent is None else {"X-CSRF-Token": sent}
    body = {"username": "eve", "display_name": "Eve", "role": "admin"}
    answer = browser.client.post("/api/v1/users", json=body, headers=headers)
    assert answer.status_code == 403
    (event,) = refusals(resources)
    assert event.actor_name == "anna"
    assert browser.ask("POST", "/users", json=body).status_code == 201


def test_the_csrf_value_of_another_session_does_not_fit(
    resources: Resources, new_browser: NewBrowser
) -> None:
    add_person(resources, "anna", "admin")
    one, other = new_browser(), new_browser()
    one.log_in("anna")
    other.log_in("anna")
    one.csrf = other.csrf
    assert one.ask("POST", "/users", json={}).status_code == 403


def test_pages_of_other_sites_change_nothing(resources: Resources, browser: Browser) -> None:
    add_person(resources, "anna", "admin")
    browser.log_in("anna")
    for origin in (
        "https://evil.example",
        "null",
        "http://testserver.evil.example",
        "file://",
        "http://testserver:81",
    ):
        headers = {"Origin": origin}
        body = {"username": "anna", "password": "whatever"}
        refused = browser.client.post("/api/v1/sessions", json=body, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
        assert browser.ask("POST", "/users", json={}, headers=headers).status_code == 403
        assert browser.ask("GET", "/users", headers=headers).status_code == 200


def test_pages_of_the_node_itself_may(resources: Resources, browser: Browser) -> None:
    add_person(resources, "anna", "admin")
    browser.log_in("anna")
    for origin in ("http://testserver", "http://127.0.0.1:8000"):
        assert browser.ask("POST", "/users", json={}, headers={"Origin": origin}).status_code == 422


def test_a_login_is_json_or_nothing(browser: Browser) -> None:
    body = b'{"username": "anna", "password": "x"}'
    forms = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    )
    for media_type in forms:
        headers = {"Content-Type": media_type}
        answer = browser.client.post("/api/v1/sessions", content=body, headers=headers)
        assert answer.status_code in (415, 422)


def test_a_session_does_not_need_csrf_to_log_in_anew(
    resources: Resources, browser: Browser
) -> None:
    add_person(resources, "anna", "admin")
    browser.log_in("anna")
    browser.csrf = ""
    assert browser.log_in("anna").status_code == 201


# ------------------------------------------------------------------------------------------ what is remembered


def test_refusals_of_known_callers_are_all_audited(
    client: TestClient, resources: Resources, login: Login
) -> None:
    headers = login("researcher")
    for _ in range(5):
        assert client.get("/api/v1/users", headers=headers).status_code == 403
    events = refusals(resources)
    assert len(events) == 5
    assert {(e.actor_kind, e.actor_name, e.subject, e.outcome) for e in events} == {
        ("token", "researcher", "users_list", "refused")
    }


def test_invalid_credentials_do_not_fill_the_log(client: TestClient, resources: Resources) -> None:
    for number in range(30):
        assert client.get(INFO, headers={"Authorization": f"Bearer {number}"}).status_code == 401
    client.cookies.set("ppdd_session", "A" * 43)
    assert client.get(INFO).status_code == 401
    (event,) = refusals(resources)
    assert (event.actor_kind, event.detail["address"]) == ("anonymous", "testclient")


def test_callers_without_a_credential_are_not_audited(
    client: TestClient, resources: Resources
) -> None:
    assert client.get(INFO).status_code == 401
    assert refusals(resources) == []


def test_the_last_use_of_a_token_is_known_to_the_minute(
    client: TestClient, resources: Resources, login: Login
) -> None:
    headers = login("admin")

    def used() -> object:
        with resources.sessions() as session:
            return session.scalars(select(ApiToken.last_used_at)).one()

    assert used() is None
    client.get(INFO, headers=headers)
    first = used()
    assert first is not None
    client.get(INFO, headers=headers)
    assert used() == first
    earlier = now() - timedelta(seconds=61)
    with resources.sessions.begin() as session:
        session.execute(update(ApiToken).values(last_used_at=earlier))
    client.post("/api/v1/users", headers=headers, json={})
    assert used() != earlier


def test_reading_goes_on_where_the_use_cannot_be_written(
    client: TestClient, resources: Resources, login: Login
) -> None:
    headers = login("admin")
    with resources.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE UPDATE ON api_tokens BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        )
    assert client.get(INFO, headers=headers).status_code == 200


def test_an_anonymous_caller_makes_no_transaction_wait(
    client: TestClient, resources: Resources
) -> None:
    with resources.sessions.begin() as session:  # SQLite's one writer is taken
        session.execute(select(func.count()).select_from(LoginThrottle))
        assert client.post("/api/v1/users", json={}).status_code == 401
        assert client.get("/api/v1/setup").status_code == 200


# ------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("body", [b"{", b"[1,", b"\xff\xfe", b'{"username": 1}', b""])
def test_who_may_not_ask_is_told_nothing_about_the_body(
    client: TestClient, login: Login, resources: Resources, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/v1/users", headers=headers, content=body).status_code == 401
    refused = client.post("/api/v1/users", headers=headers | login("peer"), content=body)
    assert refused.status_code == 403
    assert len(refusals(resources)) == 1
    told = client.post("/api/v1/users", headers=headers | login("admin"), content=body)
    assert told.status_code in (400, 422)
