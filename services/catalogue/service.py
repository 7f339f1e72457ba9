"""Rules of packages: adding versions, judging and releasing them, taking them back. Nothing here commits.

A version of this site is `draft → released → yanked`, and there is no way back. One of another site is `held`: people
here may use it, and it is not ours to offer. What is in a version never changes; its bytes lie in the store by digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ppdd_core.package import canonical
from ppdd_core.package import manifest as manifests
from ppdd_core.package.tensors import read_labels
from services.audit import service as audit
from services.audit.actor import SYSTEM, Actor
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.catalogue import repository
from services.catalogue.contents import POLICY, StoredFile, StoredPackage, store_package
from services.catalogue.gate import Judgement, judge, judge_report
from services.catalogue.models import Origin, Package, PackageFile, PackageVersion, VersionState
from services.catalogue.repository import Search
from services.jobs.models import Job
from services.kit import holds
from services.kit.db import now
from services.kit.errors import ConflictError, NotFoundError, ServiceError
from services.kit.keyset import AnyRow
from services.kit.resources import Resources
from services.kit.storage import ObjectStore, read_all

__all__ = [
    "POLICY",
    "AlreadyPublishedError",
    "Search",
    "StoredFile",
    "StoredPackage",
    "add_version",
    "judge",
    "store_package",
]

EXPIRING = timedelta(days=30)


class AlreadyPublishedError(ConflictError):
    """This version exists with other content, and versions never change."""

    slug, title = "already-published", "This version exists already"


class PrivacyGateError(ConflictError):
    """The version may not be released: its privacy verdict is failed, or what is stored is not what was signed."""

    slug, title = "privacy-gate", "The privacy gate does not let this version pass"


class WrongStateError(ConflictError):
    """The version is not in the state that this needs, and there is no way back."""

    slug, title = "wrong-state", "The version is in another state"


class YankedError(ServiceError):
    """The hospital took this version back."""

    status, slug, title = 410, "yanked", "This version was taken back"


class OtherKeyError(ConflictError):
    """Another key signed what this node has of that site so far."""

    slug, title = "other-key", "Another key signed this site's packages so far"


# ------------------------------------------------------------------------------------------ adding


def add_version(
    session: Session,
    contents: StoredPackage,
    *,
    origin: Origin | str,
    owner_id: UUID | None,
    job_id: UUID | None = None,
    origin_url: str | None = None,
    actor: Actor = SYSTEM,
) -> PackageVersion:
    """Return the row of a stored package: `draft` where it is this site's own, else `held`.

    The same version with the same content is the row that is there already, unchanged; with other content it raises
    AlreadyPublishedError. A package of another site whose key nobody pinned raises OtherKeyError where that site's
    packages here were signed by another key.
    """
    return _add(session, contents, Origin(origin), owner_id, job_id, origin_url, actor)[0]


def import_version(
    session: Session, principal: Principal, contents: StoredPackage
) -> tuple[PackageVersion, bool]:
    """Return the row of a package that came as a file, and whether it is new; refused as in `add_version`."""
    owner = principal.user_id
    return _add(session, contents, Origin.IMPORTED, owner, None, None, principal.actor)


def _add(
    session: Session,
    contents: StoredPackage,
    origin: Origin,
    owner_id: UUID | None,
    job_id: UUID | None,
    origin_url: str | None,
    actor: Actor,
) -> tuple[PackageVersion, bool]:
    holds.release(session, contents.holder)
    known = _known(session, contents)
    if known is not None:
        return known, False
    package = _package(session, contents)
    if not contents.ours and not contents.pinned:
        _require_known_key(session, contents)
    version = _new_version(contents, package)
    version.origin = origin.value
    version.owner_id, version.job_id = owner_id, job_id
    version.origin_url = None if origin_url is None else origin_url[:500]
    try:
        with session.begin_nested():
            session.add(version)
            session.flush()
            session.add_all(_file_rows(version, contents))
    except IntegrityError:  # another transaction was faster
        known = _known(session, contents)
        if known is None:
            raise
        return known, False
    detail = {
        "origin": version.origin,
        "state": version.state,
        "digest": version.digest,
        "key": version.key,
    }
    audit.record(session, actor, "package.add", contents.title, detail=detail)
    return version, True


def _known(session: Session, contents: StoredPackage) -> PackageVersion | None:
    everything = repository.visible(None)
    known = repository.find_version(
        session, contents.site, contents.name, contents.version, everything
    )
    if known is not None and known.digest != contents.digest:
        raise AlreadyPublishedError(
            f"{contents.title} is here already with other content (digest {known.digest[:12]}…, this one has "
            f"{contents.digest[:12]}…); a version never changes, so choose another version number"
        )
    return known


def _package(session: Session, contents: StoredPackage) -> Package:
    package = repository.find_package(session, contents.site, contents.name)
    if package is not None:
        return package
    package = Package(site=contents.site, name=contents.name)
    try:
        with session.begin_nested():
            session.add(package)
    except IntegrityError:  # another transaction was faster
        known = repository.find_package(session, contents.site, contents.name)
        if known is None:
            raise
        return known
    return package


def _require_known_key(session: Session, contents: StoredPackage) -> None:
    if repository.other_keys(session, contents.site, contents.key):
        raise OtherKeyError(
            f"{contents.title} is signed by key {contents.key}, and what this node has of {contents.site} by another; "
            f"ask that hospital for its fingerprint and give it as `key` if this is right"
        )


def _new_version(contents: StoredPackage, package: Package) -> PackageVersion:
    stated: dict[str, Any] = contents.manifest
    return PackageVersion(
        package_id=package.id,
        package=package,
        version=contents.version,
        state=(VersionState.DRAFT if contents.ours else VersionState.HELD).value,
        digest=contents.digest,
        key=contents.key,
        site_name=stated["site"]["name"],
        manifest=stated,
        classes=stated["classes"],
        images_per_class=stated["images"]["per_class"],
        image_size=stated["images"]["shape"][1],
        archive_sha256=contents.archive_sha256,
        archive_size=contents.archive_size,
        verdict=contents.verdict,
    )


def _file_rows(version: PackageVersion, contents: StoredPackage) -> list[PackageFile]:
    return [
        PackageFile(
            version_id=version.id,
            path=file.path,
            sha256=file.sha256,
            size=file.size,
            media_type=file.media_type,
        )
        for file in contents.files
    ]


# ------------------------------------------------------------------------------------------ deciding


def require_draft(version: PackageVersion, site_id: str) -> None:
    """Raise WrongStateError unless the version can be released by this site."""
    if version.state == VersionState.HELD:
        raise WrongStateError(
            f"{title_of(version)} is another hospital's; only {version.package.site} can release it, not {site_id}"
        )
    if version.state != VersionState.DRAFT:
        raise WrongStateError(f"{title_of(version)} is {version.state} already")


def release(
    session: Session,
    principal: Principal,
    version: PackageVersion,
    judgement: Judgement,
    override_reason: str | None,
) -> None:
    """Offer a draft to other hospitals, if the judgement of what is stored allows it.

    A failed verdict needs `override_reason`, which is kept and shown; artefacts that were altered or are missing
    raise PrivacyGateError whatever the reason. Of two who release at once, the second gets WrongStateError.
    """
    if judgement.altered:
        _refuse_release(version, judgement.altered)
    if not judgement.passed and override_reason is None:
        _refuse_release(version, judgement.reasons)
    override = None if judgement.passed else override_reason
    done = repository.change_state(
        session,
        version,
        VersionState.DRAFT,
        state=VersionState.RELEASED.value,
        verdict=judgement.verdict,
        released_at=now(),
        released_by=principal.username,
        override_reason=override,
    )
    if not done:
        raise WrongStateError(f"{title_of(version)} was released or changed by somebody else")
    detail: dict[str, Any] = {"digest": version.digest, "verdict": judgement.verdict}
    if override is not None:
        detail |= {"override_reason": override, "reasons": list(judgement.reasons)}
    audit.record(session, principal.actor, "package.release", title_of(version), detail=detail)


def judge_and_release(
    resources: Resources,
    principal: Principal,
    which: tuple[str, str, str],
    override_reason: str | None,
) -> None:
    """Release the draft `which` (site, name, version), or refuse as `require_draft` and `release` do.

    Takes transactions of its own: what the store holds is read whole and judged between them.
    """
    own = resources.settings.site_id
    with resources.reading() as session:
        found = read_version(session, principal, own, *which)
        files = files_of(session, found)
    require_draft(found, own)
    judgement = judge(resources, found, files)
    with resources.transaction() as session:
        release(session, principal, found, judgement, override_reason)


def yank(session: Session, principal: Principal, version: PackageVersion, reason: str) -> None:
    """Take a released version back: peers get its files no more, and see the reason. There is no way back."""
    done = repository.change_state(
        session,
        version,
        VersionState.RELEASED,
        state=VersionState.YANKED.value,
        yanked_at=now(),
        yanked_by=principal.username,
        yank_reason=reason,
    )
    if not done:
        raise WrongStateError(
            f"{title_of(version)} is {version.state}; only a released version can be taken back"
        )
    detail = {"digest": version.digest, "reason": reason}
    audit.record(session, principal.actor, "package.yank", title_of(version), detail=detail)


def _refuse_release(version: PackageVersion, reasons: Sequence[str]) -> NoReturn:
    raise PrivacyGateError(
        f"{title_of(version)} may not be released: {'; '.join(reasons[:3])}", reasons=list(reasons)
    )


# ------------------------------------------------------------------------------------------ handing out


def require_offered(principal: Principal, version: PackageVersion) -> None:
    """Raise YankedError where a peer asks for the bytes of a version that was taken back."""
    if principal.role is Role.PEER and version.state == VersionState.YANKED:
        raise YankedError(
            f"{title_of(version)} was taken back on {version.yanked_at:%Y-%m-%d}: {version.yank_reason}"
        )


@dataclass(frozen=True, slots=True)
class Reports:
    """What a version's own reports say in short."""

    privacy: dict[str, Any]  # privacy.json
    judgement: Judgement  # of that, under this site's policy
    evaluation: list[dict[str, Any]]  # the summary in evaluation.json
    evaluated: dict[str, Any]  # the whole of evaluation.json


def read_reports(store: ObjectStore, files: Sequence[PackageFile]) -> Reports:
    """Return what the reports of a version say; StoreError where they cannot be read whole."""
    digests = {file.path: file.sha256 for file in files}
    privacy, evaluation = (
        read_all(store, digests[path], limit=canonical.MAX_JSON_BYTES)
        for path in (manifests.PRIVACY, manifests.EVALUATION)
    )
    evaluated = canonical.parse(evaluation, name=manifests.EVALUATION)
    return Reports(
        privacy=canonical.parse(privacy, name=manifests.PRIVACY),
        judgement=judge_report(privacy),
        evaluation=evaluated["summary"],
        evaluated=evaluated,
    )


def images_by_class(
    store: ObjectStore, version: PackageVersion, files: Sequence[PackageFile]
) -> dict[str, list[int]]:
    """Return the numbers of a version's images by class, in the manifest's order; StoreError where nothing is stored.

    Only their labels are read. A package is verified before it is here, so that each number has its preview.
    """
    digest = next(file.sha256 for file in files if file.path == manifests.TENSORS)
    labels = read_labels(
        lambda start, length: b"".join(store.read(digest, start=start, length=length))
    )
    return {
        name: [number for number, label in enumerate(labels) if label == place]
        for place, name in enumerate(version.classes)
    }


def source_of(session: Session, version: PackageVersion) -> UUID | None:
    """Return the source dataset of the job that made a version, if one did."""
    return session.scalar(select(Job.dataset_id).where(Job.id == version.job_id))


def find_file(session: Session, version: PackageVersion, path: str) -> PackageFile:
    """Return one file of a version; NotFoundError where there is none of that path."""
    file = session.get(PackageFile, (version.id, path))
    if file is None:
        raise NotFoundError(f"{title_of(version)} has no file {path[:200]!r}")
    return file


def note_download(
    session: Session,
    principal: Principal,
    version: PackageVersion,
    part: Mapping[str, Any],
    *,
    refused: bool = False,
) -> None:
    """Record that somebody takes, or was refused, bytes of a version: `part` says of which file, and which bytes."""
    audit.record(
        session,
        principal.actor,
        "package.download",
        title_of(version),
        outcome="refused" if refused else "done",
        detail=part,
    )


# ------------------------------------------------------------------------------------------ reading


def split_name(text: str) -> tuple[str, str, str]:
    """Return site, name and version of `site/name@version`; NotFoundError where the text is none."""
    full, at, version = text.partition("@")
    site, slash, name = full.partition("/")
    if not (site and slash and name and at and version) or "/" in name:
        raise NotFoundError(f"a package version is written site/name@version, got {text[:200]!r}")
    return site, name, version


def find_version(session: Session, site: str, name: str, version: str) -> PackageVersion:
    """Return one version, for the node's own use; NotFoundError if there is none."""
    return _found(session, site, name, version, repository.visible(None))


def read_version(
    session: Session, principal: Principal, site_id: str, site: str, name: str, version: str
) -> PackageVersion:
    """Return one version that the caller may see; NotFoundError if there is none."""
    return _found(session, site, name, version, visible_to(principal, site_id))


def files_of(session: Session, version: PackageVersion) -> Sequence[PackageFile]:
    """Return the files of a version by path."""
    return repository.list_files(session, version.id)


def visible_to(principal: Principal, site_id: str) -> ColumnElement[bool]:
    """Return which versions the caller may see: a peer only those that this site has released or yanked."""
    return repository.visible(_peers_site(principal, site_id))


def title_of(version: PackageVersion) -> str:
    """Return `site/name@version`."""
    return f"{version.package.site}/{version.package.name}@{version.version}"


def list_packages(
    session: Session,
    principal: Principal,
    site_id: str,
    search: Search,
    *,
    cursor: str | None,
    limit: int,
) -> tuple[Sequence[AnyRow], str | None]:
    """Return a page of packages that the caller may see, each with its newest matching version; and a cursor.

    The rows have the columns of `repository.summaries`: what a list shows, and no manifest.
    """
    pages = repository.summaries(search, _peers_site(principal, site_id))
    return pages.read(session, cursor=cursor, limit=limit)


def oldest_drafts(session: Session, limit: int) -> Sequence[AnyRow]:
    """Return the drafts that wait longest, each with its package's `site` and `name`. For people of this node."""
    return repository.oldest_drafts(session, limit)


def expiring(session: Session, today: date, limit: int) -> Sequence[AnyRow]:
    """Return versions in use whose last day of use comes within EXPIRING, or is past no longer than so."""
    first, last = today - EXPIRING, today + EXPIRING
    return repository.expiring(session, first.isoformat(), last.isoformat(), limit)


def list_versions(
    session: Session, principal: Principal, site_id: str, site: str, name: str
) -> Sequence[PackageVersion]:
    """Return the versions of a package that the caller may see, newest first; NotFoundError if there are none."""
    found = repository.list_versions(session, site, name, visible_to(principal, site_id))
    if not found:
        raise NotFoundError(f"there is no package {site}/{name} here")
    return found


def _peers_site(principal: Principal, site_id: str) -> str | None:
    """Return the site whose releases are all that the caller may see; None for people of this node."""
    return site_id if principal.role is Role.PEER else None


def _found(
    session: Session, site: str, name: str, version: str, seen: ColumnElement[bool]
) -> PackageVersion:
    found = repository.find_version(session, site, name, version, seen)
    if found is None:
        raise NotFoundError(f"there is no version {site}/{name}@{version} here")
    return found
