"""The pages of people: an administrator adds, changes and disables; an auditor reads."""

from __future__ import annotations

import re
from uuid import UUID

from fastapi.testclient import TestClient

from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role
from services.kit.resources import Resources
from tests.services.auth.conftest import PASSWORD
from tests.services.conftest import Login
from tests.services.dashboard.conftest import NewBrowser
from tests.services.dashboard.test_account import NEW, secret_of

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


def user_id(resources: Resources, username: str) -> UUID:
    with resources.sessions() as session:
        user = auth.find_user(session, username)
        assert user is not None
        return user.id


def test_a_person_gets_a_link_once_and_logs_in_with_the_password_they_chose(
    browser: NewBrowser, resources: Resources
) -> None:
    admin = browser("admin")
    made = admin.post(
        "/users/new", {"username": "Maria", "display_name": "Maria Rossi", "role": "steward"}
    )
    link = secret_of(made.text, "password-link")
    assert link.startswith("http://127.0.0.1:8000/password#ppdd_")
    page = admin.get(f"/users/{user_id(resources, 'maria')}").text
    assert "has no password yet" in page
    assert link not in page
    person = browser()
    fields = {"token": link.partition("#")[2], "password": NEW}
    assert person.post("/password", fields).headers["Location"] == "/login?done=password-chosen"
    assert person.post("/login", {"username": "maria", "password": NEW}).status_code == 303


def test_another_hospital_gets_a_token_that_opens_packages_and_nothing_else(
    browser: NewBrowser, resources: Resources, client: TestClient
) -> None:
    admin = browser("admin")
    added = admin.post(
        "/users/new", {"username": "hospital-b", "display_name": "Hospital B", "role": "peer"}
    )
    assert "password-link" not in added.text
    path = f"/users/{user_id(resources, 'hospital-b')}"
    form = admin.get(path).text
    scopes = re.findall(r'type="hidden" name="scopes" value="([^"]+)"', form)
    made = admin.post(f"{path}/tokens", {"name": "B", "days": "30", "scopes": scopes})
    headers = {"Authorization": f"Bearer {secret_of(made.text, 'new-token')}"}
    assert client.get("/api/v1/packages", headers=headers).status_code == 200
    assert client.get("/api/v1/jobs", headers=headers).status_code == 403
    bad = admin.post(f"{path}/tokens", {"name": "B", "days": "9999", "scopes": scopes})
    assert bad.status_code == 422
    assert 'value="9999"' in bad.text
    people = admin.post(
        f"/users/{admin.user_id}/tokens", {"name": "x", "days": "3", "scopes": ["jobs:read"]}
    )
    assert people.status_code == 200  # one's own, as through the account
    browser("auditor")
    others = admin.post(
        f"/users/{user_id(resources, 'auditor')}/tokens",
        {"name": "x", "days": "3", "scopes": ["jobs:read"]},
    )
    assert others.status_code == 422
    assert "people make their tokens themselves" in others.text


def test_a_user_who_cannot_be_added_stays_in_the_form(browser: NewBrowser) -> None:
    admin = browser("admin")
    page = admin.post("/users/new", {"username": "a b", "display_name": HOSTILE, "role": "emperor"})
    assert page.status_code == 422
    assert "This has another form than the one that is asked for." in page.text
    assert "Choose one of those offered." in page.text
    assert 'value="a b"' in page.text
    assert "<script>alert" not in page.text
    taken = admin.post("/users/new", {"username": "admin", "display_name": "x", "role": "admin"})
    assert taken.status_code == 409
    assert "there is a user admin already" in taken.text


def test_names_roles_and_second_factors_are_changed(
    browser: NewBrowser, resources: Resources
) -> None:
    admin, other = browser("admin"), browser("researcher")
    path = f"/users/{other.user_id}"
    changed = admin.post(path, {"display_name": "New Name", "role": "auditor"})
    assert changed.headers["Location"] == f"{path}?done=saved"
    page = admin.get(changed.headers["Location"]).text
    assert "Saved." in page
    assert "<h1>New Name</h1>" in page
    assert "Auditor" not in page
    assert other.get("/audit").status_code == 200
    with resources.sessions.begin() as session:
        user = auth.get_user(session, other.user_id)  # type: ignore[arg-type]
        auth.start_totp(session, user, resources.vault)
        user.totp_confirmed_at = user.created_at
    assert 'name="totp"' in admin.get(path).text
    assert admin.post(path, {"totp": "off"}).status_code == 303
    assert 'name="totp"' not in admin.get(path).text


def test_a_disabled_user_is_out_at_once_and_the_last_admin_stays(
    browser: NewBrowser, login: Login
) -> None:
    admin, other = browser("admin"), browser("steward")
    token = login("steward")
    path = f"/users/{other.user_id}"
    assert admin.post(path, {"disabled": "true"}).status_code == 303
    assert other.get("/").status_code == 303
    assert other.client.get("/api/v1/jobs", headers=token).status_code == 401
    page = admin.get(path).text
    assert "disabled" in page
    assert "/password-link" not in page
    assert admin.post(f"{path}/password-link").status_code == 422
    assert admin.post(path, {"disabled": "false"}).status_code == 303
    assert "Make a link for a new password" in admin.get(path).text
    for fields in ({"disabled": "true"}, {"display_name": "A", "role": "auditor"}):
        refused = admin.post(f"/users/{admin.user_id}", fields)
        assert refused.status_code == 409
        assert "is the last admin" in refused.text
    assert 'name="disabled"' not in admin.get(f"/users/{admin.user_id}").text


def test_a_new_link_replaces_a_forgotten_password(browser: NewBrowser) -> None:
    admin, other = browser("admin"), browser("researcher")
    made = admin.post(f"/users/{other.user_id}/password-link")
    token = secret_of(made.text, "password-link").partition("#")[2]
    assert browser().post("/password", {"token": token, "password": NEW}).status_code == 303
    old = {"username": "researcher", "password": PASSWORD}
    assert browser().post("/login", old).status_code == 401
    gone = browser().post("/password", {"token": token, "password": NEW})
    assert gone.status_code == 410
    assert "ask for a new one" in gone.text


def test_others_tokens_and_sessions_are_ended(browser: NewBrowser, login: Login) -> None:
    admin, other = browser("admin"), browser("researcher")
    token = login("researcher")
    path = f"/users/{other.user_id}"
    page = admin.get(path).text
    revoke = re.search(rf'action="({path}/tokens/[^"]+/revoke)"', page)
    end = re.search(rf'action="({path}/sessions/[^"]+/end)"', page)
    assert revoke is not None and end is not None
    assert admin.post(revoke[1]).headers["Location"] == f"{path}?done=token-revoked"
    assert admin.post(end[1]).headers["Location"] == f"{path}?done=session-ended"
    assert other.client.get("/api/v1/jobs", headers=token).status_code == 401
    assert other.get("/").status_code == 303


def test_an_auditor_reads_and_is_offered_nothing_to_change(
    browser: NewBrowser, login: Login
) -> None:
    other, auditor = browser("researcher"), browser("auditor")
    login("researcher")
    users = auditor.get("/users")
    assert "Researcher" in users.text
    assert "/users/new" not in users.text
    page = auditor.get(f"/users/{other.user_id}").text
    assert "Researcher" in page
    assert f'action="/users/{other.user_id}' not in page
    assert "ppdd_" not in page
    for path in ("/users/new", f"/users/{other.user_id}", f"/users/{other.user_id}/password-link"):
        assert auditor.post(path, {"disabled": "true"}).status_code == 403


def test_many_users_are_shown_page_by_page(browser: NewBrowser, resources: Resources) -> None:
    admin = browser("admin")
    with resources.sessions.begin() as session:
        for number in range(60):
            auth.create_user(
                session, SYSTEM, username=f"user{number:02}", display_name=HOSTILE, role=Role.AUDITOR
            )  # fmt: skip
    first = admin.get("/users").text
    assert ("user59" in first, "user10" in first) == (True, True)
    assert "user09" not in first
    assert "<script>alert" not in first
    older = re.search(r'href="(/users\?cursor=[^"]+)"', first)
    assert older is not None
    assert "user09" in admin.get(older[1]).text
    assert admin.get("/users?cursor=x").status_code == 400
