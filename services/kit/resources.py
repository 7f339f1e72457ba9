"""What a process of the node holds while it runs: settings, database, store, doorbell, key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from ppdd_core.package.signature import load_or_create_key
from services.kit.db import READONLY, Sessions, connect, make_sessions
from services.kit.queue import Send, doorbell, transaction
from services.kit.secrets import Vault, load_vault
from services.kit.storage import ObjectStore
from services.kit.stores import open_store
from services.settings import Settings


@dataclass(frozen=True)
class Resources:
    """Made once per process by `open_resources`, closed with it."""

    settings: Settings
    engine: Engine
    sessions: Sessions
    store: ObjectStore
    send: Send

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        """The site's signing key, made on first use where there is none."""
        return load_or_create_key(self.settings.signing_key)

    @cached_property
    def vault(self) -> Vault:
        """What seals stored credentials."""
        return load_vault(self.settings)

    @cached_property
    def reading_engine(self) -> Engine:
        """The same connections, for reading. A single query is asked of them at two thirds of what a session takes.

        On SQLite they wait for no writer, and none for them. On PostgreSQL each statement stands alone, which within
        READ COMMITTED it does anyway: two round trips less, for what is mostly a single SELECT.
        """
        options: dict[str, Any] = {READONLY: True}
        if self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "AUTOCOMMIT"
        return self.engine.execution_options(**options)

    @cached_property
    def readers(self) -> Sessions:
        """Makes sessions that only read, and refuse to write."""
        made = make_sessions(self.reading_engine)
        made.configure(info={READONLY: True})
        event.listen(made, "before_flush", _refuse_to_write)
        return made

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Commit on exit, then ring for what was enqueued."""
        with transaction(self.sessions, self.send) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that only reads."""
        with self.readers() as session:
            yield session


@contextmanager
def open_resources(settings: Settings, **replaced: Any) -> Iterator[Resources]:
    """Yield the resources of a process; `replaced` gives a store or a doorbell of the caller's own (tests)."""
    engine = connect(settings)
    try:
        yield Resources(
            settings,
            engine,
            make_sessions(engine),
            replaced.get("store") or open_store(settings),
            replaced.get("send") or doorbell(settings),
        )
    finally:
        engine.dispose()


def _refuse_to_write(*_: object) -> None:
    raise RuntimeError("a session that only reads was about to write: a bug in the caller")
