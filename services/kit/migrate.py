"""Bringing the database to the shape that this version of the program knows, and refusing any other.

The changes themselves are in the package `migrations`, which is installed beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event

from ppdd_core.errors import BadConfigError
from services.kit.db import READONLY, connect
from services.settings import Settings

log = structlog.get_logger(__name__)


class SchemaError(BadConfigError):
    """The database does not have the shape that this program knows."""


def upgrade(settings: Settings, revision: str = "head") -> str:
    """Bring the database to the newest revision, or an earlier one, and return that.

    SchemaError where the database is newer than this program.
    """
    with migration_engine(settings) as engine:
        before, _ = revision_state(engine)
        require_known(before)
        command.upgrade(_config(engine), revision)
        after, _ = revision_state(engine)
    if before != after:
        log.info("database.migrated", before=before or "empty", after=after)
    assert after is not None
    return after


def downgrade(settings: Settings, revision: str) -> None:
    """Take changes back to `revision`; `base` takes all of them, and every row with them."""
    with migration_engine(settings) as engine:
        command.downgrade(_config(engine), revision)


def revision_state(engine: Engine) -> tuple[str | None, str]:
    """Return the database's revision (None: no tables yet) and the newest one that this program knows."""
    with engine.connect().execution_options(**{READONLY: True}) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    head = _scripts().get_current_head()
    assert head is not None
    return current, head


def require_head(engine: Engine) -> None:
    """Return if the database is at the newest revision; else SchemaError says what to do."""
    current, head = revision_state(engine)
    require_known(current)
    if current != head:
        has = f"is at revision {current}" if current else "has no tables yet"
        raise SchemaError(f"the database {has}, this program needs {head}: run `ppdd node migrate`")


def require_known(current: str | None) -> None:
    """Raise SchemaError for a revision that a newer program made."""
    known = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise SchemaError(
            f"the database is at revision {current}, which this version of the program does not know: install the "
            "newer version again, or restore the backup from before its migration"
        )


@contextmanager
def migration_engine(settings: Settings) -> Iterator[Engine]:
    """Yield an engine of its own for migrations.

    On SQLite it does not enforce foreign keys: a change that copies a table drops the old one, and rows that refer to
    it must stay.
    """
    engine = connect(settings)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _without_foreign_keys)
    try:
        yield engine
    finally:
        engine.dispose()


def _without_foreign_keys(connection: object, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[attr-defined]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_folder()))


def _config(engine: Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def _folder() -> Path:
    found = find_spec("migrations")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent
