"""The audit log finds what was done to it, and says what it cannot know."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ppdd_core.package.signature import fingerprint
from services.audit import anchoring, protection, service
from services.audit.actor import SYSTEM, Actor
from services.audit.anchoring import AuditLogBrokenError
from services.audit.chain import GENESIS, Fault, Verification
from services.audit.heads import FILE, collect, sign_head
from services.audit.models import AuditEvent, AuditHead
from services.kit.resources import Resources

MARIA = Actor("user", "0190", "maria")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BATCH", 3)


@pytest.fixture
def log(resources: Resources) -> Resources:
    """Ten events, signed at the eighth."""
    for number in range(1, 11):
        with resources.sessions.begin() as session:
            service.record(session, MARIA, "thing.do", f"thing {number}", detail={"n": number})
        if number == 8:
            anchoring.anchor_node(resources)
    return resources


def check(node: Resources) -> Verification:
    with node.sessions() as session:
        return service.verify(
            session, anchoring.known_heads(session, node.settings.data_dir, node.key)
        )


def sql(node: Resources, *statements: str) -> None:
    with node.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def rehash(session: Session, first: int) -> None:
    """Do what a forger does who owns the database: make the chain fit again from `first` on."""
    previous = GENESIS
    for event in session.query(AuditEvent).order_by(AuditEvent.seq):
        if event.seq >= first:
            event.previous = previous
            event.hash = service.hash_of(event)
        previous = event.hash


def test_a_log_that_nobody_touched_is_intact_and_says_how_far_it_is_signed(log: Resources) -> None:
    found = check(log)
    assert found.intact
    assert (found.events, found.last_seq, found.anchored_seq) == (10, 10, 8)
    assert found.problem is None


def test_an_empty_log_is_intact(resources: Resources) -> None:
    assert check(resources).intact
    assert anchoring.anchor_node(resources) is None


@pytest.mark.parametrize(
    ("statements", "fault", "first_bad"),
    [
        pytest.param(
            ["UPDATE audit_events SET subject = 'x' WHERE seq = 4"],
            Fault.EDITED,
            4,
            id="edited subject",
        ),
        pytest.param(
            ["UPDATE audit_events SET detail = '{\"n\": 0}' WHERE seq = 1"],
            Fault.EDITED,
            1,
            id="edited detail",
        ),
        pytest.param(
            ["UPDATE audit_events SET at = '2020-01-01 00:00:00.000000' WHERE seq = 10"],
            Fault.EDITED,
            10,
            id="edited last",
        ),
        pytest.param(
            ["UPDATE audit_events SET actor_name = 'eve' WHERE seq = 3"],
            Fault.EDITED,
            3,
            id="edited actor",
        ),
        pytest.param(
            ["UPDATE audit_events SET detail = 'not json' WHERE seq = 5"],
            Fault.EDITED,
            5,
            id="unreadable detail",
        ),
        pytest.param(
            ["UPDATE audit_events SET at = 'never' WHERE seq = 6"],
            Fault.EDITED,
            6,
            id="unreadable moment",
        ),
        pytest.param(
            ["UPDATE audit_events SET detail = '{\"n\": 1e999}' WHERE seq = 5"],
            Fault.EDITED,
            5,
            id="infinity",
        ),
        pytest.param(
            ["UPDATE audit_events SET hash = 'x' WHERE seq = 7"], Fault.EDITED, 7, id="edited hash"
        ),
        pytest.param(
            ["DELETE FROM audit_events WHERE seq = 1"], Fault.MISSING, 1, id="first deleted"
        ),
        pytest.param(
            ["DELETE FROM audit_events WHERE seq IN (5, 6)"], Fault.MISSING, 5, id="two deleted"
        ),
        pytest.param(
            [
                "DELETE FROM audit_events WHERE seq = 5",
                "UPDATE audit_events SET seq = seq - 1 WHERE seq > 5",
            ],
            Fault.MOVED,
            5,
            id="deleted and closed up",
        ),
        pytest.param(
            [
                "UPDATE audit_events SET seq = 99 WHERE seq = 3",
                "UPDATE audit_events SET seq = 3 WHERE seq = 4",
                "UPDATE audit_events SET seq = 4 WHERE seq = 99",
            ],
            Fault.MOVED,
            3,
            id="two swapped",
        ),
        pytest.param(
            ["UPDATE audit_events SET seq = 0 WHERE seq = 1"], Fault.MOVED, 0, id="numbered anew"
        ),
        pytest.param(
            ["DELETE FROM audit_events WHERE seq >= 8"], Fault.TRUNCATED, 8, id="truncated"
        ),
        pytest.param(["DELETE FROM audit_events"], Fault.TRUNCATED, 1, id="emptied"),
        pytest.param(["UPDATE audit_heads SET hash = 'x'"], Fault.FORGED, 10, id="head edited"),
        pytest.param(
            ["UPDATE audit_heads SET signature = 'x'"], Fault.FORGED, 10, id="head not signed"
        ),
    ],
)
def test_finds(log: Resources, statements: list[str], fault: Fault, first_bad: int) -> None:
    sql(log, *statements)
    found = check(log)
    assert not found.intact
    assert (found.fault, found.first_bad) == (fault, first_bad), found.problem
    assert found.problem


def test_finds_an_exchanged_event_whose_hash_was_made_to_fit(log: Resources) -> None:
    with log.sessions.begin() as session:
        event = session.get_one(AuditEvent, 4)
        event.subject = "nothing"
        event.hash = service.hash_of(event)
    found = check(log)
    assert (found.fault, found.first_bad) == (Fault.MOVED, 5)
    assert "event 4" in (found.problem or "")


def test_finds_a_chain_that_was_written_anew(log: Resources) -> None:
    with log.sessions.begin() as session:
        session.get_one(AuditEvent, 4).subject = "nothing"
        rehash(session, 4)
    found = check(log)
    assert (found.fault, found.first_bad) == (Fault.REWRITTEN, 8)


def test_finds_a_cut_end_that_grew_again(log: Resources) -> None:
    sql(log, "DELETE FROM audit_events WHERE seq >= 7")
    for _ in range(5):
        with log.sessions.begin() as session:
            service.record(session, SYSTEM, "thing.do")
    found = check(log)
    assert (found.fault, found.first_bad) == (Fault.REWRITTEN, 8)


@pytest.mark.parametrize("left", ["table", "file"])
def test_either_place_of_the_head_alone_betrays_a_cut(log: Resources, left: str) -> None:
    if left == "table":
        (log.settings.data_dir / FILE).unlink()
    else:
        sql(log, "DELETE FROM audit_heads")
    assert check(log).intact
    sql(log, "DELETE FROM audit_events WHERE seq > 3")
    assert check(log).fault is Fault.TRUNCATED


def test_without_any_head_the_answer_says_that_it_is_anchored_to_nothing(log: Resources) -> None:
    (log.settings.data_dir / FILE).unlink()
    sql(log, "DELETE FROM audit_heads", "DELETE FROM audit_events WHERE seq > 3")
    found = check(log)
    assert found.intact  # nobody can know
    assert found.anchored_seq == 0
    assert f"{FILE} is not there" in found.remarks


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"{" * 5000, b'{"format": 1}'])
def test_a_head_file_that_is_none_is_remarked_on(log: Resources, content: bytes) -> None:
    (log.settings.data_dir / FILE).write_bytes(content)
    found = check(log)
    assert found.intact
    assert any(FILE in remark for remark in found.remarks)


def test_a_head_of_another_key_counts_for_nothing(log: Resources) -> None:
    other = Ed25519PrivateKey.generate()
    with log.sessions.begin() as session:
        hash_ = session.get_one(AuditEvent, 10).hash
        row = sign_head(10, hash_, datetime.now(UTC), other)
        session.add(
            AuditHead(
                seq=10, hash=hash_, at=datetime.fromisoformat(row.at),
                public_key=row.to_dict()["public_key"], signature=row.to_dict()["signature"],
            )
        )  # fmt: skip
    found = check(log)
    assert found.intact
    assert found.anchored_seq == 8
    assert any("another key" in remark for remark in found.remarks)


def test_a_broken_log_is_not_signed_and_the_proof_stays(log: Resources) -> None:
    before = (log.settings.data_dir / FILE).read_bytes()
    sql(log, "DELETE FROM audit_events WHERE seq > 3")
    with pytest.raises(AuditLogBrokenError, match="event 8"):
        anchoring.anchor_node(log)
    assert (log.settings.data_dir / FILE).read_bytes() == before


def test_the_end_is_signed_daily_and_every_thousand_events(log: Resources) -> None:
    with log.sessions() as session:
        key, folder = fingerprint(log.key), log.settings.data_dir
        newest = collect(session, folder, key, latest=1).newest
        assert newest is not None
        signed_at = datetime.fromisoformat(newest.at)
        assert not anchoring.is_due(session, newest, signed_at + timedelta(hours=23))
        assert anchoring.is_due(session, newest, signed_at + timedelta(hours=25))
        assert anchoring.is_due(session, None, signed_at)
    with log.sessions.begin() as session:
        for _ in range(anchoring.EVERY_EVENTS):
            service.record(session, SYSTEM, "thing.do")
        assert anchoring.is_due(session, newest, signed_at)


def test_signing_twice_is_the_same_head_and_restores_the_file(log: Resources) -> None:
    first = anchoring.anchor_node(log)
    (log.settings.data_dir / FILE).unlink()
    assert anchoring.anchor_node(log) == first
    assert (log.settings.data_dir / FILE).exists()


# ------------------------------------------------------------------------------------------ exports


@pytest.fixture
def exported(log: Resources) -> list[str]:
    last, head = anchoring.begin_export(log, MARIA)
    return "".join(service.export_lines(log.reading, last, head)).splitlines(keepends=True)


def test_an_export_is_verified_without_the_node(log: Resources, exported: list[str]) -> None:
    found = service.verify_lines(iter(exported), fingerprint(log.key))
    assert found.intact
    assert found.events == found.anchored_seq == 11
    assert not found.remarks


def _edited(line: str, **change: Any) -> str:
    return json.dumps({**json.loads(line), **change}) + "\n"


@pytest.mark.parametrize(
    ("change", "fault", "first_bad"),
    [
        pytest.param(
            lambda lines: [*lines[:3], _edited(lines[3], subject="x"), *lines[4:]],
            Fault.EDITED,
            4,
            id="edited",
        ),
        pytest.param(
            lambda lines: [*lines[:3], _edited(lines[3], extra=1), *lines[4:]],
            Fault.EDITED,
            4,
            id="field added",
        ),
        pytest.param(lambda lines: [*lines[:3], *lines[4:]], Fault.MISSING, 4, id="line removed"),
        pytest.param(
            lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
            Fault.MISSING,
            4,
            id="lines swapped",
        ),
        pytest.param(lambda lines: [*lines[:4], *lines[3:]], Fault.MOVED, 4, id="line doubled"),
        pytest.param(lambda lines: [*lines[:5], lines[-1]], Fault.TRUNCATED, 6, id="end cut"),
        pytest.param(lambda lines: [*lines, lines[0]], Fault.EDITED, 12, id="line after the head"),
        pytest.param(lambda lines: ["{\n", *lines[1:]], Fault.EDITED, 1, id="no JSON"),
        pytest.param(lambda lines: ["[" * 100_000, *lines[1:]], Fault.EDITED, 1, id="too deep"),
        pytest.param(
            lambda lines: [_edited(lines[0], seq=1.0), *lines[1:]],
            Fault.EDITED,
            1,
            id="number of another type",
        ),
        pytest.param(
            lambda lines: [_edited(lines[0], detail=2**70), *lines[1:]],
            Fault.EDITED,
            1,
            id="number too large",
        ),
        pytest.param(
            lambda lines: [*lines[:-1], '{"head": {"seq": 11}}'], Fault.FORGED, 11, id="no head"
        ),
        pytest.param(
            lambda lines: [*lines[:-1], lines[-1].replace('"seq":11', '"seq":12')],
            Fault.FORGED,
            11,
            id="head edited",
        ),
    ],
)
def test_finds_in_an_export(
    log: Resources, exported: list[str], change: Any, fault: Fault, first_bad: int
) -> None:
    found = service.verify_lines(change(exported), fingerprint(log.key))
    assert not found.intact
    assert (found.fault, found.first_bad) == (fault, first_bad), found.problem


def test_an_export_without_its_head_is_anchored_to_nothing(
    log: Resources, exported: list[str]
) -> None:
    found = service.verify_lines(exported[:6], fingerprint(log.key))
    assert found.intact
    assert found.anchored_seq == 0
    assert "its end may be missing" in found.remarks[0]


def test_an_export_of_another_site_is_anchored_to_nothing(exported: list[str]) -> None:
    found = service.verify_lines(exported, "0" * 64)
    assert found.anchored_seq == 0
    assert "another key" in found.remarks[0]


def test_a_broken_log_is_exported_with_the_head_that_shows_it(log: Resources) -> None:
    sql(log, "DELETE FROM audit_events WHERE seq > 3")
    last, head = anchoring.begin_export(log, MARIA)
    lines = "".join(service.export_lines(log.reading, last, head)).splitlines()
    assert service.verify_lines(lines, fingerprint(log.key)).fault is Fault.TRUNCATED


# ------------------------------------------------------------------------------------------ writing


HOSTILE: dict[Any, Any] = {
    "nul": "a\x00b", "half": "\ud800", "float": 1.0, "large": 1e22, "nan": float("nan"), "big": 2**70, "yes": True,
    "fraction": 0.1, "deep": [{"x": (1, 2)}], "none": None, 3: "key",
}  # fmt: skip


def test_whatever_detail_is_given_reads_back_as_it_was_hashed(resources: Resources) -> None:
    with resources.sessions.begin() as session:
        actor = Actor("user", "x" * 99, "n" * 999)
        service.record(session, actor, "a" * 99, "s\x00" * 400, detail=HOSTILE)
    assert check(resources).intact


@pytest.fixture
def protected(log: Resources) -> Resources:
    with log.engine.begin() as connection:
        protection.install(connection)
    return log


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET subject = 'x' WHERE seq = 1",
        "DELETE FROM audit_events WHERE seq = 1",
        "INSERT OR REPLACE INTO audit_events SELECT * FROM audit_events WHERE seq = 1",
        "DELETE FROM audit_heads",
        "UPDATE audit_heads SET seq = 1",
    ],
)
def test_the_database_refuses_changes_of_the_log(protected: Resources, statement: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"):
        sql(protected, statement)
    with protected.sessions.begin() as session:
        service.record(session, SYSTEM, "thing.do")
    assert check(protected).intact


def test_protection_can_be_removed_and_put_back(protected: Resources) -> None:
    with protected.engine.begin() as connection:
        protection.remove(connection)
        connection.execute(text("DELETE FROM audit_heads"))
        protection.install(connection)
