"""The audit log: filtered, page by page; checked; exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Field, StringConstraints

from services.audit import anchoring, service
from services.auth.dependencies import PrincipalDep
from services.dashboard.forms import Form
from services.dashboard.rendering import render
from services.dashboard.route import page_router
from services.kit.http import ResourcesDep, SessionDep
from services.kit.paging import DEFAULT_LIMIT

router = page_router()
Text = Annotated[str, StringConstraints(max_length=300)]
Day = Annotated[date, Field(ge=date(1970, 1, 1), le=date(9000, 1, 1))]


class Wanted(BaseModel):
    """What the page's filter asks for; days are those of UTC."""

    actor: Text | None = None
    action: Text | None = None
    subject: Text | None = None
    outcome: Literal["done", "refused"] | None = None
    since: Day | None = None
    until: Day | None = None  # with this day

    def filter(self) -> service.Filter:
        """Return the same as the log is asked."""
        return service.Filter(
            actor=self.actor,
            action=self.action,
            subject=self.subject,
            outcome=self.outcome,
            since=None if self.since is None else _start(self.since),
            until=None if self.until is None else _start(self.until) + timedelta(days=1),
        )


@router.get("/audit")
def audit(request: Request, session: SessionDep) -> Response:
    """Show a page of events, newest first; a filter that makes no sense is shown again with what is wrong."""
    asked = request.query_params
    form = Form({name: [asked[name]] for name in Wanted.model_fields if asked.get(name)})
    rows: Any = ()
    following = None
    with form:
        wanted = form.validated(Wanted).filter()
        cursor = asked.get("cursor")
        rows, following = service.find(session, wanted, cursor=cursor, limit=DEFAULT_LIMIT)
    return render(
        request,
        "audit.html",
        form=form,
        events=rows,
        following=following,
        filters={name: form.get(name) for name in form.values},
        said=_said,
        found=None,
    )


@router.post("/audit/verification")
def verify_audit(request: Request, resources: ResourcesDep, principal: PrincipalDep) -> Response:
    """Check the whole log, and say what was found."""
    found = anchoring.verify_node(resources, principal.actor)
    return render(request, "audit_verification.html", found=found)


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _said(detail: Mapping[str, Any]) -> str:
    """Return an event's details in one line."""
    return "; ".join(f"{name}: {_in_words(value)}" for name, value in detail.items())


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_in_words(one) for one in value)
    return json.dumps(value, ensure_ascii=False)
