"""Tables of packages, their versions and files, and of what the store holds."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from services.kit.db import Base, Row


class VersionState(StrEnum):
    """Where a version is; there is no way back."""

    DRAFT = "draft"
    RELEASED = "released"
    YANKED = "yanked"
    HELD = "held"  # another hospital's: used here, and not ours to release or yank


class Origin(StrEnum):
    """How a version came here."""

    MADE = "made"  # by a job of this node
    IMPORTED = "imported"  # from a file
    PULLED = "pulled"  # from another node


class Package(Row):
    """`site/name`: what versions are versions of."""

    __tablename__ = "packages"
    __table_args__ = (UniqueConstraint("site", "name"),)

    site: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))


class PackageVersion(Row):
    """One immutable version. Only its state, and who decided it, ever changes."""

    __tablename__ = "package_versions"
    __table_args__ = (
        UniqueConstraint("package_id", "version"),
        Index("ix_package_versions_state_id", "state", "id"),
    )

    package_id: Mapped[UUID] = mapped_column(ForeignKey("packages.id"), index=True)
    version: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), index=True)  # sha256 of manifest.json
    key: Mapped[str] = mapped_column(String(64))  # fingerprint of the signer
    site_name: Mapped[str] = mapped_column(String(200))
    manifest: Mapped[dict[str, Any]]
    classes: Mapped[list[str]]  # of the manifest, which lists need not read
    images_per_class: Mapped[int]
    image_size: Mapped[int]
    archive_sha256: Mapped[str] = mapped_column(String(64), index=True)
    archive_size: Mapped[int] = mapped_column(BigInteger)
    verdict: Mapped[str] = mapped_column(
        String(16)
    )  # of the privacy report, under this site's policy: passed, failed
    origin: Mapped[str] = mapped_column(String(16))
    origin_url: Mapped[str | None] = mapped_column(String(500))
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    released_at: Mapped[datetime | None]
    released_by: Mapped[str | None] = mapped_column(String(200))
    override_reason: Mapped[str | None] = mapped_column(Text)  # why a failed verdict was set aside
    yanked_at: Mapped[datetime | None]
    yanked_by: Mapped[str | None] = mapped_column(String(200))
    yank_reason: Mapped[str | None] = mapped_column(Text)

    package: Mapped[Package] = relationship(lazy="raise")


class PackageFile(Base):
    """One file of a version: its path, and the object that holds it."""

    __tablename__ = "package_files"

    version_id: Mapped[UUID] = mapped_column(ForeignKey("package_versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))
