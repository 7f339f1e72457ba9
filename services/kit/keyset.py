"""Queries by keyset: a page costs the same wherever it lies, and rows added meanwhile shift nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.kit.errors import BadRequestError

R = TypeVar("R")

AnyRow = Row[*tuple[Any, ...]]  # columns of any number and type

DEFAULT_LIMIT, MAX_LIMIT = 50, 200


def page_rows(
    session: Session,
    statement: Select[R],
    key: InstrumentedAttribute[UUID] | Any,
    *,
    cursor: str | None,
    limit: int = DEFAULT_LIMIT,
) -> tuple[Sequence[R], str | None]:
    """Return a page of `statement` by descending `key` (a UUID column), and the cursor of the next one."""
    rows = session.scalars(_from(statement, key, cursor, limit)).all()
    return rows[:limit], _following(rows, key, limit)


def page_columns(
    session: Session,
    statement: Select[*tuple[Any, ...]],
    key: InstrumentedAttribute[UUID] | Any,
    *,
    cursor: str | None,
    limit: int = DEFAULT_LIMIT,
) -> tuple[Sequence[AnyRow], str | None]:
    """Return the same of a statement that selects columns, `key` among them: no objects are made of its rows."""
    rows = session.execute(_from(statement, key, cursor, limit)).all()
    return rows[:limit], _following(rows, key, limit)


def _from(statement: Select[R], key: Any, cursor: str | None, limit: int) -> Select[R]:
    if cursor is not None:
        statement = statement.where(key < _parse(cursor))
    return statement.order_by(key.desc()).limit(limit + 1)


def _following(rows: Sequence[Any], key: Any, limit: int) -> str | None:
    return str(getattr(rows[limit - 1], key.key)) if len(rows) > limit else None


def _parse(cursor: str) -> UUID:
    try:
        return UUID(cursor)
    except ValueError:
        raise BadRequestError(
            "cursor: use the value of `next` from the page before, unchanged"
        ) from None
