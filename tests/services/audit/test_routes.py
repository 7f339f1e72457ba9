"""The audit log over HTTP and at the keyboard."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import text

from ppdd_core.package.signature import fingerprint
from services.audit import anchoring, service
from services.audit.actor import Actor
from services.audit.heads import FILE
from services.cli.audit import app
from services.kit.resources import Resources
from tests import program
from tests.services.conftest import Login

MARIA, EVE = Actor("user", "0190", "maria"), Actor("token", "0191", "eve")


@pytest.fixture
def log(resources: Resources) -> Resources:
    with resources.sessions.begin() as session:
        for number in range(5):
            service.record(session, MARIA, "package.release", f"a/{number}", detail={"n": number})
        service.record(session, EVE, "package.release", "a/9", outcome="refused")
        service.record(session, EVE, "packages.list")
    return resources


ppdd = partial(program.ppdd, program=app)


# ------------------------------------------------------------------------------------------ routes


def test_events_are_filtered_and_paged(log: Resources, client: TestClient, login: Login) -> None:
    headers = login("auditor")

    def ask(**query: object) -> Response:
        return client.get("/api/v1/audit-events", params=query, headers=headers)  # type: ignore[arg-type]

    def seqs(**query: object) -> list[int]:
        return [row["seq"] for row in ask(**query).json()["items"]]

    assert seqs(actor="maria") == seqs(actor="0190") == [5, 4, 3, 2, 1]
    assert seqs(action="package.") == [6, 5, 4, 3, 2, 1]
    assert seqs(action="package.release", outcome="refused") == [6]
    assert seqs(subject="a/3") == [4]
    assert seqs(action="packages.list") == [7]
    assert seqs(action="pack%") == []
    moment = ask(subject="a/3").json()["items"][0]["at"]
    assert seqs(actor="maria", since=moment) == [5, 4]
    assert seqs(actor="maria", until=moment) == [3, 2, 1]

    first = ask(actor="maria", limit=3).json()
    assert [row["seq"] for row in first["items"]] == [5, 4, 3]
    second = ask(actor="maria", limit=3, cursor=first["next"])
    assert [row["seq"] for row in second.json()["items"]] == [2, 1]
    assert second.json()["next"] is None
    assert "Link" not in second.headers
    assert first["items"][0]["actor"] == {"kind": "user", "id": "0190", "name": "maria"}
    assert first["items"][0]["detail"] == {"n": 4}


def test_bad_filters_are_refused(client: TestClient, login: Login) -> None:
    headers = login("auditor")
    for query, status in (
        ("cursor=x", 400),
        ("cursor=-1", 400),
        ("cursor=99999999999999999999", 400),
        ("cursor=٣", 400),
        ("since=yesterday", 422),
        ("since=2026-01-01T00:00:00", 422),
        ("since=0001-01-01T00:00:00%2B01:00", 422),
        ("until=9999-12-31T23:59:59-01:00", 422),
        ("outcome=maybe", 422),
        ("limit=0", 422),
        ("limit=201", 422),
    ):
        answer = client.get(f"/api/v1/audit-events?{query}", headers=headers)
        assert answer.status_code == status, query


def test_a_check_is_an_event_and_signs_what_is_whole(
    log: Resources, client: TestClient, login: Login
) -> None:
    headers = login("auditor")
    first = client.get("/api/v1/audit-events/verification", headers=headers).json()
    assert (first["intact"], first["anchored_seq"]) == (True, 0)
    second = client.get("/api/v1/audit-events/verification", headers=headers).json()
    assert second["anchored_seq"] == first["events"] + 1
    assert (log.settings.data_dir / FILE).exists()

    with log.engine.begin() as connection:
        connection.execute(text("UPDATE audit_events SET subject = 'x' WHERE seq = 2"))
    signed = (log.settings.data_dir / FILE).read_bytes()
    broken = client.get("/api/v1/audit-events/verification", headers=headers).json()
    assert (broken["intact"], broken["fault"], broken["first_bad"]) == (False, "edited", 2)
    assert (log.settings.data_dir / FILE).read_bytes() == signed
    query = {"action": "audit.verify", "outcome": "refused"}
    (event,) = client.get("/api/v1/audit-events", params=query, headers=headers).json()["items"]
    assert event["detail"] == {"intact": False, "events": 1, "fault": "edited"}


def test_an_export_is_streamed_and_verified_elsewhere(
    log: Resources, client: TestClient, login: Login
) -> None:
    answer = client.get("/api/v1/audit-events/export", headers=login("auditor"))
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["content-disposition"].startswith('attachment; filename="audit-')
    found = service.verify_lines(answer.text.splitlines(), fingerprint(log.key))
    assert found.intact
    assert found.anchored_seq == found.events > 7


def test_the_running_node_signs_the_end_when_it_stops(log: Resources, client: TestClient) -> None:
    assert not (log.settings.data_dir / FILE).exists()
    client.__exit__(None, None, None)
    assert json.loads((log.settings.data_dir / FILE).read_bytes())["seq"] == 7
    client.__enter__()  # for the fixture, which stops it once more


# ------------------------------------------------------------------------------------------ at the keyboard


def test_verify_at_the_keyboard(log: Resources, capsys: pytest.CaptureFixture[str]) -> None:
    folder = log.settings.data_dir
    assert ppdd("verify", "--data-dir", folder) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("intact: 7 events, 0 of them under a signed head")
    assert "no signed head vouches" in shown.err
    assert ppdd("verify", "--data-dir", folder, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["intact"], value["anchored_seq"], value["events"]) == (True, 8, 8)

    with log.engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_events WHERE seq > 4"))
    assert ppdd("verify", "--data-dir", folder) == 3
    assert "BROKEN at event 5: the log ends with event 4" in capsys.readouterr().out


def test_export_at_the_keyboard_and_verify_elsewhere(
    log: Resources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = log.settings.data_dir, tmp_path / "log.jsonl"
    assert ppdd("export", "--data-dir", folder, "--out", out) == 0
    key = fingerprint(log.key)
    assert ppdd("verify", "--export", out, "--key", key) == 0
    assert "all of them under a signed head" in capsys.readouterr().out
    assert ppdd("export", "--data-dir", folder) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert ppdd("export", "--data-dir", folder, "--out", out) == 1  # never over a file
    out.write_text(out.read_text().replace("a/3", "a/4"))
    assert ppdd("verify", "--export", out, "--key", key) == 3
    out.write_bytes(b"\xff\xfe\n")
    assert ppdd("verify", "--export", out, "--key", key) == 3
    for wrong in (["--export", out], ["--key", key], ["--export", tmp_path / "no", "--key", key]):
        assert ppdd("verify", *wrong) == 2
    assert ppdd("verify", "--export", out, "--key", "short") == 3


def test_a_folder_without_a_node_is_said_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppdd("verify", "--data-dir", tmp_path / "nowhere") == 2
    assert "there is no node in" in capsys.readouterr().err
    assert not (tmp_path / "nowhere" / "node.db").exists()


def test_a_database_that_is_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPDD_DATABASE__URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert ppdd("verify", "--data-dir", tmp_path) == 1
    assert "the database does not answer" in capsys.readouterr().err


def test_who_signs_is_who_sits_there(log: Resources) -> None:
    ppdd("verify", "--data-dir", log.settings.data_dir)
    with log.reading() as session:
        (event,) = service.find(
            session, service.Filter(action="audit.verify"), cursor=None, limit=2
        )[0]
    assert event.actor_id == "command-line"
    assert anchoring.anchor_node(log) is not None
