"""Lists by keyset: a page costs the same wherever it lies, and rows added meanwhile shift nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.kit.problems import BadRequestError

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_LIMIT, MAX_LIMIT = 50, 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows of a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=64, description="`next` of the page before; absent for the first page."),
]


class Page(BaseModel, Generic[T]):
    """One page of a list, newest first; `next` is the cursor of the one after it, or null."""

    items: list[T]
    next: str | None = None


def page_rows(
    session: Session,
    statement: Select[R],
    key: InstrumentedAttribute[UUID] | Any,
    *,
    cursor: str | None,
    limit: int = DEFAULT_LIMIT,
) -> tuple[Sequence[R], str | None]:
    """Return a page of `statement` by descending `key` (a UUID column), and the cursor of the next one."""
    if cursor is not None:
        statement = statement.where(key < _parse(cursor))
    rows = session.scalars(statement.order_by(key.desc()).limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, str(getattr(rows[-1], key.key)) if more else None


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Say where the next page is in a `Link` header (RFC 8288)."""
    if cursor is not None:
        response.headers["Link"] = (
            f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'
        )


def _parse(cursor: str) -> UUID:
    try:
        return UUID(cursor)
    except ValueError:
        raise BadRequestError(
            "cursor: use the value of `next` from the page before, unchanged"
        ) from None
