"""Triggers that let rows of the audit log be added, never changed or removed; for migrations.

They stop a slip, an injected statement and a careless administrator. Who owns the database can drop them: against
that stand the chain of hashes and the signed heads.
"""

from __future__ import annotations

from sqlalchemy import Connection

TABLES = ("audit_events", "audit_heads")
_FUNCTION = "ppdd_audit_is_append_only"
_MESSAGE = "the audit log is append-only"


def install(connection: Connection) -> None:
    """Protect both tables, which must exist; on another database than PostgreSQL and SQLite a ValueError."""
    _run(connection, {"postgresql": _postgresql(), "sqlite": _sqlite()})


def remove(connection: Connection) -> None:
    """Take the protection away again, for example before the tables are dropped."""
    _run(
        connection,
        {
            "postgresql": [
                *(
                    f"DROP TRIGGER IF EXISTS {table}_{kind} ON {table}"
                    for table in TABLES
                    for kind in ("rows", "whole")
                ),
                f"DROP FUNCTION IF EXISTS {_FUNCTION}()",
            ],
            "sqlite": [
                f"DROP TRIGGER IF EXISTS {table}_no_{verb}"
                for table in TABLES
                for verb in ("update", "delete", "replace")
            ],
        },
    )


def _postgresql() -> list[str]:
    function = (
        f"CREATE OR REPLACE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_MESSAGE}'; END $$"
    )
    # FOR EACH STATEMENT: also a change that meets no row is refused, and TRUNCATE has no rows.
    return [function] + [
        f"CREATE TRIGGER {table}_{kind} BEFORE {verbs} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {_FUNCTION}()"
        for table in TABLES
        for kind, verbs in (("rows", "UPDATE OR DELETE"), ("whole", "TRUNCATE"))
    ]


def _sqlite() -> list[str]:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
    # INSERT OR REPLACE removes the old row without a DELETE.
    taken = "WHEN EXISTS (SELECT 1 FROM {0} WHERE seq = NEW.seq)"
    return [
        f"CREATE TRIGGER {table}_no_{name} BEFORE {verb} ON {table} {when.format(table)} {refuse}"
        for table in TABLES
        for name, verb, when in (
            ("update", "UPDATE", ""),
            ("delete", "DELETE", ""),
            ("replace", "INSERT", taken),
        )
    ]


def _run(connection: Connection, statements: dict[str, list[str]]) -> None:
    dialect = connection.dialect.name
    if dialect not in statements:
        raise ValueError(f"the audit log cannot be protected on {dialect}")
    for statement in statements[dialect]:
        connection.exec_driver_sql(statement)
