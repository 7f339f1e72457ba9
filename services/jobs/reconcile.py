"""Reclaiming lost jobs and ringing again for queued ones, beside the API.

Every API process does it: the statements are conditional and skip what somebody else has locked, so that several
at once do no harm.
"""

from __future__ import annotations

import threading
import time

import structlog

from services.jobs import repository, service, workers
from services.kit.resources import Resources

TIDY_SECONDS = 600.0  # between two looks for what is not needed any more
RINGS_PER_WORKER = 4  # a worker that comes takes the first job it gets; the others find theirs gone

log = structlog.get_logger(__name__)


def keep_reconciling(resources: Resources, stop: threading.Event) -> None:
    """Sweep at once and then every `jobs.sweep_seconds`, until `stop` is set.

    Nothing ends it: an outage of the database is logged once, and the sweep is tried again.
    """
    outage, tidied = "", -TIDY_SECONDS
    while True:
        try:
            reconcile(resources)
            if time.monotonic() - tidied >= TIDY_SECONDS:
                tidy(resources)
                tidied = time.monotonic()
        except Exception as err:
            if outage != type(err).__name__:
                outage = type(err).__name__
                log.exception("reconciler.failed", error=outage)
        else:
            if outage:
                log.info("reconciler.recovered", after=outage)
            outage = ""
        if stop.wait(resources.settings.jobs.sweep_seconds):
            return


def reconcile(resources: Resources) -> None:
    """Give up dead leases and ring for what waits.

    A bell that nobody hears stays in the broker: rung for is what idle workers could take, nothing while all are busy,
    and the oldest job alone while none is known.
    """
    with resources.transaction() as session:
        known = workers.living(session)
        idle = sum(worker.job_id is None for worker in known)
        service.sweep(session, rings=RINGS_PER_WORKER * idle if known else 1)


def tidy(resources: Resources) -> None:
    """Thin the progress of ended jobs, and forget workers that are long gone."""
    with resources.sessions.begin() as session:
        workers.forget_old(session)
        crowded = repository.jobs_with_much_progress(session)
    for job_id in crowded:
        with resources.sessions.begin() as session:
            repository.thin_progress(session, job_id)
