"""Adding events to the audit log, in the transaction of what they tell of; reading, checking and exporting it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, Select, or_, select, text
from sqlalchemy.orm import Session

from services.audit.actor import Actor
from services.audit.chain import GENESIS, Fault, Link, Verification, hash_facts, walk
from services.audit.heads import BadHeadError, Head, Heads, parse_head, sort_out, text_of
from services.audit.models import AuditEvent
from services.kit.db import now
from services.kit.errors import BadRequestError
from services.kit.text import clean

LOCK = 0x70706464  # PostgreSQL's advisory lock for the end of the chain
BATCH = 1000  # events read at a time
_EVENTS = AuditEvent.__table__
_EXACT = 2**53  # whole numbers from here on are not the same in every JSON

Outcome = Literal["done", "refused"]
Reading = Callable[[], AbstractContextManager[Session]]  # opens a transaction that only reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which events are asked for; None asks for all. An action that ends with a dot stands for all of that noun."""

    actor: str | None = None  # id or name
    action: str | None = None
    subject: str | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None


def record(
    session: Session,
    actor: Actor,
    action: str,
    subject: str = "",
    *,
    outcome: Outcome = "done",
    detail: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Add an event at the end of the chain; it is there if, and only if, the session's transaction commits.

    `detail` holds ids and numbers, no secrets and nothing about patients. Call it last in a transaction: from here on
    others who write to the log wait for the commit.
    """
    lock_end(session)
    last = end_of(session)
    event = AuditEvent(
        seq=last[0] + 1,
        at=now(),
        actor_kind=actor.kind,
        actor_id=clean(actor.id, 64),
        actor_name=clean(actor.name, 200),
        action=clean(action, 64),
        subject=clean(subject, 300),
        outcome=outcome,
        detail=_storable(detail or {}),
        previous=last[1],
        hash="",
    )
    event.hash = hash_of(event)
    session.add(event)
    session.flush()
    return event


def hash_of(event: AuditEvent) -> str:
    """Return the sha256 over every field of the event but `hash`, as canonical JSON."""
    return hash_facts(facts_of(event))


def facts_of(event: AuditEvent | Row[Any]) -> dict[str, Any]:
    """Return what the event's hash covers."""
    return {
        "seq": event.seq,
        "at": text_of(event.at),
        "actor": [event.actor_kind, event.actor_id, event.actor_name],
        "action": event.action,
        "subject": event.subject,
        "outcome": event.outcome,
        "detail": event.detail,
        "previous": event.previous,
    }


def lock_end(session: Session) -> None:
    """Let nobody else add to the log until this transaction ends; on SQLite its one writer sees to that."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def end_of(session: Session) -> tuple[int, str]:
    """Return number and hash of the last event; of an empty log, zero and what its first event will follow."""
    last = session.execute(
        select(AuditEvent.seq, AuditEvent.hash).order_by(AuditEvent.seq.desc()).limit(1)
    ).first()
    return (last.seq, last.hash) if last else (0, GENESIS)


# ------------------------------------------------------------------------------------------ reading


def find(
    session: Session, wanted: Filter, *, cursor: str | None, limit: int
) -> tuple[Sequence[AuditEvent], str | None]:
    """Return a page of events, newest first, and the cursor of the next one."""
    statement = _filtered(select(AuditEvent), wanted)
    if cursor is not None:
        statement = statement.where(AuditEvent.seq < _parse(cursor))
    rows = session.scalars(statement.order_by(AuditEvent.seq.desc()).limit(limit + 1)).all()
    return rows[:limit], str(rows[limit - 1].seq) if len(rows) > limit else None


def export_lines(reading: Reading, last: int, head: Head) -> Iterator[str]:
    """Yield events 1 to `last` as JSON lines, then the signed head: what `verify_lines` checks anywhere.

    Each batch has a short transaction of its own: a slow reader holds none open.
    """
    seq = 0
    while seq < last:
        with reading() as session:
            events = session.execute(_batch(seq).where(_EVENTS.c.seq <= last)).all()
        if not events:
            break
        yield "".join(f"{_dump({**facts_of(event), 'hash': event.hash})}\n" for event in events)
        seq = events[-1].seq
    yield f"{_dump({'head': head.to_dict()})}\n"


# ------------------------------------------------------------------------------------------ checking


def verify(session: Session, heads: Heads | None = None) -> Verification:
    """Check every event, first to last, against the one before it and against the signed `heads`.

    Edits, deletions and reordering are found by the chain; a cut-off end and a log written anew by the heads alone,
    so that without any the answer is anchored to nothing.
    """
    return walk(_links(session), heads or Heads())


def verify_lines(lines: Iterable[str], key: str) -> Verification:
    """Check an export, wherever it lies; `key` is the fingerprint of the site that made it.

    Without a signed head at the end, or with one by another key, the end is unproven: `anchored_seq` is 0 then, and a
    remark says why.
    """
    ends: list[Any] = []
    checked = walk(_links_of(lines, ends), Heads())
    if not checked.intact:
        return checked
    if not ends:
        remark = "the export has no signed head: its end may be missing"
        return replace(checked, remarks=(remark,))
    try:
        heads = sort_out([("the export's head", parse_head(ends[0], "the last line"))], key)
    except BadHeadError as err:
        heads = Heads(remarks=(err.detail,), forged=True)
    return _against(checked, heads)


def _against(checked: Verification, heads: Heads) -> Verification:
    """Return the check of an export with what its one head adds to it."""
    broken = replace(checked, intact=False, remarks=heads.remarks)
    head = heads.newest
    if heads.forged:
        problem = f"the signed head was tampered with: {heads.remarks[0]}"
        return replace(broken, fault=Fault.FORGED, first_bad=checked.last_seq, problem=problem)
    if head is None:
        return replace(checked, remarks=heads.remarks)
    if head.seq != checked.last_seq:
        problem = (
            f"the export ends with event {checked.last_seq}, its signed head names event {head.seq}"
        )
        return replace(
            broken, fault=Fault.TRUNCATED, first_bad=checked.last_seq + 1, problem=problem
        )
    if head.hash != checked.last_hash:
        problem = f"event {head.seq} is not the one that was signed"
        return replace(broken, fault=Fault.REWRITTEN, first_bad=head.seq, problem=problem)
    return replace(checked, anchored_seq=head.seq, remarks=heads.remarks)


def _links(session: Session) -> Iterator[Link | None]:
    """Yield every event's link in order, a batch in memory at a time."""
    after: int | None = None
    while True:
        batch = _read_links(session, after)
        yield from batch
        if len(batch) < BATCH or batch[-1] is None:
            return
        after = batch[-1].seq


def _read_links(session: Session, after: int | None) -> list[Link | None]:
    """Return the links of one batch; it ends with None at the first event that cannot be read."""
    try:
        return [_link(row) for row in session.execute(_batch(after))]
    except (ValueError, TypeError):  # a column holds what its type does not allow
        pass
    links: list[Link | None] = []
    for seq in session.scalars(_batch(after).with_only_columns(_EVENTS.c.seq)).all():
        try:
            links.append(_link(session.execute(select(_EVENTS).where(_EVENTS.c.seq == seq)).one()))
        except (ValueError, TypeError):
            return [*links, None]
    return links


def _link(row: Row[Any]) -> Link:
    try:
        computed = hash_facts(facts_of(row))
    except (ValueError, AttributeError):  # numbers out of range, or fields of another type
        computed = None
    return Link(row.seq, row.previous, row.hash, computed)


def _links_of(lines: Iterable[str], ends: list[Any]) -> Iterator[Link | None]:
    """Yield the link of each line; the head at the end goes to `ends`, and nothing may follow it."""
    for line in lines:
        if not line.strip():
            continue
        if ends:
            yield None
            return
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield None
            return
        if isinstance(value, dict) and set(value) == {"head"}:
            ends.append(value["head"])
        else:
            yield _link_of(value)


def _link_of(value: Any) -> Link | None:
    if not isinstance(value, dict) or type(value.get("seq")) is not int:
        return None
    facts = {name: inner for name, inner in value.items() if name != "hash"}
    try:
        computed = hash_facts(facts)
    except ValueError:
        computed = None
    return Link(value["seq"], str(value.get("previous")), str(value.get("hash")), computed)


# ------------------------------------------------------------------------------------------ queries


def _batch(after: int | None) -> Select[Any]:
    """Return the next events as rows, not objects: what a session holds already may not be what the table holds."""
    statement = select(_EVENTS).order_by(_EVENTS.c.seq).limit(BATCH)
    return statement if after is None else statement.where(_EVENTS.c.seq > after)


def _filtered(statement: Select[Any], wanted: Filter) -> Select[Any]:
    if wanted.actor is not None:
        statement = statement.where(
            or_(AuditEvent.actor_id == wanted.actor, AuditEvent.actor_name == wanted.actor)
        )
    if wanted.action is not None:
        exact = not wanted.action.endswith(".")
        statement = statement.where(
            AuditEvent.action == wanted.action
            if exact
            else AuditEvent.action.startswith(wanted.action, autoescape=True)
        )
    if wanted.subject is not None:
        statement = statement.where(AuditEvent.subject == wanted.subject)
    if wanted.outcome is not None:
        statement = statement.where(AuditEvent.outcome == wanted.outcome)
    if wanted.since is not None:
        statement = statement.where(AuditEvent.at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(AuditEvent.at < wanted.until)
    return statement


def _parse(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise BadRequestError("cursor: use the value of `next` from the page before, unchanged")
    return int(cursor)


def _storable(value: Any) -> Any:
    """Return a JSON value that reads back from every database as it was written, and so hashes alike.

    PostgreSQL writes 1.0 and 1e22 as it likes; whole numbers that a double cannot hold have no canonical form.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _EXACT else str(value)
    if isinstance(value, float):
        if not value.is_integer():
            return value if math.isfinite(value) else None
        return int(value) if abs(value) < _EXACT else repr(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_storable(inner) for inner in value]
    return clean(str(value))


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
