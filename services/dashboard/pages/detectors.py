"""Detectors: the list, training one from packages, how well it does, and what it says about one X-ray."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request, Response
from markupsafe import Markup
from sqlalchemy.orm import Session

from services.auth.dependencies import PrincipalDep
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.dashboard import charts
from services.dashboard.figures import balanced_interval, confusion_of, curves, of_classes
from services.dashboard.forms import Form, FormDep
from services.dashboard.job_words import STAGES
from services.dashboard.language import Translate, language_of, translator
from services.dashboard.rendering import is_fragment, may, redirect, render
from services.dashboard.route import page_router
from services.dashboard.words import SPLITS
from services.datasets import service as datasets
from services.detectors import service
from services.detectors.models import DetectorState, Evaluation
from services.detectors.schemas import (
    Architecture,
    DetectorOut,
    DetectorSummary,
    EvaluateIn,
    TrainIn,
)
from services.jobs import reading
from services.jobs.models import ENDED, Kind, State
from services.kit.errors import NotFoundError, ServiceError, UnprocessableError
from services.kit.http import ResourcesDep, SessionDep
from services.kit.resources import Resources

router = page_router()

PAGE = 25
OFFERED = 25  # packages to tick at a time
MOST_DATASETS = 100  # to choose from
MOST_EVENTS = 2000  # of a training, for its curve
MOST_EVALUATIONS = 10
NETS = [(name, name) for name in typing.get_args(Architecture)]
ON_THE_WAY = frozenset({DetectorState.QUEUED, DetectorState.TRAINING})


@router.get("/detectors")
def detectors(
    request: Request,
    session: SessionDep,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List detectors, newest first."""
    views, following = service.list_page(session, cursor=cursor, limit=PAGE)
    found = [DetectorSummary.of(view) for view in views]
    return render(request, "detectors.html", found=found, following=following)


@router.get("/detectors/new")
def new_detector(
    request: Request,
    session: SessionDep,
    resources: ResourcesDep,
    principal: PrincipalDep,
    package: Annotated[list[str] | None, Query(max_length=32)] = None,
) -> Response:
    """Show the form; packages named in the address are ticked."""
    form = Form({"packages": package or [], "seed": ["0"]})
    return _asked(request, session, resources, principal, form)


@router.post("/detectors/new")
def train_detector(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Queue a training; or, where another button was pressed, search packages or say what would come of it."""
    pressed = form.get("do", "train")
    if pressed == "train":
        with form:
            wanted = _training(form)
            with resources.transaction() as session:
                view = service.train(session, resources.settings.jobs, principal, wanted.training())
                detector_id = view.detector.id
            return redirect(f"/detectors/{detector_id}", notice="detector-queued")
    with resources.reading() as session:
        return _asked(request, session, resources, principal, form, foreseen=pressed == "foresee")


@router.get("/detectors/{detector_id}")
def detector(
    request: Request, session: SessionDep, principal: PrincipalDep, detector_id: UUID
) -> Response:
    """Show a detector: how its training goes, what it is, how well it does, and a place to try an X-ray."""
    if is_fragment(request):
        view = service.read(session, detector_id, evaluations=0)
        return render(request, "_detector_training.html", **_training_of(request, session, view))
    return _whole(request, session, principal, detector_id, None)


@router.post("/detectors/{detector_id}/evaluations")
def evaluate_detector(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    detector_id: UUID,
) -> Response:
    """Queue the measuring of a detector on a source dataset."""
    with form:
        wanted = form.validated(EvaluateIn, _lines(form, "rows", "class_map"))
        with resources.transaction() as session:
            service.evaluate(
                session, resources.settings.jobs, principal, detector_id,
                dataset=wanted.dataset, rows=wanted.rows, split=wanted.split, class_map=wanted.class_map,
            )  # fmt: skip
        return redirect(f"/detectors/{detector_id}", notice="evaluation-queued")
    with resources.reading() as session:
        return _whole(request, session, principal, detector_id, form)


@router.post("/detectors/{detector_id}/remove")
def remove_detector(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    detector_id: UUID,
) -> Response:
    """Remove a detector."""
    with form:
        with resources.transaction() as session:
            service.remove(session, principal, detector_id)
        return redirect("/detectors", notice="detector-removed")
    with resources.reading() as session:
        return _whole(request, session, principal, detector_id, form)


@router.get("/detectors/{detector_id}/predictions/{prediction_id}")
def prediction(
    request: Request, session: SessionDep, detector_id: UUID, prediction_id: UUID
) -> Response:
    """Show what a detector says about one image, as soon as its job has ended."""
    job = reading.read_job(session, prediction_id).job
    if job.kind != Kind.PREDICT.value or job.spec["detector_id"] != str(detector_id):
        raise NotFoundError(f"detector {detector_id} has no prediction {prediction_id}")
    shares = (job.result or {}).get("probabilities", {})
    translate = translator(language_of(request))
    bars = [
        charts.Bar(name, share) for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    ]
    return render(
        request,
        "_prediction.html" if is_fragment(request) else "prediction.html",
        detector_id=detector_id,
        detector=service.get(session, detector_id).name,
        job=job,
        ended=State(job.state) in ENDED,
        failure="" if job.state == State.SUCCEEDED.value else service.failure_of(job),
        plot=charts.bars(
            translate("Probability of each class"),
            bars,
            y=translate("probability"),
            numbers=translate("In numbers"),
        ),
    )


# ------------------------------------------------------------------------------------------ asking


def _training(form: Form) -> TrainIn:
    """Return what the form asks for: packages that are ticked and those that are written, each once."""
    values = _lines(form, "local_rows", "class_map")
    written = values.pop("other_packages", "").replace(",", " ").split()
    values["packages"] = list(dict.fromkeys([*form.every("packages"), *written]))
    for name in ("q", "do"):
        values.pop(name, None)
    values["allow_yanked"] = form.has("allow_yanked")
    return form.validated(TrainIn, values)


def _lines(form: Form, *several: str) -> dict[str, Any]:
    """Return the form's fields, those named in `several` as tables: a line `a = b` each."""
    values = form.tree()
    for name in several:
        table: dict[str, str] = {}
        for line in str(values.pop(name, "")).splitlines():
            if not line.strip():
                continue
            key, equals, value = line.partition("=")
            if not equals or not key.strip() or not value.strip():
                raise UnprocessableError(
                    f"{name}: write a line for each, as a = b; {line.strip()[:60]!r} is none"
                )
            table[key.strip()] = value.strip()
        if table:
            values[name] = table
    return values


def _asked(
    request: Request,
    session: Session,
    resources: Resources,
    principal: Principal,
    form: Form,
    *,
    foreseen: bool = False,
) -> Response:
    chosen = list(dict.fromkeys(form.every("packages")))
    search = catalogue.Search(q=form.get("q")[:200])
    found, following = catalogue.list_packages(
        session, principal, resources.settings.site_id, search, cursor=None, limit=OFFERED
    )
    offered = [(f"{package.site}/{package.name}@{package.version}", package) for package in found]
    kept = [one for one in chosen if one not in {title for title, _ in offered}]
    classes: dict[str, list[str]] | None = None
    if foreseen:
        classes = _foresee(session, form)
    return render(
        request,
        "detector_new.html",
        form=form,
        kept=[(title, _summary(session, title)) for title in kept[:32]],
        offered=offered,
        more=following is not None,
        chosen=chosen,
        classes=classes,
        datasets=_dataset_names(session),
        nets=NETS,
    )


def _foresee(session: Session, form: Form) -> dict[str, list[str]] | None:
    """Return which classes would come of it; None where the form says why nothing can."""
    with form:
        name = form.get("name") or "not-yet"  # none is needed for this
        wanted = _training(Form(form.values | {"name": [name]}))
        return service.foresee(session, wanted.training())
    return None


def _summary(session: Session, title: str) -> Any:
    """Return the version of that name where there is one."""
    try:
        return catalogue.find_version(session, *catalogue.split_name(title))
    except ServiceError:
        return None


def _dataset_names(session: Session) -> list[tuple[str, str]]:
    rows, _ = datasets.page(session, state=None, cursor=None, limit=MOST_DATASETS)
    return [(row.name, row.name) for row in rows]


# ------------------------------------------------------------------------------------------ one detector


def _whole(
    request: Request, session: Session, principal: Principal, detector_id: UUID, form: Form | None
) -> Response:
    view = service.read(session, detector_id, evaluations=MOST_EVALUATIONS)
    translate = translator(language_of(request))
    return render(
        request,
        "detector.html",
        form=form,
        **_training_of(request, session, view),
        mine=principal.decides or view.detector.owner_id == principal.user_id,
        datasets=_dataset_names(session) if may(principal, "detectors_evaluate") else [],
        measured=[_measured(name, row, translate) for name, row in view.evaluations],
        compared=_compared(session, view.evaluations, translate),
        splits=SPLITS,
        measuring=service.measuring(session, detector_id),
    )


def _training_of(request: Request, session: Session, view: service.View) -> dict[str, Any]:
    translate = translator(language_of(request))
    events, _ = reading.read_events(
        session, view.job.id, after=0, limit=MOST_EVENTS, kind="progress"
    )
    points = [
        (float(event.data["done"]), float(event.data["numbers"]["loss"]))
        for event in events
        if "loss" in event.data.get("numbers", {})
    ]
    return {
        "detector": DetectorOut.of(view),
        "job": view.job,
        "on_the_way": view.state in ON_THE_WAY,
        "stages": STAGES,
        "eta": reading.seconds_left(view.job),
        "curve": charts.lines(
            translate("Training loss"),
            [charts.Series(translate("loss"), points)],
            x=translate("epoch"),
            y=translate("loss"),
            numbers=translate("In numbers"),
        ),
    }


def _measured(dataset: str, row: Evaluation, translate: Translate) -> dict[str, Any]:
    """Return one evaluation as the page shows it."""
    found, names = row.metrics, row.metrics["classes"]
    matrix = confusion_of(found["confusion"], names)
    return {
        "id": row.id,
        "dataset": dataset,
        "at": row.created_at,
        **{
            name: found[name]
            for name in ("split", "rows", "images", "accuracy", "accuracy_interval")
        },
        "balanced": found["balanced_accuracy"],
        "balanced_interval": balanced_interval(found["per_class"], found["balanced_accuracy"]),
        "auroc": found["macro_auroc"],
        "unreadable": found.get("unreadable", 0),
        "classes": of_classes([found["per_class"]]),
        "curves": charts.lines(
            translate("ROC curve of each class against the rest"),
            curves([found["per_class"]]),
            x=translate("false positive rate"),
            y=translate("true positive rate"),
            between=(0.0, 1.0),
            diagonal=True,
            numbers=translate("In numbers"),
        ),
        "confusion": charts.grid(
            translate("Confusion matrix, images of the test"),
            names,
            matrix,
            down=translate("true"),
            across=translate("predicted"),
        )
        if matrix
        else Markup(""),
    }


def _compared(
    session: Session, evaluations: Sequence[tuple[str, Evaluation]], translate: Translate
) -> list[dict[str, Any]]:
    """Return, for each set of images that this detector was measured on, how all detectors did on it."""
    seen: set[tuple[Any, ...]] = set()
    compared = []
    for dataset, row in evaluations:
        images = (row.dataset_id, row.metrics["split"], tuple(sorted(row.metrics["rows"].items())))
        if images in seen:
            continue
        seen.add(images)
        rows = service.compare(session, row)
        bars = [
            charts.Bar(
                one.name,
                found.metrics["balanced_accuracy"],
                *(
                    balanced_interval(
                        found.metrics["per_class"], found.metrics["balanced_accuracy"]
                    )
                    or (None, None)
                ),
            )
            for one, found in rows
        ]
        compared.append(
            {
                "dataset": dataset,
                "split": row.metrics["split"],
                "others": [(one, service.packages_of(one), found.metrics) for one, found in rows],
                "plot": charts.bars(
                    translate("Balanced accuracy on {dataset}", dataset=dataset),
                    bars,
                    y=translate("balanced accuracy"),
                    numbers=translate("In numbers"),
                ),
            }
        )
    return compared
