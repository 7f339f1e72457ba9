"""Tables of detectors and of how well they did."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from services.kit.db import Row


class Detector(Row):
    """A trained network: where its two files lie in the store, and what it learned from."""

    __tablename__ = "detectors"

    name: Mapped[str] = mapped_column(String(100), unique=True)  # slug
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)  # training, ready, failed, removed
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
