"""Source datasets: the list, adding one, and one whole: what its check found, pictures, its jobs."""

from __future__ import annotations

import typing
from itertools import groupby
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import Query, Request, Response
from markupsafe import Markup
from sqlalchemy.orm import Session

from services.auth.dependencies import PrincipalDep
from services.auth.principal import Principal
from services.dashboard import charts
from services.dashboard.forms import Form, FormDep
from services.dashboard.job_words import SEVERITIES, SPLITS
from services.dashboard.language import Translate, language_of, translator
from services.dashboard.rendering import may, redirect, render
from services.dashboard.route import page_router
from services.datasets import places, service
from services.datasets.models import SourceDataset
from services.datasets.schemas import DatasetDetail, DatasetOut, FindingsOut, RegisterIn
from services.datasets.service import Description, State
from services.jobs import reading, submit
from services.jobs.dataset_router import CheckDatasetIn
from services.jobs.models import ENDED
from services.kit.errors import UnprocessableError
from services.kit.http import ResourcesDep, SessionDep
from services.kit.resources import Resources

router = page_router()

PAGE = 25
FEW = 10  # jobs of a dataset
OFFERED = 40  # candidates of a root
SHOWN = 12  # thumbnails of a class
MOST_CLASSES = 40  # with thumbnails and bars
GREY_STEPS = 32
STATES = typing.get_args(State)


@router.get("/datasets")
def datasets(
    request: Request,
    session: SessionDep,
    state: Annotated[State | None, Query()] = None,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List datasets, newest first."""
    rows, following = service.page(session, state=state, cursor=cursor, limit=PAGE)
    return render(
        request,
        "datasets.html",
        found=[DatasetOut.of(row) for row in rows],
        following=following,
        filters={"state": state or ""},
        states=STATES,
    )


@router.get("/datasets/new")
def new_dataset(
    request: Request,
    resources: ResourcesDep,
    root: Annotated[str, Query(max_length=10)] = "",
    path: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Show the two ways to add a dataset; a place chosen from the list is filled in."""
    name = _name_of(path)
    return _adding(request, resources, Form.of(root=root, path=path, name=name, check="yes"))


@router.post("/datasets/new")
def register_dataset(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Register what lies below a data root and, where the box is ticked, check it at once."""
    with form:
        values = {**form.tree(), "rows": lines_of(form, "rows")}
        values.pop("check", None)
        wanted = form.validated(RegisterIn, values)
        described = Description(wanted.name, wanted.title or wanted.name, wanted.rows)
        with resources.transaction() as session:
            row = service.register(
                session, principal, described, resources.settings.data_roots, path=wanted.path, root=wanted.root
            )  # fmt: skip
            if form.has("check"):
                _check(session, resources, principal, row.id, CheckDatasetIn())
            dataset_id = row.id
        notice = "dataset-checking" if form.has("check") else "dataset-added"
        return redirect(f"/datasets/{dataset_id}", notice=notice)
    return _adding(request, resources, form)


@router.get("/datasets/{dataset_id}")
def dataset(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, dataset_id: UUID
) -> Response:
    """Show a dataset. That somebody looked at its images is audited."""
    return _whole(request, resources, principal, dataset_id, Form.of(image_size=112))


@router.post("/datasets/{dataset_id}/check")
def check_dataset(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    dataset_id: UUID,
) -> Response:
    """Queue a check."""
    with form:
        asked = form.validated(CheckDatasetIn)
        with resources.transaction() as session:
            _check(session, resources, principal, dataset_id, asked)
        return redirect(f"/datasets/{dataset_id}", notice="dataset-checking")
    return _whole(request, resources, principal, dataset_id, form)


@router.post("/datasets/{dataset_id}/remove")
def remove_dataset(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    dataset_id: UUID,
) -> Response:
    """Remove a dataset."""
    with form:
        with resources.transaction() as session:
            service.remove(session, principal, dataset_id)
        return redirect("/datasets", notice="dataset-removed")
    return _whole(request, resources, principal, dataset_id, form)


def lines_of(form: Form, name: str) -> dict[str, str]:
    """Return a field of lines `column = value`; UnprocessableError names the field."""
    found: dict[str, str] = {}
    for line in form.get(name).splitlines():
        if not line.strip():
            continue
        column, equals, value = line.partition("=")
        if not equals or not column.strip() or column.strip() in found:
            raise UnprocessableError(f"{name}: write a line `column = value` for each column")
        found[column.strip()] = value.strip()
    return found


# ------------------------------------------------------------------------------------------ putting together


def _check(
    session: Session,
    resources: Resources,
    principal: Principal,
    dataset_id: UUID,
    asked: CheckDatasetIn,
) -> None:
    submit.submit_check(
        session, resources.settings, principal, dataset_id, image_size=asked.image_size, idempotency_key=None
    )  # fmt: skip


def _adding(request: Request, resources: Resources, form: Form) -> Response:
    roots = places.list_roots(resources.settings.data_roots)
    return render(
        request,
        "dataset_new.html",
        form=form,
        roots=roots,
        offered=OFFERED,
        named=[
            (str(root.number), f"{root.number}: {root.name}") for root in roots if root.available
        ],
        most=resources.settings.limits.upload_bytes,
        name_of=_name_of,
    )


def _whole(
    request: Request, resources: Resources, principal: Principal, dataset_id: UUID, form: Form
) -> Response:
    with resources.reading() as session:
        row = service.get(session, dataset_id)
        found = DatasetDetail.of(row)
        jobs = reading.list_jobs(session, dataset=str(dataset_id), limit=FEW)[0]
    t = translator(language_of(request))
    return render(
        request,
        "dataset.html",
        form=form,
        dataset=found,
        found=found.findings,
        own=principal.decides or principal.user_id == row.owner_id,
        jobs=jobs,
        checking=any(job.kind == "check" and job.state not in ENDED for job in jobs),
        plots=_plots(found.findings, t) if found.findings else [],
        pictures=_thumbnails(resources, principal, row),
        severities=SEVERITIES,
        shown=SHOWN,
    )


def _thumbnails(
    resources: Resources, principal: Principal, row: SourceDataset
) -> list[tuple[str, list[str]]]:
    """Return addresses by class, for who may see images and where there are some; looking is audited."""
    if not may(principal, "datasets_thumbnails") or not row.checked_at or row.state == "removed":
        return []
    with resources.transaction() as session:
        found = service.show_thumbnails(session, principal, row.id)
        return [
            (
                label,
                [
                    f"/api/v1/datasets/{row.id}/thumbnails/{quote(label, safe='')}/{one.number}"
                    for one in group
                ][:SHOWN],
            )
            for label, group in groupby(found, key=lambda one: one.label)
        ][:MOST_CLASSES]


def _plots(found: FindingsOut, t: Translate) -> list[Markup]:
    plots: list[Markup] = []
    if found.classes:
        counts = sorted(found.classes.items(), key=lambda pair: -pair[1])[:MOST_CLASSES]
        bars = [charts.Bar(name, count) for name, count in counts]
        between = (0.0, float(max(counts[0][1], 1)))
        plots.append(
            charts.bars(
                t("Images per class"),
                bars,
                y=t("images"),
                between=between,
                alike=True,
                numbers=t("In numbers"),
            )
        )
    if found.patients_by_split:
        bars = [
            charts.Bar(t(SPLITS.get(name, name)), count)
            for name, count in found.patients_by_split.items()
        ]
        most = float(max(1, *found.patients_by_split.values()))
        plots.append(
            charts.bars(
                t("Patients per split"),
                bars,
                y=t("patients"),
                between=(0.0, most),
                alike=True,
                numbers=t("In numbers"),
            )
        )
    if found.grey:
        plots.append(
            charts.histogram(
                t("Grey levels"),
                _binned(found.grey.histogram),
                x=t("grey level, 0 black, 255 white"),
                y=t("share of pixels in per cent"),
                span=(0, 256),
                numbers=t("In numbers"),
            )
        )
    return [plot for plot in plots if plot]


def _binned(histogram: list[int]) -> list[float]:
    whole, wide = sum(histogram) or 1, max(1, len(histogram) // GREY_STEPS)
    return [100 * sum(histogram[at : at + wide]) / whole for at in range(0, len(histogram), wide)]


def _name_of(path: str) -> str:
    """Return a name that fits a place: its last part, as far as names may have it."""
    last = path.rstrip("/").rpartition("/")[2].rpartition(".zip")[0] or path.rpartition("/")[2]
    kept = "".join(one if one.isascii() and one.isalnum() else "-" for one in last.lower())
    return "-".join(part for part in kept.split("-") if part)[:100]
