"""What each role does in a browser, from two empty nodes to a detector at the hospital that never saw the X-rays.

The test plays it on few and small drawn X-rays; `make docs-screenshots` on more, and keeps what people saw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from ppdd_core.data.phantom import CLASSES, write_phantoms
from services.cli.demo import FROM_NEIGHBOUR
from services.cli.hospitals import run_node
from tests.browser.seeing import Person, person_at

PASSWORD = "lantern-orbit-velvet-27"
PACKAGE = "hospital-a/chest"
LONGEST = 900_000  # milliseconds that a job may take; it says itself when it fails


@dataclass(frozen=True)
class Scale:
    """How much is distilled: enough to see that it works, or enough to look at."""

    images_a: int
    images_b: int
    image_size: int
    images_per_class: int = 1
    recipe: Mapping[str, int] = field(default_factory=dict)  # what is other than in the preset
    epochs: int | None = None


@dataclass(frozen=True)
class Story:
    """Two hospitals, and the browser that their people use; `look` is told of every view worth keeping."""

    browser: Browser
    folder: Path
    scale: Scale
    look: Callable[[str, Page], None]

    def play(self) -> list[str]:
        """Play all of it; return the faults that a browser noticed and nobody saw."""
        with ExitStack() as stack:
            a, link_a = self._hospital(stack, "a", self.scale.images_a, {})
            ada = stack.enter_context(person_at(self.browser, a))
            self._set_up(ada, link_a)
            key = ada.go("/").locator("code.key").first.inner_text()
            people = {
                name: self._joins(stack, ada, name, role)
                for name, role in (("ruth", "researcher"), ("stella", "steward"), ("otto", "auditor"))
            }  # fmt: skip
            token = self._welcomes_a_hospital(ada)
            self._distils(people["ruth"])
            self._releases(people["stella"])
            b, link_b = self._hospital(stack, "b", self.scale.images_b, FROM_NEIGHBOUR)
            bea = stack.enter_context(person_at(self.browser, b))
            self._set_up(bea, link_b)
            ruben = self._joins(stack, bea, "ruben", "researcher")
            self._pulls(
                ruben, {"url": a, "package": f"{PACKAGE}@1.0.0", "token": token, "key": key}
            )
            self._trains_and_tries(ruben)
            self._audits(people["otto"])
            self._looks_after_the_node(ada)
            return [fault for one in (ada, *people.values(), bea, ruben) for fault in one.faults]

    def _hospital(
        self, stack: ExitStack, letter: str, images: int, settings: Mapping[str, str]
    ) -> tuple[str, str]:
        """Return address and set-up link of a new hospital with drawn X-rays below its data root."""
        roots, site = self.folder / letter / "images", f"hospital-{letter}"
        write_phantoms(
            roots / "chest", images=images, image_size=self.scale.image_size, seed=1, site=letter,
            proportions=dict.fromkeys(CLASSES, 1.0),
        )  # fmt: skip
        url, link = stack.enter_context(
            run_node(self.folder / letter, site, f"Hospital {letter.upper()}", roots, settings)
        )
        assert link is not None
        return url, link

    # ------------------------------------------------------------------------------------------ administrators

    def _set_up(self, admin: Person, link: str) -> None:
        """The first person opens the link of the console and makes their account."""
        page = admin.page
        page.goto(link)
        expect(page.locator("[name=token]")).not_to_have_value("")
        fill(page, username="admin", display_name="Ada Admin", password="short")
        press(page, "Make the account")
        expect(page.locator("#field-password-said strong")).to_be_visible()
        expect(page.locator("[name=username]")).to_have_value("admin")
        self.look("set-up", page)
        fill(page, password=PASSWORD)
        press(page, "Make the account")
        expect(page.get_by_role("heading", name="First steps")).to_be_visible()
        self.look("overview-new", page)

    def _joins(self, stack: ExitStack, admin: Person, name: str, role: str) -> Person:
        """An administrator adds somebody, who opens the link, chooses a password and logs in."""
        page = admin.go("/users")
        page.get_by_role("link", name="Add a user").click()
        fill(page, username=name, display_name=name.title())
        page.check(f"#role-{role}")
        press(page, "Add")
        link = page.locator("#password-link").inner_text()
        self.look("user-added", page)
        somebody = stack.enter_context(person_at(self.browser, admin.url))
        somebody.page.goto(link)
        fill(somebody.page, password=PASSWORD)
        press(somebody.page, "Set the password")
        fill(somebody.page, username=name, password=PASSWORD)
        press(somebody.page, "Log in")
        expect(somebody.page.locator("header .role")).to_have_text(role)
        return somebody

    def _welcomes_a_hospital(self, admin: Person) -> str:
        """An administrator makes an account and a token for another hospital; return the token."""
        page = admin.go("/users/new")
        fill(page, username="hospital-b", display_name="Hospital B")
        page.check("#role-peer")
        press(page, "Add")
        press(page, "Make the token")
        token = page.locator("#new-token").inner_text()
        self.look("token-for-a-hospital", page)
        return token

    def _looks_after_the_node(self, admin: Person) -> None:
        """An administrator looks at the whole node, and at who is logged in."""
        page = admin.go("/")
        expect(page.locator("#overview .state.failed")).to_have_count(0)
        self.look("overview", page)
        admin.go("/users")
        self.look("users", page)
        admin.go("/system")
        self.look("system", page)
        admin.go("/policy")
        self.look("policy", page)

    # --------------------------------------------------------------------------------------------- researchers

    def _distils(self, researcher: Person) -> None:
        """A researcher registers X-rays, reads what the check found, asks for an estimate and distils."""
        page = researcher.go("/datasets")
        page.get_by_role("link", name="Add a dataset").first.click()
        fill(page.locator("#register"), path="chest", name="chest", title="Chest X-rays")
        page.check("#register [name=check]")
        self.look("dataset-new", page)
        press(page, "Register")
        page.get_by_role("link", name="Follow the job").click()
        ends_well(page)
        page.get_by_role("link", name=re.compile("^Open")).click()
        expect(page.locator("#findings")).to_be_visible()
        expect(page.locator("#images img").first).to_be_visible()
        self.look("dataset", page)
        page.get_by_role("link", name="Distil this").click()
        self._asks(page)
        press(page, "Start")
        expect(page.locator("#job-now .state.running")).to_be_visible(timeout=LONGEST)
        expect(page.locator("#job-steps img").nth(2)).to_be_visible(timeout=LONGEST)
        self.look("job-running", page)
        ends_well(page)
        expect(page.locator("#job-steps img").first).to_be_visible()
        self.look("job", page)
        page.get_by_role("link", name=re.compile("^Open")).click()
        expect(page.get_by_role("button", name="Release")).to_have_count(0)

    def _asks(self, page: Page) -> None:
        page.check("#preset-quick")
        fill(page, images_per_class="0", **{"package.name": "chest", "package.version": "1.0.0"})
        fill(page, **{"package.licence": "CC0-1.0"})
        page.check("input[name='package.purposes'] >> nth=0")
        expect(page.locator("#said")).to_contain_text("images_per_class")  # while typing
        fill(page, images_per_class=str(self.scale.images_per_class))
        if self.scale.recipe:
            page.get_by_text("Advanced recipe").click()
        fill(page, **{f"settings.{name}": str(value) for name, value in self.scale.recipe.items()})
        expect(page.locator("#said")).not_to_contain_text("images_per_class")
        press(page, "Estimate")
        expect(page.locator("#estimate dl")).to_be_visible(timeout=LONGEST)
        self.look("distillation-new", page)

    def _pulls(self, researcher: Person, four_things: Mapping[str, str]) -> None:
        """A researcher fetches a package with what the other hospital told them; a wrong key is refused."""
        page = researcher.page
        for key in ("0" * 64, four_things["key"]):
            researcher.go("/pulls/new")
            fill(page.locator("form[action='/pulls/new']"), **{**four_things, "key": key})
            if key != "0" * 64:
                self.look("pull-new", page)
            press(page, "Fetch and verify")
            if key == "0" * 64:
                expect(page.locator("#job-now .note.bad")).to_contain_text("key", timeout=LONGEST)
        ends_well(page)
        self.look("pull", page)
        page.get_by_role("link", name=re.compile("^Open")).click()
        expect(page.get_by_role("heading", name=f"{PACKAGE} 1.0.0")).to_be_visible()
        self.look("package-from-elsewhere", page)

    def _trains_and_tries(self, researcher: Person) -> None:
        """A researcher trains a detector from the package, measures it on own X-rays and tries one."""
        page = researcher.page
        page.get_by_role("link", name="Train a detector").click()
        fill(page, name="from-hospital-a")
        if self.scale.epochs:
            page.get_by_text("More choices").click()
            fill(page, epochs=str(self.scale.epochs))
        self.look("detector-new", page)
        press(page, "Train")
        page.get_by_role("link", name="Show what it can do now").click(timeout=LONGEST)
        detector = page.url.removeprefix(researcher.url)
        researcher.go("/datasets/new")
        fill(page.locator("#register"), path="chest", name="own")
        press(page, "Register")
        researcher.go(detector)
        page.select_option("[name=split]", "all")
        press(page, "Measure")
        if "/jobs/" not in page.url:
            page.locator("#how-good .note a").first.click()
        ends_well(page)
        researcher.go(detector)
        xray = next((self.folder / "b" / "images" / "chest").rglob("*.png"))
        page.set_input_files("#xray", xray)
        press(page, "Show probabilities")
        expect(page.locator("#answer svg")).to_be_visible(timeout=LONGEST)
        expect(page.locator(".research")).to_have_text(re.compile("Research use only"))
        self.look("detector", page)

    # -------------------------------------------------------------------------------------- stewards and auditors

    def _releases(self, steward: Person) -> None:
        """A steward finds the draft on the overview, looks at what it is, and decides."""
        page = steward.go("/")
        page.get_by_role("link", name=f"{PACKAGE} 1.0.0").click()
        expect(page.locator("#images img").first).to_be_visible()
        self.look("package-draft", page)
        again = page.get_by_text("Release it all the same…")
        if again.count():
            again.click()
            fill(page, override_reason="drawn images: nobody is behind them")
            press(page, "Set the verdict aside and release")
        else:
            press(page, "Release")
        expect(page.locator("h1 + p .state").first).to_have_text("released")
        self.look("package-released", page)

    def _audits(self, auditor: Person) -> None:
        """An auditor sees what happened but no X-ray, checks the chain and takes the log along."""
        page = auditor.go("/audit?action=package.")
        expect(page.get_by_text("package.download").first).to_be_visible()
        self.look("audit", page)
        press(page, "Check the whole log")
        expect(page.get_by_text("The log is whole.")).to_be_visible()
        self.look("audit-checked", page)
        auditor.go("/audit")
        with page.expect_download() as export:
            page.get_by_role("link", name="Export all events").click()
        assert export.value.path().stat().st_size > 0
        auditor.go("/datasets")
        page.get_by_role("link", name="Chest X-rays").click()
        expect(page.get_by_text("Your role may not see real images.")).to_be_visible()


def fill(where: Page | Locator, **fields: str) -> None:
    """Type into fields by their names."""
    form = where.locator("main") if isinstance(where, Page) else where
    for name, value in fields.items():
        place = form.locator(f"[name='{name}']")
        if place.evaluate("element => element.tagName") == "SELECT":
            place.select_option(value)
        else:
            place.fill(value)


def press(page: Page, name: str) -> None:
    """Press the button that says so."""
    page.get_by_role("button", name=name, exact=True).click()


def ends_well(page: Page) -> None:
    """Wait on the page of a job until it has succeeded; say what it says where it has not."""
    ended = page.locator("#job-now .state").filter(
        has_text=re.compile("succeeded|failed|cancelled")
    )
    expect(ended).to_be_visible(timeout=LONGEST)
    assert ended.inner_text() == "succeeded", page.locator("#job-now").inner_text()
