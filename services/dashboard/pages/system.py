"""The node itself: what it is, whether it is well, and the privacy policy that it releases by."""

from __future__ import annotations

import platform
from datetime import timedelta

from fastapi import Request, Response

from ppdd_core import __version__
from ppdd_core.package.manifest import FORMAT_VERSION
from ppdd_core.package.signature import fingerprint, printable
from ppdd_core.privacy.report import limits
from ppdd_core.privacy.wording import WORDS
from services import backup, doctor
from services.catalogue import service as catalogue
from services.dashboard.rendering import render
from services.dashboard.route import page_router
from services.jobs import workers
from services.kit.db import now
from services.kit.http import ResourcesDep, SessionDep
from services.kit.migrate import revision_state
from services.system import service

router = page_router()
OLD_BACKUP = timedelta(days=7)


@router.get("/system")
def system(request: Request, session: SessionDep, resources: ResourcesDep) -> Response:
    """Show versions, health, workers, room, limits and the last backup."""
    settings = resources.settings
    health: service.Health = request.app.state.health
    current, newest = revision_state(resources.engine)
    backed_up = backup.last_backup(session)
    return render(
        request,
        "system.html",
        settings=settings,
        key=printable(fingerprint(resources.key)),
        software=__version__,
        package_format=FORMAT_VERSION,
        python=platform.python_version(),
        revision=current,
        is_newest=current == newest,
        engine=resources.engine.dialect.name,
        faults=health.faults(),
        disk=service.disk(settings),
        workers=workers.living(session),
        backed_up=backed_up,
        backup_is_old=backed_up is None or now() - backed_up.at > OLD_BACKUP,
    )


@router.post("/system/checks")
def check_system(request: Request, resources: ResourcesDep) -> Response:
    """Look at every part of the service's machine, as `ppdd doctor` does, and say what to do."""
    findings = list(doctor.examine_service(resources))
    return render(request, "system_checks.html", findings=findings)


@router.get("/policy")
def policy(request: Request) -> Response:
    """Show the thresholds in force here, and what is measured without one."""
    site = catalogue.POLICY
    judged = limits(site)
    names = {limit.name for limit in judged}
    return render(
        request,
        "policy.html",
        limits=judged,
        words=WORDS,
        others=[words for name, words in WORDS.items() if name not in names],
        similarity=site.near_copy_ssim,
    )
