"""Queries of the catalogue. `visible` decides what a caller may see; every query for callers goes through it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    exists,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session, aliased, contains_eager, defer

from services.catalogue.models import Package, PackageFile, PackageVersion, VersionState
from services.kit.keyset import AnyRow, Pages

# What a list shows of a version, and no more: the fields of a `VersionSummary`, in their order.
_SHOWN = (
    "version", "state", "origin", "digest", "key", "site_name", "classes", "images_per_class", "image_size",
    "archive_sha256", "archive_size", "verdict", "created_at", "released_at", "yanked_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a list is narrowed to; empty fields narrow nothing."""

    q: str = ""  # part of `site/name` or of the hospital's name
    site: str | None = None
    state: str | None = None
    origin: str | None = None
    label: str | None = None  # a class that the version holds


def visible(peers_site: str | None) -> ColumnElement[bool]:
    """Return which versions may be seen: all of them, or, by a peer of `peers_site`, what that site has released."""
    if peers_site is None:
        return true()
    offered = (VersionState.RELEASED.value, VersionState.YANKED.value)
    return and_(Package.site == peers_site, PackageVersion.state.in_(offered))


@functools.lru_cache(maxsize=64)
def summaries(search: Search, peers_site: str | None) -> Pages:
    """Return the packages that have a version of that kind, which the caller may see (`visible`), newest package first.

    Columns: the package's id, site and name, then `_SHOWN` of the matching version that was added last. That one is
    looked for package by package, so that a page costs the same wherever it lies.
    """
    newest = aliased(PackageVersion)
    last = (
        select(PackageVersion.id)
        .where(PackageVersion.package_id == Package.id, visible(peers_site), *_conditions(search))
        .order_by(PackageVersion.id.desc())
        .limit(1)
        .correlate(Package)
        .scalar_subquery()
    )
    statement = select(Package.id, Package.site, Package.name, *_shown(newest)).join(
        newest, newest.id == last
    )
    if search.q:
        statement = statement.where(_named_like(search.q))
    if search.site is not None:
        statement = statement.where(Package.site == search.site)
    return Pages.of(statement, Package.id)


def oldest_drafts(session: Session, limit: int) -> Sequence[AnyRow]:
    """Return the drafts that were added first, in that order: what lists show of a version, and its package's name."""
    return session.execute(
        select(*_shown(PackageVersion), Package.site, Package.name)
        .join(Package, Package.id == PackageVersion.package_id)
        .where(PackageVersion.state == VersionState.DRAFT.value)
        .order_by(PackageVersion.id)
        .limit(limit)
    ).all()


def expiring(session: Session, first: str, last: str, limit: int) -> Sequence[AnyRow]:
    """Return the versions in use whose last day of use lies between two days (as text), the next first."""
    expires = PackageVersion.manifest["usage"]["expires"].as_string()
    in_use = (VersionState.DRAFT.value, VersionState.RELEASED.value, VersionState.HELD.value)
    return session.execute(
        select(Package.site, Package.name, PackageVersion.version, expires.label("expires"))
        .join(Package, Package.id == PackageVersion.package_id)
        .where(PackageVersion.state.in_(in_use), expires.between(first, last))
        .order_by(expires, PackageVersion.id)
        .limit(limit)
    ).all()


def list_versions(
    session: Session, site: str, name: str, seen: ColumnElement[bool]
) -> Sequence[PackageVersion]:
    """Return the versions of one package, the one added last first; without manifests."""
    statement = _versions().where(Package.site == site, Package.name == name, seen)
    return session.scalars(statement.order_by(PackageVersion.id.desc())).all()


def find_version(
    session: Session, site: str, name: str, version: str, seen: ColumnElement[bool]
) -> PackageVersion | None:
    """Return one version with its manifest, or None."""
    return session.scalar(
        select(PackageVersion)
        .join(PackageVersion.package)
        .options(contains_eager(PackageVersion.package))
        .where(Package.site == site, Package.name == name, PackageVersion.version == version, seen)
        .execution_options(populate_existing=True)
    )


def find_package(session: Session, site: str, name: str) -> Package | None:
    """Return the package, or None."""
    return session.scalar(select(Package).where(Package.site == site, Package.name == name))


def other_keys(session: Session, site: str, key: str) -> Sequence[str]:
    """Return the keys, other than `key`, that versions of that site here were signed with."""
    return session.scalars(
        select(PackageVersion.key)
        .join(Package, Package.id == PackageVersion.package_id)
        .where(Package.site == site, PackageVersion.key != key)
        .distinct()
    ).all()


def list_files(session: Session, version_id: UUID) -> Sequence[PackageFile]:
    """Return the files of a version by path."""
    return session.scalars(
        select(PackageFile).where(PackageFile.version_id == version_id).order_by(PackageFile.path)
    ).all()


def change_state(
    session: Session, version: PackageVersion, wanted: VersionState, **values: Any
) -> bool:
    """Set `values` if the version is still in the state `wanted`, in one UPDATE; return whether it was."""
    done: Any = session.execute(
        update(PackageVersion)
        .where(
            PackageVersion.id == version.id,
            PackageVersion.state == wanted.value,
            PackageVersion.digest == version.digest,
        )
        .values(values),
        execution_options={"synchronize_session": False},
    )
    return bool(done.rowcount == 1)


def _shown(version: type[PackageVersion]) -> list[ColumnElement[Any]]:
    """Return columns, because objects of 25 of them take several times as long."""
    return [getattr(version, name) for name in _SHOWN]


def _versions() -> Select[PackageVersion]:
    return (
        select(PackageVersion)
        .join(PackageVersion.package)
        .options(contains_eager(PackageVersion.package), defer(PackageVersion.manifest))
    )


def _conditions(search: Search) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if search.state is not None:
        conditions.append(PackageVersion.state == search.state)
    if search.origin is not None:
        conditions.append(PackageVersion.origin == search.origin)
    if search.label is not None:
        conditions.append(_holds_class(search.label))
    return conditions


def _named_like(text: str) -> ColumnElement[bool]:
    full = Package.site + "/" + Package.name
    by_hospital = exists().where(
        PackageVersion.package_id == Package.id,
        PackageVersion.site_name.icontains(text, autoescape=True),
    )
    return or_(full.icontains(text, autoescape=True), by_hospital.correlate(Package))


def _holds_class(label: str) -> ColumnElement[bool]:
    """Return whether the class is in the JSON list; SQLite keeps text beyond ASCII escaped, PostgreSQL does not."""
    text = cast(PackageVersion.classes, Text)
    return or_(
        text.contains(json.dumps(label), autoescape=True),
        text.contains(json.dumps(label, ensure_ascii=False), autoescape=True),
    )
