"""Asking for a pull: what is refused at once, and that the token stands nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from ppdd_core.package.signature import fingerprint, printable
from services.audit.models import AuditEvent
from services.jobs.models import Job
from services.jobs.service import purpose_of
from services.kit.resources import Resources
from tests.services.conftest import Bell, Login
from tests.services.packages import key_of

PULLS = "/api/v1/pulls"
TOKEN = "ppdd_issued-by-hospital-b-0123456789"
KEY = fingerprint(key_of("hospital-b"))


def asked(**changed: Any) -> dict[str, Any]:
    return {
        "url": "https://node.hospital-b.example",
        "package": "hospital-b/cxr@1.0.0",
        "token": TOKEN,
        "key": printable(KEY).upper(),
        **changed,
    }


def test_a_pull_is_a_job_whose_token_stands_nowhere(
    client: TestClient, login: Login, resources: Resources, bell: Bell
) -> None:
    answer = client.post(PULLS, headers=login("researcher"), json=asked())

    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    assert answer.json()["spec"]["key"] == KEY
    with resources.reading() as session:
        job = session.scalars(select(Job)).one()
        events = session.scalars(select(AuditEvent)).all()
    assert [job_id for _, job_id in bell.rung] == [job.id]
    assert job.sealed is not None
    assert resources.vault.open(job.sealed, purpose_of(job.id)) == TOKEN
    told = json.dumps([job.spec, job.title, *(event.detail for event in events)])
    assert TOKEN not in told + answer.text + job.sealed
    assert any(event.action == "package.pull" for event in events)


def test_the_same_idempotency_key_gives_the_same_job(client: TestClient, login: Login) -> None:
    headers = {**login("researcher"), "Idempotency-Key": "once"}

    first = client.post(PULLS, headers=headers, json=asked())
    again = client.post(PULLS, headers=headers, json=asked())
    other = client.post(PULLS, headers=headers, json=asked(package="hospital-b/cxr@2.0.0"))

    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert first.json()["id"] == again.json()["id"]


def test_pulls_are_listed_apart_from_other_jobs(client: TestClient, login: Login) -> None:
    client.post(PULLS, headers=login("researcher"), json=asked())

    listed = client.get(PULLS, headers=login("auditor")).json()["items"]

    assert [row["title"] for row in listed] == ["Pull hospital-b/cxr@1.0.0"]


def test_what_cannot_work_is_refused_at_once(client: TestClient, login: Login) -> None:
    headers = login("researcher")
    for changed, slug in (
        ({"package": "hospital-b/cxr"}, "bad-pull"),
        ({"package": "../../etc@1.0.0"}, "bad-pull"),
        ({"package": "hospital-b/cxr@latest"}, "bad-pull"),
        ({"package": "hospital-a/cxr@1.0.0"}, "bad-pull"),
        ({"key": "abc"}, "bad-pull"),
        ({"url": "http://node.hospital-b.example"}, "bad-node-url"),
        ({"url": "https://user@node.example"}, "bad-node-url"),
        ({"url": "https://169.254.169.254"}, "address-refused"),
        ({"url": "https://127.0.0.1"}, "address-refused"),
        ({"token": "with space in it"}, "invalid-request"),
        ({"token": "line\r\nbreak-in-it"}, "invalid-request"),
        ({"token": 12345678}, "invalid-request"),
        ({"state": "succeeded"}, "invalid-request"),
    ):
        answer = client.post(PULLS, headers=headers, json=asked(**changed))
        assert answer.status_code == 422, changed
        assert answer.json()["type"] == f"/problems/{slug}", changed
        assert TOKEN not in answer.text
        assert "break-in-it" not in answer.text


@pytest.mark.parametrize(("role", "status"), [("", 401), ("auditor", 403), ("peer", 403)])
def test_who_may_not_pull(client: TestClient, login: Login, role: str, status: int) -> None:
    headers = login(role) if role else {}

    assert client.post(PULLS, headers=headers, json=asked()).status_code == status
    if role != "auditor":
        assert client.get(PULLS, headers=headers).status_code == status
