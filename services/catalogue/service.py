"""Rules of packages: adding versions, judging and releasing them, taking them back. Nothing here commits.

A version of this site is `draft → released → yanked`, and there is no way back. One of another site is `held`: people
here may use it, and it is not ours to offer. What is in a version never changes; its bytes lie in the store by digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.audit import service as audit
from services.audit.actor import SYSTEM, Actor
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.catalogue import repository
from services.catalogue.contents import POLICY, StoredFile, StoredPackage, store_package
from services.catalogue.models import Origin, Package, PackageFile, PackageVersion, VersionState
from services.catalogue.repository import Search
from services.kit import holds
from services.kit.problems import ConflictError, NotFoundError

__all__ = [
    "POLICY",
    "AlreadyPublishedError",
    "Search",
    "StoredFile",
    "StoredPackage",
    "add_version",
    "store_package",
]


class AlreadyPublishedError(ConflictError):
    """This version exists with other content, and versions never change."""

    slug, title = "already-published", "This version exists already"


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
    holds.release(session, contents.holder)
    known = _known(session, contents)
    if known is not None:
        return known
    package = _package(session, contents)
    if not contents.ours and not contents.pinned:
        _require_known_key(session, contents)
    version = _new_version(contents, package)
    version.origin = Origin(origin).value
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
        return known
    detail = {
        "origin": version.origin,
        "state": version.state,
        "digest": version.digest,
        "key": version.key,
    }
    audit.record(session, actor, "package.add", contents.title, detail=detail)
    return version


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
    return repository.visible(site_id if principal.role is Role.PEER else None)


def _found(
    session: Session, site: str, name: str, version: str, seen: ColumnElement[bool]
) -> PackageVersion:
    found = repository.find_version(session, site, name, version, seen)
    if found is None:
        raise NotFoundError(f"there is no version {site}/{name}@{version} here")
    return found
