"""Routes under `/audit-events`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, AwareDatetime

from services.audit import anchoring, service
from services.audit.actor import Actor
from services.audit.schemas import EventOut, VerificationOut
from services.kit.errors import BadRequestError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, link_next

router = FeatureRouter(prefix="/audit-events", tags=["audit"])

Text = Annotated[str | None, Query(max_length=300)]


def _in_range(at: datetime) -> datetime:
    if not 1970 <= at.year <= 9000:
        raise ValueError("the year must lie between 1970 and 9000")
    return at


Moment = Annotated[
    Annotated[AwareDatetime, AfterValidator(_in_range)] | None,
    Query(examples=["2026-11-25T00:00:00Z"]),
]


@router.get(
    "", name="list", summary="List and filter events", responses=problem_responses(BadRequestError)
)
def list_events(
    request: Request,
    response: Response,
    session: SessionDep,
    actor: Annotated[Text, Query(description="Id or name of who acted.")] = None,
    action: Annotated[
        Text, Query(description="An action, or all of a noun with a dot: `package.`")
    ] = None,
    subject: Annotated[Text, Query(description="What it was done to.")] = None,
    outcome: Annotated[Literal["done", "refused"] | None, Query()] = None,
    since: Moment = None,
    until: Moment = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Page[EventOut]:
    """Return a page of events, newest first: every state change, download and refusal is one."""
    wanted = service.Filter(
        actor=actor, action=action, subject=subject, outcome=outcome, since=since, until=until
    )
    rows, following = service.find(session, wanted, cursor=cursor, limit=limit)
    link_next(request, response, following)
    return Page(items=[EventOut.of(row) for row in rows], next=following)


@router.get("/verification", name="verify", summary="Check the whole log")
def verify(request: Request, resources: ResourcesDep) -> VerificationOut:
    """Check every event against the one before it, and the log against the signed heads.

    A log that is whole is signed anew at its end; the check itself is an event.
    """
    found = anchoring.verify_node(resources, _actor(request))
    return VerificationOut.of(found)


@router.get(
    "/export",
    name="export",
    summary="Download the whole log",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One event per line in JSON, and the signed head as the last line; "
            "`ppdd audit verify --export FILE --key FINGERPRINT` checks it anywhere.",
            "content": {"application/jsonl": {"schema": {"type": "string"}}},
        }
    },
)
def export(request: Request, resources: ResourcesDep) -> StreamingResponse:
    """Stream every event up to now, with what is needed to verify it offline."""
    last, head = anchoring.begin_export(resources, _actor(request))
    return StreamingResponse(
        service.export_lines(resources.reading, last, head),
        media_type="application/jsonl",
        headers={
            "Content-Disposition": f'attachment; filename="audit-{last}.jsonl"',
            "Cache-Control": "no-store",
        },
    )


def _actor(request: Request) -> Actor:
    """Return the caller whom the guard let pass; `auth` lies above this feature and cannot be asked by type."""
    actor: Actor = request.state.principal.actor
    return actor
