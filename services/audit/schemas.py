"""The audit log as the API shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.audit.chain import Fault, Verification
from services.audit.models import AuditEvent


class ActorOut(BaseModel):
    """Who acted."""

    kind: str = Field(examples=["user"])
    id: str = Field(examples=["01936f7e-0b7a-7c3e-9d51-2f6c1c0a9b11"])
    name: str = Field(examples=["maria"])


class EventOut(BaseModel):
    """One event of the log."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "seq": 42,
                "at": "2026-11-25T09:30:00.123456Z",
                "actor": {
                    "kind": "user",
                    "id": "01936f7e-0b7a-7c3e-9d51-2f6c1c0a9b11",
                    "name": "maria",
                },
                "action": "package.release",
                "subject": "hospital-a/covid@1.0.0",
                "outcome": "done",
                "detail": {},
                "hash": "5f" * 32,
            }
        }
    )

    seq: int = Field(description="1, 2, 3 … without gaps.")
    at: datetime
    actor: ActorOut
    action: str
    subject: str = Field(description="What it was done to.")
    outcome: Literal["done", "refused"]
    detail: dict[str, Any]
    hash: str = Field(description="Over everything else in the event, and the hash before it.")

    @classmethod
    def of(cls, event: AuditEvent) -> EventOut:
        """Return an event as it is shown."""
        return cls(
            seq=event.seq,
            at=event.at,
            actor=ActorOut(kind=event.actor_kind, id=event.actor_id, name=event.actor_name),
            action=event.action,
            subject=event.subject,
            outcome="refused" if event.outcome == "refused" else "done",
            detail=event.detail,
            hash=event.hash,
        )


class VerificationOut(BaseModel):
    """What a check of the whole log found."""

    intact: bool
    events: int = Field(description="How many events are in order, from the first.")
    last_seq: int
    last_hash: str
    anchored_seq: int = Field(
        description="The last event that a signed head vouches for; 0: no head was found, so that an end that was cut "
        "off would leave no trace."
    )
    fault: Fault | None = Field(description="What is wrong first.")
    first_bad: int | None = Field(description="Where.")
    problem: str | None = Field(description="The same, for people.")
    remarks: list[str]

    @classmethod
    def of(cls, found: Verification) -> VerificationOut:
        """Return a check as it is shown."""
        return cls.model_validate(found.to_dict())
