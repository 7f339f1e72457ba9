"""Setting up, logging in and out, over HTTP."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pyotp
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from services.app import create_app
from services.audit.models import AuditEvent
from services.auth import service
from services.auth.models import LoginSession, OneTimeLink, User
from services.kit.db import Base, now
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.services.auth.conftest import PASSWORD, Browser, NewBrowser, add_person
from tests.services.conftest import Login

SETUP = {"username": "Maria", "display_name": "Maria Rossi", "password": PASSWORD}


def setup_token(resources: Resources) -> str:
    with resources.sessions.begin() as session:
        link = service.open_setup_link(session, resources.settings)
    assert link is not None
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", "127.0.0.1:8000", "/setup")
    return parts.fragment


def events(resources: Resources, action: str) -> list[AuditEvent]:
    with resources.sessions() as session:
        return list(session.scalars(select(AuditEvent).where(AuditEvent.action == action)))


# ------------------------------------------------------------------------------------------ set-up


def test_the_link_makes_the_first_admin_once(resources: Resources, browser: Browser) -> None:
    token = setup_token(resources)
    assert browser.ask("GET", "/setup").json() == {"open": True}
    answer = browser.ask("POST", "/setup", json={"token": token, **SETUP})
    assert answer.status_code == 201
    assert answer.json()["user"]["role"] == "admin"
    assert answer.json()["user"]["username"] == "maria"
    assert browser.ask("GET", "/users").status_code == 200  # logged in
    assert browser.ask("GET", "/setup").json() == {"open": False}
    again = browser.ask("POST", "/setup", json={"token": token, **SETUP, "username": "eve"})
    assert (again.status_code, again.json()["type"]) == (410, "/problems/link-gone")
    with resources.sessions.begin() as session:
        assert service.open_setup_link(session, resources.settings) is None


def test_a_new_link_replaces_the_one_before(resources: Resources, browser: Browser) -> None:
    old, new = setup_token(resources), setup_token(resources)
    assert browser.ask("POST", "/setup", json={"token": old, **SETUP}).status_code == 410
    assert browser.ask("POST", "/setup", json={"token": new, **SETUP}).status_code == 201


def test_a_link_lasts_a_day(resources: Resources, browser: Browser) -> None:
    token = setup_token(resources)
    with resources.sessions.begin() as session:
        session.execute(update(OneTimeLink).values(expires_at=now()))
    assert browser.ask("POST", "/setup", json={"token": token, **SETUP}).status_code == 410


def test_a_link_whose_node_got_an_admin_meanwhile_does_not_work(
    resources: Resources, browser: Browser
) -> None:
    token = setup_token(resources)
    add_person(resources, "paolo", "admin")
    assert browser.ask("POST", "/setup", json={"token": token, **SETUP}).status_code == 410


def test_a_weak_password_does_not_use_the_link_up(resources: Resources, browser: Browser) -> None:
    token = setup_token(resources)
    weak = browser.ask(
        "POST", "/setup", json={"token": token, **SETUP, "password": "maria-maria-1"}
    )
    assert (weak.status_code, weak.json()["type"]) == (422, "/problems/weak-password")
    assert browser.ask("POST", "/setup", json={"token": token, **SETUP}).status_code == 201


def test_a_password_link_is_no_setup_link(
    resources: Resources, browser: Browser, login: Login
) -> None:
    token = setup_token(resources)
    wrong = {"token": token, "password": PASSWORD}
    assert browser.ask("POST", "/sessions/password", json=wrong).status_code == 410


# ------------------------------------------------------------------------------------------ logging in


def test_a_login_sets_a_strict_cookie_and_answers_who_is_there(
    resources: Resources, browser: Browser
) -> None:
    add_person(resources, "maria")
    answer = browser.log_in("MARIA")
    assert answer.status_code == 201
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("ppdd_session=")
    for flag in ("HttpOnly", "Path=/", "SameSite=strict"):
        assert flag in cookie
    assert "Secure" not in cookie
    assert "Domain" not in cookie
    current = browser.ask("GET", "/sessions/current").json()
    assert current == answer.json()
    assert current["user"]["username"] == "maria"
    assert current["idle_minutes"] == 30


def test_over_tls_the_cookie_is_bound_to_the_host(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=tmp_path, public_url="https://node.example")
    with open_resources(settings, send=lambda *_: None) as resources:
        Base.metadata.create_all(resources.engine)
        add_person(resources, "maria")
        browser = Browser(TestClient(create_app(resources), base_url="https://node.example"))
        cookie = browser.log_in("maria").headers["set-cookie"]
        assert cookie.startswith("__Host-ppdd_session=")
        assert "Secure" in cookie
        assert browser.ask("GET", "/sessions/current").status_code == 200
        text = browser.client.cookies["__Host-ppdd_session"]
        browser.client.cookies.clear()
        browser.client.cookies.set("ppdd_session", text)
        assert browser.ask("GET", "/sessions/current").status_code == 401


def test_a_refused_login_says_the_same_whatever_is_wrong(
    resources: Resources, new_browser: NewBrowser
) -> None:
    for name in ("maria", "disabled", "locked"):
        add_person(resources, name)
    with resources.sessions.begin() as session:
        session.execute(update(User).where(User.username == "disabled").values(disabled_at=now()))
        user = service.find_user(session, "locked")
        assert user is not None
        service.start_totp(session, user, resources.vault)
        user.totp_confirmed_at = now()
    answers = [
        new_browser().log_in(name, password, **code)
        for name, password, code in [
            ("maria", "wrong", {}),
            ("nobody", PASSWORD, {}),
            ("disabled", PASSWORD, {}),
            ("locked", PASSWORD, {}),
            ("locked", PASSWORD, {"code": "000000"}),
            ("locked", "wrong", {"code": "000000"}),
        ]
    ]
    said = {
        (answer.status_code, answer.json()["type"], answer.json()["detail"]) for answer in answers
    }
    assert len(said) == 1
    assert next(iter(said))[:2] == (401, "/problems/login-refused")
    assert all("set-cookie" not in answer.headers for answer in answers)
    assert [event.subject for event in events(resources, "session.refuse")] == [
        "maria", "", "disabled", "locked", "locked", "locked",
    ]  # fmt: skip


def test_after_five_failures_an_account_waits_whether_it_exists_or_not(
    resources: Resources, new_browser: NewBrowser
) -> None:
    add_person(resources, "maria")
    said = []
    for name in ("maria", "nobody"):
        for _ in range(5):
            assert new_browser().log_in(name, "wrong").status_code == 401
        answer = new_browser().log_in(name)  # the right password
        assert answer.json()["type"] == "/problems/login-throttled"
        assert 890 < int(answer.headers["Retry-After"]) <= 900
        said.append((answer.status_code, answer.json()["detail"]))
    assert said[0] == said[1] == (429, said[0][1])


def test_logging_in_again_ends_the_session_before(resources: Resources, browser: Browser) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    old = browser.client.cookies["ppdd_session"]
    browser.log_in("maria")
    assert browser.client.cookies["ppdd_session"] != old
    with resources.sessions() as session:
        assert len(session.scalars(select(LoginSession)).all()) == 1
    stolen = TestClient(browser.client.app, cookies={"ppdd_session": old})
    assert stolen.get("/api/v1/sessions/current").status_code == 401


def test_a_cookie_that_the_client_chose_is_not_taken_over(
    resources: Resources, browser: Browser
) -> None:
    add_person(resources, "maria")
    browser.client.cookies.set("ppdd_session", "A" * 43)
    assert browser.log_in("maria").status_code == 201
    with resources.sessions() as session:
        assert session.scalar(select(LoginSession).where(LoginSession.sha256 == "A" * 43)) is None
    assert "A" * 43 not in {cookie.value for cookie in browser.client.cookies.jar if cookie.domain}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seen_at": now() - timedelta(minutes=30)}, id="idle"),
        pytest.param({"expires_at": now()}, id="absolute"),
    ],
)
def test_a_session_ends_by_itself(
    resources: Resources, browser: Browser, change: dict[str, object]
) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    with resources.sessions.begin() as session:
        session.execute(update(LoginSession).values(**change))
    assert browser.ask("GET", "/sessions/current").status_code == 401
    assert browser.ask("GET", "/setup").status_code == 200  # what is for anybody stays so
    assert browser.log_in("maria").status_code == 201


def test_a_used_session_lives_on(resources: Resources, browser: Browser) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    before = now() - timedelta(minutes=20)
    with resources.sessions.begin() as session:
        session.execute(update(LoginSession).values(seen_at=before))
    assert browser.ask("GET", "/sessions/current").status_code == 200
    with resources.sessions() as session:
        seen = session.scalars(select(LoginSession.seen_at)).one()
    assert seen > before + timedelta(minutes=19)


def test_logging_out_ends_the_session_and_the_cookie(
    resources: Resources, browser: Browser
) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    cookie = browser.client.cookies["ppdd_session"]
    answer = browser.ask("DELETE", "/sessions/current")
    assert answer.status_code == 204
    assert "ppdd_session" not in browser.client.cookies
    browser.client.cookies.set("ppdd_session", cookie)
    assert browser.ask("GET", "/sessions/current").status_code == 401


def test_sessions_are_listed_and_ended_by_owner_and_admin(
    resources: Resources, new_browser: NewBrowser
) -> None:
    for name, role in (("maria", "researcher"), ("eve", "researcher"), ("anna", "admin")):
        add_person(resources, name, role)
    phone, desk, eve, anna = (new_browser() for _ in range(4))
    for one, name in ((phone, "maria"), (desk, "maria"), (eve, "eve"), (anna, "anna")):
        assert one.log_in(name).status_code == 201

    mine = phone.ask("GET", "/sessions").json()["items"]
    assert [row["current"] for row in mine] == [False, True]
    assert {row["username"] for row in mine} == {"maria"}
    other = mine[0]["id"]

    assert eve.ask("GET", "/sessions?username=maria").status_code == 403
    assert eve.ask("GET", "/sessions?everybody=true").status_code == 403
    assert eve.ask("DELETE", f"/sessions/{other}").status_code == 404
    assert phone.ask("DELETE", f"/sessions/{other}").status_code == 204
    assert desk.ask("GET", "/sessions/current").status_code == 401

    everybody = anna.ask("GET", "/sessions?everybody=true").json()["items"]
    assert {row["username"] for row in everybody} == {"maria", "eve", "anna"}
    hers = anna.ask("GET", "/sessions?username=eve").json()["items"]
    assert anna.ask("DELETE", f"/sessions/{hers[0]['id']}").status_code == 204
    assert eve.ask("GET", "/sessions/current").status_code == 401


# ------------------------------------------------------------------------------------------ passwords


def test_a_password_is_changed_with_the_old_one_and_ends_other_sessions(
    resources: Resources, new_browser: NewBrowser
) -> None:
    add_person(resources, "maria")
    here, there = new_browser(), new_browser()
    here.log_in("maria")
    there.log_in("maria")
    new = "seven-quiet-harbours"

    def change(old: str, chosen: str = new) -> tuple[int, str]:
        body = {"current_password": old, "new_password": chosen}
        answer = here.ask("POST", "/account/password", json=body)
        return answer.status_code, answer.json()["type"] if answer.content else ""

    assert change("wrong") == (422, "/problems/wrong-password")
    assert change(PASSWORD, "short") == (422, "/problems/weak-password")
    assert change(PASSWORD) == (204, "")
    assert here.ask("GET", "/sessions/current").status_code == 200
    assert there.ask("GET", "/sessions/current").status_code == 401
    assert there.log_in("maria").status_code == 401
    assert there.log_in("maria", new).status_code == 201


def test_a_stolen_session_cannot_guess_the_password(resources: Resources, browser: Browser) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    for _ in range(5):
        assert browser.ask("POST", "/account/totp", json={"password": "guess"}).status_code == 422
    throttled = browser.ask("POST", "/account/totp", json={"password": PASSWORD})
    assert throttled.status_code == 429


def test_a_forgotten_password_is_chosen_anew_through_a_link(
    resources: Resources, client: TestClient, login: Login, browser: Browser
) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    admin = login("admin")
    users = client.get("/api/v1/users", headers=admin).json()["items"]
    maria = next(user["id"] for user in users if user["username"] == "maria")
    answer = client.post(f"/api/v1/users/{maria}/password-link", headers=admin)
    assert answer.status_code == 201
    url = urlsplit(answer.json()["url"])
    assert url.path == "/password"

    def choose(password: str) -> int:
        body = {"token": url.fragment, "password": password}
        return browser.client.post("/api/v1/sessions/password", json=body).status_code

    for _ in range(5):
        Browser(client).log_in("maria", "forgotten")
    assert choose("maria-lantern-27") == 422
    assert choose("seven-quiet-harbours") == 204
    assert browser.ask("GET", "/sessions/current").status_code == 401
    assert choose("seven-loud-harbours") == 410
    assert browser.log_in("maria", "seven-quiet-harbours").status_code == 201  # waits no more


# ------------------------------------------------------------------------------------------ second factor


def test_one_time_passwords_from_setting_up_to_losing_the_device(
    resources: Resources, new_browser: NewBrowser
) -> None:
    add_person(resources, "maria")
    browser = new_browser()
    browser.log_in("maria")
    started = browser.ask("POST", "/account/totp", json={"password": PASSWORD}).json()
    assert started["uri"].startswith("otpauth://totp/PPDD%20Hospital%20A:maria?secret=")
    app = pyotp.TOTP(started["secret"])
    with resources.sessions() as session:
        sealed = session.scalars(select(User.totp_sealed)).one()
    assert started["secret"] not in (sealed or "")
    assert new_browser().log_in("maria").status_code == 201  # not confirmed: not asked for

    wrong = browser.ask("POST", "/account/totp/confirm", json={"code": "000000"})
    assert (wrong.status_code, wrong.json()["type"]) == (422, "/problems/wrong-code")
    moment = now()
    confirmed = browser.ask("POST", "/account/totp/confirm", json={"code": app.at(moment)})
    codes = confirmed.json()["recovery_codes"]
    assert len(set(codes)) == 10
    again = browser.ask("POST", "/account/totp", json={"password": PASSWORD})
    assert (again.status_code, again.json()["type"]) == (409, "/problems/totp-on")

    assert new_browser().log_in("maria").status_code == 401
    assert new_browser().log_in("maria", code=app.at(moment)).status_code == 401  # used already
    later = app.at(moment + timedelta(seconds=30))
    assert new_browser().log_in("maria", code=later).status_code == 201
    assert new_browser().log_in("maria", code=later).status_code == 401
    assert new_browser().log_in("maria", code=codes[0].upper()).status_code == 201
    assert new_browser().log_in("maria", code=codes[0]).status_code == 401
    assert new_browser().log_in("maria", code=codes[1].replace("-", " ")).status_code == 201

    assert browser.ask("DELETE", "/account/totp", json={"password": "no"}).status_code == 422
    assert browser.ask("DELETE", "/account/totp", json={"password": PASSWORD}).status_code == 204
    assert new_browser().log_in("maria").status_code == 201


def test_a_code_cannot_be_confirmed_before_it_was_set_up(
    resources: Resources, browser: Browser
) -> None:
    add_person(resources, "maria")
    browser.log_in("maria")
    assert browser.ask("POST", "/account/totp/confirm", json={"code": "1"}).status_code == 409
