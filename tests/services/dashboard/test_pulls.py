"""Getting packages from elsewhere: forms that never show a token again, and what is said about where one came from."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from ppdd_core.package.signature import fingerprint, printable
from services.catalogue import service as catalogue
from services.catalogue.models import Origin
from services.jobs.models import Job
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.catalogue.conftest import Add
from tests.services.catalogue.conftest import add as add
from tests.services.dashboard.conftest import NewBrowser
from tests.services.packages import give_key, key_of, package_files, write_package

TOKEN = "ppdd_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
KEY = fingerprint(key_of("hospital-b"))
WANTED = {
    "url": "https://node.hospital-b.example",
    "package": "hospital-b/cxr@1.0.0",
    "token": TOKEN,
    "key": printable(KEY),
}


@pytest.fixture(autouse=True)
def _own_key(settings: Settings) -> None:
    give_key(settings)


def test_the_form_says_how_to_compare_the_key(browser: NewBrowser) -> None:
    page = browser("researcher").get("/pulls/new").text
    assert "by another way than the rest" in page
    assert 'type="password"' in page
    assert 'data-upload="/api/v1/packages"' in page
    assert browser("auditor").get("/pulls/new").status_code == 403


def test_a_pull_is_queued_and_its_job_shown(browser: NewBrowser, resources: Resources) -> None:
    one = browser("researcher")
    answer = one.post("/pulls/new", WANTED)
    with resources.reading() as session:
        job = session.scalars(select(Job)).one()
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/jobs/{job.id}?done=pull-queued"
    assert job.spec["key"] == KEY
    assert TOKEN not in str(job.spec)
    page = browser("auditor").get("/pulls").text
    assert "Pull hospital-b/cxr@1.0.0" in page
    assert f"/jobs/{job.id}" in page
    assert "/pulls/new" not in page


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("url", "ftp://node", "http"),
        ("package", "cxr", "site/name@version"),
        ("package", "hospital-a/cxr@1.0.0", "own package"),
        ("key", "12 34", "fingerprint"),
        ("token", "", "Fill in this field"),
        ("token", "with spaces in it", "no spaces"),
    ],
)
def test_a_refused_form_keeps_all_but_the_token(
    browser: NewBrowser, field: str, value: str, said: str
) -> None:
    answer = browser("researcher").post("/pulls/new", {**WANTED, field: value})
    assert answer.status_code == 422
    assert said in answer.text
    for name in {"url", "package", "key"} - {field}:
        assert f'value="{WANTED[name]}"' in answer.text
    assert TOKEN not in answer.text
    assert "with spaces in it" not in answer.text


def test_hostile_input_is_shown_as_text(browser: NewBrowser) -> None:
    hostile = '"><script>alert(1)</script>'
    answer = browser("researcher").post("/pulls/new", {**WANTED, "package": hostile})
    assert answer.status_code == 422
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert" in answer.text


def test_a_pulled_version_says_from_where_and_by_which_key(
    browser: NewBrowser, resources: Resources, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_package(tmp_path_factory.mktemp("b"), package_files("hospital-b"))
    stored = catalogue.store_package(resources, path, key=KEY)
    with resources.transaction() as session:
        catalogue.add_version(
            session, stored, origin=Origin.PULLED, owner_id=None, origin_url=WANTED["url"]
        )
    page = browser("auditor").get("/packages/hospital-b/cxr/1.0.0").text
    assert WANTED["url"] in page
    assert printable(KEY) in page
    assert "the signature over the manifest" in page
    assert "A signature shows who signed" in page


def test_an_imported_version_says_to_compare_the_key(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-b"), Origin.IMPORTED)
    page = browser("researcher").get("/packages/hospital-b/cxr/1.0.0").text
    assert "compare the key with that hospital" in page


def test_nothing_fetched_yet_says_what_is_needed(browser: NewBrowser) -> None:
    assert "a token and that hospital" in browser("researcher").get("/pulls").text
