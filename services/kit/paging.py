"""Lists as HTTP shows them: a page, and where the next one is. The queries are in `keyset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from services.kit.keyset import DEFAULT_LIMIT as DEFAULT_LIMIT
from services.kit.keyset import MAX_LIMIT

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows of a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=64, description="`next` of the page before; absent for the first page."),
]


class Page(BaseModel, Generic[T]):
    """One page of a list, newest first; `next` is the cursor of the one after it, or null."""

    items: list[T]
    next: str | None = None


def answer(request: Request, items: Sequence[Mapping[str, Any]], cursor: str | None) -> Response:
    """Return a page as JSON, of items that have the fields of the list's model: they are not validated again."""
    response = Response(to_json({"items": items, "next": cursor}), media_type="application/json")
    link_next(request, response, cursor)
    return response


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Say where the next page is in a `Link` header (RFC 8288)."""
    if cursor is not None:
        here, _, _ = str(request.url).partition("?")
        kept = [pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]
        response.headers["Link"] = f'<{here}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
