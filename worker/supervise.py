"""Doing a job, seen from outside: claim it, start its process, hold the lease, end the process, record how it ended.

What the process can say itself (success, a refusal, a bug) it records itself, under the same fence. Here is what it
cannot: that it was killed, cancelled, or stopped with its worker. A job that is not ours any more is left alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs import parts
from services.jobs import service as jobs
from services.jobs.errors import LostJobError
from services.jobs.models import Job, Kind
from services.jobs.parts import PartClaim
from services.jobs.service import Failure
from services.kit.resources import Resources
from worker.child import Child
from worker.device import same_kind
from worker.exits import MEMORY_ADVICE, Exit
from worker.joblog import JobLog
from worker.lease import RETRY_SECONDS, Lease, own_sessions

LEAVE_SECONDS = 2.0  # for a process whose job is not ours any more
LOG_SECONDS = 5.0  # for the last lines, after the process
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Post:
    """Where jobs are done: by which worker, with what environment, and when it must stop."""

    resources: Resources
    worker: str
    environ: Mapping[str, str]
    stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: its exit code, and what it had been asked for before."""

    code: int
    lost: bool = False
    cancelled: bool = False
    stopped: bool = False

    @property
    def recorded(self) -> bool:
        """Whether nothing is left to be written."""
        return self.lost or self.code in (Exit.RECORDED, Exit.LOST)

    def failure(self) -> Failure:
        """Return why the attempt ended, for a process that did not say so itself."""
        if self.code == Exit.UNRECORDED:
            detail = "the database did not answer when the attempt ended; it is tried again"
            return Failure("database-unavailable", detail, retry=True)
        if self.code == -signal.SIGKILL:
            return Failure(
                "out-of-memory",
                "the job's process was killed, most likely because memory ran out; it goes on from what it kept. If "
                f"this happens again, {MEMORY_ADVICE}",
                retry=True,
            )
        if self.code < 0:
            name = signal.Signals(-self.code).name
            return Failure("process-ended", f"the job's process was ended by {name}", retry=True)
        if self.code == Exit.STOPPED:
            return Failure("process-ended", "the job's process was asked to stop", retry=True)
        detail = f"the job's process ended with exit code {self.code}; its log may say why"
        return Failure("process-ended", detail, retry=True)


def work(post: Post, job_id: UUID) -> None:
    """Do a job, if it is there to be done: a message that comes twice finds it taken."""
    resources = post.resources
    with resources.transaction() as session:
        job = session.get(Job, job_id)
        if job is None or not _takes(resources.settings.worker.kinds, job.kind):
            return
        claim = jobs.claim(session, job_id, worker=post.worker, settings=resources.settings.jobs)
    if claim is None:
        return
    fence = claim.fence
    log.info("job.claimed", job_id=str(job_id), attempt=fence)
    ending = _watch(
        post,
        [str(job_id), str(fence)],
        renew=lambda session: jobs.heartbeat(
            session, job_id, fence, settings=resources.settings.jobs
        ),
        keep=lambda session, lines: jobs.add_log(session, job_id, fence, lines),
        record=lambda session, ending: _record_job(session, job_id, fence, ending),
    )
    log.info("job.left", job_id=str(job_id), attempt=fence, exit_code=ending.code, lost=ending.lost)


def _takes(kinds: str, kind: str) -> bool:
    """Return whether a worker for these kinds of jobs does this one, whatever queue the message came by."""
    return kinds == "all" or (kinds == "pull") == (kind == Kind.PULL.value)


def teach(post: Post, job_id: UUID) -> None:
    """Train teachers of a job that another worker runs, one after the other, until none is left to be trained."""
    resources = post.resources
    while not post.stopping():
        with resources.transaction() as session:
            job = session.get(Job, job_id)
            # a GPU's last bits are not a CPU's: a package must not depend on who helped
            if (
                job is None
                or job.lease_owner is None
                or not same_kind(job.lease_owner, post.worker)
            ):
                return
            claim = parts.claim_part(session, job_id, post.worker, resources.settings.jobs)
            attempt = job.fence
        if claim is None:
            return
        log.info("part.claimed", job_id=str(job_id), part=claim.number)
        ending = _teach_one(post, claim, attempt)
        log.info("part.left", job_id=str(job_id), part=claim.number, exit_code=ending.code)


def _teach_one(post: Post, claim: PartClaim, attempt: int) -> Ending:
    settings = post.resources.settings.jobs
    return _watch(
        post,
        [str(claim.job_id), str(claim.fence), "--part", str(claim.number)],
        renew=lambda session: parts.heartbeat_part(session, claim, settings),
        keep=lambda session, lines: jobs.add_log(session, claim.job_id, attempt, lines),
        record=lambda session, ending: _record_part(session, claim, ending),
    )


def _watch(
    post: Post,
    arguments: list[str],
    *,
    renew: Callable[[Session], bool],
    keep: Callable[[Session, list[str]], None],
    record: Callable[[Session, Ending], None],
) -> Ending:
    """Run one process to its end, whoever wants that, and record how it ended."""
    resources = post.resources
    with own_sessions(resources.settings) as sessions:
        lease = Lease(sessions, resources.settings.jobs, renew)
        child = Child(arguments, post.environ)
        lines = JobLog(resources.sessions, keep, child.output)
        try:
            lease.start()
            ending = _wait(child, lease, post)
            lines.close(LOG_SECONDS)
            if not ending.recorded:
                _insist(resources, lease, lambda session: record(session, ending))
            return ending
        finally:
            lease.close()
            child.reap()


def _wait(child: Child, lease: Lease, post: Post) -> Ending:
    """Return how the process ended: by itself, or asked and after the grace killed, or killed with its lease lost."""
    lost = cancelled = stopped = False
    patience = float("inf")
    while not child.ended():
        if lease.lost and not lost:
            lost = True
            # where the table says so, perhaps the process itself has recorded its end and is about to leave
            patience = time.monotonic() + (LEAVE_SECONDS if lease.taken else 0)
        elif lost and time.monotonic() > patience:
            child.kill()
        elif not (lost or cancelled or stopped) and (lease.stop_asked or post.stopping()):
            cancelled, stopped = lease.stop_asked, not lease.stop_asked
            patience = time.monotonic() + post.resources.settings.jobs.cancel_grace_seconds
            child.ask()
        elif time.monotonic() > patience:
            child.kill()
    return Ending(child.reap(), lost=lost, cancelled=cancelled, stopped=stopped)


def _insist(resources: Resources, lease: Lease, write: Callable[[Session], None]) -> None:
    """Write how it ended, however often the database must be asked, as long as the job is ours."""
    while not lease.lost:
        try:
            with resources.transaction() as session:
                write(session)
            return
        except LostJobError:
            return
        except DBAPIError as err:
            log.warning("ending.unrecorded", error=type(err).__name__)
            time.sleep(RETRY_SECONDS)


def _record_job(session: Session, job_id: UUID, fence: int, ending: Ending) -> None:
    if ending.cancelled:
        jobs.cancelled(session, job_id, fence)
    elif ending.stopped:
        jobs.give_back(session, job_id, fence, "the worker was shut down; another goes on")
    else:
        jobs.fail(session, job_id, fence, ending.failure(), exit_code=ending.code)


def _record_part(session: Session, claim: PartClaim, ending: Ending) -> None:
    if ending.stopped or ending.cancelled:
        parts.give_part_back(session, claim)
    else:
        failure = ending.failure()
        parts.fail_part(session, claim, failure.detail, retry=failure.retry)


def environment(device: str) -> dict[str, str]:
    """Return what a job's process is given: the worker's own environment, and the one device that is its own."""
    environ = dict(os.environ)
    if device:
        environ["CUDA_VISIBLE_DEVICES"] = device
    return environ
