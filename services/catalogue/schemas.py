"""Shapes of packages in requests and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from services.catalogue.gate import Judgement
from services.catalogue.models import Origin, PackageFile, PackageVersion, VersionState
from services.kit.keyset import AnyRow, as_dicts


class VersionSummary(BaseModel):
    """One version, as lists show it."""

    version: str = Field(examples=["1.0.0"])
    state: VersionState
    origin: Origin
    digest: str = Field(description="sha256 of its manifest.json.")
    key: str = Field(description="Fingerprint of the key that signed it.")
    site_name: str
    classes: list[str] = Field(examples=[["COVID", "Normal"]])
    images_per_class: int
    image_size: int
    archive_sha256: str
    archive_size: int = Field(description="Bytes.")
    verdict: Literal["passed", "failed"] = Field(
        description="Of the privacy report, under this site's policy."
    )
    created_at: datetime = Field(description="When it came here.")
    released_at: datetime | None
    yanked_at: datetime | None

    @classmethod
    def of(cls, row: PackageVersion) -> VersionSummary:
        """Return what a list shows of a row."""
        return cls(**_shared(row))


class PackageSummary(BaseModel):
    """One package, with the newest of the versions that were asked for."""

    site: str = Field(examples=["hospital-a"])
    name: str = Field(examples=["cxr"])
    newest: VersionSummary


class PackageDetail(BaseModel):
    """One package and all its versions, newest first."""

    site: str
    name: str
    versions: list[VersionSummary]

    @classmethod
    def of(cls, site: str, name: str, rows: Sequence[PackageVersion]) -> PackageDetail:
        """Return the package that these versions are of."""
        return cls(site=site, name=name, versions=[VersionSummary.of(row) for row in rows])


class FileOut(BaseModel):
    """One file of a version."""

    path: str = Field(examples=["distilled.safetensors"])
    sha256: str
    size: int = Field(description="Bytes.")
    media_type: str


class Decision(BaseModel):
    """Who released or yanked a version, and why."""

    at: datetime
    by: str | None = Field(description="A username of this hospital; other hospitals are not told.")
    reason: str | None


class Lineage(BaseModel):
    """Where a version comes from."""

    origin: Origin
    origin_url: str | None = Field(description="Of the node that it was pulled from.")
    job_id: UUID | None = Field(description="The job that made or pulled it.")
    owner_id: UUID | None
    dataset_id: UUID | None = Field(description="The source dataset of the job.")


class PrivacySummary(BaseModel):
    """The privacy report in short; the whole of it is the file `privacy.json`."""

    verdict: Literal["passed", "failed"]
    said: str = Field(description="The verdict in words.")
    reasons: list[str]
    initialisation: str
    measurements: list[dict[str, Any]] = Field(
        description="Of each figure: name, title, value, interval, threshold, passed."
    )

    @classmethod
    def of(cls, report: Mapping[str, Any], judgement: Judgement) -> PrivacySummary:
        """Return a report in short, and what it deserves here."""
        passed = judgement.passed
        shown = ("name", "title", "value", "interval", "threshold", "passed")
        return cls(
            verdict="passed" if passed else "failed",
            said="Every figure lies within this site's limits."
            if passed
            else "At least one figure lies beyond this site's limits, or the report does not hold together.",
            reasons=[*judgement.altered, *judgement.reasons],
            initialisation=report["initialisation"],
            measurements=[{name: row[name] for name in shown} for row in report["measurements"]],
        )


class VersionDetail(VersionSummary):
    """One version in full."""

    site: str
    name: str
    manifest: dict[str, Any] = Field(description="The signed manifest.json.")
    privacy: PrivacySummary
    evaluation: list[dict[str, Any]] = Field(
        description="`summary` of evaluation.json: method, network, images per class, accuracy and more."
    )
    files: list[FileOut]
    lineage: Lineage | None = Field(description="Other hospitals are not told.")
    release: Decision | None = Field(
        description="`reason` where a failed privacy verdict was set aside."
    )
    yank: Decision | None

    @classmethod
    def build(
        cls,
        row: PackageVersion,
        files: Sequence[PackageFile],
        *,
        privacy: PrivacySummary,
        evaluation: list[dict[str, Any]],
        dataset_id: UUID | None,
        for_peer: bool,
    ) -> VersionDetail:
        """Return the version in full; a peer is not told who decided, or from which job and data it comes."""
        lineage = Lineage(
            origin=Origin(row.origin),
            origin_url=row.origin_url,
            job_id=row.job_id,
            owner_id=row.owner_id,
            dataset_id=dataset_id,
        )
        return cls(
            **_shared(row),
            site=row.package.site,
            name=row.package.name,
            manifest=row.manifest,
            privacy=privacy,
            evaluation=evaluation,
            files=[
                FileOut(
                    path=file.path, sha256=file.sha256, size=file.size, media_type=file.media_type
                )
                for file in files
            ],
            lineage=None if for_peer else lineage,
            release=_decision(row.released_at, row.released_by, row.override_reason, for_peer),
            yank=_decision(row.yanked_at, row.yanked_by, row.yank_reason, for_peer),
        )


class ReleaseIn(BaseModel):
    """What a release may need."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"override_reason": None}]}
    )

    override_reason: str | None = Field(
        None,
        min_length=10,
        max_length=2000,
        description="Why a failed privacy verdict is set aside; kept, audited and shown. Not needed where it passed.",
    )


class YankIn(BaseModel):
    """Why a version is taken back."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "two patients withdrew their consent"}]},
    )

    reason: str = Field(
        min_length=3, max_length=2000, description="Other hospitals read it; name no patients."
    )


def summaries(rows: Sequence[AnyRow]) -> list[dict[str, Any]]:
    """Return what `service.list_packages` found as the fields of `PackageSummary`, ready to be written."""
    newest = as_dicts(rows, first=3)  # after the package's id, site and name
    return [
        {"site": row.site, "name": row.name, "newest": version}
        for row, version in zip(rows, newest, strict=True)
    ]


def _shared(row: PackageVersion) -> dict[str, Any]:
    return {name: getattr(row, name) for name in VersionSummary.model_fields}


def _decision(
    at: datetime | None, by: str | None, reason: str | None, for_peer: bool
) -> Decision | None:
    return None if at is None else Decision(at=at, by=None if for_peer else by, reason=reason)
