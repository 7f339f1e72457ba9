"""An estimate: what a distillation of this dataset by this recipe would take on this worker."""

from __future__ import annotations

from ppdd_core.pipeline import StageProgress, load_split
from worker.context import JobContext, Outcome
from worker.measure import measure
from worker.recipes import open_source, recipe_of


def run(job: JobContext) -> Outcome:
    """Read the images, measure, and return the figures."""
    recipe, cache = recipe_of(job.job), job.resources.settings.cache_dir

    def report(at: StageProgress) -> None:
        job.progress(at.stage, at.done, at.total, at.note)

    with open_source(job.job, job.resources) as source:
        images = load_split(source, recipe, cache_dir=cache, on_progress=report)
    job.progress("estimate", 0, 1)
    found = measure(recipe, images.split, device=job.device, processes=job.processes)
    job.progress("estimate", 1, 1)
    return Outcome(result=found)
