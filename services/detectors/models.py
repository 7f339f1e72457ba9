"""Tables of detectors, of how well they did, and of images that wait for a prediction."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from services.kit.db import Base, Row


class DetectorState(StrEnum):
    """How far a detector is. A row says `training`, `ready` or `removed`; the others are what its job says."""

    QUEUED = "queued"
    TRAINING = "training"
    FAILED = "failed"
    CANCELLED = "cancelled"
    READY = "ready"
    REMOVED = "removed"


class Detector(Row):
    """A trained network: where its two files lie in the store, and what it learned from."""

    __tablename__ = "detectors"
    __table_args__ = (
        Index(  # a removed detector keeps its row and gives its name free
            "uq_detectors_name", "name", unique=True,
            postgresql_where=text("state <> 'removed'"), sqlite_where=text("state <> 'removed'"),
        ),
    )  # fmt: skip

    name: Mapped[str] = mapped_column(String(100))  # slug
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    description_sha256: Mapped[str | None] = mapped_column(String(64), index=True)  # detector.json
    weights_sha256: Mapped[str | None] = mapped_column(
        String(64), index=True
    )  # weights.safetensors
    description: Mapped[dict[str, Any] | None]  # the content of detector.json


class Evaluation(Row):
    """How well a detector does on a source dataset of this hospital."""

    __tablename__ = "evaluations"

    detector_id: Mapped[UUID] = mapped_column(
        ForeignKey("detectors.id", ondelete="CASCADE"), index=True
    )
    dataset_id: Mapped[UUID] = mapped_column(ForeignKey("source_datasets.id"), index=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    metrics: Mapped[dict[str, Any]]


class PredictionImage(Base):
    """An uploaded image that a prediction has not been made of yet: sealed, and deleted when its job has ended."""

    __tablename__ = "prediction_images"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    sha256: Mapped[str] = mapped_column(String(64), index=True)  # of the sealed bytes
