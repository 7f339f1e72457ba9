"""What the node says of itself, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

Counts = dict[str, int]


class Live(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class PartState(BaseModel):
    """One thing the node needs."""

    ok: bool
    fault: str | None = Field(
        None, description="What is wrong, in words; only for callers who are logged in."
    )


class Readiness(BaseModel):
    """Whether the node can serve, and how each part of it is."""

    ready: bool = Field(description="Whether requests can be served: database and store answer.")
    parts: dict[str, PartState] = Field(
        description="`database`, `store`, `broker` and `worker`. Without the last two jobs wait, nothing is lost."
    )


class Site(BaseModel):
    """This hospital."""

    id: str
    name: str
    key: str = Field(description="Fingerprint of the key that signs this site's packages.")


class Versions(BaseModel):
    """What runs here."""

    software: str
    database: str | None = Field(description="Revision of the database's tables.")
    package_format: int
    python: str


class Capabilities(BaseModel):
    """What this node does, and how much of it at once."""

    api: list[str]
    jobs: list[str]
    embedded: bool = Field(description="Database, store and broker in one folder, on one machine.")
    upload_bytes: int
    image_bytes: int
    package_bytes: int


class WorkerState(BaseModel):
    """A worker process that lives."""

    name: str
    device: str
    version: str
    started_at: datetime
    seen_at: datetime
    free_disk_bytes: int
    job_id: UUID | None


class Info(BaseModel):
    """What this node is, and what it holds."""

    site: Site
    versions: Versions
    capabilities: Capabilities
    workers: list[WorkerState]
    jobs: Counts = Field(description="How many, by state.")
    packages: Counts = Field(description="Versions, by state.")
    datasets: Counts = Field(description="How many, by state.")
    detectors: Counts = Field(description="How many, by state.")


class WellKnown(BaseModel):
    """Who this node is, for other hospitals."""

    site_id: str
    site_name: str
    key: str = Field(description="Fingerprint of the key that signs this site's packages.")
    api: list[str] = Field(description="Where its API is, by version.")
    software: str


class ProblemPage(BaseModel):
    """What a kind of problem means, and what to do about it."""

    slug: str
    title: str
    status: int
    meaning: str
    advice: str
