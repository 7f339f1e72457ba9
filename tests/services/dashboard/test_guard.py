"""Every page, asked by everybody: who may, who is sent to log in, who is refused; and forms of other sites."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response

from services.auth.permissions import PERMISSIONS, PUBLIC_PAGES, Role, Rule
from services.dashboard.route import PageRoute
from services.dashboard.router import router
from services.kit.http import operation_id
from services.kit.resources import Resources
from tests.services.conftest import Login
from tests.services.dashboard.conftest import Browser, NewBrowser, log_in

MISSING = "00000000-0000-7000-8000-000000000000"
ROLES = [role for role in Role if role is not Role.PEER]  # another hospital has no password
ROUTES = {
    operation_id(route): route for route in router.routes if isinstance(route, APIRoute)
}  # fmt: skip
GUARDED = sorted(name for name in ROUTES if PERMISSIONS.get(name, Rule(frozenset())).roles)
CHANGING = sorted(name for name, route in ROUTES.items() if "POST" in (route.methods or ()))


def address(name: str) -> str:
    """Return where a page is; things in its address are ones that are not there."""
    return re.sub(
        r"\{(\w+)(?::\w+)?\}",
        lambda found: MISSING if found[1].endswith("_id") else "x",
        ROUTES[name].path,
    )


def ask(browser: Browser, name: str) -> Response:
    return (browser.post if name in CHANGING else browser.get)(address(name))


def is_sent_to_log_in(answer: Response) -> bool:
    return answer.status_code == 303 and answer.headers["Location"].startswith("/login")


def test_every_page_has_a_row_and_every_row_a_page() -> None:
    assert len(ROUTES) == len(router.routes)
    rows = {name for name in PERMISSIONS if name.startswith("pages_")}
    assert set(ROUTES) == rows
    assert {f"pages_{name}" for name in PUBLIC_PAGES} == set(ROUTES) - set(GUARDED)


def test_every_page_is_guarded_and_shows_its_problems_as_pages() -> None:
    for route in ROUTES.values():
        assert isinstance(route, PageRoute)
        assert [one.dependency.__name__ for one in route.dependencies if one.dependency] == [
            "read_form",
            "guard",
        ], route.path
        assert route.methods in ({"GET"}, {"POST"}), route.path
        assert not route.include_in_schema


def test_who_is_not_logged_in_is_sent_to_log_in_and_back(browser: NewBrowser) -> None:
    stranger = browser()
    for name in ROUTES:
        answer = ask(stranger, name)
        assert is_sent_to_log_in(answer) == (name in GUARDED), name
        if name in GUARDED:
            back = name not in CHANGING and address(name) != "/"
            there = f"/login?next={address(name)}" if back else "/login"
            assert answer.headers["Location"] == there
        else:
            assert answer.status_code in (200, 303, 404, 422), name


@pytest.mark.parametrize("role", ROLES)
def test_roles_may_what_the_table_says(
    browser: NewBrowser, resources: Resources, role: Role
) -> None:
    one = browser(role)
    for name in GUARDED:
        log_in(resources, one, role, role)  # anew: one of the pages logs out
        answer = ask(one, name)
        refused = f"the role {role} may not do this" in answer.text
        said = f"{name}: {answer.status_code} {answer.text}"
        assert refused == (role not in PERMISSIONS[name].roles), said
        assert answer.status_code == 403 or not refused, said
        assert answer.status_code < 500, said
        assert not is_sent_to_log_in(answer) or name == "pages_log_out", said
        if answer.status_code >= 400:
            assert "<!doctype html>" in answer.text, said


def test_a_form_without_the_sessions_value_changes_nothing(browser: NewBrowser) -> None:
    one = browser("admin")
    for name in set(CHANGING) & set(GUARDED):
        for value in ("", "x" * 43):
            one.csrf = value
            answer = one.post(address(name))
            assert answer.status_code == 403, name
            assert "<!doctype html>" in answer.text, name
            assert "X-CSRF-Token" in answer.text, name
    assert one.get("/").status_code == 200  # still logged in


def test_forms_of_other_sites_are_refused(browser: NewBrowser) -> None:
    one = browser("admin")
    for name in CHANGING:
        for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
            answer = one.post(address(name), headers={"Origin": origin})
            assert answer.status_code == 403, name
            assert "another site" in answer.text, name


def test_a_token_opens_no_page(browser: NewBrowser, login: Login) -> None:
    one, token = browser(), login("admin")
    for name in GUARDED:
        answer = (one.post if name in CHANGING else one.get)(address(name), headers=token)
        assert answer.status_code == 403, name
        assert "a person who is logged in" in answer.text, name


def test_an_address_where_nothing_is_has_a_page_for_people_and_a_document_for_programs(
    browser: NewBrowser, client: TestClient
) -> None:
    for one in (browser(), browser("researcher")):
        answer = one.get("/nowhere")
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("text/html")
        document = one.get("/api/v1/nowhere")
        assert document.status_code == 404
        assert document.headers["content-type"] == "application/problem+json"
    assert client.get("/nowhere").headers["content-type"] == "application/problem+json"


def test_a_session_that_ended_is_sent_to_log_in(browser: NewBrowser) -> None:
    one = browser("researcher")
    assert one.get("/").status_code == 200
    one.client.cookies.set("ppdd_session", "A" * 43)
    assert is_sent_to_log_in(one.get("/patterns?some=thing"))
    part = one.get("/", headers={"HX-Request": "true"})
    assert part.headers["HX-Redirect"] == "/login"
