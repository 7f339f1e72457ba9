"""The teachers of one distillation, shared out over all workers of the queue and gathered again.

The worker that has the job plans a part per teacher as soon as another worker lives and there are more teachers than it
trains at once; it takes parts itself like any other, and fetches what the others made. Alone it trains teacher after
teacher and nothing of this happens. Whoever trains a teacher, on the same kind of device its bytes are the same.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ppdd_core.config import Recipe
from ppdd_core.errors import CheckpointError
from ppdd_core.pipeline import Images, OnProgress, StageProgress, teach
from ppdd_core.teachers.store import TrajectoryStore
from services.jobs import parts, workers
from services.jobs.errors import LostPartError
from services.jobs.models import Part, State
from services.jobs.parts import PartClaim
from services.kit.holds import holding
from services.kit.resources import Resources
from services.kit.storage import ObjectDamagedError, ObjectMissingError
from worker.context import JobContext
from worker.device import same_kind
from worker.patience import insist

LOOK_SECONDS = 5.0  # between two looks for other workers
WAIT_SECONDS = 0.5  # between two looks at what the others make
log = structlog.get_logger(__name__)


def teach_together(
    job: JobContext, images: Images, recipe: Recipe, folder: Path, on_progress: OnProgress
) -> None:
    """Return when `folder` holds every teacher of the recipe, trained here or by other workers of the queue."""
    shared = SharedTeachers(job, TrajectoryStore(folder), recipe)

    def train(numbers: Iterator[int]) -> None:
        teach(
            images,
            recipe,
            folder,
            device=job.device,
            processes=job.processes,
            numbers=numbers,
            on_progress=on_progress,
        )

    with shared.kept():
        shared.gather()  # made for an earlier attempt, perhaps on another machine
        train(shared.numbers())
        while missing := shared.gather():
            numbers = chain(shared.refused(missing), shared.numbers())
            first = next(numbers, None)
            if first is not None:
                train(chain([first], numbers))
            else:
                on_progress(shared.progress(missing))
                time.sleep(WAIT_SECONDS)


class SharedTeachers:
    """Which teachers are trained here and which elsewhere."""

    def __init__(self, job: JobContext, store: TrajectoryStore, recipe: Recipe) -> None:
        self._job, self._store = job, store
        self._teachers, self._epochs = recipe.teacher.teachers, recipe.used_epochs
        self._worker = job.job.lease_owner or ""
        self._at_once = 1
        if job.device.type == "cpu":
            self._at_once = job.processes or os.cpu_count() or 1
        self._claims: dict[int, PartClaim] = {}
        self._planned = False
        self._look_at = 0.0

    def missing(self) -> list[int]:
        """Return the teachers that are not whole in the folder."""
        return [t for t in range(self._teachers) if self._store.epochs_done(t) < self._epochs]

    def numbers(self) -> Iterator[int]:
        """Yield what to train here next, as long as there is something; what was trained meanwhile is handed in."""
        given: set[int] = set()
        while True:
            self._hand_in()
            self._plan_if_others_live(given)
            number = self._next(given)
            if number is None:
                return
            given.add(number)
            yield number

    def gather(self) -> list[int]:
        """Fetch what others have finished; return what is still missing."""

        def look(session: Session) -> list[Part]:
            parts.sweep_parts(session)
            return list(parts.parts_of(session, self._job.job.id))

        self._hand_in()
        wanted = set(self.missing())
        for part in insist(self._job.resources, look):
            if part.sha256 is not None and part.number in wanted:
                self._fetch(part.number, part.sha256)
        return self.missing()

    def refused(self, missing: list[int]) -> list[int]:
        """Return those of the missing that nobody else will bring: they failed there, or were lost."""
        job_id = self._job.job.id
        known = insist(self._job.resources, lambda session: parts.parts_of(session, job_id))
        states = {part.number: part.state for part in known}
        return [t for t in missing if states.get(t) not in (State.QUEUED, State.RUNNING)]

    def progress(self, missing: list[int]) -> StageProgress:
        """Return where the teachers are while others still train some."""
        done = self._teachers - len(missing)
        return StageProgress(
            "teachers",
            done * self._epochs,
            self._teachers * self._epochs,
            note=f"other workers train {len(missing)} of {self._teachers} teachers",
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the leases of the parts taken here, while the block runs."""
        over = threading.Event()
        renewing = threading.Thread(target=self._keep, args=(over,), name="parts", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join(
                1
            )  # it ends by itself; a database that does not answer must not hold this up

    def _plan_if_others_live(self, given: set[int]) -> None:
        if self._planned or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        numbers = [t for t in self.missing() if t not in given]
        if len(numbers) > self._at_once:
            others = insist(self._job.resources, lambda session: self._plan(session, numbers))
            if others:
                self._planned = True
                self._job.log(f"teachers are shared with other workers: {others}")

    def _plan(self, session: Session, numbers: list[int]) -> int:
        """Plan the parts if there is anybody else for them; return how many others there are."""
        others = [
            worker
            for worker in workers.living(session)
            if worker.name != self._worker and same_kind(worker.name, self._worker)
        ]
        if others:
            parts.plan(session, self._job.job.id, self._job.fence, numbers)
        return len(others)

    def _next(self, given: set[int]) -> int | None:
        if not self._planned:
            return next((t for t in self.missing() if t not in given), None)
        job_id, settings = self._job.job.id, self._job.resources.settings.jobs
        while claim := insist(
            self._job.resources,
            lambda session: parts.claim_part(session, job_id, self._worker, settings),
        ):
            self._claims[claim.number] = claim
            if claim.number not in given:  # else it is being trained already, since before the plan
                return claim.number
        return None

    def _hand_in(self) -> None:
        for number, claim in list(self._claims.items()):
            if self._store.epochs_done(number) >= self._epochs:
                self._claims.pop(number, None)
                try:
                    hand_in(
                        self._job.resources, claim, self._store, self._epochs, self._job.scratch
                    )
                except LostPartError:
                    log.info("part.made_twice", part=number)

    def _fetch(self, number: int, sha256: str) -> None:
        file = self._job.scratch / "fetched.zip"
        try:
            self._job.resources.store.fetch(sha256, file)
            self._store.unpack(number, self._epochs, file)
        except (ObjectMissingError, ObjectDamagedError, CheckpointError) as error:
            log.warning("part.unusable", part=number, error=type(error).__name__)
            return
        finally:
            file.unlink(missing_ok=True)
        self._job.log(f"teacher {number} was trained by another worker")

    def _keep(self, over: threading.Event) -> None:
        settings = self._job.resources.settings.jobs
        while not over.wait(settings.heartbeat_seconds):
            for number, claim in list(self._claims.items()):
                try:
                    with self._job.resources.sessions.begin() as session:
                        parts.heartbeat_part(session, claim, settings)
                except LostPartError:
                    self._claims.pop(number, None)
                except DBAPIError as error:
                    log.warning("part.unrenewed", part=number, error=type(error).__name__)


def hand_in(
    resources: Resources, claim: PartClaim, store: TrajectoryStore, epochs: int, scratch: Path
) -> None:
    """Put a trained teacher into the object store and end its part; LostPartError where it is not ours any more."""
    file = scratch / f"teacher-{claim.number:03d}.zip"
    try:
        store.pack(claim.number, epochs, file)
        with file.open("rb") as packed:
            digest = hashlib.file_digest(packed, "sha256").hexdigest()
        with holding(resources.sessions, [digest]):
            resources.store.put_file(file, digest)
            insist(resources, lambda session: parts.finish_part(session, claim, digest))
    finally:
        file.unlink(missing_ok=True)
