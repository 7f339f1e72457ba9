from __future__ import annotations

from collections.abc import Sequence

import pytest
from fastapi import Request, Response
from sqlalchemy import select

from services.auth.models import OneTimeLink
from services.kit.db import now
from services.kit.errors import BadRequestError
from services.kit.keyset import Pages, as_dicts, page_rows
from services.kit.paging import link_next
from services.kit.resources import Resources


def _add(resources: Resources, count: int, purpose: str = "test") -> None:
    with resources.sessions.begin() as session:
        for _ in range(count):
            session.add(
                OneTimeLink(purpose=purpose, sha256=f"{count}{_}{purpose}", expires_at=now())
            )


def _page(
    resources: Resources, cursor: str | None, limit: int = 3
) -> tuple[Sequence[OneTimeLink], str | None]:
    with resources.sessions() as session:
        return page_rows(
            session,
            select(OneTimeLink).where(OneTimeLink.purpose == "test"),
            OneTimeLink.id,
            cursor=cursor,
            limit=limit,
        )


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (2, [2]), (3, [3]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_pages_hold_every_row_once_newest_first(
    resources: Resources, count: int, sizes: list[int]
) -> None:
    _add(resources, count)
    _add(resources, 4, purpose="other")
    pages, cursor = [], None
    while True:
        rows, cursor = _page(resources, cursor)
        pages.append([row.id for row in rows])
        if cursor is None:
            break
    assert [len(page) for page in pages] == sizes
    ids = [one for page in pages for one in page]
    assert ids == sorted(set(ids), reverse=True)
    assert len(ids) == count


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_pages_of_columns_are_those_of_rows(resources: Resources, count: int) -> None:
    _add(resources, count)
    _add(resources, 2, purpose="other")
    columns = select(OneTimeLink.sha256, OneTimeLink.id).where(OneTimeLink.purpose == "test")
    pages, cursor = Pages.of(columns, OneTimeLink.id), None
    while True:
        expected = _page(resources, cursor)
        with resources.reading() as session:
            found, following = pages.read(session, cursor=cursor, limit=3)
        assert ([row.id for row in found], following) == (
            [row.id for row in expected[0]],
            expected[1],
        )
        assert as_dicts(found, first=1) == [{"id": row.id} for row in found]
        cursor = following
        if cursor is None:
            break


def test_rows_added_meanwhile_shift_nothing(resources: Resources) -> None:
    _add(resources, 5)
    first, cursor = _page(resources, None)
    _add(resources, 4)
    rest, end = _page(resources, cursor)
    assert end is None
    assert len(rest) == 2
    assert {row.id for row in first}.isdisjoint(row.id for row in rest)


@pytest.mark.parametrize("cursor", ["", "abc", "1", "../..", "' OR 1=1 --", "\x00"])
def test_a_cursor_that_is_none_is_refused(resources: Resources, cursor: str) -> None:
    with pytest.raises(BadRequestError, match="`next` from the page before"):
        _page(resources, cursor)
    pages = Pages.of(select(OneTimeLink.id), OneTimeLink.id)
    with pytest.raises(BadRequestError), resources.reading() as session:
        pages.read(session, cursor=cursor)


def test_the_next_page_is_linked_with_the_same_filters() -> None:
    request = Request(
        {
            "type": "http", "method": "GET", "scheme": "https", "server": ("node", 443), "path": "/jobs",
            "query_string": b"state=queued&cursor=old", "headers": [],
        }
    )  # fmt: skip
    response = Response()
    link_next(request, response, None)
    assert "link" not in response.headers
    link_next(request, response, "new")
    assert response.headers["link"] == '<https://node/jobs?state=queued&cursor=new>; rel="next"'
