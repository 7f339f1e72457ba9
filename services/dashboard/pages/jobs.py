"""Jobs: the list, and one whole, live while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from services.auth.dependencies import PrincipalDep
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.dashboard import charts, curves
from services.dashboard.figures import read_evaluation
from services.dashboard.forms import Form, FormDep
from services.dashboard.job_words import ADVICE, ASKED, KINDS, OUTCOMES, RESUME, STAGES, START_ANEW
from services.dashboard.language import language_of, translator
from services.dashboard.rendering import is_fragment, may, redirect, render
from services.dashboard.route import page_router
from services.detectors import service as detectors
from services.jobs import pictures, reading, service
from services.jobs.models import Job, Kind, State
from services.jobs.pictures import Shows
from services.kit.errors import NotFoundError
from services.kit.http import ResourcesDep, SessionDep
from services.kit.keyset import AnyRow
from services.kit.resources import Resources
from services.kit.storage import StoreError

router = page_router()

PAGE = 25
LINES = 200  # of the log
MOST_PARTS = 100  # rows of the table of teachers
SHOWN_NEIGHBOURS = 12  # the most similar ones; the package's page has them all


@dataclass(frozen=True, slots=True)
class Took:
    """A stage: how long it was expected to take, and took."""

    stage: str
    expected: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and what it shows."""

    address: str
    number: int
    label: str
    caption: Mapping[str, Any]


@router.get("/jobs")
def jobs(
    request: Request,
    session: SessionDep,
    principal: PrincipalDep,
    kind: Annotated[Kind | None | str, Query(max_length=20)] = None,
    state: Annotated[State | None | str, Query(max_length=20)] = None,
    owner: Annotated[str, Query(max_length=2)] = "",
    dataset: Annotated[str, Query(max_length=200)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List jobs, newest first."""
    found, following = reading.list_jobs(
        session,
        kind=Kind(kind) if kind in set(Kind) else None,
        state=State(state) if state in set(State) else None,
        dataset=dataset or None,
        owner_id=principal.user_id if owner == "me" else None,
        cursor=cursor,
        limit=PAGE,
    )
    return render(
        request,
        "jobs.html",
        found=found,
        following=following,
        filters={"kind": kind or "", "state": state or "", "owner": owner, "dataset": dataset},
        kinds=KINDS,
        states=list(State),
        stages=STAGES,
    )


@router.get("/jobs/{job_id}")
def job(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, job_id: UUID
) -> Response:
    """Show a job; while it waits or runs, its part of the page comes again every few seconds."""
    if not is_fragment(request) and may(principal, "jobs_pictures"):
        with resources.reading() as session:
            kind = service.get(session, job_id).kind
        if kind == Kind.DISTILL.value:
            with resources.transaction() as session:
                pictures.show(session, principal, job_id)  # audited once for each time it is opened
    return _whole(request, resources, principal, job_id, Form())


@router.post("/jobs/{job_id}/cancel")
def cancel_job(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep, job_id: UUID
) -> Response:
    """Ask the job to stop."""
    with form:
        with resources.transaction() as session:
            service.request_cancel(session, principal, job_id)
        return redirect(f"/jobs/{job_id}", notice="job-cancelled")
    return _whole(request, resources, principal, job_id, form)


@router.post("/jobs/{job_id}/resume")
def resume_job(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep, job_id: UUID
) -> Response:
    """Let the job go on."""
    with form:
        with resources.transaction() as session:
            service.resume(session, principal, job_id)
        return redirect(f"/jobs/{job_id}", notice="job-resumed")
    return _whole(request, resources, principal, job_id, form)


# ------------------------------------------------------------------------------------------ putting together


def _whole(
    request: Request, resources: Resources, principal: Principal, job_id: UUID, form: Form
) -> Response:
    with resources.reading() as session:
        detail = reading.read_job(session, job_id)
        row = detail.job
        events = reading.read_course(session, job_id)
        lines = reading.read_log_end(session, job_id, limit=LINES)
        seen = pictures.listed(session, job_id) if may(principal, "jobs_pictures") else []
        made = _made(session, row)
        compared = _compared(session, resources, principal, row)
    t = translator(language_of(request))
    error = row.error or {}
    return render(
        request,
        "_job.html" if is_fragment(request) and request.method == "GET" else "job.html",
        form=form,
        detail=detail,
        job=row,
        kind=KINDS[Kind(row.kind)],
        live=not service.has_ended(row),
        own=principal.decides or principal.user_id == row.owner_id,
        stage=STAGES.get((row.progress or {}).get("stage", ""), ""),
        share=_share(row.progress),
        plots=[
            *curves.plots(events, t),
            *(
                charts.bars(
                    f"{t('Evaluation')}: {net}", bars, y=t("balanced accuracy"), numbers=t("In numbers")
                )
                for net, bars in compared
            ),
        ],
        steps=_shown(job_id, seen, Shows.STEP),
        neighbours=_closest(_shown(job_id, seen, Shows.NEIGHBOUR)),
        took=_took(row),
        lines=lines,
        made=made,
        figures=row.result if row.kind == Kind.ESTIMATE.value else None,
        outcomes=OUTCOMES,
        parts_of=detail.parts[:MOST_PARTS],
        advice=ADVICE.get(error.get("slug", ""), RESUME if error.get("resumable", True) else START_ANEW),
        asked=_asked(row.spec),
        changed=sorted((row.spec.get("settings") or {}).items()),
        stages=STAGES,
    )  # fmt: skip


def _share(progress: Mapping[str, Any] | None) -> float | None:
    done, total = (progress or {}).get("done"), (progress or {}).get("total")
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return min(1.0, max(0.0, done / total))


def _shown(job_id: UUID, found: Sequence[AnyRow], kind: Shows) -> list[Shown]:
    return [
        Shown(
            f"/api/v1/jobs/{job_id}/pictures/{one.kind}/{one.number}", one.number, one.label, one.caption
        )
        for one in found
        if one.kind == kind.value
    ]  # fmt: skip


def _closest(neighbours: list[Shown]) -> list[Shown]:
    """Return the real images most like a distilled one, the most similar first."""
    known = [one for one in neighbours if isinstance(one.caption.get("ssim"), int | float)]
    return sorted(known, key=lambda one: -one.caption["ssim"])[:SHOWN_NEIGHBOURS]


def _took(job: Job) -> list[Took]:
    """Return every stage that was expected or done, in the order of the work."""
    expected, actual = (_seconds(one) for one in (job.estimate, job.actual))
    known = [*STAGES, *sorted({*expected, *actual} - set(STAGES))]
    return [
        Took(stage, expected.get(stage), actual.get(stage))
        for stage in known
        if stage in expected or stage in actual
    ]


def _seconds(figures: Mapping[str, Any] | None) -> Mapping[str, float]:
    found = (figures or {}).get("seconds")
    return found if isinstance(found, dict) else {}


def _made(session: Session, job: Job) -> tuple[str, str] | None:
    """Return address and name of what a job made, where there is a page for it."""
    result = job.result or {}
    kind, ended_well = Kind(job.kind), job.state == State.SUCCEEDED.value
    if kind is Kind.CHECK and job.dataset_id:
        return f"/datasets/{job.dataset_id}", "the dataset"
    if kind in (Kind.DISTILL, Kind.PULL) and ended_well and "package" in result:
        try:
            site, name, version = catalogue.split_name(result["package"])
        except NotFoundError:
            return None
        return f"/packages/{site}/{name}/{version}", result["package"]
    if kind is Kind.PREDICT:
        return (
            f"/detectors/{job.spec['detector_id']}/predictions/{job.id}",
            "what it says about the image",
        )
    if kind is Kind.EVALUATE:
        return f"/detectors/{job.spec['detector_id']}", "the detector"
    if kind is Kind.TRAIN:
        found = detectors.made_by(session, job.id)
        return None if found is None else (f"/detectors/{found}", "the detector")
    return None


def _compared(
    session: Session, resources: Resources, principal: Principal, job: Job
) -> Sequence[tuple[str, Sequence[charts.Bar]]]:
    """Return how well detectors do that were trained on what the job distilled, beside others; by network."""
    result = job.result or {}
    if job.kind != Kind.DISTILL.value or "package" not in result:
        return []
    try:
        name = catalogue.split_name(result["package"])
        version = catalogue.read_version(session, principal, resources.settings.site_id, *name)
        reports = catalogue.read_reports(resources.store, catalogue.files_of(session, version))
    except (NotFoundError, StoreError):  # the package's own page says what is the matter with it
        return []
    return read_evaluation(
        reports.evaluated, version.manifest["recipe"]["net"]["architecture"]
    ).bars


def _asked(spec: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what was asked for, as far as it fits one line each."""
    found = [(words, spec[name]) for name, words in ASKED.items() if name in spec]
    return found + [
        (f"test: {name}", value) for name, value in (spec.get("test_rows") or {}).items()
    ]
