"""Users and tokens over HTTP: who may make, change and end them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.audit.actor import SYSTEM
from services.audit.models import AuditEvent
from services.auth.models import ApiToken, User
from services.auth.permissions import Role, Scope, role_scopes
from services.auth.service import MOST_TOKENS, issue_token
from services.kit.db import new_id, now
from services.kit.resources import Resources
from tests.services.auth.conftest import Browser, NewBrowser, add_person


@pytest.fixture
def anna(resources: Resources, new_browser: NewBrowser) -> Browser:
    """An admin who is logged in."""
    add_person(resources, "anna", "admin")
    browser = new_browser()
    browser.log_in("anna")
    return browser


@pytest.fixture
def maria(resources: Resources, new_browser: NewBrowser) -> Browser:
    """A researcher who is logged in."""
    add_person(resources, "maria", "researcher")
    browser = new_browser()
    browser.log_in("maria")
    return browser


def id_of(resources: Resources, username: str) -> UUID:
    with resources.sessions() as session:
        return session.scalars(select(User.id).where(User.username == username)).one()


# ------------------------------------------------------------------------------------------ users


def test_a_new_person_gets_a_link_and_logs_in(anna: Browser, new_browser: NewBrowser) -> None:
    body = {"username": "Paolo.B", "display_name": " Paolo B ", "role": "steward"}
    answer = anna.ask("POST", "/users", json=body)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["username"], made["display_name"], made["role"]) == ("paolo.b", "Paolo B", "steward")  # fmt: skip
    assert made["has_password"] is False
    token = made["password_link"]["url"].partition("#")[2]
    assert made["password_link"]["hours"] == 24
    paolo = new_browser()
    chosen = {"token": token, "password": "seven-quiet-harbours"}
    assert paolo.ask("POST", "/sessions/password", json=chosen).status_code == 204
    assert paolo.log_in("paolo.b", "seven-quiet-harbours").status_code == 201
    again = anna.ask("POST", "/users", json=body)
    assert (again.status_code, again.json()["type"]) == (409, "/problems/username-taken")


def test_a_user_needs_a_proper_name_and_role(anna: Browser) -> None:
    for wrong in (
        {"username": "a b"},
        {"username": "x"},
        {"username": "../x"},
        {"username": "x" * 65},
        {"username": "a\x00b"},
        {"display_name": " "},
        {"display_name": "x" * 201},
        {"role": "root"},
        {"role": None},
    ):
        body = {"username": "paolo", "display_name": "Paolo", "role": "steward", **wrong}
        answer = anna.ask("POST", "/users", json=body)
        assert answer.status_code == 422
        assert next(iter(wrong)) in answer.json()["detail"]


def test_users_are_listed_and_read(anna: Browser, resources: Resources) -> None:
    for number in range(3):
        add_person(resources, f"person{number}")
    page = anna.ask("GET", "/users?limit=3").json()
    assert [row["username"] for row in page["items"]] == ["person2", "person1", "person0"]
    rest = anna.ask("GET", f"/users?limit=3&cursor={page['next']}").json()
    assert [row["username"] for row in rest["items"]] == ["anna"]
    assert rest["next"] is None
    one = anna.ask("GET", f"/users/{page['items'][0]['id']}").json()
    assert one == page["items"][0]
    assert "password_hash" not in one
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/password-link")):
        assert anna.ask(method, f"/users/{new_id()}{path}", json={}).status_code == 404
    assert anna.ask("GET", "/users?cursor=x").status_code == 400


SERVER_OWNED = (
    "id", "password", "password_hash", "is_admin", "approved", "status", "created_at", "role_id", "site_id",
    "totp_sealed", "totp_confirmed_at", "disabled_at", "sha256", "user_id", "prefix",
)  # fmt: skip


def test_fields_of_the_server_cannot_be_set(
    anna: Browser, maria: Browser, resources: Resources
) -> None:
    user = {"username": "paolo", "display_name": "Paolo", "role": "steward"}
    token = {"name": "x", "scopes": ["jobs:read"]}
    path = f"/users/{id_of(resources, 'maria')}"
    for field in SERVER_OWNED:
        for answer in (
            anna.ask("POST", "/users", json=user | {field: "x"}),
            anna.ask("PATCH", path, json={field: "x"}),
            maria.ask("POST", "/tokens", json=token | {field: "x"}),
        ):
            assert answer.status_code == 422
            assert f"body/{field}: Extra inputs are not permitted" in answer.json()["detail"]


def test_nobody_raises_themselves(maria: Browser, resources: Resources) -> None:
    path = f"/users/{id_of(resources, 'maria')}"
    assert maria.ask("PATCH", path, json={"role": "admin"}).status_code == 403
    assert maria.ask("GET", "/sessions/current").json()["user"]["role"] == "researcher"


def test_a_role_changes_at_once_and_tokens_do_not_outgrow_it(
    anna: Browser, maria: Browser, resources: Resources, client: TestClient
) -> None:
    scopes = ["jobs:read", "jobs:write"]
    token = maria.ask("POST", "/tokens", json={"name": "x", "scopes": scopes}).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    path = f"/users/{id_of(resources, 'maria')}"
    assert anna.ask("PATCH", path, json={"role": "auditor"}).json()["role"] == "auditor"
    assert maria.ask("GET", "/audit-events").status_code == 200
    assert client.get("/api/v1/audit-events", headers=headers).status_code == 403
    assert client.post("/api/v1/jobs", headers=headers, json={}).status_code == 403
    assert anna.ask("PATCH", path, json={"role": "peer"}).status_code == 422


def test_the_last_admin_stays(anna: Browser, resources: Resources) -> None:
    path = f"/users/{id_of(resources, 'anna')}"
    for change in ({"role": "steward"}, {"disabled": True}):
        answer = anna.ask("PATCH", path, json=change)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/last-admin")
    add_person(resources, "bruno", "admin")
    assert anna.ask("PATCH", path, json={"role": "steward"}).status_code == 200
    assert anna.ask("GET", "/users").status_code == 403


def test_disabling_ends_everything_at_once_and_for_good(
    anna: Browser, maria: Browser, resources: Resources, client: TestClient
) -> None:
    token = maria.ask("POST", "/tokens", json={"name": "x", "scopes": ["jobs:read"]}).json()[
        "token"
    ]
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/api/v1/system/info", headers=headers).status_code == 200
    path = f"/users/{id_of(resources, 'maria')}"
    link = anna.ask("POST", f"{path}/password-link").json()["url"].partition("#")[2]

    assert anna.ask("PATCH", path, json={"disabled": True}).json()["disabled_at"] is not None
    assert maria.ask("GET", "/sessions/current").status_code == 401
    assert client.get("/api/v1/system/info", headers=headers).status_code == 401
    assert maria.log_in("maria").status_code == 401
    assert anna.ask("POST", f"{path}/password-link").status_code == 422

    assert anna.ask("PATCH", path, json={"disabled": False}).json()["disabled_at"] is None
    assert client.get("/api/v1/system/info", headers=headers).status_code == 401
    gone = {"token": link, "password": "seven-quiet-harbours"}
    assert maria.client.post("/api/v1/sessions/password", json=gone).status_code == 410
    assert maria.log_in("maria").status_code == 201


def test_an_admin_turns_the_second_factor_of_a_lost_device_off(
    anna: Browser, maria: Browser, resources: Resources
) -> None:
    path = f"/users/{id_of(resources, 'maria')}"
    with resources.sessions.begin() as session:
        lost = session.scalars(select(User).where(User.username == "maria")).one()
        lost.totp_sealed, lost.totp_confirmed_at = "x", now()
    assert anna.ask("PATCH", path, json={"totp": True}).status_code == 422
    assert anna.ask("PATCH", path, json={"totp": False}).json()["totp"] is False
    assert maria.log_in("maria").status_code == 201


def test_what_changed_is_audited_without_what_it_was(anna: Browser, resources: Resources) -> None:
    add_person(resources, "paolo")
    path = f"/users/{id_of(resources, 'paolo')}"
    change = {"display_name": "Paolo B", "role": "steward", "disabled": True}
    anna.ask("PATCH", path, json=change)
    anna.ask("PATCH", path, json=change)  # nothing changes any more
    with resources.sessions() as session:
        (event,) = session.scalars(select(AuditEvent).where(AuditEvent.action == "user.change"))
    assert (event.actor_name, event.subject) == ("anna", "paolo")
    assert event.detail == {"display_name": True, "role": "steward", "disabled": True}


# ------------------------------------------------------------------------------------------ tokens


def test_a_token_is_shown_once_and_kept_as_a_digest(
    maria: Browser, resources: Resources, client: TestClient
) -> None:
    body = {"name": "nightly", "scopes": ["jobs:read", "jobs:write"], "days": 7}
    answer = maria.ask("POST", "/tokens", json=body)
    assert answer.status_code == 201
    made = answer.json()
    assert made["token"].startswith(made["prefix"])
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert client.get("/api/v1/system/info", headers=headers).status_code == 200
    (listed,) = maria.ask("GET", "/tokens").json()["items"]
    assert "token" not in listed
    assert listed["last_used_at"] is not None
    with resources.sessions() as session:
        row = session.scalars(select(ApiToken)).one()
    assert made["token"] not in {str(getattr(row, column.key)) for column in ApiToken.__table__.c}
    assert client.get("/api/v1/tokens", headers=headers).status_code == 403  # never with a token

    assert maria.ask("DELETE", f"/tokens/{made['id']}").status_code == 204
    assert maria.ask("DELETE", f"/tokens/{made['id']}").status_code == 204
    assert client.get("/api/v1/system/info", headers=headers).status_code == 401


def test_a_token_has_bounds(maria: Browser) -> None:
    bounded: list[dict[str, Any]] = [
        {"scopes": ["packages:release", "admin"]},
        {"scopes": ["account"]},
        {"scopes": ["everything"]},
        {"scopes": []},
        {"days": 0},
        {"days": 367},
        {"name": ""},
    ]
    for wrong in bounded:
        body = {"name": "x", "scopes": ["jobs:read"], **wrong}
        assert maria.ask("POST", "/tokens", json=body).status_code == 422


def test_tokens_of_one_user_are_counted(maria: Browser, resources: Resources) -> None:
    body = {"name": "x", "scopes": ["jobs:read"]}
    with resources.sessions.begin() as session:
        user = session.scalars(select(User).where(User.username == "maria")).one()
        scopes = frozenset({Scope.JOBS_READ})
        for _ in range(MOST_TOKENS - 1):
            issue_token(session, SYSTEM, user, name="x", scopes=scopes, days=1)
    assert maria.ask("POST", "/tokens", json=body).status_code == 201
    full = maria.ask("POST", "/tokens", json=body)
    assert (full.status_code, full.json()["type"]) == (409, "/problems/too-many-tokens")


def test_an_admin_makes_tokens_for_other_hospitals_and_nobody_else(
    anna: Browser, maria: Browser, resources: Resources, client: TestClient
) -> None:
    made = anna.ask(
        "POST", "/users", json={"username": "hospital-b", "display_name": "B", "role": "peer"}
    ).json()
    assert made["password_link"] is None
    assert anna.ask("POST", f"/users/{made['id']}/password-link").status_code == 422
    body = {"name": "B", "scopes": ["packages:read"], "username": "hospital-b"}
    assert maria.ask("POST", "/tokens", json=body).status_code == 403
    assert anna.ask("POST", "/tokens", json={**body, "username": "maria"}).status_code == 422
    assert anna.ask("POST", "/tokens", json={**body, "username": "no-one"}).status_code == 422
    assert anna.ask("POST", "/tokens", json={**body, "scopes": ["jobs:read"]}).status_code == 422
    answer = anna.ask("POST", "/tokens", json=body)
    assert answer.status_code == 201
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    assert client.get("/api/v1/packages", headers=headers).status_code == 200
    assert client.get("/api/v1/jobs", headers=headers).status_code == 403


def test_tokens_of_others_are_for_those_who_decide(
    anna: Browser, maria: Browser, resources: Resources, new_browser: NewBrowser
) -> None:
    add_person(resources, "eve")
    eve = new_browser()
    eve.log_in("eve")
    made = maria.ask("POST", "/tokens", json={"name": "x", "scopes": ["jobs:read"]}).json()
    assert eve.ask("GET", "/tokens").json()["items"] == []
    for query in ("username=maria", "everybody=true"):
        assert eve.ask("GET", f"/tokens?{query}").status_code == 403
        (row,) = anna.ask("GET", f"/tokens?{query}").json()["items"]
        assert row["username"] == "maria"
    assert eve.ask("DELETE", f"/tokens/{made['id']}").status_code == 404
    assert eve.ask("DELETE", f"/tokens/{new_id()}").status_code == 404
    assert anna.ask("DELETE", f"/tokens/{made['id']}").status_code == 204
    assert maria.ask("GET", "/tokens").json()["items"][0]["revoked_at"] is not None


def test_every_role_has_scopes_of_its_own() -> None:
    assert role_scopes(Role.AUDITOR) < role_scopes(Role.ADMIN)
    assert role_scopes(Role.RESEARCHER) < role_scopes(Role.ADMIN)
