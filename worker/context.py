"""What a task is given, and what it hands back.

A task module (`worker/tasks/<kind>.py`) has one function, `run(job: JobContext) -> Outcome`. It refuses by raising a
PpddError or a ServiceError; whatever else it raises is a bug, except a lost database or store and a full disk, after
which the job goes on later.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs import service as jobs
from services.jobs.models import Job
from services.jobs.pictures import Picture
from services.jobs.pictures import add as add_pictures
from services.kit.resources import Resources

if TYPE_CHECKING:
    import torch

PROGRESS_SECONDS = 0.5  # between two values that are written
OUTAGE_SECONDS = 5.0  # without a try after the database did not answer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task made.

    `record` runs in the same transaction as the job's end, so what it publishes is published exactly once;
    `actual` is kept beside the job's estimate.
    """

    result: dict[str, Any]
    record: Callable[[Session], None] | None = None
    actual: dict[str, Any] | None = None


@dataclass
class JobContext:
    """One attempt at a job: its row (detached), the fence it is held under, and where to work."""

    resources: Resources
    job: Job
    fence: int
    _spoken: Progress = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._spoken = Progress(self.resources, self.job, self.fence)

    @cached_property
    def folder(self) -> Path:
        """Where the job keeps what its next attempt goes on from; removed after its success."""
        folder = self.resources.settings.work_dir / str(self.job.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    @cached_property
    def scratch(self) -> Path:
        """A folder of this attempt alone, empty at its start."""
        folder = self.folder / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    @cached_property
    def device(self) -> torch.device:
        """What to compute on; a GPU that is asked for and not there raises BadConfigError."""
        from ppdd_core.pipeline import pick_device

        return pick_device(self.resources.settings.worker.device)

    @property
    def processes(self) -> int:
        """How many teachers to train side by side; 0 = one per core."""
        return self.resources.settings.worker.processes

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage of this attempt took so far."""
        return self._spoken.taken()

    def progress(
        self, stage: str, done: int, total: int, note: str = "", **numbers: float | int | str
    ) -> None:
        """Say where the job is; `numbers` (loss, lr, …) become series. Written about twice a second.

        The first and the last value of a stage are always written. LostJobError where the job is not ours any more.
        """
        self._spoken.say(stage, done, total, note, numbers)

    def show(self, *pictures: Picture) -> None:
        """Let people of this hospital see pictures; one that is shown already is not shown twice.

        LostJobError where the job is not ours any more. The work does not wait for a database that is away.
        """
        try:
            with self.resources.sessions.begin() as session:
                add_pictures(session, self.job.id, self.fence, pictures)
        except DBAPIError as error:
            log.warning("pictures.unshown", error=type(error).__name__)

    def log(self, text: str) -> None:
        """Write a line to the job's log, which people read."""
        print(text, flush=True)  # noqa: T201 - the supervisor keeps what this process prints

    def credential(self) -> str | None:
        """Return the credential sealed in the job, or None; BadConfigError where the node's key is another one."""
        if self.job.sealed is None:
            return None
        return self.resources.vault.open(self.job.sealed, jobs.purpose_of(self.job.id))


@dataclass
class Progress:
    """Writes where a job is: seldom enough for the database, often enough for a plot to grow."""

    resources: Resources
    job: Job
    fence: int
    _stage: str = ""
    _began: float = 0.0  # when the stage began,
    _done_before: int = 0  # and with how much done
    _quiet_until: float = 0.0
    _taken: dict[str, float] = field(default_factory=dict)

    def say(
        self, stage: str, done: int, total: int, note: str, numbers: Mapping[str, float | int | str]
    ) -> None:
        """Write the value if it is due, or the first or last of its stage."""
        at = time.monotonic()
        first = stage != self._stage
        if first:
            self._taken = self.taken()
            self._stage, self._began, self._done_before = stage, at, done
        if not first and done < total and at < self._quiet_until:
            return
        new = done - self._done_before
        eta = (at - self._began) / new * (total - done) if new > 0 else None
        self._quiet_until = at + PROGRESS_SECONDS
        self._write(
            {
                "stage": stage,
                "done": done,
                "total": total,
                "eta_seconds": None if eta is None else round(eta, 1),
                "note": note,
                "numbers": dict(numbers),
            }
        )

    def taken(self) -> dict[str, float]:
        """Return the seconds of every stage, the last one up to now."""
        if not self._stage:
            return {}
        more = time.monotonic() - self._began
        before = self._taken.get(self._stage, 0.0)
        return self._taken | {self._stage: round(before + more, 2)}

    def _write(self, value: Mapping[str, Any]) -> None:
        try:
            with self.resources.sessions.begin() as session:
                jobs.note_progress(session, self.job.id, self.fence, value)
        except (
            DBAPIError
        ):  # the work goes on; whether the job is still ours is the supervisor's to watch
            self._quiet_until = time.monotonic() + OUTAGE_SECONDS
