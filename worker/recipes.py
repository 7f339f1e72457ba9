"""What a job's spec asks for, as values of the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ppdd_core.config import Recipe
from ppdd_core.package.build import Usage
from ppdd_core.pipeline import Identity, Source
from services.datasets import service as datasets
from services.jobs.models import Job
from services.kit.resources import Resources
from worker.source import open_dataset


def recipe_of(job: Job) -> Recipe:
    """Return the recipe; BadConfigError where this version of the program does not know all of it."""
    return Recipe.from_dict(job.spec["recipe"])


@contextmanager
def open_source(job: Job, resources: Resources) -> Iterator[Source]:
    """Yield the images the job is about, and which of them to test on; refusals as in `open_dataset`."""
    assert job.dataset_id is not None
    with resources.sessions() as session:
        dataset = datasets.get_present(session, job.dataset_id)
    with open_dataset(resources, dataset) as (path, rows):
        yield Source(path=path, where=rows, test_where=job.spec.get("test_rows", {}))


def identity_of(job: Job, resources: Resources) -> Identity:
    """Return what the package will be called and who signs it.

    Its time is the job's, so that a second attempt makes the same bytes.
    """
    asked: Mapping[str, Any] = job.spec["package"]
    settings = resources.settings
    return Identity(
        name=f"{settings.site_id}/{asked['name']}",
        version=asked["version"],
        site_id=settings.site_id,
        site_name=settings.site_title,
        usage=Usage(
            licence=asked["licence"],
            purposes=tuple(asked["purposes"]),
            terms_sha256=asked["terms_sha256"],
            expires=asked["expires"],
        ),
        key=resources.key,
        created=job.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
