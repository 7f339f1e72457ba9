"""A distillation: from a source dataset to a draft version of a package, in the catalogue and in the store."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from ppdd_core.pipeline import Images, Result, StageProgress, distill_package
from services.catalogue import service as catalogue
from services.catalogue.models import Origin
from services.jobs import parts
from services.jobs import service as jobs
from worker.context import JobContext, Outcome
from worker.fan_out import teach_together
from worker.measure import measure, worth_measuring
from worker.patience import insist
from worker.pictures import draw_step, show_neighbours
from worker.recipes import identity_of, open_source, recipe_of
from worker.room import require_room


def run(job: JobContext) -> Outcome:
    """Distil, store the package, and publish it as a draft with the job's end."""
    recipe = recipe_of(job.job)
    require_room(job.resources, (job.job.estimate or {}).get("disk_bytes", 0))

    def report(at: StageProgress) -> None:
        numbers: dict[str, float | int | str] = {}
        if at.accuracy is not None:
            numbers["accuracy"] = at.accuracy
        if at.distillation is not None:
            step = at.distillation
            numbers |= {"loss": step.loss, "lr": step.lr, "pruned": step.pruned}
        job.progress(at.stage, at.done, at.total, at.note, **numbers)

    def prepare(images: Images, teachers: Path) -> None:
        if job.job.estimate is None and worth_measuring(recipe, images.split):
            estimate(job, images)
        teach_together(job, images, recipe, teachers, report)

    with open_source(job.job, job.resources) as source:
        result = distill_package(
            source,
            job.folder / "run",
            recipe,
            identity_of(job.job, job.resources),
            device=job.device,
            cache_dir=job.resources.settings.cache_dir,
            processes=job.processes,
            on_images=prepare,
            on_snapshot=lambda step, so_far: job.show(draw_step(step, so_far, recipe)),
            on_neighbours=lambda images, made, found: show_neighbours(job, images, made, found),
            on_progress=report,
        )
    return _published(job, result)


def estimate(job: JobContext, images: Images) -> None:
    """Measure what the job will take, record it, and refuse what the disk has no room for."""
    job.progress("estimate", 0, 1)
    found = measure(recipe_of(job.job), images.split, device=job.device, processes=job.processes)
    insist(
        job.resources,
        lambda session: jobs.note_estimate(session, job.job.id, job.fence, found),
    )
    job.progress("estimate", 1, 1)
    require_room(job.resources, found["disk_bytes"])


def _published(job: JobContext, result: Result) -> Outcome:
    stored = catalogue.store_package(job.resources, result.folder)

    def record(session: Session) -> None:
        catalogue.add_version(
            session, stored, origin=Origin.MADE, owner_id=job.job.owner_id, job_id=job.job.id
        )
        parts.forget_trajectories(session, job.job.id)

    return Outcome(
        result={
            "package": stored.title,
            "digest": stored.digest,
            "archive_sha256": stored.archive_sha256,
            "archive_size": stored.archive_size,
            "verdict": stored.verdict,
        },
        record=record,
    )
