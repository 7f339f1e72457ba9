"""Queries by keyset: a page costs the same wherever it lies, and rows added meanwhile shift nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Integer, Row, Select, bindparam
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


@dataclass(frozen=True, slots=True)
class Pages:
    """A list of columns, as the statements of its first page and of later ones.

    Kept by whoever asks for it often: to make a statement takes longer than the database needs to answer it.
    """

    first: Select[*tuple[Any, ...]]
    later: Select[*tuple[Any, ...]]
    key: Any  # the UUID column that it is ordered by, one of those selected

    @classmethod
    def of(cls, statement: Select[*tuple[Any, ...]], key: InstrumentedAttribute[UUID]) -> Pages:
        """Return the pages of `statement` by descending `key`."""
        ordered = statement.order_by(key.desc()).limit(bindparam("most", type_=Integer))
        return cls(ordered, ordered.where(key < bindparam("cursor", type_=key.type)), key)

    def read(
        self, session: Session, *, cursor: str | None, limit: int = DEFAULT_LIMIT
    ) -> tuple[Sequence[AnyRow], str | None]:
        """Return a page, and the cursor of the next one. No objects are made of its rows, and nothing is flushed."""
        values: dict[str, Any] = {"most": limit + 1}
        if cursor is not None:
            values["cursor"] = _parse(cursor)
        statement = self.first if cursor is None else self.later
        rows = session.connection().execute(statement, values).all()
        return rows[:limit], _following(rows, self.key, limit)


def as_dicts(rows: Sequence[AnyRow], first: int = 0) -> list[dict[str, Any]]:
    """Return rows as dictionaries of their columns, from the column `first` on."""
    if not rows:
        return []
    names = [
        str(name) for name in rows[0]._fields[first:]
    ]  # SQLAlchemy's own strings are written slowly as JSON
    return [dict(zip(names, row[first:], strict=True)) for row in rows]


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
