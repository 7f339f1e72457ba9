"""Packages from elsewhere: fetched from another hospital's node, or brought as a file."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from services.auth.dependencies import PrincipalDep
from services.dashboard.forms import FormDep
from services.dashboard.job_words import STAGES
from services.dashboard.rendering import redirect, render
from services.dashboard.route import page_router
from services.jobs import reading
from services.jobs.models import Kind
from services.kit.http import ResourcesDep, SessionDep
from services.peers import service
from services.peers.schemas import PullIn

router = page_router()
PAGE = 25


@router.get("/pulls")
def pulls(
    request: Request,
    session: SessionDep,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List the jobs that fetch packages, newest first."""
    found, following = reading.list_jobs(session, kind=Kind.PULL, cursor=cursor, limit=PAGE)
    return render(request, "pulls.html", found=found, following=following, stages=STAGES)


@router.get("/pulls/new")
def new_pull(request: Request) -> Response:
    """Show the form for fetching a package, and the one for bringing it as a file."""
    return render(request, "pull_new.html")


@router.post("/pulls/new")
def create_pull(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Queue a pull and go to its job. The token is not shown again, whatever happens."""
    with form:
        body = form.validated(PullIn)
        with resources.transaction() as session:
            job, _ = service.request_pull(
                session, resources.settings, resources.vault, principal,
                url=body.url, package=body.package, key=body.key, token=body.token.get_secret_value(),
            )  # fmt: skip
        return redirect(f"/jobs/{job.id}", notice="pull-queued")
    return render(request, "pull_new.html", form=form)
