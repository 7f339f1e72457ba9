"""One's own account as a page: what is shown once is shown once, and every form says what is wrong with it."""

from __future__ import annotations

import html
import re

import pyotp
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.auth import service as auth
from services.auth.models import ApiToken, LoginSession
from services.auth.permissions import Role
from services.dashboard.words import SCOPES
from services.kit.resources import Resources
from tests.services.auth.conftest import PASSWORD
from tests.services.conftest import Login
from tests.services.dashboard.conftest import Browser, NewBrowser

NEW = "copper-meadow-walnut-61"


def secret_of(page: str, id_: str) -> str:
    found = re.search(rf'id="{id_}">([^<]+)<', page)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.PEER])
def test_everybody_sees_who_they_are_and_where_they_are_logged_in(
    browser: NewBrowser, role: Role
) -> None:
    page = browser(role).get("/account")
    assert page.status_code == 200
    assert role.title() in page.text
    assert "this one" in page.text
    assert page.headers["Cache-Control"] == "no-store"


def test_a_password_is_changed_and_other_sessions_end(browser: NewBrowser) -> None:
    one, other = browser("researcher"), browser("researcher")
    changed = one.post("/account/password", {"current_password": PASSWORD, "new_password": NEW})
    assert changed.headers["Location"] == "/account?done=password-changed"
    assert "Your password is changed." in one.get(changed.headers["Location"]).text
    assert other.get("/account").status_code == 303
    fields = {"username": "researcher", "password": NEW, "next": "/account"}
    assert browser().post("/login", fields).headers["Location"] == "/account"


def test_a_password_that_is_wrong_or_weak_changes_nothing_and_is_not_shown_again(
    browser: NewBrowser,
) -> None:
    one = browser("researcher")
    for current, new, said in (
        ("not-mine-at-all-99", NEW, "the current password is another one"),
        (PASSWORD, "password1234", "password"),
        (PASSWORD, "", "Fill in this field."),
    ):
        page = one.post("/account/password", {"current_password": current, "new_password": new})
        assert page.status_code == 422
        assert said in page.text
        assert current not in page.text
        assert NEW not in page.text
    assert browser("researcher").get("/account").status_code == 200


def test_one_time_passwords_are_set_up_used_and_removed(browser: NewBrowser) -> None:
    one = browser("steward")
    wrong = one.post("/account/totp", {"password": "x"})
    assert (wrong.status_code, "another one" in wrong.text) == (422, True)
    begun = one.post("/account/totp", {"password": PASSWORD})
    secret = secret_of(begun.text, "totp-secret")
    assert f'href="otpauth://totp/PPDD%20Hospital%20A:steward?secret={secret}' in begun.text
    assert secret not in one.get("/account").text
    refused = one.post("/account/totp/confirm", {"code": "x"})
    assert refused.status_code == 422
    assert "is the clock of the device right?" in refused.text
    assert 'value="x"' in refused.text
    on = one.post("/account/totp/confirm", {"code": pyotp.TOTP(secret).now()})
    codes = secret_of(on.text, "recovery-codes").split()
    assert len(codes) == 10
    assert codes[0] not in one.get("/account").text
    assert one.post("/account/totp", {"password": PASSWORD}).status_code == 409
    fields = {"username": "steward", "password": PASSWORD}
    assert browser().post("/login", fields).status_code == 401
    assert browser().post("/login", {**fields, "code": codes[0]}).status_code == 303
    off = one.post("/account/totp/remove", {"password": PASSWORD})
    assert off.headers["Location"] == "/account?done=totp-removed"
    assert browser().post("/login", fields).status_code == 303


@pytest.mark.parametrize("role", ["researcher", "steward", "admin", "auditor"])
def test_a_token_may_what_its_boxes_say_and_no_more_than_the_role(
    browser: NewBrowser, client: TestClient, role: str
) -> None:
    one = browser(role)
    offered = re.findall(r'name="scopes" type="checkbox" value="([^"]+)"', one.get("/account").text)
    assert ("admin" in offered) == (role in ("admin", "auditor"))
    assert ("packages:release" in offered) == (role != "auditor")
    made = one.post("/account/tokens", {"name": "nightly", "days": "3", "scopes": ["jobs:read"]})
    token = secret_of(made.text, "new-token")
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    assert client.get("/api/v1/packages", headers=headers).status_code == 403
    assert token not in one.get("/account").text
    assert "nightly" in one.get("/account").text
    beyond = one.post("/account/tokens", {"name": "x", "days": "3", "scopes": ["account"]})
    assert beyond.status_code == 422
    assert "may have these scopes" in beyond.text


def test_every_scope_of_a_token_has_words(browser: NewBrowser) -> None:
    page = browser("admin").get("/account").text
    for scope, words in SCOPES.items():
        assert f'value="{scope}"' in page
        assert words in page


def test_a_token_without_a_scope_keeps_what_was_typed(browser: NewBrowser) -> None:
    one = browser("researcher")
    page = one.post("/account/tokens", {"name": 'a "<b>" c', "days": "0", "scopes": []})
    assert page.status_code == 422
    assert 'value="a &#34;&lt;b&gt;&#34; c"' in page.text
    for field in ("scopes", "days"):
        assert f'href="#field-{field}"' in page.text
        assert f'id="field-{field}"' in page.text
    kept = one.post("/account/tokens", {"name": "", "days": "9", "scopes": ["jobs:read"]})
    assert re.search(r'value="jobs:read" checked', kept.text)


def test_a_token_is_revoked_by_its_owner_and_by_nobody_else(
    browser: NewBrowser, resources: Resources, login: Login
) -> None:
    login("researcher")
    with resources.sessions() as session:
        token_id = session.scalars(select(ApiToken.id)).one()
    path = f"/account/tokens/{token_id}/revoke"
    assert browser("researcher", "somebody").post(path).status_code == 404
    one = browser("researcher")
    assert f'action="{path}"' in one.get("/account").text
    assert one.post(path).headers["Location"] == "/account?done=token-revoked"
    page = one.get("/account").text
    assert "revoked" in page
    assert f'action="{path}"' not in page


def test_sessions_are_ended_and_the_current_one_is_logging_out(
    browser: NewBrowser, resources: Resources
) -> None:
    one, other = browser("researcher"), browser("researcher")

    def ids() -> list[object]:
        with resources.sessions() as session:
            return list(session.scalars(select(LoginSession.id).order_by(LoginSession.id)))

    mine, others = ids()
    assert browser("auditor").post(f"/account/sessions/{mine}/end").status_code == 404
    ended = one.post(f"/account/sessions/{others}/end")
    assert ended.headers["Location"] == "/account?done=session-ended"
    assert other.get("/account").status_code == 303
    ended = one.post(f"/account/sessions/{mine}/end")
    assert ended.headers["Location"] == "/login?done=logged-out"
    assert "ppdd_session=" in ended.headers["Set-Cookie"]


def test_hostile_names_are_shown_as_text(browser: NewBrowser, resources: Resources) -> None:
    one: Browser = browser("researcher")
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    with resources.sessions.begin() as session:
        user = auth.find_user(session, "researcher")
        assert user is not None
        user.display_name = hostile
        for login in session.scalars(select(LoginSession)):
            login.user_agent = hostile
    one.post("/account/tokens", {"name": hostile, "days": "3", "scopes": ["jobs:read"]})
    page = one.get("/account").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 3
