"""Packages: the list, the versions of one, and a version whole, with what a steward decides about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from fastapi import Query, Request, Response
from markupsafe import Markup

from ppdd_core.config import Recipe
from ppdd_core.package.manifest import DUO, preview_path
from ppdd_core.package.signature import printable
from services.auth.dependencies import PrincipalDep
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.catalogue.models import Origin, PackageFile, PackageVersion, VersionState
from services.catalogue.schemas import PrivacySummary, ReleaseIn, YankIn
from services.dashboard import charts
from services.dashboard.figures import Figures, read_evaluation
from services.dashboard.forms import Form, FormDep
from services.dashboard.language import Translate, language_of, translator
from services.dashboard.rendering import may, redirect, render
from services.dashboard.route import page_router
from services.dashboard.words import ORIGINS, VERDICTS
from services.jobs import pictures
from services.kit.db import now
from services.kit.errors import NotFoundError
from services.kit.http import ResourcesDep, SessionDep
from services.kit.resources import Resources

router = page_router()

PAGE = 25
FEW = 6  # images of a class on the version's own page
MANY = 60  # on the page of one class
MOST_MEASURES = 40
MOST_FILES = 40

# What the fields of a recipe are called in the paper's Algorithm 1.
SYMBOLS = {
    "distill.images_per_class": "IPC",
    "distill.prune_below": "σ",
    "distill.student_steps": "J",
    "distill.teacher_epochs": "K",
    "distill.max_start_epoch": "I⁺",
    "distill.lr_init": "α₀",
    "teacher.teachers": "T",
}
INITIALISATIONS = {
    "noise": "Optimisation started from noise: no image started as the image of a patient.",
    "real": "Optimisation started from real images: each image here started as the image of a patient.",
    "mean": "Optimisation started from means of several real images of one class.",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of a version, and what is known of the real image most like it."""

    number: int
    address: str  # of its preview
    real: str  # of that real image; empty where it may not be or cannot be shown
    ssim: float | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Which real images can be shown beside which distilled ones, and if none: why, as English words."""

    job_id: str
    numbers: frozenset[int]
    why_not: str


@router.get("/packages")
def packages(
    request: Request,
    session: SessionDep,
    resources: ResourcesDep,
    principal: PrincipalDep,
    q: Annotated[str, Query(max_length=200)] = "",
    state: Annotated[str, Query(max_length=20)] = "",
    origin: Annotated[str, Query(max_length=20)] = "",
    label: Annotated[str, Query(alias="class", max_length=200)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List and search packages, each with its newest version that fits."""
    search = catalogue.Search(
        q=q.strip(),
        state=VersionState(state).value if state in set(VersionState) else None,
        origin=Origin(origin).value if origin in set(Origin) else None,
        label=label.strip() or None,
    )
    found, following = catalogue.list_packages(
        session, principal, resources.settings.site_id, search, cursor=cursor, limit=PAGE
    )
    return render(
        request,
        "packages.html",
        found=found,
        following=following,
        filters={"q": q, "state": state, "origin": origin, "class": label},
        states=[one.value for one in VersionState],
        origins=[one.value for one in Origin],
        origin_words=ORIGINS,
    )


@router.get("/packages/{site}/{name}")
def package(
    request: Request,
    session: SessionDep,
    resources: ResourcesDep,
    principal: PrincipalDep,
    site: str,
    name: str,
) -> Response:
    """List the versions of one package, newest first."""
    versions = catalogue.list_versions(session, principal, resources.settings.site_id, site, name)
    return render(request, "package.html", site=site, name=name, versions=versions)


@router.get("/packages/{site}/{name}/{version}")
def package_version(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    site: str,
    name: str,
    version: str,
) -> Response:
    """Show a version: its images, how good and how private it is, where it comes from, and what may be done with it."""
    return _whole(request, resources, principal, (site, name, version))


@router.get("/packages/{site}/{name}/{version}/images")
def package_images(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    site: str,
    name: str,
    version: str,
    label: Annotated[str, Query(alias="class", max_length=200)] = "",
    start: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Show the images of one class, the first if none is named, many at a time."""
    found, files = _read(resources, principal, (site, name, version))
    numbers = catalogue.images_by_class(resources.store, found, files)
    label = label or next(iter(numbers))
    if label not in numbers:
        raise NotFoundError(f"{catalogue.title_of(found)} has no class {label[:100]!r}")
    ssim = _similarities(catalogue.read_reports(resources.store, files).privacy)
    beside = _neighbours(resources, principal, found)
    wanted = numbers[label][start : start + MANY]
    return render(
        request,
        "package_images.html",
        version=found,
        label=label,
        images=[_shown(found, number, ssim, beside) for number in wanted],
        count=len(numbers[label]),
        start=start,
        before=max(0, start - MANY),
        after=start + MANY if start + MANY < len(numbers[label]) else None,
        beside=beside,
    )


@router.post("/packages/{site}/{name}/{version}/release")
def release_package(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    site: str,
    name: str,
    version: str,
) -> Response:
    """Release a draft, as far as the gate lets it pass."""
    with form:
        body = form.validated(ReleaseIn)
        catalogue.judge_and_release(
            resources, principal, (site, name, version), body.override_reason
        )
        return redirect(f"/packages/{site}/{name}/{version}", notice="package-released")
    return _whole(request, resources, principal, (site, name, version), form)


@router.post("/packages/{site}/{name}/{version}/yank")
def yank_package(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    site: str,
    name: str,
    version: str,
) -> Response:
    """Take a released version back."""
    with form:
        body = form.validated(YankIn)
        with resources.transaction() as session:
            own = resources.settings.site_id
            found = catalogue.read_version(session, principal, own, site, name, version)
            catalogue.yank(session, principal, found, body.reason)
        return redirect(f"/packages/{site}/{name}/{version}", notice="package-yanked")
    return _whole(request, resources, principal, (site, name, version), form)


# ------------------------------------------------------------------------------------------ one version


def _read(
    resources: Resources, principal: Principal, which: tuple[str, str, str]
) -> tuple[PackageVersion, Sequence[PackageFile]]:
    with resources.reading() as session:
        found = catalogue.read_version(session, principal, resources.settings.site_id, *which)
        return found, catalogue.files_of(session, found)


def _whole(
    request: Request,
    resources: Resources,
    principal: Principal,
    which: tuple[str, str, str],
    form: Form | None = None,
) -> Response:
    found, files = _read(resources, principal, which)
    reports = catalogue.read_reports(resources.store, files)
    recipe = Recipe.from_dict(found.manifest["recipe"])
    ssim = _similarities(reports.privacy)
    beside = _neighbours(resources, principal, found)
    numbers = catalogue.images_by_class(resources.store, found, files)
    figures = read_evaluation(reports.evaluated, recipe.net.architecture)
    translate = translator(language_of(request))
    usage = found.manifest["usage"]
    return render(
        request,
        "package_version.html",
        form=form,
        version=found,
        is_own=found.package.site == resources.settings.site_id,
        key=printable(found.key),
        origin_words=ORIGINS,
        verdicts=VERDICTS,
        classes=[
            (label, len(some), [_shown(found, number, ssim, beside) for number in some[:FEW]])
            for label, some in numbers.items()
        ],
        beside=beside,
        figures=figures,
        bars=_bars(figures, translate),
        curves=_curves(figures, translate),
        confusion=_confusion(figures, translate),
        privacy=PrivacySummary.of(reports.privacy, reports.judgement),
        started_from=INITIALISATIONS.get(str(reports.privacy.get("initialisation")), ""),
        measures=_measures(reports.privacy),
        own_verdict=reports.privacy.get("verdict"),
        recipe=_flat(found.manifest["recipe"]),
        symbols=SYMBOLS,
        purposes=[(code, DUO.get(code, "")) for code in usage["purposes"]],
        has_expired=usage["expires"] is not None
        and date.fromisoformat(usage["expires"]) < now().date(),
        files=files[:MOST_FILES],
        count_of_files=len(files),
    )


def _shown(
    version: PackageVersion, number: int, ssim: Mapping[int, float], beside: Neighbours
) -> Shown:
    real = f"/api/v1/jobs/{beside.job_id}/pictures/neighbour/{number}"
    return Shown(
        number=number,
        address=f"{_api(version)}/files/{preview_path(number)}",
        real=real if number in beside.numbers else "",
        ssim=ssim.get(number),
    )


def _api(version: PackageVersion) -> str:
    package = version.package
    return f"/api/v1/packages/{package.site}/{package.name}/versions/{version.version}"


def _neighbours(resources: Resources, principal: Principal, version: PackageVersion) -> Neighbours:
    """Return which real images may be shown to this reader. That they are shown is audited, as by the API."""
    if version.origin != Origin.MADE.value or version.job_id is None:
        return Neighbours("", frozenset(), "elsewhere")
    if not may(principal, "jobs_pictures"):
        return Neighbours("", frozenset(), "role")
    with resources.reading() as session:
        found = pictures.listed(session, version.job_id)
    numbers = frozenset(one.number for one in found if one.kind == pictures.Shows.NEIGHBOUR.value)
    if not numbers:
        return Neighbours("", frozenset(), "none")
    with resources.transaction() as session:
        pictures.show(session, principal, version.job_id)
    return Neighbours(str(version.job_id), numbers, "")


def _similarities(report: Mapping[str, Any]) -> dict[int, float]:
    """Return the SSIM of each image to the training image most like it, where the report says so."""
    for one in report.get("measurements", []):
        if one.get("name") == "near_copies" and isinstance(one.get("details"), Mapping):
            best = one["details"].get("best_ssim")
            if isinstance(best, list):
                return {
                    number: float(value)
                    for number, value in enumerate(best)
                    if isinstance(value, int | float) and not isinstance(value, bool)
                }
    return {}


def _measures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of a privacy report; `why` says why one is missing."""
    measures = []
    for one in report.get("measurements", [])[:MOST_MEASURES]:
        details = one["details"] if isinstance(one.get("details"), Mapping) else {}
        why = details.get("not_measured") or details.get("not_applicable") or ""
        measures.append({**one, "why": str(why)[:500]})
    return measures


def _flat(recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}.{inner}", one) for inner, one in sorted(value.items())]
        else:
            flat.append((name, value))
    return sorted(flat, key=lambda pair: ("." in pair[0], pair[0]))


# ------------------------------------------------------------------------------------------ plots


def _bars(figures: Figures, translate: Translate) -> list[Markup]:
    return [
        charts.bars(
            translate("Balanced accuracy, {network}", network=network),
            [charts.Bar(translate(bar.name), bar.value, bar.low, bar.high) for bar in some],
            y=translate("balanced accuracy"),
            numbers=translate("In numbers"),
        )
        for network, some in figures.bars
        if some
    ]


def _curves(figures: Figures, translate: Translate) -> Markup:
    return charts.lines(
        translate("ROC curve of each class against the rest"),
        figures.curves,
        x=translate("false positive rate"),
        y=translate("true positive rate"),
        between=(0.0, 1.0),
        diagonal=True,
        numbers=translate("In numbers"),
    )


def _confusion(figures: Figures, translate: Translate) -> Markup:
    if not figures.confusion:
        return Markup("")
    return charts.grid(
        translate("Confusion matrix, images of the test"),
        figures.names,
        figures.confusion,
        down=translate("true"),
        across=translate("predicted"),
    )
