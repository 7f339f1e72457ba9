"""Routes under `/detectors`."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from services.auth.dependencies import PrincipalDep
from services.catalogue import delivery
from services.catalogue.delivery import Blob
from services.detectors import images, service
from services.detectors.schemas import (
    DetectorOut,
    DetectorSummary,
    EvaluateIn,
    EvaluationOut,
    PredictionOut,
    StartedOut,
    TrainIn,
)
from services.jobs.models import ENDED, Job, State
from services.jobs.service import IdempotencyConflictError
from services.jobs.submit import UnusableDatasetError
from services.jobs.waiting import preferred_wait, wait_for
from services.kit.errors import BadRequestError, ConflictError, NotFoundError, UnprocessableError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, SettingsDep
from services.kit.limits import IMAGES
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, link_next
from services.kit.resources import Resources
from services.kit.room import DiskFullError
from services.kit.spool import BrokenOffError
from services.kit.storage import ObjectDamagedError, StoreError, StoreFullError

router = FeatureRouter(prefix="/detectors", tags=["detectors"])

DetectorId = Annotated[UUID, Path(description="The detector's id.")]
FileName = Annotated[str, Path(max_length=100, examples=["detector.json", "weights.safetensors"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same request makes one job, however often it is sent.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(max_length=200, description="`wait=30`: answer with the result if it is there by then."),
]
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in sorted(IMAGES)
        },
    }
}
STARTED: dict[str, Any] = {
    "description": "The job was queued.",
    "headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}},
}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All bytes.",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in sorted(set(service.MEDIA_TYPES.values()))
        },
    },
    206: {"description": "The bytes of the range."},
    304: {"description": "The caller has these bytes (`If-None-Match`)."},
}


@router.post(
    "",
    summary="Train a detector from packages",
    status_code=202,
    responses={
        202: STARTED,
        **problem_responses(
            NotFoundError,
            IdempotencyConflictError,
            service.NameTakenError,
            service.UnknownPackageError,
            service.YankedPackageError,
            UnusableDatasetError,
            UnprocessableError,
        ),
    },
)
def train(
    asked: TrainIn,
    principal: PrincipalDep,
    session: SessionDep,
    settings: SettingsDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> DetectorOut:
    """Train a detector from packages that this node holds, and on local images where a dataset is named.

    The packages are verified again before they are learned from. Classes are joined by name. Of local images only the
    training part is used. What cannot work is refused at once: packages that do not fit together, classes that look
    alike. The detector is there from now on; its `state` says how far it is.
    """
    view = service.train(
        session, settings.jobs, principal, asked.training(), idempotency_key=idempotency_key
    )
    response.headers["Location"] = _address(view.job)
    return DetectorOut.of(view)


@router.get("", name="list", summary="List detectors", responses=problem_responses(BadRequestError))
def list_detectors(
    request: Request,
    response: Response,
    session: SessionDep,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Page[DetectorSummary]:
    """List detectors, newest first; removed ones are left out."""
    views, following = service.list_page(session, cursor=cursor, limit=limit)
    link_next(request, response, following)
    return Page(items=[DetectorSummary.of(view) for view in views], next=following)


@router.get("/{detector_id}", summary="Read a detector", responses=problem_responses(NotFoundError))
def read(detector_id: DetectorId, session: SessionDep) -> DetectorOut:
    """Read what a detector learned from, its network and classes, and how well it did on local images."""
    return DetectorOut.of(service.read(session, detector_id))


@router.delete(
    "/{detector_id}",
    summary="Remove a detector",
    status_code=204,
    responses=problem_responses(NotFoundError, ConflictError),
)
def remove(detector_id: DetectorId, principal: PrincipalDep, session: SessionDep) -> None:
    """Remove a detector of one's own. Its files go; what it was and did stays known, and its name is free again."""
    service.remove(session, principal, detector_id)


@router.post(
    "/{detector_id}/evaluations",
    summary="Measure a detector on local images",
    status_code=202,
    responses={
        202: STARTED,
        **problem_responses(
            NotFoundError,
            IdempotencyConflictError,
            service.NotReadyError,
            UnusableDatasetError,
        ),
    },
)
def evaluate(
    detector_id: DetectorId,
    asked: EvaluateIn,
    principal: PrincipalDep,
    session: SessionDep,
    settings: SettingsDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> StartedOut:
    """Measure a detector on a source dataset of this hospital: a job, whose figures are then listed here.

    `split: test` takes the patients held out by the detector's seed, as training with local images and distilling
    with that seed do: images that it never saw.
    """
    job = service.evaluate(
        session,
        settings.jobs,
        principal,
        detector_id,
        dataset=asked.dataset,
        rows=asked.rows,
        split=asked.split,
        class_map=asked.class_map,
        idempotency_key=idempotency_key,
    )
    response.headers["Location"] = _address(job)
    return StartedOut.of(job)


@router.get(
    "/{detector_id}/evaluations",
    summary="List how well a detector did",
    responses=problem_responses(BadRequestError, NotFoundError),
)
def evaluations(
    detector_id: DetectorId,
    request: Request,
    response: Response,
    session: SessionDep,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Page[EvaluationOut]:
    """List the figures of a detector's evaluations with their 95 % intervals, newest first."""
    rows, following = service.list_evaluations(session, detector_id, cursor=cursor, limit=limit)
    link_next(request, response, following)
    return Page(items=[EvaluationOut.of(name, row) for name, row in rows], next=following)


@router.post(
    "/{detector_id}/predictions",
    summary="Predict one image",
    status_code=202,
    response_model=StartedOut,
    openapi_extra=IMAGE_BODY,
    responses={
        200: {"description": "The prediction, where `Prefer: wait=…` asked to wait for it.", "model": PredictionOut},
        202: STARTED,
        **problem_responses(
            BrokenOffError,
            NotFoundError,
            service.NotReadyError,
            images.NotAnImageError,
            service.PredictionFailedError,
            UnprocessableError,
            DiskFullError,
            StoreFullError,
            StoreError,
        ),
    },
)  # fmt: skip
async def predict(
    detector_id: DetectorId,
    request: Request,
    response: Response,
    principal: PrincipalDep,
    resources: ResourcesDep,
    prefer: Prefer = None,
) -> Any:
    """Say how probable each class is for the image in the body. Research use only. Not for diagnosis.

    The image is encrypted while it arrives and lies in the store until its job has ended, however it ends; the key is
    erased with that. With `Prefer: wait=30` the answer is the result; without it, or where it takes longer, the
    job's address, and the result is the job's.
    """
    await run_in_threadpool(_require_ready, resources, detector_id)
    async with images.sealed_image(request, resources) as (file, image):
        job = await run_in_threadpool(
            images.start_prediction, resources, principal, detector_id, file, image
        )
    seconds = preferred_wait(prefer)
    if seconds:
        job = await run_in_threadpool(_await, resources, job, seconds)
        response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
    response.headers["Location"] = _address(job)
    if State(job.state) not in ENDED:
        return _plainly(response, 202, StartedOut.of(job))
    if job.state != State.SUCCEEDED.value:
        raise service.PredictionFailedError(service.failure_of(job), job_id=str(job.id))
    return _plainly(response, 200, PredictionOut.of(job))


@router.get(
    "/{detector_id}/files/{path}",
    summary="Download a detector's file",
    response_class=StreamingResponse,
    responses={
        **BYTES,
        **problem_responses(
            NotFoundError,
            service.NotReadyError,
            delivery.ConditionFailedError,
            delivery.RangeRefusedError,
            ObjectDamagedError,
            StoreError,
        ),
    },
)
def download(
    detector_id: DetectorId,
    path: FileName,
    request: Request,
    principal: PrincipalDep,
    resources: ResourcesDep,
) -> Response:
    """Send `detector.json` or `weights.safetensors`; together in a folder `ppdd detector predict` reads them.

    The ETag is the sha256; one `Range` is honoured, with `If-Range`.
    """
    with resources.reading() as session:
        sha256 = service.file_digest(session, detector_id, path)
    blob = Blob(sha256, resources.store.size(sha256), service.MEDIA_TYPES[path], path)
    if delivery.is_known(request, blob):
        return delivery.not_modified(blob)
    answer = delivery.send(resources.store, blob, delivery.asked_span(request, blob))
    with resources.transaction() as session:
        service.note_download(session, principal, detector_id, path)
    return answer


def _address(job: Job) -> str:
    return f"/api/v1/jobs/{job.id}"


def _require_ready(resources: Resources, detector_id: UUID) -> None:
    with resources.reading() as session:
        service.require_ready(session, detector_id)


def _await(resources: Resources, job: Job, seconds: float) -> Job:
    ended = wait_for(resources, job.id, seconds)
    if State(ended.state) in ENDED:
        images.drop_images(resources)
    return ended


def _plainly(response: Response, status: int, value: StartedOut | PredictionOut) -> Response:
    """Return the answer as JSON: it has one of two shapes, which `response_model` cannot say."""
    headers = {
        name: text for name, text in response.headers.items() if name.lower() != "content-length"
    }
    return Response(value.model_dump_json(), status, headers=headers, media_type="application/json")
