"""The first page: is the node well, what is it doing, and what waits for somebody."""

from __future__ import annotations

from fastapi import Request, Response

from ppdd_core.package.signature import fingerprint, printable
from services.auth import service as auth
from services.auth.dependencies import PrincipalDep
from services.catalogue import service as catalogue
from services.dashboard.rendering import is_fragment, render
from services.dashboard.route import page_router
from services.jobs import reading, workers
from services.jobs.models import State
from services.kit.db import now
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
    counts = system.counts(session)
    return render(
        request,
        "_overview.html" if is_fragment(request) else "overview.html",
        site_id=settings.site_id,
        key=printable(fingerprint(resources.key)),
        faults=health.faults(),
        disk=system.disk(settings),
        workers=workers.living(session),
        counts=counts,
        running=reading.list_jobs(session, state=State.RUNNING, limit=FEW)[0],
        queued=reading.list_jobs(session, state=State.QUEUED, limit=FEW)[0],
        drafts=catalogue.oldest_drafts(session, FEW),
        tokens=auth.expiring_tokens(session, principal, within=catalogue.EXPIRING, limit=FEW),
        packages=catalogue.expiring(session, now().date(), FEW),
        today=now().date().isoformat(),
        is_new=not counts["datasets"] and not counts["packages"] and not counts["jobs"],
    )
