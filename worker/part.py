"""One teacher of a job that another worker runs, in a process of its own: train it, hand it in."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import UUID

from ppdd_core.errors import CheckpointError
from ppdd_core.pipeline import load_split, pick_device, teach
from services.jobs import parts
from services.jobs import service as jobs
from services.jobs.models import Job
from services.jobs.parts import PartClaim
from services.kit.resources import Resources
from worker.fan_out import hand_in
from worker.recipes import open_source, recipe_of


def train_part(resources: Resources, job_id: UUID, number: int, fence: int) -> None:
    """Train one teacher of the job and end its part; LostPartError where the part is somebody else's by now."""
    with resources.sessions() as session:
        job = jobs.get(session, job_id)
        claim = parts.claimed(session, job_id, number, fence)
        session.expunge_all()
    folder = resources.settings.work_dir / f"{job_id}.teacher-{number:03d}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _train(resources, job, claim, folder)
    except CheckpointError:  # kept from a run of other images: of no use to any
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _train(resources: Resources, job: Job, claim: PartClaim, folder: Path) -> None:
    recipe, settings = recipe_of(job), resources.settings
    with open_source(job, resources) as source:
        images = load_split(source, recipe, cache_dir=settings.cache_dir)
    store = teach(
        images,
        recipe,
        folder / "teachers",
        device=pick_device(settings.worker.device),
        processes=1,
        numbers=[claim.number],
    )
    hand_in(resources, claim, store, recipe.used_epochs, folder)
