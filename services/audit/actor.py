"""Who acts, as the audit log names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["user", "token", "peer", "worker", "system", "anonymous"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody or something that acts on the node; `id` is stable, `name` is for people."""

    kind: ActorKind
    id: str
    name: str


SYSTEM = Actor("system", "system", "the node itself")
ANONYMOUS = Actor("anonymous", "anonymous", "somebody not logged in")
