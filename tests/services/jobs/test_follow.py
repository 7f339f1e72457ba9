"""Following a job: as a stream that can be taken up again, as pages, and its log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text, update
from sqlalchemy.exc import OperationalError

from services.auth.models import ApiToken
from services.jobs import follow, repository
from services.jobs import service as jobs
from services.jobs.models import Job
from services.kit.db import now
from services.kit.errors import UnauthorizedError
from services.kit.resources import Resources
from tests.services.conftest import Login
from tests.services.jobs.conftest import Make

URL = "/api/v1/jobs"


@pytest.fixture
def ended(resources: Resources, make: Make) -> Job:
    """A job that ran through: five events, seven log lines."""
    job = make()
    with resources.sessions.begin() as session:
        claim = jobs.claim(session, job.id, worker="w", settings=resources.settings.jobs)
        assert claim is not None
        for done in (1, 2):
            jobs.note_progress(session, job.id, 1, {"stage": "images", "done": done, "total": 2})
        jobs.add_log(session, job.id, 1, [f"line {number}" for number in range(7)])
        jobs.succeed(session, job.id, 1, result={})
    return job


def parse(stream: str) -> list[dict[str, str]]:
    """Return the events of a stream by field; comments and what is no event are left out."""
    events = []
    for block in stream.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "data" in fields:
            events.append(fields)
    return events


def kinds(stream: str) -> list[str]:
    return [one["event"] for one in parse(stream)]


# ------------------------------------------------------------------------------------------ over HTTP


def test_an_ended_job_is_told_to_its_end(client: TestClient, login: Login, ended: Job) -> None:
    answer = client.get(f"{URL}/{ended.id}/events", headers=login("auditor"))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert kinds(answer.text) == ["state", "state", "progress", "progress", "state", "end"]
    events = parse(answer.text)
    body = json.loads(events[2]["data"])
    assert body["data"] == {"stage": "images", "done": 1, "total": 2}
    assert str(body["id"]) == events[2]["id"] and body["at"].endswith("Z")
    assert "id" not in events[-1]
    assert json.loads(events[-1]["data"]) == {"state": "succeeded"}


def test_a_stream_goes_on_after_the_last_event_seen(
    client: TestClient, login: Login, ended: Job
) -> None:
    url, headers = f"{URL}/{ended.id}/events", login("auditor")
    third = parse(client.get(url, headers=headers).text)[2]["id"]
    for more in (
        {"headers": {**headers, "Last-Event-ID": third}},
        {"headers": headers, "params": {"after": third}},
    ):
        assert kinds(client.get(url, **more).text) == ["progress", "state", "end"]  # type: ignore[arg-type]
    wrong = client.get(url, headers={**headers, "Last-Event-ID": "x"})
    assert wrong.status_code == 422


def test_a_stream_is_closed_after_the_time_asked_for(
    client: TestClient, login: Login, make: Make
) -> None:
    url = f"{URL}/{make().id}/events"
    answer = client.get(url, params={"seconds": 0.1}, headers=login("auditor"))
    assert kinds(answer.text) == ["state"]  # and no `end`: the job has not ended


def test_more_streams_than_are_served_are_refused(
    client: TestClient, login: Login, ended: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MOST_STREAMS", 0)
    answer = client.get(f"{URL}/{ended.id}/events", headers=login("auditor"))
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "30"


def test_events_are_also_pages(client: TestClient, login: Login, ended: Job) -> None:
    headers = {**login("auditor"), "Accept": "application/json"}
    seen, url = [], f"{URL}/{ended.id}/events?limit=2"
    while url:
        answer = client.get(url, headers=headers)
        assert answer.headers["Content-Type"] == "application/json"
        seen += [item["kind"] for item in answer.json()["items"]]
        link = answer.headers.get("Link")
        url = link.split(">")[0][1:] if link else ""
    assert seen == ["state", "state", "progress", "progress", "state"]
    only = client.get(f"{URL}/{ended.id}/events", params={"kind": "progress"}, headers=headers)
    assert [item["data"]["done"] for item in only.json()["items"]] == [1, 2]
    assert only.json()["next"] is None


def test_the_log_is_text_or_pages(client: TestClient, login: Login, ended: Job) -> None:
    url, headers = f"{URL}/{ended.id}/log", login("auditor")
    answer = client.get(url, headers=headers)
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert len(lines) == 7 and lines[0].endswith("[1] line 0") and "Link" not in answer.headers
    first = client.get(url, params={"limit": 3}, headers={**headers, "Accept": "application/json"})
    assert [item["text"] for item in first.json()["items"]] == ["line 0", "line 1", "line 2"]
    rest = client.get(url, params={"after": first.json()["next"]}, headers=headers)
    assert len(rest.text.splitlines()) == 4
    assert 'rel="next"' in first.headers["Link"]


# ------------------------------------------------------------------------------------------ the stream itself


def collect(
    resources: Resources,
    job: Job,
    then: Callable[[int], None] = lambda _: None,
    permitted: Callable[[], object] = lambda: None,
    seconds: float = 20,
) -> list[str]:
    """Follow a job to the stream's end; `then(n)` is called after the nth piece."""

    async def run() -> list[str]:
        pieces: list[str] = []
        stream: AsyncIterator[bytes] = follow.follow(
            resources, job.id, 0, permitted=permitted, seconds=seconds
        )
        async for piece in stream:
            pieces.append(piece.decode())
            await asyncio.to_thread(then, len(pieces))
        return pieces

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


def test_what_happens_while_somebody_follows_is_told(resources: Resources, make: Make) -> None:
    job = make()
    steps: dict[int, Callable[[Any], object]] = {
        2: lambda s: jobs.claim(s, job.id, worker="w", settings=resources.settings.jobs),
        3: lambda s: jobs.note_progress(s, job.id, 1, {"done": 1}),
        4: lambda s: jobs.succeed(s, job.id, 1, result={}),
    }

    def act(pieces: int) -> None:
        if pieces in steps:
            with resources.sessions.begin() as session:
                steps[pieces](session)

    told = "".join(collect(resources, job, act))
    assert kinds(told) == ["state", "state", "progress", "state", "end"]
    assert told.startswith("retry: ")


def test_no_connection_is_held_between_two_looks(resources: Resources, make: Make) -> None:
    job, held = make(), []

    def act(pieces: int) -> None:
        held.append(out)
        if pieces == 2:
            with resources.sessions.begin() as session:
                session.execute(update(Job).values(state="cancelled"))

    out = 0

    @event.listens_for(resources.engine, "checkout")
    def _(*_: object) -> None:
        nonlocal out
        out += 1

    @event.listens_for(resources.engine, "checkin")
    def _(*_: object) -> None:
        nonlocal out
        out -= 1

    collect(resources, job, act)
    assert held and set(held) == {0}


def test_silence_is_filled_with_comments(
    resources: Resources, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "KEEP_ALIVE_SECONDS", 0.02)
    pieces = collect(resources, make(), seconds=0.3)
    assert pieces[-1].startswith(": ") and len(pieces) < 40


def test_a_stream_ends_when_its_reader_may_not_read_any_more(
    resources: Resources, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RECHECK_SECONDS", 0.02)
    asked = []

    def permitted() -> None:
        asked.append(1)
        if len(asked) > 2:
            raise UnauthorizedError

    assert kinds("".join(collect(resources, make(), permitted=permitted))) == ["state"]
    assert len(asked) == 3


@pytest.mark.timeout(60)
def test_a_revoked_token_ends_its_stream(
    client: TestClient,
    resources: Resources,
    login: Login,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "RECHECK_SECONDS", 0.3)
    headers, url = login("auditor"), f"{URL}/{make().id}/events"
    look = follow._look

    def revoking(*given: Any) -> Any:
        with resources.sessions.begin() as session:
            session.execute(update(ApiToken).values(revoked_at=now()))
        return look(*given)

    monkeypatch.setattr(follow, "_look", revoking)
    answer = client.get(url, headers=headers)  # would go on for an hour
    assert kinds(answer.text) == ["state"]
    assert client.get(url, headers=headers).status_code == 401


def test_a_stream_outlives_an_outage_of_the_database(
    resources: Resources, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, failures, events = make(), list[int](), repository.events_after

    def away(*given: Any) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OperationalError("SELECT", {}, Exception("gone"))
        return events(*given)

    monkeypatch.setattr(repository, "events_after", away)
    with resources.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET state = 'cancelled'"))
    assert kinds("".join(collect(resources, job))) == ["state", "end"]


def test_streams_are_counted_while_they_are_open(resources: Resources, ended: Job) -> None:
    counts = []
    collect(resources, ended, lambda _: counts.append(follow._open))
    assert set(counts) == {1} and follow._open == 0
