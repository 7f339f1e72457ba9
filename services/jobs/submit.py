"""Rules of what may be asked for: a distillation, its estimate, a check. All is validated before a job is made.

A job's spec holds the whole recipe, not the name of a preset that a later version of the node might read otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy.orm import Session

from ppdd_core import presets
from ppdd_core.config import Recipe
from ppdd_core.errors import BadConfigError
from ppdd_core.package.manifest import MAX_IMAGES, Usage, identity_problems
from services.auth.principal import Principal
from services.datasets.models import SourceDataset
from services.jobs import repository
from services.jobs import service as jobs
from services.jobs.models import Job, Kind
from services.kit.db import now
from services.kit.errors import ConflictError, NotFoundError, UnprocessableError
from services.settings import Settings

OWN_FIELDS = {"seed": "seed", "distill.images_per_class": "images_per_class", "preset": "preset"}
LEAST_CLASSES = 2


class UnusableDatasetError(UnprocessableError):
    """The dataset was found faulty, or removed: nothing can be computed on it."""

    slug, title = "dataset-unusable", "The dataset cannot be used"


class PackageTakenError(ConflictError):
    """Another job makes, or made, that version of the package; versions are immutable."""

    slug, title = "package-taken", "That version of the package is taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be computed: a recipe on a dataset. `settings` are dotted recipe fields."""

    dataset: str  # name or id
    preset: str
    images_per_class: int
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    test_rows: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the package will be called, and what may be done with it. `name` is without the site."""

    name: str
    version: str
    usage: Usage


def submit_distill(
    session: Session,
    settings: Settings,
    owner: Principal,
    work: Work,
    identity: Identity,
    *,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Return the job that distils a package, and whether it is new.

    A recipe or an identity that cannot work raises BadConfigError or UnprocessableError naming the field, a dataset
    that cannot be used UnusableDatasetError, a version that another job makes or made PackageTakenError.
    """
    recipe, dataset = _recipe(work), find_dataset(session, work.dataset)
    spec = {**_spec(work, recipe, dataset), "package": _package(settings, identity)}
    known = jobs.known_request(session, owner, idempotency_key, Kind.DISTILL, spec)
    if known is not None:
        return known, False
    _require_usable(dataset)
    _require_few_images(recipe, dataset)
    _require_free(session, settings, identity)
    job, new = jobs.create(
        session,
        settings.jobs,
        owner,
        kind=Kind.DISTILL,
        title=f"Distil {dataset.title} into {settings.site_id}/{identity.name} {identity.version}",
        spec=spec,
        dataset_id=dataset.id,
        idempotency_key=idempotency_key,
    )
    if new:
        job.estimate = repository.known_estimate(session, dataset.id, spec["workload"])
    return job, new


def rehearse(
    session: Session, settings: Settings, work: Work, identity: Identity | None = None
) -> None:
    """Refuse what `submit_distill` would refuse, or `submit_estimate` where there is no identity; nothing is made."""
    recipe, dataset = _recipe(work), find_dataset(session, work.dataset)
    _spec(work, recipe, dataset)
    if identity is not None:
        _package(settings, identity)
    _require_usable(dataset)
    _require_few_images(recipe, dataset)
    if identity is not None:
        _require_free(session, settings, identity)


def is_free(session: Session, name: str, version: str) -> bool:
    """Whether no job makes or made that version of a package here."""
    return repository.maker_of(session, name, version) is None


def submit_estimate(
    session: Session,
    settings: Settings,
    owner: Principal,
    work: Work,
    *,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Return the job that measures what a distillation would take, and whether it is new; refusals as above."""
    recipe, dataset = _recipe(work), find_dataset(session, work.dataset)
    spec = _spec(work, recipe, dataset)
    known = jobs.known_request(session, owner, idempotency_key, Kind.ESTIMATE, spec)
    if known is not None:
        return known, False
    _require_usable(dataset)
    _require_few_images(recipe, dataset)
    return jobs.create(
        session,
        settings.jobs,
        owner,
        kind=Kind.ESTIMATE,
        title=f"Estimate a distillation of {dataset.title}",
        spec=spec,
        dataset_id=dataset.id,
        idempotency_key=idempotency_key,
    )


def submit_check(
    session: Session,
    settings: Settings,
    owner: Principal,
    dataset: str | UUID,
    *,
    image_size: int,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Return the job that checks a dataset, and whether it is new. A removed one raises UnusableDatasetError."""
    row = find_dataset(session, str(dataset))
    spec = {"dataset": row.name, "image_size": image_size}
    known = jobs.known_request(session, owner, idempotency_key, Kind.CHECK, spec)
    if known is not None:
        return known, False
    if row.state == "removed":
        raise UnusableDatasetError(f"the dataset {row.name} was removed")
    return jobs.create(
        session,
        settings.jobs,
        owner,
        kind=Kind.CHECK,
        title=f"Check {row.title}",
        spec=spec,
        dataset_id=row.id,
        idempotency_key=idempotency_key,
    )


def find_dataset(session: Session, name_or_id: str) -> SourceDataset:
    """Return a dataset by its name or its id; NotFoundError without one."""
    found = repository.dataset(session, name_or_id)
    if found is None:
        raise NotFoundError(f"there is no dataset {name_or_id!r}; GET /api/v1/datasets lists them")
    return found


def _recipe(work: Work) -> Recipe:
    for name, own in OWN_FIELDS.items():
        if name in work.settings:
            raise BadConfigError(f"settings: give {name} as `{own}`, beside `settings`")
    recipe = presets.preset(work.preset, work.images_per_class)
    return recipe.override({**work.settings, "seed": work.seed})


def _spec(work: Work, recipe: Recipe, dataset: SourceDataset) -> dict[str, Any]:
    """Return what the worker reads. `workload`: equal where two runs take equally long on the same dataset."""
    whole, rows = recipe.to_dict(), dict(work.test_rows)
    measured = {"recipe": {**whole, "seed": 0}, "test_rows": rows}
    try:
        workload = hashlib.sha256(rfc8785.dumps(measured)).hexdigest()
    except rfc8785.CanonicalizationError:
        raise BadConfigError(
            "a number of the recipe is too large, or a text is not Unicode"
        ) from None
    return {
        "dataset": dataset.name,
        "preset": work.preset,
        "images_per_class": work.images_per_class,
        "settings": dict(work.settings),
        "test_rows": rows,
        "seed": work.seed,
        "recipe": whole,
        "workload": workload,
    }


def _package(settings: Settings, identity: Identity) -> dict[str, Any]:
    usage = identity.usage
    problems = identity_problems(
        name=f"{settings.site_id}/{identity.name}",
        version=identity.version,
        site_id=settings.site_id,
        site_name=settings.site_title,
        usage=usage,
        created=now().strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    if problems:
        raise UnprocessableError("package: " + "; ".join(problems), problems=problems)
    return {
        "name": identity.name,
        "version": identity.version,
        "licence": usage.licence,
        "purposes": list(usage.purposes),
        "terms_sha256": usage.terms_sha256,
        "expires": usage.expires,
    }


def _require_free(session: Session, settings: Settings, identity: Identity) -> None:
    other = repository.maker_of(session, identity.name, identity.version)
    if other is not None:
        raise PackageTakenError(
            f"job {other} makes or made {settings.site_id}/{identity.name} {identity.version}; choose another version"
        )


def _require_usable(dataset: SourceDataset) -> None:
    if dataset.state == "removed":
        raise UnusableDatasetError(f"the dataset {dataset.name} was removed")
    if dataset.state == "faulty":
        raise UnusableDatasetError(
            f"the check of the dataset {dataset.name} found errors: mend them and check it again"
        )


def _require_few_images(recipe: Recipe, dataset: SourceDataset) -> None:
    known = (dataset.findings or {}).get("classes") or ()
    classes, most = max(len(known), LEAST_CLASSES), MAX_IMAGES
    if recipe.distill.images_per_class * classes > most:
        raise BadConfigError(
            f"images_per_class must be at most {most // classes}: a package holds {most} images, in {classes} or more "
            f"classes; got {recipe.distill.images_per_class}"
        )
