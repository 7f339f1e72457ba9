"""Routes under `/pulls`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Request, Response

from services.auth.dependencies import PrincipalDep
from services.jobs import reading
from services.jobs.models import Kind, State
from services.jobs.schemas import JobOut, JobSummary, summaries
from services.jobs.service import IdempotencyConflictError
from services.kit.errors import BadRequestError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, resources_of
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, answer
from services.peers import service
from services.peers.errors import AddressRefusedError, BadNodeUrlError
from services.peers.schemas import PullIn

router = FeatureRouter(prefix="/pulls", tags=["pulls"])


@router.post(
    "",
    summary="Pull a package from another hospital",
    status_code=202,
    responses={
        200: {"description": "The same key made this job before.", "model": JobOut},
        **problem_responses(
            IdempotencyConflictError, service.BadPullError, BadNodeUrlError, AddressRefusedError
        ),
    },
)
def create(
    response: Response,
    resources: ResourcesDep,
    session: SessionDep,
    principal: PrincipalDep,
    body: PullIn,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            description="The same key with the same body answers with the job that it made.",
        ),
    ] = None,
) -> JobOut:
    """Queue a pull. The worker fetches the archive, goes on where a broken connection left off, and verifies it all.

    Nothing counts before signature, pinned key, hashes and bounds are right. The version is then `held` here: for use,
    not for offering. The token is used for this pull alone, and is gone when it ends.
    """
    job, new = service.request_pull(
        session,
        resources.settings,
        resources.vault,
        principal,
        url=body.url,
        package=body.package,
        key=body.key,
        token=body.token.get_secret_value(),
        idempotency_key=idempotency_key,
    )
    response.status_code = 202 if new else 200
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of_detail(reading.describe(session, job))


@router.list(
    summary="List pulls",
    response_model=Page[JobSummary],
    responses=problem_responses(BadRequestError),
)
def list_pulls(
    request: Request,
    state: State | None = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return the jobs that pull packages, newest first."""
    with resources_of(request).reading() as session:
        rows, following = reading.list_jobs(
            session, kind=Kind.PULL, state=state, cursor=cursor, limit=limit
        )
    return answer(request, summaries(rows), following)
