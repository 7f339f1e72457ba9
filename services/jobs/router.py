"""Routes under `/jobs`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from services.auth.dependencies import PrincipalDep, ask, principal_of
from services.jobs import follow, offers, pictures, reading, service, submit, waiting
from services.jobs.models import Job, Kind, State
from services.jobs.schemas import (
    CheckIn,
    DistillIn,
    EstimateIn,
    EventOut,
    EventPage,
    JobIn,
    JobOut,
    JobSummary,
    LineOut,
    LogPage,
    PictureList,
    PictureOut,
    PresetList,
    PresetOut,
    summaries,
)
from services.kit.errors import BadRequestError, ForbiddenError, NotFoundError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, resources_of
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, answer

router = FeatureRouter(prefix="/jobs", tags=["jobs"])

LAST = 2**63 - 1  # the largest id of an event or a line
STREAM, JSON = "text/event-stream", "application/json"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key with the same body answers with the job that it made.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(
        max_length=200,
        description="`wait=N`: answer when the job has ended, after N ≤ 60 s at the latest.",
        examples=["wait=30"],
    ),
]
After = Annotated[int, Query(ge=0, le=LAST, description="Only what follows this id.")]


def _page_schema(page: type[BaseModel]) -> dict[str, Any]:
    """Return a page's schema without references: one answer of two kinds has no model of its own."""
    schema = page.model_json_schema()
    (inner,) = schema.pop("$defs").values()
    schema["properties"]["items"]["items"] = inner
    return schema


_REFUSALS = (
    NotFoundError,
    service.IdempotencyConflictError,
    submit.PackageTakenError,
    submit.UnusableDatasetError,
)
_LINKS = {
    "Location": {"description": "The job's address.", "schema": {"type": "string"}},
    "Link": {
        "description": 'The job\'s events, `rel="monitor"`.',
        "schema": {"type": "string"},
    },
}
_SAME = {"model": JobOut, "description": "This key made the job before.", "headers": _LINKS}
_DISTILL = {
    "kind": "distill",
    "dataset": "chest-2024",
    "preset": "quick",
    "images_per_class": 2,
    "settings": {"distill.iterations": 100},
    "package": {
        "name": "chest",
        "version": "1.0.0",
        "licence": "CC-BY-NC-4.0",
        "purposes": ["DUO:0000006"],
    },
}
_EXAMPLES: Any = {
    "distill": {"summary": "Distil a dataset into a package", "value": _DISTILL},
    "check": {
        "summary": "Check a dataset",
        "value": {"kind": "check", "dataset": "chest-2024", "image_size": 112},
    },
}


@router.post(
    "",
    status_code=202,
    summary="Start a distillation or a check",
    responses={200: _SAME, 202: {"headers": _LINKS}, **problem_responses(*_REFUSALS)},
)
def create(
    response: Response,
    session: SessionDep,
    resources: ResourcesDep,
    principal: PrincipalDep,
    body: Annotated[JobIn, Body(openapi_examples=_EXAMPLES)],
    idempotency_key: IdempotencyKey = None,
) -> JobOut:
    """Queue a job of kind `distill` or `check`. Everything that can be refused before the work begins is refused now.

    Other kinds are made where they belong: `train`, `evaluate` and `predict` under `/detectors`, `pull` under `/pulls`.
    """
    settings = resources.settings
    match body:
        case DistillIn():
            job, new = submit.submit_distill(
                session, settings, principal, body.work(), body.package.identity(), idempotency_key=idempotency_key
            )  # fmt: skip
        case CheckIn():
            job, new = submit.submit_check(
                session, settings, principal, body.dataset, image_size=body.image_size, idempotency_key=idempotency_key
            )  # fmt: skip
    point_to(response, job)
    response.status_code = 202 if new else 200
    return JobOut.of_detail(reading.describe(session, job))


@router.post(
    "/estimate",
    status_code=202,
    summary="Measure what a distillation would take",
    responses={
        200: {"model": JobOut, "description": "It has ended; `result` has the figures.", "headers": _LINKS},
        202: {"description": "It is queued, or still running.", "headers": _LINKS},
        **problem_responses(*_REFUSALS),
    },
)  # fmt: skip
def estimate(
    response: Response,
    resources: ResourcesDep,
    principal: PrincipalDep,
    body: Annotated[EstimateIn, Body(openapi_examples={"distill": _EXAMPLES["distill"]})],
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> JobOut:
    """Queue a short measurement on the worker's device: seconds by stage, peak memory, disk, size of the package.

    With `Prefer: wait=N` the answer is 200 with the figures in `result`, if they are there within N seconds.
    """
    with resources.transaction() as session:
        job, new = submit.submit_estimate(
            session, resources.settings, principal, body.work(), idempotency_key=idempotency_key
        )
    seconds = waiting.preferred_wait(prefer)
    if seconds:
        job = waiting.wait_for(resources, job.id, seconds)
        response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
    point_to(response, job)
    response.status_code = 200 if service.has_ended(job) or not new else 202
    with resources.reading() as session:
        return JobOut.of_detail(reading.read_job(session, job.id))


@router.get("/presets", summary="List the presets of recipes")
def presets(
    images_per_class: Annotated[
        int, Query(ge=1, le=4_500, description="Some fields depend on it.")
    ] = 10,
) -> PresetList:
    """Return each preset with its whole recipe and the fields that `settings` may replace."""
    items = [PresetOut.model_validate(offer) for offer in offers.offers(images_per_class)]
    return PresetList(images_per_class=images_per_class, items=items)


@router.list(
    summary="List jobs",
    response_model=Page[JobSummary],
    responses=problem_responses(BadRequestError),
)
def list_jobs(
    request: Request,
    kind: Kind | None = None,
    state: State | None = None,
    dataset: Annotated[str | None, Query(max_length=200, description="Its name or id.")] = None,
    owner: Annotated[str | None, Query(pattern="^me$", description="`me`: one's own.")] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return a page of jobs, newest first."""
    with resources_of(request).reading() as session:
        rows, following = reading.list_jobs(
            session,
            kind=kind,
            state=state,
            dataset=dataset,
            owner_id=principal_of(request).user_id if owner else None,
            cursor=cursor,
            limit=limit,
        )
    return answer(request, summaries(rows), following)


@router.get("/{job_id}", summary="Read a job", responses=problem_responses(NotFoundError))
def read(session: SessionDep, job_id: UUID) -> JobOut:
    """Return a job with its attempts, progress, estimate, actual figures, result or error."""
    return JobOut.of_detail(reading.read_job(session, job_id))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    responses=problem_responses(NotFoundError, ForbiddenError, service.JobEndedError),
)
def cancel(session: SessionDep, principal: PrincipalDep, job_id: UUID) -> JobOut:
    """Cancel a queued job at once; ask a running one to stop, which it does within seconds and keeps what it has."""
    job = service.request_cancel(session, principal, job_id)
    return JobOut.of_detail(reading.describe(session, job))


@router.post(
    "/{job_id}/resume",
    status_code=202,
    summary="Go on with a failed or cancelled job",
    responses=problem_responses(NotFoundError, ForbiddenError, service.NotResumableError),
)
def resume(
    response: Response, session: SessionDep, principal: PrincipalDep, job_id: UUID
) -> JobOut:
    """Queue a job again. It goes on from the last teacher and the last step that it kept."""
    job = service.resume(session, principal, job_id)
    point_to(response, job)
    return JobOut.of_detail(reading.describe(session, job))


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A stream of events `state` and `progress` with `end` after the last; or a page of them.",
            "content": {
                STREAM: {"schema": {"type": "string"}},
                JSON: {"schema": _page_schema(EventPage)},
            },
        },
        **problem_responses(NotFoundError),
    },
)  # fmt: skip
def events(
    request: Request,
    resources: ResourcesDep,
    job_id: UUID,
    after: After = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=LAST, description="Sent by a browser that comes back.")
    ] = None,
    kind: Annotated[
        str | None, Query(pattern="^(state|progress)$", description="Of a page: only these.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=2_000, description="Events of a page.")] = 500,
    seconds: Annotated[
        float, Query(ge=0, le=3_600, description="The stream is closed after so long; come back.")
    ] = 3_600,
    accept: Annotated[str, Header()] = STREAM,
) -> Response:
    """Stream a job's events (server-sent events); each has an id, and `Last-Event-ID` or `after` goes on from there.

    With `Accept: application/json` the answer is a page of events, for plots of what has been.
    """
    after = after if last_event_id is None else last_event_id
    if JSON in accept and STREAM not in accept:
        with resources.reading() as session:
            found, more = reading.read_events(session, job_id, after=after, limit=limit, kind=kind)
        following = found[-1].id if more else None
        page = EventPage(
            items=[EventOut.model_validate(event, from_attributes=True) for event in found],
            next=following,
        )
        return JSONResponse(page.model_dump(mode="json"), headers=_next_link(request, following))
    with resources.reading() as session:
        service.get(session, job_id)
    follow.require_room()
    stream = follow.follow(
        resources, job_id, after, permitted=lambda: ask(request), seconds=seconds
    )
    return StreamingResponse(
        stream,
        media_type=STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx hands it on
    )


@router.get(
    "/{job_id}/log",
    summary="Read a job's log",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Lines, each with its time and the attempt that wrote it; or a page of them.",
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                JSON: {"schema": _page_schema(LogPage)},
            },
        },
        **problem_responses(NotFoundError),
    },
)  # fmt: skip
def log(
    request: Request,
    session: SessionDep,
    job_id: UUID,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=5_000, description="Most lines.")] = 1_000,
    accept: Annotated[str, Header()] = "text/plain",
) -> Response:
    """Return what a job wrote, oldest line first; `Link` says where the next lines are, if there are more."""
    lines, more = reading.read_log(session, job_id, after=after, limit=limit)
    following = lines[-1].id if more else None
    headers = _next_link(request, following)
    if JSON in accept:
        page = LogPage(items=[LineOut.model_validate(line) for line in lines], next=following)
        return JSONResponse(page.model_dump(mode="json"), headers=headers)
    text = "".join(f"{line.at:%Y-%m-%dT%H:%M:%SZ} [{line.attempt}] {line.text}\n" for line in lines)
    return PlainTextResponse(text, headers=headers)


@router.get(
    "/{job_id}/pictures",
    name="pictures",
    summary="List a job's pictures",
    responses=problem_responses(NotFoundError),
)
def list_pictures(
    request: Request, job_id: UUID, principal: PrincipalDep, resources: ResourcesDep
) -> PictureList:
    """List what a job shows: distilled images on the way, and the real image most like each. Looking is audited.

    They stay in this hospital: no package has them, and no other hospital can ask for them.
    """
    with resources.transaction() as session:
        found = pictures.show(session, principal, job_id)
    return PictureList(
        items=[
            PictureOut(
                kind=one.kind,
                number=one.number,
                label=one.label,
                caption=one.caption,
                created_at=one.created_at,
                href=f"{request.url.path}/{one.kind}/{one.number}",
            )
            for one in found
        ]
    )


@router.get(
    "/{job_id}/pictures/{kind}/{number}",
    summary="Read a picture of a job",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The caller has these bytes (`If-None-Match`)."},
        **problem_responses(NotFoundError),
    },
)
def picture(
    session: SessionDep,
    job_id: UUID,
    kind: Annotated[pictures.Shows, Path(description="What it shows.")],
    number: Annotated[int, Path(ge=0, le=2**31 - 1, description="Of the step, or of the image.")],
    if_none_match: Annotated[str | None, Header(max_length=1_000)] = None,
) -> Response:
    """Read one picture, a PNG that holds nothing else."""
    png = pictures.read(session, job_id, kind, number)
    headers = {"ETag": f'"{hashlib.sha256(png).hexdigest()}"'}
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(png, media_type="image/png", headers=headers)


def point_to(response: Response, job: Job) -> None:
    """Say in headers where the job is, and where it can be followed."""
    place = f"/api/v1/jobs/{job.id}"
    response.headers["Location"] = place
    response.headers["Link"] = f'<{place}/events>; rel="monitor"'


def _next_link(request: Request, after: int | None) -> dict[str, str]:
    if after is None:
        return {}
    return {"Link": f'<{request.url.include_query_params(after=after)}>; rel="next"'}
