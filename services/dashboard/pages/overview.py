"""The first page: is the node well, what is it doing, and what waits for somebody."""

from __future__ import annotations

from fastapi import Request, Response

from ppdd_core.package.signature import fingerprint
from services.auth.dependencies import PrincipalDep
from services.catalogue import service as catalogue
from services.catalogue.models import VersionState
from services.dashboard.rendering import is_fragment, render
from services.dashboard.route import page_router
from services.jobs import reading, workers
from services.jobs.models import State
from services.kit.http import ResourcesDep, SessionDep
from services.system import service as system

router = page_router()
FEW = 8


@router.get("/")
def overview(
    request: Request, session: SessionDep, resources: ResourcesDep, principal: PrincipalDep
) -> Response:
    """Show health, workers, what runs, what waits for a steward, and what to do first on an empty node."""
    health: system.Health = request.app.state.health
    settings = resources.settings
    drafts = catalogue.Search(state=VersionState.DRAFT.value)
    counts = system.counts(session)
    return render(
        request,
        "_overview.html" if is_fragment(request) else "overview.html",
        site_id=settings.site_id,
        key=fingerprint(resources.key),
        faults=health.faults(),
        disk=system.disk(settings),
        workers=workers.living(session),
        counts=counts,
        running=reading.list_jobs(session, state=State.RUNNING, limit=FEW)[0],
        queued=reading.list_jobs(session, state=State.QUEUED, limit=FEW)[0],
        drafts=catalogue.list_packages(
            session, principal, settings.site_id, drafts, cursor=None, limit=FEW
        )[0],
        is_new=not counts["datasets"] and not counts["packages"] and not counts["jobs"],
    )
