"""Routes under `/packages`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from ppdd_core.package.manifest import media_types
from ppdd_core.package.signature import parse_fingerprint
from services.auth.dependencies import PrincipalDep, principal_of
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.catalogue import delivery, service
from services.catalogue.delivery import Blob
from services.catalogue.models import Origin, PackageFile, PackageVersion, VersionState
from services.catalogue.schemas import (
    PackageDetail,
    PackageSummary,
    PrivacySummary,
    ReleaseIn,
    VersionDetail,
    YankIn,
    summaries,
)
from services.kit.errors import BadRequestError, NotFoundError, TooLargeError, UnprocessableError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, SettingsDep, resources_of
from services.kit.limits import expect_body
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, answer
from services.kit.resources import Resources
from services.kit.room import DiskFullError
from services.kit.spool import BrokenOffError, OtherBytesError, announced_sha256, spooled
from services.kit.storage import ObjectDamagedError, StoreError

router = FeatureRouter(prefix="/packages", tags=["packages"])

ZIP = "application/zip"
PREVIEWS = "previews/"
VERSION = "/{site}/{name}/versions/{version}"
YANKED = '299 - "this version was taken back by its hospital; its description says why"'

Site = Annotated[str, Path(max_length=64, examples=["hospital-a"])]
Name = Annotated[str, Path(max_length=100, examples=["cxr"])]
Version = Annotated[str, Path(max_length=64, examples=["1.0.0"])]
FilePath = Annotated[str, Path(max_length=200, examples=["distilled.safetensors"])]

_NOT_FOUND = problem_responses(NotFoundError)
_KINDS = sorted(
    {ZIP, "application/json", *media_types(1).values()}
)  # JSON: manifest and signature, too
_CONTENT = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "All bytes.", "content": _CONTENT},
    206: {"description": "The bytes of the range."},
    304: {"description": "The caller has these bytes (`If-None-Match`)."},
    **problem_responses(
        NotFoundError,
        service.YankedError,
        delivery.ConditionFailedError,
        delivery.RangeRefusedError,
        ObjectDamagedError,
        StoreError,
    ),
}
_HEAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The headers that GET would send.", "content": _CONTENT},
    304: _BYTES[304],
    **{status: {"description": "As for GET, without a body."} for status in (404, 410, 412)},
}


@router.list(
    summary="List and search packages",
    response_model=Page[PackageSummary],
    responses=problem_responses(BadRequestError),
)
def list_packages(
    request: Request,
    q: Annotated[str, Query(max_length=200, description="Part of `site/name` or of the hospital's name.")] = "",
    site: Annotated[str | None, Query(max_length=64)] = None,
    state: VersionState | None = None,
    origin: Origin | None = None,
    label: Annotated[str | None, Query(alias="class", max_length=200, description="A class it holds.")] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:  # fmt: skip
    """Return the packages that have a version of that kind, the newest package first, each with its newest such one.

    Other hospitals see what this one has released or yanked, and nothing else.
    """
    search = service.Search(
        q=q,
        site=site,
        state=None if state is None else state.value,
        origin=None if origin is None else origin.value,
        label=label,
    )
    resources = resources_of(request)
    with resources.reading() as session:
        rows, following = service.list_packages(
            session, principal_of(request), resources.settings.site_id, search, cursor=cursor, limit=limit
        )  # fmt: skip
    return answer(request, summaries(rows), following)


@router.post(
    "",
    name="import",
    summary="Import a package from a file",
    status_code=201,
    response_model=VersionDetail,
    responses={
        200: {"description": "This very version was here already.", "model": VersionDetail},
        **problem_responses(
            BrokenOffError,
            service.AlreadyPublishedError,
            service.OtherKeyError,
            TooLargeError,
            UnprocessableError,
            OtherBytesError,
            DiskFullError,
            StoreError,
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_package(
    request: Request,
    response: Response,
    resources: ResourcesDep,
    principal: PrincipalDep,
    key: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Fingerprint of the key that must have signed it, learned from the hospital itself.",
        ),
    ] = None,
) -> VersionDetail:
    """Take the ZIP that is the body, verify everything in it, and add it to the catalogue.

    A package that this site made becomes a draft. One of another hospital is `held`: for use here, and neither this
    site's to release nor offered to others. Once packages of a hospital are here, one that another key signed needs
    `key`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != ZIP:
        raise UnprocessableError(f"send the package as the body, with Content-Type: {ZIP}")
    limit = resources.settings.limits.package_bytes
    expect_body(request, limit, "a package")
    pinned = None if key is None else parse_fingerprint(key)
    declared = request.headers.get("content-length")
    async with spooled(
        request,
        resources.settings,
        limit=limit,
        declared=int(declared) if declared else None,
        sha256=announced_sha256(request.headers.getlist("content-digest")),
    ) as body:
        stored = await run_in_threadpool(
            service.store_package, resources, body.path, key=pinned, name="the package"
        )
    detail, new = await run_in_threadpool(_add, resources, principal, stored)
    response.status_code = 201 if new else 200
    response.headers["Location"] = _location(detail)
    return detail


@router.get("/{site}/{name}", summary="Read a package and its versions", responses=_NOT_FOUND)
def read(
    session: SessionDep, settings: SettingsDep, principal: PrincipalDep, site: Site, name: Name
) -> PackageDetail:
    """Return the versions of one package, newest first."""
    rows = service.list_versions(session, principal, settings.site_id, site, name)
    return PackageDetail.of(site, name, rows)


@router.get(VERSION, name="version", summary="Read a version", responses=_NOT_FOUND)
def read_version(
    resources: ResourcesDep, principal: PrincipalDep, site: Site, name: Name, version: Version
) -> VersionDetail:
    """Return one version: manifest, verdict, evaluation and privacy in short, files, and where it comes from."""
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
        return _detail(session, resources, principal, found)


@router.get(
    VERSION + "/files/{path:path}",
    name="file",
    summary="Download a file",
    response_class=StreamingResponse,
    responses=_BYTES,
)
def download_file(
    request: Request, resources: ResourcesDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version, path: FilePath,
) -> Response:  # fmt: skip
    """Send one file of a version. Its ETag is its sha256; one `Range` is honoured, with `If-Range`.

    A version that was yanked answers 410 to other hospitals, and carries a warning for people here.
    """
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
        blob = _file_blob(service.find_file(session, found, path))
    return _deliver(request, resources, principal, found, path, blob)


@router.head(
    VERSION + "/files/{path:path}", name="file_head", summary="Look at a file", responses=_HEAD
)
def look_at_file(
    request: Request, resources: ResourcesDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version, path: FilePath,
) -> Response:  # fmt: skip
    """Send the headers that a download of the file would have."""
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
        blob = _file_blob(service.find_file(session, found, path))
    return _look(request, principal, found, blob)


@router.get(
    VERSION + "/archive",
    name="archive",
    summary="Download a version whole",
    response_class=StreamingResponse,
    responses=_BYTES,
)
def download_archive(
    request: Request, resources: ResourcesDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version,
) -> Response:  # fmt: skip
    """Send the whole version as one ZIP, the same bytes at every node. Otherwise as for a file."""
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
    return _deliver(request, resources, principal, found, "archive", _archive_blob(found))


@router.head(
    VERSION + "/archive", name="archive_head", summary="Look at the archive", responses=_HEAD
)
def look_at_archive(
    request: Request, resources: ResourcesDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version,
) -> Response:  # fmt: skip
    """Send the headers that a download of the archive would have."""
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
    return _look(request, principal, found, _archive_blob(found))


@router.post(
    VERSION + "/release",
    summary="Release a version",
    responses=problem_responses(
        NotFoundError, service.PrivacyGateError, service.WrongStateError, StoreError
    ),
)
def release(
    resources: ResourcesDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version, body: ReleaseIn | None = None,
) -> VersionDetail:  # fmt: skip
    """Offer a draft to other hospitals. What is stored of it is verified and its privacy report judged again.

    A verdict that is failed needs `override_reason`; artefacts that are missing or were altered cannot be released.
    There is no way back: a version that must not be used any more is yanked.
    """
    reason = None if body is None else body.override_reason
    service.judge_and_release(resources, principal, (site, name, version), reason)
    with resources.reading() as session:
        found = _version(session, resources, principal, site, name, version)
        return _detail(session, resources, principal, found)


@router.post(
    VERSION + "/yank",
    summary="Take a version back",
    responses=problem_responses(NotFoundError, service.WrongStateError),
)
def yank(
    resources: ResourcesDep, session: SessionDep, principal: PrincipalDep,
    site: Site, name: Name, version: Version, body: YankIn,
) -> VersionDetail:  # fmt: skip
    """Offer a released version no more. Other hospitals read the reason instead; there is no way back."""
    found = _version(session, resources, principal, site, name, version)
    service.yank(session, principal, found, body.reason)
    found = _version(session, resources, principal, site, name, version)
    return _detail(session, resources, principal, found)


def _version(
    session: Session, resources: Resources, principal: Principal, site: str, name: str, version: str
) -> PackageVersion:
    own = resources.settings.site_id
    return service.read_version(session, principal, own, site, name, version)


def _add(
    resources: Resources, principal: Principal, stored: service.StoredPackage
) -> tuple[VersionDetail, bool]:
    with resources.transaction() as session:
        version, new = service.import_version(session, principal, stored)
        return _detail(session, resources, principal, version), new


def _detail(
    session: Session, resources: Resources, principal: Principal, version: PackageVersion
) -> VersionDetail:
    files = service.files_of(session, version)
    reports = service.read_reports(resources.store, files)
    return VersionDetail.build(
        version,
        files,
        privacy=PrivacySummary.of(reports.privacy, reports.judgement),
        evaluation=reports.evaluation,
        dataset_id=service.source_of(session, version),
        for_peer=principal.role is Role.PEER,
    )


def _location(detail: VersionDetail) -> str:
    return f"/api/v1/packages/{detail.site}/{detail.name}/versions/{detail.version}"


def _file_blob(file: PackageFile) -> Blob:
    return Blob(file.sha256, file.size, file.media_type, file.path.rpartition("/")[2])


def _archive_blob(version: PackageVersion) -> Blob:
    filename = f"{version.package.site}-{version.package.name}-{version.version}.zip"
    return Blob(version.archive_sha256, version.archive_size, ZIP, filename)


def _deliver(
    request: Request, resources: Resources, principal: Principal,
    version: PackageVersion, path: str, blob: Blob,
) -> Response:  # fmt: skip
    """Return the answer that carries the bytes, after its start, or its refusal, was written to the audit log.

    Previews that a person's browser shows in a page are not written down: each look would be dozens of downloads.
    """
    whole = {"path": path, "sha256": blob.sha256, "start": 0, "length": blob.size}
    try:
        service.require_offered(principal, version)
    except service.YankedError:
        with resources.transaction() as session:
            service.note_download(session, principal, version, whole, refused=True)
        raise
    if delivery.is_known(request, blob):
        return _warned(delivery.not_modified(blob), version)
    span = delivery.asked_span(request, blob)
    answer = delivery.send(resources.store, blob, span)
    if principal.via == "session" and path.startswith(PREVIEWS):
        return _warned(answer, version)
    part = whole | {"start": span.start, "length": span.length}
    with resources.transaction() as session:
        service.note_download(session, principal, version, part)
    return _warned(answer, version)


def _look(request: Request, principal: Principal, version: PackageVersion, blob: Blob) -> Response:
    service.require_offered(principal, version)
    known = delivery.is_known(request, blob)
    return _warned(delivery.not_modified(blob) if known else delivery.head(blob), version)


def _warned(answer: Response, version: PackageVersion) -> Response:
    if version.state == VersionState.YANKED:
        answer.headers["Warning"] = YANKED
    return answer
