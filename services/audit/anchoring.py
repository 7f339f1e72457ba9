"""Signing the end of the log: at every check and export, when the node stops, daily, and every thousand events."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ppdd_core.errors import PpddError
from ppdd_core.package.signature import fingerprint
from services.audit.actor import Actor
from services.audit.chain import Verification
from services.audit.heads import FILE, Head, Heads, add_head, collect, save_head, sign_head
from services.audit.models import AuditEvent
from services.audit.service import end_of, lock_end, record, verify
from services.kit.db import now
from services.kit.errors import ConflictError, ServiceError
from services.kit.resources import Resources

EVERY = timedelta(days=1)
EVERY_EVENTS = 1000
LOOK_SECONDS = 60.0  # how often the node looks whether it is time
log = structlog.get_logger(__name__)


class AuditLogBrokenError(ConflictError):
    """The log does not hold what was signed before, so that its end is not signed."""

    slug, title = "audit-log-broken", "The audit log was tampered with"


def known_heads(session: Session, folder: Path, key: Ed25519PrivateKey) -> Heads:
    """Return the heads in the table and in `folder`."""
    return collect(session, folder, fingerprint(key))


def anchor(session: Session, folder: Path, key: Ed25519PrivateKey) -> Head | None:
    """Sign the log's end as it is now, in table and file; return the head, None for an empty log.

    AuditLogBrokenError where the last signed event is not in the log any more: the proof of that is kept. Call it in a
    transaction that adds no event, else it signs what may yet be rolled back.
    """
    lock_end(session)
    newest = collect(session, folder, fingerprint(key), latest=1).newest
    seq, hash_ = end_of(session)
    if newest is not None:
        _require_event(session, newest)
    if seq == 0:
        return None
    if newest is None or newest.seq < seq:
        newest = sign_head(seq, hash_, now(), key)
    add_head(session, newest)
    save_head(folder, newest)
    return newest


def anchor_node(resources: Resources) -> Head | None:
    """Sign the end of a node's log, in a transaction of its own."""
    with resources.sessions.begin() as session:
        return anchor(session, resources.settings.data_dir, resources.key)


def verify_node(resources: Resources, actor: Actor) -> Verification:
    """Check a node's log, remember that `actor` did, and sign the end of a log that is whole."""
    with resources.reading() as session:
        heads = known_heads(session, resources.settings.data_dir, resources.key)
        found = verify(session, heads)
    with resources.sessions.begin() as session:
        record(
            session,
            actor,
            "audit.verify",
            outcome="done" if found.intact else "refused",
            detail={"intact": found.intact, "events": found.events, "fault": found.fault},
        )
    if found.intact:
        anchor_node(resources)
    return found


def begin_export(resources: Resources, actor: Actor) -> tuple[int, Head]:
    """Remember that `actor` exports the log; return its last event and the signed head that ends the export.

    A log that is not the one that was signed is exported too, with the head that shows it.
    """
    with resources.sessions.begin() as session:
        last = record(session, actor, "audit.export").seq
    try:
        head = anchor_node(resources)
    except AuditLogBrokenError:
        folder, key = resources.settings.data_dir, fingerprint(resources.key)
        with resources.reading() as session:
            head = collect(session, folder, key, latest=1).newest
    assert head is not None  # there is at least the event above
    return max(last, head.seq), head


def keep_anchoring(resources: Resources, stop: threading.Event) -> None:
    """Sign when it is time until `stop`, and once more then. A thread of the API."""
    while not stop.wait(LOOK_SECONDS):
        _try_to_anchor(resources, always=False)
    _try_to_anchor(resources, always=True)


def is_due(session: Session, newest: Head | None, at: datetime) -> bool:
    """Return whether the newest head is a day or a thousand events old, and there is something to sign."""
    seq, _ = end_of(session)
    if newest is None or newest.seq >= seq:
        return newest is None and seq > 0
    return seq - newest.seq >= EVERY_EVENTS or at - datetime.fromisoformat(newest.at) >= EVERY


def _try_to_anchor(resources: Resources, *, always: bool) -> None:
    try:
        with resources.reading() as session:
            folder, key = resources.settings.data_dir, fingerprint(resources.key)
            due = is_due(session, collect(session, folder, key, latest=1).newest, now())
        if due or always:
            anchor_node(resources)
    except (ServiceError, PpddError) as refusal:
        log.error("audit.not-signed", reason=str(refusal))
    except (DBAPIError, OSError) as err:
        log.warning("audit.not-signed", reason=type(err).__name__)


def _require_event(session: Session, head: Head) -> None:
    found = session.scalar(select(AuditEvent.hash).where(AuditEvent.seq == head.seq))
    if found != head.hash:
        raise AuditLogBrokenError(
            f"event {head.seq} was signed on {head.at} and is not in the log as it was; `ppdd audit verify` says more, "
            f"and {FILE} is left as it is"
        )
