"""The audit log's tables. Rows are only ever added; each event carries the hash of the one before."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from services.kit.db import Base


class AuditEvent(Base):
    """One event. `hash` is over every other field and `previous`, so that no row can be changed alone."""

    __tablename__ = "audit_events"

    seq: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False
    )  # 1, 2, 3 … without gaps
    at: Mapped[datetime] = mapped_column(index=True)
    actor_kind: Mapped[str] = mapped_column(
        String(16)
    )  # user, token, peer, worker, system, anonymous
    actor_id: Mapped[str] = mapped_column(String(64), index=True)
    actor_name: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(
        String(64), index=True
    )  # dataset.register, package.release …
    subject: Mapped[str] = mapped_column(String(300), index=True)  # what it was done to
    outcome: Mapped[str] = mapped_column(String(16), index=True)  # done, refused
    detail: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """The end of the chain at one moment, signed with the site's key: what was cut off later is missed by it."""

    __tablename__ = "audit_heads"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # of the last event
    hash: Mapped[str] = mapped_column(String(64))  # of that event
    at: Mapped[datetime]
    public_key: Mapped[str] = mapped_column(String(44))  # base64 of 32 bytes
    signature: Mapped[str] = mapped_column(String(88))  # base64 of 64 bytes
