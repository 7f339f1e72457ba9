"""A new distillation: what to distil, into which package, at what cost; checked while it is typed."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from ppdd_core.package.manifest import DUO
from services.auth.dependencies import PrincipalDep
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.dashboard.forms import Form, FormDep
from services.dashboard.job_words import GROUPS, PRESETS
from services.dashboard.pages.datasets import lines_of
from services.dashboard.rendering import is_fragment, redirect, render
from services.dashboard.route import page_router
from services.datasets import service as datasets
from services.datasets.models import SourceDataset
from services.jobs import offers, reading, submit
from services.jobs.models import Kind
from services.jobs.schemas import DistillIn, EstimateIn
from services.kit.db import now
from services.kit.errors import NotFoundError
from services.kit.http import ResourcesDep, SessionDep
from services.kit.resources import Resources

router = page_router()

MOST_DATASETS = 100  # to choose from
IMAGES_PER_CLASS = 10
YEARS = 3  # of use, proposed
LICENCES = ("CC-BY-NC-4.0", "CC-BY-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")
PACKAGE_FIELDS = ("name", "version", "licence", "expires")
SETTING = "settings."  # before the names of recipe fields
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


@router.get("/distil")
def new_distillation(
    request: Request,
    session: SessionDep,
    resources: ResourcesDep,
    principal: PrincipalDep,
    dataset: Annotated[str, Query(max_length=200)] = "",
    preset: Annotated[str, Query(max_length=20)] = "quick",
    again: UUID | None = None,
) -> Response:
    """Show the form for a dataset, or as it was for another job, with a free version of a package proposed."""
    if again is not None:
        return _asked(request, session, resources, _as_before(session, again))
    form = Form.of(dataset=dataset, preset=preset if preset in PRESETS else "quick")
    form.values |= {
        "images_per_class": [str(IMAGES_PER_CLASS)],
        "seed": ["0"],
        "package.licence": [LICENCES[0]],
        "package.purposes": ["DUO:0000006"],
        "package.expires": [(now() + timedelta(days=365 * YEARS)).date().isoformat()],
    }
    row = _chosen(session, dataset)
    if row is not None:
        version = _next_version(session, principal, resources.settings.site_id, row.name)
        form.values |= {
            "dataset": [str(row.id)],
            "package.name": [row.name],
            "package.version": [version],
        }
    return _asked(request, session, resources, form)


@router.post("/distil")
def start_distillation(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Queue the job."""
    with form:
        body = form.validated(DistillIn, _body(form))
        with resources.transaction() as session:
            job, _ = submit.submit_distill(
                session, resources.settings, principal, body.work(), body.package.identity(),
                idempotency_key=None,
            )  # fmt: skip
            job_id = job.id
        return redirect(f"/jobs/{job_id}", notice="job-queued")
    _name_the_field(form)
    with resources.reading() as session:
        return _asked(request, session, resources, form)


@router.post("/distil/check")
def validate_distillation(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Say what is wrong with what is typed so far; nothing is made."""
    with form, resources.reading() as session:
        body = form.validated(DistillIn, _body(form))
        identity = body.package.identity()
        submit.rehearse(session, resources.settings, body.work(), identity)
        _require_new(session, principal, resources.settings.site_id, identity)
    _name_the_field(form)
    status = form.status
    form.status = 200  # the part is shown as any other
    return render(request, "_distil_said.html", form=form, well=status == 200)


@router.post("/distil/estimate")
def estimate_distillation(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Queue an estimate of what is asked for; its figures appear beside the form."""
    job_id: UUID | None = None
    with form:
        values = {name: value for name, value in _body(form).items() if name != "package"}
        body = form.validated(EstimateIn, values)
        with resources.transaction() as session:
            job, _ = submit.submit_estimate(
                session, resources.settings, principal, body.work(), idempotency_key=None
            )
            job_id = job.id
    _name_the_field(form)
    with resources.reading() as session:
        measured = None if job_id is None else reading.read_job(session, job_id)
        if is_fragment(request):
            form.status = 200
            return render(request, "_estimate.html", form=form, measured=measured, alone=True)
        return _asked(request, session, resources, form, measured)


@router.get("/distil/estimate/{job_id}")
def estimate(request: Request, session: SessionDep, job_id: UUID) -> Response:
    """Show how an estimate goes, then its figures."""
    measured = reading.read_job(session, job_id)
    if measured.job.kind != Kind.ESTIMATE.value:
        raise NotFoundError(f"job {job_id} is no estimate")
    if not is_fragment(request):
        return redirect(f"/jobs/{job_id}")
    return render(request, "_estimate.html", measured=measured)


# ------------------------------------------------------------------------------------------ putting together


def _as_before(session: Session, job_id: UUID) -> Form:
    """Return the form as it was for another distillation or estimate."""
    job = reading.read_job(session, job_id).job
    if job.kind not in (Kind.DISTILL.value, Kind.ESTIMATE.value):
        raise NotFoundError(f"job {job_id} is no distillation")
    spec, package = job.spec, job.spec.get("package") or {}
    values: dict[str, Any] = {
        "dataset": job.dataset_id,
        **{name: spec[name] for name in ("preset", "images_per_class", "seed")},
        "test_rows": "\n".join(f"{name} = {value}" for name, value in spec["test_rows"].items()),
        **{SETTING + name: value for name, value in spec["settings"].items()},
        **{f"package.{name}": package.get(name) or "" for name in PACKAGE_FIELDS},
    }
    form = Form({name: [str(value)] for name, value in values.items()})
    form.values["package.purposes"] = list(package.get("purposes", ()))
    return form


def _asked(
    request: Request,
    session: Session,
    resources: Resources,
    form: Form,
    measured: reading.Detail | None = None,
) -> Response:
    preset = form.get("preset")
    count = form.get("images_per_class")
    images = int(count) if count.isascii() and count.isdecimal() and 1 <= int(count) <= 4500 else 10
    found = {offer["name"]: offer for offer in offers.offers(images)}
    usable = datasets.page(session, state="ready", cursor=None, limit=MOST_DATASETS)[0]
    choices = [(str(row.id), f"{row.title} ({row.name})") for row in usable]
    row = _chosen(session, form.get("dataset"))
    if row is not None and str(row.id) not in dict(choices):
        choices.insert(0, (str(row.id), f"{row.title} ({row.name})"))
    return render(
        request,
        "distil.html",
        form=form,
        datasets=choices,
        chosen=row,
        presets=PRESETS,
        groups=_groups(found.get(preset, found["quick"])["fields"]),
        changed=[name for name in form.values if name.startswith(SETTING) and form.get(name)],
        purposes=DUO,
        licences=LICENCES,
        site=resources.settings.site_id,
        measured=measured,
    )


def _groups(fields: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the fields of a recipe under the words for their part of it."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in fields:
        grouped.setdefault(one["name"].rpartition(".")[0], []).append(one)
    return [(GROUPS.get(group, group), some) for group, some in grouped.items()]


def _chosen(session: Session, name_or_id: str) -> SourceDataset | None:
    if not name_or_id:
        return None
    try:
        return submit.find_dataset(session, name_or_id)
    except NotFoundError:
        return None


def _body(form: Form) -> dict[str, Any]:
    """Return the form as the API takes it: recipe fields flat and numbers as numbers."""
    plain = Form({k: v for k, v in form.values.items() if not k.startswith(SETTING)})
    values = plain.tree("package.purposes")
    values["kind"] = "distill"
    values["test_rows"] = lines_of(form, "test_rows")
    values["settings"] = {
        name.removeprefix(SETTING): _number(form.get(name))
        for name in form.values
        if name.startswith(SETTING) and form.get(name)
    }
    return values


def _number(text: str) -> int | float | str:
    """Return a number as one; other text is the recipe's to refuse, by the field's name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _name_the_field(form: Form) -> None:
    """Put what the recipe or the package refuses beside the field that it names."""
    errors: dict[str, str] = {}
    for name, said in form.errors.items():
        inside = re.match(r"settings\.([a-z_]+\.[a-z_0-9]+|[a-z_]+)", name)
        errors.setdefault(inside[0] if inside else name, said)
    form.errors = errors
    first = form.problem.partition(" ")[0]
    if SETTING + first in form.values:
        form.errors[SETTING + first], form.problem = form.problem, ""
    elif first in form.values:
        form.errors[first], form.problem = form.problem, ""
    elif "choose another version" in form.problem:
        form.errors["package.version"], form.problem = form.problem, ""
    elif form.problem.startswith("package: "):
        _name_the_packages_field(form)


def _name_the_packages_field(form: Form) -> None:
    left = []
    for said in form.problem.removeprefix("package: ").split("; "):
        field = next(
            (name for name in ("version", "licence", "purpose", "expires", "name") if name in said),
            "",
        )
        name = {"purpose": "package.purposes", "": ""}.get(field, f"package.{field}")
        if name in form.values:
            form.errors.setdefault(name, said)
        else:
            left.append(said)
    form.problem = "; ".join(left)


def _require_new(
    session: Session, principal: Principal, site: str, identity: submit.Identity
) -> None:
    """Refuse a version that the catalogue has: the job would find out only at its end."""
    if identity.version in _versions(session, principal, site, identity.name):
        raise submit.PackageTakenError(
            f"{site}/{identity.name} {identity.version} is in the catalogue; choose another version"
        )


def _versions(session: Session, principal: Principal, site: str, name: str) -> set[str]:
    try:
        found = catalogue.list_versions(session, principal, site, site, name)
    except NotFoundError:
        return set()
    return {one.version for one in found}


def _next_version(session: Session, principal: Principal, site: str, name: str) -> str:
    """Return a version that no package of this name has here, and no job makes."""
    numbers = [
        tuple(map(int, found.groups()))
        for one in _versions(session, principal, site, name)
        if (found := _VERSION.fullmatch(one))
    ]
    if not numbers and submit.is_free(session, name, "1.0.0"):
        return "1.0.0"
    major, minor, _ = max(numbers, default=(1, 0, 0))
    tried = (f"{major}.{number}.0" for number in range(minor + 1, minor + 100))
    return next((one for one in tried if submit.is_free(session, name, one)), "")
