"""One attempt at a job, in a process of its own: `python -m worker.run JOB_ID FENCE [--part NUMBER]`.

It ends with its supervisor, is stopped by SIGTERM with its work saved, and records success, refusals and bugs itself;
what it publishes becomes visible in the transaction that ends the job. Exit codes are in `exits`.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ppdd_core.errors import Interrupted, PpddError, SourceError, TeacherKilledError
from services.datasets.findings import blank_names
from services.jobs import parts
from services.jobs import service as jobs
from services.jobs.errors import LostJobError
from services.jobs.models import Kind
from services.jobs.service import Failure
from services.kit import logging
from services.kit.errors import CORE, ServiceError, UnavailableError
from services.kit.resources import Resources, open_resources
from services.kit.storage import ObjectDamagedError, ObjectMissingError, StoreError, StoreFullError
from services.settings import LogSettings, Settings, load_settings
from worker.context import JobContext, Outcome
from worker.exits import MEMORY_ADVICE, Exit
from worker.memory import PeakMemory
from worker.patience import insist
from worker.room import trim_cache

TASKS = {kind: f"worker.tasks.{kind.value}" for kind in Kind}
PR_SET_PDEATHSIG = 1
NO_MEMORY = ("can't allocate memory", "can't start new thread", "failed to map segment")
FOLDER_SECONDS = 60.0  # to wait for an earlier attempt whose process is just being ended


def main(arguments: list[str]) -> int:
    """Do the job named by `arguments` and return an `Exit`."""
    asked = _parse(arguments)
    _die_with(asked.parent)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # threads that wait give the core away
    try:
        settings = load_settings()
        logging.configure(LogSettings(level=settings.log.level))
        _limit_memory(settings)
        with open_resources(settings) as resources:
            if asked.part is None:
                code = _do_job(resources, asked.job_id, asked.fence)
            else:
                code = _do_part(resources, asked.job_id, asked.part, asked.fence)
            trim_cache(settings)  # what the job looked at is let go by now
            return code
    except KeyboardInterrupt:
        return Exit.STOPPED


def _do_job(resources: Resources, job_id: UUID, fence: int) -> int:
    try:
        with resources.sessions() as session:
            job = jobs.get(session, job_id)
            session.expunge_all()
        context = JobContext(resources, job, fence)
        with _alone_in(context.folder), PeakMemory() as peak:
            outcome = _perform(context)
        actual = {"seconds": context.seconds, "peak_bytes": peak.bytes} | (outcome.actual or {})
        insist(resources, lambda session: _publish(session, job_id, fence, outcome, actual))
    except LostJobError:
        return Exit.LOST
    except (KeyboardInterrupt, Interrupted):
        return Exit.STOPPED
    except Exception as error:
        if _stopped:  # whatever broke, broke because it was asked to stop
            return Exit.STOPPED
        return _fail(resources, job_id, fence, explain(error))
    shutil.rmtree(context.folder, ignore_errors=True)
    return Exit.RECORDED


def _do_part(resources: Resources, job_id: UUID, number: int, fence: int) -> int:
    try:
        from worker.part import train_part  # imports torch, which not every worker has

        train_part(resources, job_id, number, fence)
    except LostJobError:
        return Exit.LOST
    except (KeyboardInterrupt, Interrupted):
        return Exit.STOPPED
    except Exception as error:
        if _stopped:
            return Exit.STOPPED
        return _fail_part(resources, job_id, number, fence, explain(error))
    return Exit.RECORDED


def _perform(context: JobContext) -> Outcome:
    task = importlib.import_module(TASKS[Kind(context.job.kind)])
    shutil.rmtree(context.folder / "scratch", ignore_errors=True)
    outcome: Outcome = task.run(context)
    return outcome


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the job's folder: an earlier attempt that was given up may live for another moment.

    UnavailableError where it does not end.
    """
    until = time.monotonic() + FOLDER_SECONDS
    with (folder / ".attempt").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    detail = "an earlier attempt of this job still runs on this machine"
                    raise UnavailableError(detail) from None
                time.sleep(0.2)
        yield


def _publish(
    session: Session, job_id: UUID, fence: int, outcome: Outcome, actual: dict[str, object]
) -> None:
    # first: an end written already, by a commit whose answer was lost, is seen before anything is published again
    jobs.succeed(session, job_id, fence, result=outcome.result, actual=actual)
    if outcome.record is not None:
        outcome.record(session)


def _fail(resources: Resources, job_id: UUID, fence: int, failure: Failure) -> int:
    try:
        with resources.transaction() as session:
            jobs.fail(session, job_id, fence, failure)
    except LostJobError:
        return Exit.LOST
    except DBAPIError:
        return Exit.UNRECORDED
    return Exit.RECORDED


def _fail_part(
    resources: Resources, job_id: UUID, number: int, fence: int, failure: Failure
) -> int:
    try:
        with resources.transaction() as session:
            claim = parts.claimed(session, job_id, number, fence)
            parts.fail_part(session, claim, failure.detail, retry=failure.retry)
    except LostJobError:
        return Exit.LOST
    except DBAPIError:
        return Exit.UNRECORDED
    return Exit.RECORDED


def explain(error: Exception) -> Failure:
    """Return what an error means for the job; the traceback of a bug goes to the job's log."""
    if isinstance(error, StoreFullError) or _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        detail = "the disk is full; free space, then resume the job: it goes on from what it kept"
        return Failure("disk-full", f"{detail} ({error})")
    if isinstance(error, TeacherKilledError):
        return Failure("out-of-memory", str(error), retry=True)
    if _is_out_of_memory(error):
        _tell(error)
        return Failure("out-of-memory", f"memory ran out; {MEMORY_ADVICE}", retry=True)
    if isinstance(error, ObjectMissingError | ObjectDamagedError):
        return Failure(error.slug, error.detail, resumable=False)
    if isinstance(error, StoreError | UnavailableError):
        return Failure(error.slug, error.detail, retry=True)
    if isinstance(error, DBAPIError):
        _tell(error)
        return Failure("database-unavailable", "the database did not do what was asked", retry=True)
    if isinstance(error, ServiceError):
        return Failure(error.slug, error.detail)
    if isinstance(error, PpddError):
        slug = next(slug for kind, _, slug, _ in CORE if isinstance(error, kind))
        # messages about sources quote names of files, which may be those of patients
        return Failure(
            slug, blank_names(str(error)) if isinstance(error, SourceError) else str(error)
        )
    _tell(error)
    detail = "a fault of the program; the job's log has the details for whoever mends it"
    return Failure("internal", f"{detail} ({type(error).__name__})")


def _tell(error: Exception) -> None:
    """Print where it happened; of the message only what cannot be the name of a file."""
    lines = traceback.format_tb(error.__traceback__)
    sys.stderr.write("".join(lines) + f"{type(error).__name__}: {blank_names(str(error))}\n")


def _errno(error: BaseException) -> int | None:
    """Return the errno of the error, or of the one it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.errno
        seen = seen.__cause__ or seen.__context__
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory is what was missing; torch, threads and libraries have no class of their own for it."""
    said = any(text in str(error) for text in NO_MEMORY)
    return (
        isinstance(error, MemoryError)
        or _errno(error) == errno.ENOMEM
        or (isinstance(error, RuntimeError | ImportError) and said)
    )


_stopped = False


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Let the work save what it has; asked again while it does, it goes on doing so."""
    global _stopped
    if not _stopped:
        _stopped = True
        raise KeyboardInterrupt


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m worker.run")
    parser.add_argument("job_id", type=UUID)
    parser.add_argument("fence", type=int)
    parser.add_argument("--part", type=int)
    parser.add_argument("--parent", type=int, help="leave when this process is not the parent")
    return parser.parse_args(arguments)


def _die_with(parent: int | None) -> None:
    """Let the kernel end this process with its parent; leave now if the parent is gone already."""
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(Exit.STOPPED)


def _limit_memory(settings: Settings) -> None:
    if settings.jobs.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (settings.jobs.memory_bytes,) * 2)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done, and threads of libraries may take their time
