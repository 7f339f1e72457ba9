"""The audit log as pages: filtered, page by page, checked, and exported by the API's own address."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

from sqlalchemy import text

from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.kit.db import now
from services.kit.resources import Resources
from tests.services.dashboard.conftest import NewBrowser

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


def subjects(page: str) -> list[str]:
    return re.findall(r"<td>(thing-\d+)</td>", page)


def write(resources: Resources, count: int, action: str = "package.release") -> None:
    with resources.sessions.begin() as session:
        for number in range(count):
            outcome: audit.Outcome = "refused" if number % 2 else "done"
            audit.record(session, SYSTEM, action, f"thing-{number}", outcome=outcome)


def test_events_are_shown_newest_first_and_page_by_page(
    browser: NewBrowser, resources: Resources
) -> None:
    write(resources, 60)
    auditor = browser("auditor")
    first = auditor.get("/audit?action=package.").text
    assert subjects(first)[0] == "thing-59"
    assert len(subjects(first)) == 50
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    assert subjects(auditor.get(html.unescape(older[1])).text) == [
        f"thing-{number}" for number in range(9, -1, -1)
    ]


def test_every_filter_narrows_and_is_shown_again(browser: NewBrowser, resources: Resources) -> None:
    write(resources, 4)
    write(resources, 2, "job.create")
    one = browser("admin")
    today, tomorrow = now().date(), now().date() + timedelta(days=1)
    for query, found in (
        ("action=job.", 2),
        ("action=job.create", 2),
        ("action=job", 0),
        ("actor=system&action=package.release", 4),
        ("actor=nobody", 0),
        ("subject=thing-1", 2),
        ("outcome=refused&action=package.", 2),
        (f"since={today}&until={today}", 6),
        (f"since={tomorrow}", 0),
        (f"until={today - timedelta(days=1)}", 0),
    ):
        page = one.get(f"/audit?{query}")
        assert page.status_code == 200
        assert len(subjects(page.text)) == found, query
        assert ("No event fits." in page.text) == (found == 0), query
    assert f'value="{tomorrow}"' in one.get(f"/audit?since={tomorrow}").text
    assert '<option value="refused" selected>' in one.get("/audit?outcome=refused").text


def test_a_filter_that_makes_no_sense_is_shown_again_with_what_is_wrong(
    browser: NewBrowser,
) -> None:
    one = browser("admin")
    for query, field in (
        ("since=yesterday", "since"),
        ("until=9999-12-31", "until"),
        ("outcome=perhaps", "outcome"),
        (f"actor={'x' * 301}", "actor"),
    ):
        page = one.get(f"/audit?{query}")
        assert page.status_code == 422, query
        assert f'href="#field-{field}"' in page.text
    assert 'value="yesterday"' in one.get("/audit?since=yesterday").text
    assert one.get("/audit?cursor=x").status_code == 400


def test_a_whole_log_is_said_to_be_whole_with_numbers(
    browser: NewBrowser, resources: Resources
) -> None:
    write(resources, 3)
    one = browser("auditor")
    first = one.post("/audit/verification")
    assert first.status_code == 200
    assert "The log is whole." in first.text
    assert "No signed head was found before this check" in first.text
    again = one.post("/audit/verification").text
    assert re.search(r"nothing was cut off up to event \d+", again)
    assert "audit.verify" in one.get("/audit").text


def test_a_log_that_was_edited_is_said_to_be_broken_and_where(
    browser: NewBrowser, resources: Resources
) -> None:
    write(resources, 3)
    one = browser("admin")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE audit_events SET subject = 'other' WHERE seq = 2"))
    page = one.post("/audit/verification").text
    assert "tampered with" in page
    assert "the fault is at event 2" in page
    assert "event 2 was edited" in page


def test_the_export_is_the_apis_own(browser: NewBrowser) -> None:
    one = browser("auditor")
    link = re.search(r'href="([^"]+export)"', one.get("/audit").text)
    assert link is not None
    lines = one.get(link[1]).text.splitlines()
    assert json.loads(lines[0])["seq"] == 1
    assert "head" in json.loads(lines[-1])


def test_hostile_events_are_shown_as_text(browser: NewBrowser, resources: Resources) -> None:
    with resources.sessions.begin() as session:
        detail = {HOSTILE: HOSTILE, "list": [HOSTILE, 1, {"a": HOSTILE}], "scopes": ["a", "b"]}
        audit.record(session, SYSTEM, HOSTILE, HOSTILE, detail=detail)
    page = browser("auditor").get("/audit").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "scopes: a, b" in page
