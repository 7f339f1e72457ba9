"""Adding events to the audit log, in the transaction of what they tell of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import rfc8785
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.audit.actor import Actor
from services.audit.models import AuditEvent
from services.kit.db import now

GENESIS = "0" * 64
LOCK = 0x70706464  # PostgreSQL's advisory lock for the end of the chain

Outcome = Literal["done", "refused"]


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
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    last = session.execute(
        select(AuditEvent.seq, AuditEvent.hash).order_by(AuditEvent.seq.desc()).limit(1)
    ).first()
    event = AuditEvent(
        seq=last.seq + 1 if last else 1,
        at=now(),
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_name=actor.name[:200],
        action=action,
        subject=subject[:300],
        outcome=outcome,
        detail=dict(detail or {}),
        previous=last.hash if last else GENESIS,
        hash="",
    )
    event.hash = hash_of(event)
    session.add(event)
    session.flush()
    return event


def hash_of(event: AuditEvent) -> str:
    """Return the sha256 over every field of the event but `hash`, as canonical JSON."""
    return sha256(
        rfc8785.dumps(
            {
                "seq": event.seq,
                "at": _moment(event.at),
                "actor": [event.actor_kind, event.actor_id, event.actor_name],
                "action": event.action,
                "subject": event.subject,
                "outcome": event.outcome,
                "detail": event.detail,
                "previous": event.previous,
            }
        )
    ).hexdigest()


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
