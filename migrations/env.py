"""What Alembic runs for every command: one transaction over all changes, on PostgreSQL and SQLite alike.

`services.kit.migrate` passes an engine; started by the `alembic` program (which developers use to write a change) the
engine is made from the node's settings.
"""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, Engine

from services.kit.db import UtcDateTime
from services.kit.migrate import migration_engine
from services.settings import load_settings
from services.system.tables import METADATA

# A change waits this long for others' locks, and each of its statements may run this long. Better to fail and be run
# again in a quiet hour than to stop the hospital's work behind a lock.
LOCK_TIMEOUT, STATEMENT_TIMEOUT = "10s", "15min"
ONE_AT_A_TIME = 0x70706465  # PostgreSQL's advisory lock of migrations: two that start together run one after the other


def migrate(engine: Engine) -> None:
    """Run the command over one connection."""
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=METADATA,
            render_as_batch=True,  # SQLite changes a column by copying the table
            compare_type=True,
            transactional_ddl=True,  # all changes or none; our engines give SQLite real transactions too
            render_item=render_item,
        )
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                prepare_postgresql(connection)
            context.run_migrations()


def prepare_postgresql(connection: Connection) -> None:
    """Bound the waiting, and wait for another migration that runs now."""
    for setting, value in (
        ("lock_timeout", LOCK_TIMEOUT),
        ("statement_timeout", STATEMENT_TIMEOUT),
    ):
        connection.exec_driver_sql(f"SET LOCAL {setting} = '{value}'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ONE_AT_A_TIME})")


def render_item(kind: str, item: Any, made: AutogenContext) -> str | Literal[False]:
    """Write our types as the plain ones they store: a change must read the same when the model's code has moved on."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, sa.JSON):
        made.imports.add("from migrations.columns import JSON")
        return "JSON"
    return False


if context.is_offline_mode():
    raise SystemExit("changes are only run against a database; `--sql` is not supported")
given = context.config.attributes.get("engine")
if given is not None:
    migrate(given)
else:
    with migration_engine(load_settings()) as own:
        migrate(own)
