"""The API: wiring only. Which routes there are, what every request passes through, what runs beside them."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.routing import BaseRoute

from ppdd_core import __version__
from services.audit.anchoring import keep_anchoring
from services.audit.router import router as audit
from services.auth.dependencies import guard
from services.auth.permissions import PERMISSIONS
from services.auth.router import router as auth
from services.auth.throttle import RefusalMeter
from services.catalogue.router import router as catalogue
from services.dashboard import errors as errors_of_pages
from services.dashboard.router import router as pages
from services.datasets.router import router as datasets
from services.detectors.images import keep_dropping
from services.detectors.router import router as detectors
from services.jobs.dataset_router import router as dataset_jobs
from services.jobs.reconcile import keep_reconciling
from services.jobs.router import router as jobs
from services.kit import openapi, problems
from services.kit.headers import HeadersMiddleware
from services.kit.http import operation_id
from services.kit.limits import BodyLimitMiddleware
from services.kit.metrics import MetricsMiddleware
from services.kit.resources import Resources
from services.kit.spool import clear_spool
from services.peers.router import router as peers
from services.system.router import public
from services.system.router import router as system
from services.system.service import Health

API = "/api/v1"
ROUTERS = (system, auth, datasets, dataset_jobs, jobs, catalogue, peers, detectors, audit)
DESCRIPTION = """\
A hospital's node: distil chest X-rays into signed packages, release them, pull those of other hospitals, train
detectors.

Send a token as `Authorization: Bearer ppdd_…`. Errors are problem documents (RFC 9457). Lists are pages: follow `next`,
or the `Link` header. What takes long answers 202 with the job's address in `Location`. Distilled images are measured,
not anonymous.
"""


@functools.cache
def _routes() -> list[BaseRoute]:
    """Return all routes under the guard. Analysing them takes long; a process that makes several apps does it once."""
    wired = FastAPI(openapi_url=None, generate_unique_id_function=operation_id)
    for router in ROUTERS:
        wired.include_router(router, prefix=API, dependencies=[Depends(guard)])
    wired.include_router(public, dependencies=[Depends(guard)])
    wired.include_router(pages)
    return wired.routes


def create_app(resources: Resources) -> FastAPI:
    """Return the node's API over `resources`, which the caller opened and closes."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        clear_spool(resources.settings)
        stop = threading.Event()
        beside = [
            threading.Thread(target=work, args=(resources, stop), name=name, daemon=True)
            for name, work in (
                ("reconciler", keep_reconciling),
                ("audit-signer", keep_anchoring),
                ("image-dropper", keep_dropping),
            )
        ]
        for thread in beside:
            thread.start()
        gc.collect()
        gc.freeze()  # what was imported stays: a full collection that walks it stops every request for 100 ms
        try:
            yield
        finally:
            stop.set()
            for thread in beside:
                thread.join(5)

    app = FastAPI(
        routes=_routes(),
        title="PPDD node",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=operation_id,
        separate_input_output_schemas=False,
    )
    app.state.resources = resources
    app.state.refusals = RefusalMeter()
    app.state.health = Health(resources)
    app.state.guard = guard
    problems.register(app)
    errors_of_pages.register(app)
    openapi.describe(app, is_public=lambda operation: not PERMISSIONS[operation].roles)
    app.add_middleware(BodyLimitMiddleware, limits=resources.settings.limits)
    app.add_middleware(problems.BugMiddleware)
    app.add_middleware(HeadersMiddleware, tls=resources.settings.public_url.startswith("https"))
    app.add_middleware(MetricsMiddleware)
    app.add_middleware(problems.CorrelationMiddleware)
    return app
