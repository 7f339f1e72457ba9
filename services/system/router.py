"""Routes of the node itself."""

from __future__ import annotations

import platform
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ppdd_core import __version__
from ppdd_core.package.manifest import FORMAT_VERSION
from ppdd_core.package.signature import fingerprint
from services.jobs import workers
from services.jobs.models import Kind
from services.kit.errors import NotFoundError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep
from services.kit.migrate import revision_state
from services.kit.openapi import problem_responses
from services.system import metrics as gauges
from services.system import pages, service
from services.system.schemas import (
    Capabilities,
    Info,
    Live,
    PartState,
    ProblemPage,
    Readiness,
    Site,
    Versions,
    WellKnown,
    WorkerState,
)

API_VERSIONS = ["/api/v1"]

router = FeatureRouter(prefix="/system", tags=["system"])
public = FeatureRouter(tags=["system"])


@router.get("/live", summary="Is the process alive?")
def live() -> Live:
    """Answer without touching anything."""
    return Live()


@router.get(
    "/ready",
    summary="Can the node serve?",
    responses={503: {"model": Readiness, "description": "Database or store do not answer."}},
)
def ready(request: Request, response: Response) -> Readiness:
    """Look at database, store, broker and workers. Only callers who are logged in are told what is wrong.

    503 where requests cannot be served; without broker or workers jobs wait, and the rest goes on.
    """
    health: service.Health = request.app.state.health
    faults = health.faults()
    known = request.state.principal is not None
    serves = not any(faults[part] for part in service.NEEDED)
    response.status_code = 200 if serves else 503
    return Readiness(
        ready=serves,
        parts={
            name: PartState(ok=fault is None, fault=fault if known else None)
            for name, fault in faults.items()
        },
    )


@router.get("/info", summary="What is this node?")
def info(session: SessionDep, resources: ResourcesDep) -> Info:
    """Return versions, capabilities, living workers, and how much there is in each state."""
    settings = resources.settings
    return Info(
        site=Site(id=settings.site_id, name=settings.site_title, key=fingerprint(resources.key)),
        versions=Versions(
            software=__version__,
            database=revision_state(resources.engine)[0],
            package_format=FORMAT_VERSION,
            python=platform.python_version(),
        ),
        capabilities=Capabilities(
            api=API_VERSIONS,
            jobs=[kind.value for kind in Kind],
            embedded=settings.embedded,
            upload_bytes=settings.limits.upload_bytes,
            image_bytes=settings.limits.image_bytes,
            package_bytes=settings.limits.package_bytes,
        ),
        workers=[
            WorkerState.model_validate(one, from_attributes=True) for one in workers.living(session)
        ],
        **service.counts(session),
    )


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
def metrics(session: SessionDep, resources: ResourcesDep) -> Response:
    """Return requests, jobs, workers, packages, disk and audit log as numbers; no ids, no names."""
    return Response(
        gauges.render(session, resources.settings), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


@public.get("/.well-known/ppdd.json", summary="Who is this node?")
def well_known(resources: ResourcesDep) -> WellKnown:
    """Return this hospital's id and name and its key's fingerprint, for other hospitals to compare."""
    settings = resources.settings
    return WellKnown(
        site_id=settings.site_id,
        site_name=settings.site_title,
        key=fingerprint(resources.key),
        api=API_VERSIONS,
        software=f"ppdd {__version__}",
    )


@public.get(
    "/problems/{slug}",
    summary="What does a problem mean?",
    response_model=ProblemPage,
    responses={
        200: {
            "content": {"text/markdown": {"schema": {"type": "string"}}},
            "description": "The page: JSON where `Accept` asks for it, else Markdown.",
        },
        **problem_responses(NotFoundError),
    },
)
def problem(slug: str, accept: Annotated[str, Header()] = "") -> Any:
    """Return what a problem document's `type` stands for, and what to do about it."""
    page = pages.problem_page(slug)
    if "application/json" in accept:
        return JSONResponse(ProblemPage.model_validate(page, from_attributes=True).model_dump())
    return Response(page.markdown(), media_type="text/markdown; charset=utf-8")
