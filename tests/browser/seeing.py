"""Somebody in front of a browser, and a furnished node for them to look at."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from services.app import create_app
from services.kit.db import Base
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.browser.furnish import PASSWORD, Furnished, furnish
from tests.services.live import serving

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# What a browser says of an answer that a page is meant to give: a form that was refused.
EXPECTED = re.compile(r"the server responded with a status of 4\d\d")


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """Return where this machine's chromium is; PPDD_CHROMIUM names another."""
    return os.environ.get("PPDD_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def opened(path: str) -> Iterator[Browser]:
    """Yield a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@dataclass
class Person:
    """Somebody in front of a node: a page, and whatever went wrong in it unseen."""

    page: Page
    url: str
    context: BrowserContext
    faults: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        """Open a page of the node."""
        self.page.goto(self.url + path, wait_until="load")
        return self.page

    def log_in(self, username: str, password: str = PASSWORD) -> None:
        """Log in as people do."""
        self.go("/login")
        self.page.fill("[name=username]", username)
        self.page.fill("[name=password]", password)
        self.page.click("main form button")
        self.page.wait_for_selector("nav.places")


@contextmanager
def person_at(browser: Browser, url: str, **options: object) -> Iterator[Person]:
    """Yield somebody with a browser window of their own; faults of its pages are kept."""
    context = browser.new_context(viewport=WIDE, locale="en-GB", **options)  # type: ignore[arg-type]
    context.set_default_timeout(30_000)
    context.add_init_script(
        "window.__ran = []; for (const name of ['alert', 'confirm', 'prompt']) "
        "{ window[name] = (text) => { window.__ran.push(String(text)); return false; }; }"
        "addEventListener('securitypolicyviolation', "
        "(e) => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI));"
    )
    person = Person(context.new_page(), url, context)
    person.page.on(
        "console",
        lambda said: (
            person.faults.append(f"{said.text} ({person.page.url})")
            if said.type == "error" and not EXPECTED.search(said.text)
            else None
        ),
    )
    person.page.on("pageerror", lambda error: person.faults.append(f"{error} ({person.page.url})"))
    try:
        yield person
    finally:
        context.close()


def take(page: Page, path: Path) -> None:
    """Keep the whole page as a PNG, with the images that are loaded only when somebody scrolls to them."""
    page.evaluate(
        """async () => {
          for (const image of document.images) image.loading = "eager";
          await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
          document.activeElement.blur();
          scrollTo(0, 0);
        }"""
    )
    page.screenshot(path=path, full_page=True)


@dataclass(frozen=True)
class Site:
    """A furnished node behind a real server."""

    url: str
    resources: Resources
    furnished: Furnished


@contextmanager
def furnished_site(folder: Path, *, hostile: bool = False, **amount: int) -> Iterator[Site]:
    """Yield a node with something on every page; `hostile` fills every text with what would be a script elsewhere."""
    roots = folder / "images"
    roots.mkdir()
    settings = load_settings(
        {}, site_id="hospital-a", site_name="Hospital A", data_dir=folder / "node", data_roots=(roots,)
    )  # fmt: skip
    with open_resources(settings, send=lambda *_: None) as resources:
        Base.metadata.create_all(resources.engine)
        furnished = furnish(resources, folder, hostile=hostile, **amount)
        with serving(create_app(resources)) as url:
            yield Site(url, resources, furnished)
