"""What must hold of every page, as a browser sees it: nothing runs that we did not send, everybody can read it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Response

from services.dashboard.route import PageRoute
from services.dashboard.router import router as pages
from tests.browser.seeing import NARROW, WIDE, Person, Site, person_at

pytestmark = pytest.mark.e2e
WITHOUT_ACCOUNT = ("/login", "/setup", "/password")
NO_PAGES = re.compile(r"^/(static|favicon)|/estimate|/validate")
MOST_BYTES, MOST_REQUESTS = 200_000, 15


def addresses(site: Site) -> list[str]:
    """Return the address of every page that is read, its parameters filled in; a new parameter needs a value."""
    found = sorted(
        {
            route.path.format_map(site.furnished.values)
            for route in pages.routes
            if isinstance(route, PageRoute) and "GET" in (route.methods or ()) and not NO_PAGES.search(route.path)
        }
    )  # fmt: skip
    assert "/" in found
    return found


@pytest.fixture
def admin(chromium: Browser, site: Site) -> Iterator[Person]:
    with person_at(chromium, site.url) as person:
        person.log_in("ada")
        yield person
        assert person.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_by_how_a_page_is_made(admin: Person, site: Site, scheme: str) -> None:
    axe, found = Axe(), []
    admin.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for address in addresses(site):
        admin.go(address)
        admin.page.evaluate(
            "for (const one of document.querySelectorAll('details')) one.open = true"
        )
        for violation in axe.run(admin.page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [node["html"][:200] for node in violation["nodes"][:3]]
                found.append(f"{address}: {violation['id']}: {nodes}")
    assert found == []


def test_pages_are_light_and_fit_a_telephone(admin: Person, site: Site) -> None:
    answers: list[Response] = []
    admin.page.on("response", lambda answer: answers.append(answer))
    heavy, wide = [], []
    for address in addresses(site):
        answers.clear()
        admin.page.set_viewport_size(WIDE)  # type: ignore[arg-type]
        admin.go(address)
        seen = [one for one in answers if one.status == 200]
        weight = sum(
            len(one.body()) for one in seen if not one.headers.get("content-type", "").startswith("image/")
        )  # fmt: skip
        pictures = sum(one.headers.get("content-type", "").startswith("image/png") for one in seen)
        if weight > MOST_BYTES or len(seen) - pictures > MOST_REQUESTS:
            heavy.append(f"{address}: {weight} bytes, {len(seen)} requests")
        admin.page.set_viewport_size(NARROW)  # type: ignore[arg-type]
        width = admin.page.evaluate("document.documentElement.scrollWidth")
        if width > NARROW["width"]:
            wide.append(f"{address}: {width} px")
    assert (heavy, wide) == ([], [])


def test_hostile_text_is_text(chromium: Browser, hostile_site: Site) -> None:
    for language in ("en-GB", "ja"):
        with person_at(
            chromium, hostile_site.url, extra_http_headers={"Accept-Language": language}
        ) as person:
            person.log_in("ada")
            for address in (*addresses(hostile_site), *WITHOUT_ACCOUNT):
                person.go(address)
                person.page.wait_for_timeout(50)  # an onerror comes after the page
                assert person.page.evaluate("window.__ran") == [], address
            assert person.faults == []


def test_what_an_address_says_is_not_shown_as_html(chromium: Browser, site: Site) -> None:
    attack = "%3Cscript%3Ealert(1)%3C/script%3E%22%3E%3Cimg%20src=x%20onerror=alert(2)%3E"
    with person_at(chromium, site.url) as person:
        for address in WITHOUT_ACCOUNT:
            person.go(f"{address}?next={attack}&done={attack}&q={attack}#{attack}")
            assert person.page.evaluate("window.__ran") == []
        person.log_in("ada")
        for address in (*addresses(site), f"/{attack}"):
            person.go(
                f"{address}?q={attack}&state={attack}&cursor={attack}&done={attack}&kind={attack}&action={attack}"
            )
            assert person.page.evaluate("window.__ran") == [], address
        assert person.faults == []


def test_everything_can_be_reached_with_keys(admin: Person, site: Site) -> None:
    """Links, buttons and fields are native ones, none is taken out of the order, and the focus can be seen."""
    unreachable = []
    for address in addresses(site):
        admin.go(address)
        unreachable += [
            f"{address}: {one}"
            for one in admin.page.evaluate(
                """() => [...document.querySelectorAll('main *, header *, footer *')]
                .filter(e => e.tabIndex > 0 || e.hasAttribute('onclick') || (e.tabIndex < 0 && !e.disabled
                    && e.matches('a[href], button, input:not([type=hidden]), select, textarea, summary')))
                .map(e => e.outerHTML.slice(0, 120))"""
            )
        ]
    assert unreachable == []
    admin.go("/")
    admin.page.keyboard.press("Tab")
    assert admin.page.evaluate("document.activeElement.className") == "skip"
    admin.page.keyboard.press("Enter")
    assert admin.page.evaluate("document.activeElement.id") == "content"
