"""Who is asking: a value that the guard makes and services receive."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from services.audit.actor import Actor
from services.auth.permissions import Role, Scope
from services.kit.errors import ForbiddenError


@dataclass(frozen=True, slots=True)
class Principal:
    """A person, a script of theirs, or another hospital. `scopes` is None where nothing narrows the role."""

    user_id: UUID
    username: str
    role: Role
    via: Literal["session", "token"]
    credential_id: UUID  # of the session or token
    scopes: frozenset[Scope] | None = None
    used_at: datetime | None = None  # the credential's last use that is known

    @property
    def actor(self) -> Actor:
        """The same, as the audit log names them."""
        kind = "peer" if self.role is Role.PEER else ("token" if self.via == "token" else "user")
        return Actor(kind, str(self.user_id), self.username)  # type: ignore[arg-type]

    @property
    def decides(self) -> bool:
        """Whether others' things are theirs to change too."""
        return self.role in (Role.ADMIN, Role.STEWARD)

    def require_own(self, owner_id: UUID | None, what: str) -> None:
        """Raise ForbiddenError unless the thing is the caller's own, or the caller a steward or admin."""
        if not self.decides and owner_id != self.user_id:
            raise ForbiddenError(
                f"this {what} is somebody else's; its owner, a steward or an admin may do that"
            )
