"""Routes under `/datasets`."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from services.auth.dependencies import PrincipalDep
from services.datasets import places, service
from services.datasets.models import SourceDataset
from services.datasets.schemas import (
    PLAIN,
    ClassThumbnails,
    DatasetDetail,
    DatasetOut,
    Name,
    RegisterIn,
    RootOut,
    RootsOut,
    ThumbnailOut,
    ThumbnailsOut,
    Title,
)
from services.datasets.service import (
    DatasetExistsError,
    DatasetInUseError,
    DatasetRemovedError,
    Description,
)
from services.kit.db import READONLY
from services.kit.errors import NotFoundError, UnprocessableError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, SettingsDep, StoreDep
from services.kit.limits import expect_body
from services.kit.openapi import problem_responses
from services.kit.paging import Cursor, Limit, Page, link_next
from services.kit.room import DiskFullError
from services.kit.spool import BrokenOffError, OtherBytesError, announced_sha256, spooled
from services.kit.storage import StoreError, StoreFullError, read_all

router = FeatureRouter(prefix="/datasets", tags=["datasets"])

MAX_THUMBNAIL = 2**20  # bytes
ZIP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
DatasetId = Annotated[UUID, Path(description="The dataset's id.")]


@router.get("/roots", summary="Look for datasets below the data roots")
def roots(settings: SettingsDep) -> RootsOut:
    """List the folders that datasets may be registered from, and what lies directly below each: names only."""
    found = places.list_roots(settings.data_roots)
    return RootsOut(items=[RootOut.model_validate(one) for one in found])


@router.post(
    "",
    summary="Register a dataset below a data root",
    status_code=201,
    responses=problem_responses(DatasetExistsError, places.UnknownPathError),
)
def register(
    asked: RegisterIn,
    principal: PrincipalDep,
    session: SessionDep,
    settings: SettingsDep,
    response: Response,
) -> DatasetOut:
    """Register a folder of class folders, a ZIP, or a CSV manifest. Nothing is copied; check it next.

    A name that is taken, or images that are registered already, answer 409 with the `dataset_id` of the other.
    """
    described = Description(asked.name, asked.title or asked.name, asked.rows)
    dataset = service.register(
        session, principal, described, settings.data_roots, path=asked.path, root=asked.root
    )
    return _created(dataset, response)


@router.post(
    "/uploads",
    summary="Upload a dataset as a ZIP",
    status_code=201,
    openapi_extra=ZIP_BODY,
    responses=problem_responses(
        BrokenOffError,
        DatasetExistsError,
        OtherBytesError,
        DiskFullError,
        StoreFullError,
    ),
)
async def upload(
    request: Request,
    response: Response,
    principal: PrincipalDep,
    resources: ResourcesDep,
    name: Annotated[Name, Query()],
    title: Annotated[Title, Query()] = "",
    where: Annotated[
        list[str],
        Query(
            max_length=16,
            description="`COLUMN=VALUE`: take only rows of the manifest that have this value; may be repeated.",
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> DatasetOut:
    """Send a ZIP of class folders, or of a `manifest.csv` beside its images, as the body (`application/zip`).

    `Content-Digest: sha-256=:…:` (RFC 9530) is verified where it is sent. A hostile archive is refused before it is
    stored. A name that is taken, or an archive that was uploaded already, answers 409 with the `dataset_id`.
    """
    settings = resources.settings
    described = Description(name, title or name, _parse_rows(where))
    expected = announced_sha256(request.headers.getlist("content-digest"))
    expect_body(request, settings.limits.upload_bytes, "an upload")
    await run_in_threadpool(_refuse_known, resources, described)
    async with spooled(
        request,
        settings,
        limit=settings.limits.upload_bytes,
        declared=int(request.headers.get("content-length", "0")),
        sha256=expected,
    ) as body:
        dataset = await run_in_threadpool(
            service.keep_upload, resources, principal, described, body
        )
    return _created(dataset, response)


@router.get("", name="list", summary="List datasets")
def list_datasets(
    request: Request,
    response: Response,
    session: SessionDep,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: Annotated[
        service.State | None, Query(description="Only these; removed ones are listed only so.")
    ] = None,
) -> Page[DatasetOut]:
    """List datasets, newest first. What a check found is shown with each alone."""
    rows, following = service.page(session, state=state, cursor=cursor, limit=limit)
    link_next(request, response, following)
    return Page(items=[DatasetOut.of(row) for row in rows], next=following)


@router.get("/{dataset_id}", summary="Read a dataset", responses=problem_responses(NotFoundError))
def read(dataset_id: DatasetId, session: SessionDep) -> DatasetDetail:
    """Read a dataset with what its last check found: counts, statistics, faults and what to do about them."""
    return DatasetDetail.of(service.get(session, dataset_id))


@router.delete(
    "/{dataset_id}",
    summary="Remove a dataset",
    status_code=204,
    responses=problem_responses(NotFoundError, DatasetInUseError, DatasetRemovedError),
)
def remove(dataset_id: DatasetId, principal: PrincipalDep, session: SessionDep) -> None:
    """Remove a dataset: its upload and all pictures of its images here. Images below a data root are not touched.

    Jobs, packages and evaluations keep pointing to it: it stays readable in the state `removed`.
    """
    service.remove(session, principal, dataset_id)


@router.get(
    "/{dataset_id}/thumbnails",
    summary="List a dataset's thumbnails",
    responses=problem_responses(NotFoundError),
)
def thumbnails(
    request: Request, dataset_id: DatasetId, principal: PrincipalDep, resources: ResourcesDep
) -> ThumbnailsOut:
    """List small pictures of real images, some of each class, as the last check drew them. Looking is audited."""
    with resources.transaction() as session:
        found = service.show_thumbnails(session, principal, dataset_id)
    return ThumbnailsOut(
        items=[
            ClassThumbnails(
                label=label,
                thumbnails=[
                    ThumbnailOut(
                        number=one.number,
                        href=f"{request.url.path}/{quote(label, safe='')}/{one.number}",
                    )
                    for one in group
                ],
            )
            for label, group in groupby(found, key=lambda one: one.label)
        ]
    )


@router.get(
    "/{dataset_id}/thumbnails/{label:path}/{number}",
    summary="Read a thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **problem_responses(NotFoundError, StoreError),
    },
)
def thumbnail(
    dataset_id: DatasetId,
    label: Annotated[str, Path(description="The class.", max_length=200, pattern=PLAIN)],
    number: Annotated[int, Path(ge=0, le=10_000)],
    session: SessionDep,
    store: StoreDep,
) -> Response:
    """Read one small picture of a real image, a PNG that holds nothing else."""
    found = service.thumbnail(session, dataset_id, label, number)
    return Response(
        read_all(store, found.sha256, limit=MAX_THUMBNAIL),
        media_type="image/png",
        headers={
            "Cache-Control": "private, max-age=600",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _created(dataset: SourceDataset, response: Response) -> DatasetOut:
    response.headers["Location"] = f"/api/v1/datasets/{dataset.id}"
    return DatasetOut.of(dataset)


def _refuse_known(resources: ResourcesDep, described: Description) -> None:
    with resources.sessions() as session:
        session.connection(execution_options={READONLY: True})
        service.refuse_known(session, described)


def _parse_rows(where: list[str]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for one in where:
        column, equals, value = one.partition("=")
        plain = one.isprintable() and len(one) <= 1200
        if not equals or not column.strip() or column in rows or not plain:
            raise UnprocessableError("where: write COLUMN=VALUE, each column once")
        rows[column] = value
    return rows
