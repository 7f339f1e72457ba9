"""Tables of source datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from services.kit.db import Base, Row


class SourceDataset(Row):
    """A folder, ZIP or CSV manifest of chest X-rays: under a data root, or uploaded into the store."""

    __tablename__ = "source_datasets"

    name: Mapped[str] = mapped_column(String(100), unique=True)  # slug
    title: Mapped[str] = mapped_column(String(200))
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    path: Mapped[str | None] = mapped_column(String(2000))  # absolute, under a data root
    upload_sha256: Mapped[str | None] = mapped_column(String(64), index=True)  # a ZIP in the store
    upload_size: Mapped[int | None] = mapped_column(BigInteger)
    rows: Mapped[dict[str, Any]]  # column = value: which rows of the manifest, as --where
    state: Mapped[str] = mapped_column(String(16), index=True)  # registered, ready, faulty, removed
    checked_at: Mapped[datetime | None]
    image_size: Mapped[int | None]  # at which it was checked
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    findings: Mapped[dict[str, Any] | None]  # Findings.to_dict without names of files and patients


class Thumbnail(Base):
    """One small picture of a real image. Who may see the images may see it, nobody else."""

    __tablename__ = "thumbnails"
    __table_args__ = (UniqueConstraint("dataset_id", "label", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(
        ForeignKey("source_datasets.id", ondelete="CASCADE"), index=True
    )
    label: Mapped[str] = mapped_column(String(200))
    number: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
