"""What the routes of datasets take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.datasets.models import SourceDataset
from services.datasets.service import State

PLAIN = r"^[^\x00-\x1f\x7f]*$"  # no control characters, so no NUL either, which no database keeps

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$", max_length=100),
    Field(description="Lower-case letters and digits, with `.`, `_` or `-` between them."),
]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200, pattern=PLAIN),
    Field(description="For people; the name where absent."),
]
Column = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PLAIN)]
Value = Annotated[str, StringConstraints(max_length=1000, pattern=PLAIN)]


class RegisterIn(BaseModel):
    """A dataset that lies below a data root."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "covid-radiography", "path": "COVID-19_Radiography_Dataset"},
                {
                    "name": "hospital-a",
                    "title": "Hospital A, 2019 to 2021",
                    "root": 0,
                    "path": "multicentre/manifest.csv",
                    "rows": {"hospital": "a"},
                },
            ]
        },
    )

    name: Name
    title: Title = ""
    path: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=PLAIN)] = Field(
        description="A folder of class folders, a ZIP of one, or a CSV manifest: relative to a data root (`.` is the "
        "root itself), or absolute below one."
    )
    root: int | None = Field(
        None, ge=0, le=1000, description="Number of the data root; absent: the first that has it."
    )
    rows: dict[Column, Value] = Field(
        default_factory=dict,
        max_length=16,
        description="Take only rows of the manifest that have this value in this column; all must hold.",
    )


class CandidateOut(BaseModel):
    """Something that could be registered."""

    model_config = ConfigDict(from_attributes=True)

    path: str = Field(description="To be sent as `path`, with the root's number as `root`.")
    kind: str = Field(description="`folder`, `zip` or `csv`.")


class RootOut(BaseModel):
    """One data root, as the settings name them."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    name: str
    available: bool = Field(description="False where the folder is not there or cannot be read.")
    candidates: list[CandidateOut] = Field(
        description="What lies directly below it; deeper ones can be registered too."
    )
    more: bool = Field(description="Whether there are more than are listed.")


class RootsOut(BaseModel):
    """The data roots of this node."""

    items: list[RootOut]


class Grey(BaseModel):
    """Grey levels, 0 to 255."""

    mean: float
    sd: float


class GreyHistogram(Grey):
    """Grey levels of all pixels; `histogram` counts each of the 256."""

    histogram: list[int]


class FindingOut(BaseModel):
    """One thing worth knowing about a dataset."""

    code: str = Field(examples=["duplicates"])
    severity: str = Field(description="`error`, `warning` or `note`.")
    message: str
    advice: str
    count: int = Field(description="How many files, patients or classes it concerns.")


class FindingsOut(BaseModel):
    """What the last check found. Names of files and patients are not kept; `ppdd dataset check` on site shows them."""

    refusal: str | None = Field(description="Why the dataset cannot be read at all, or null.")
    images: int = 0
    patients: int | None = Field(None, description="null where no patient is known.")
    patients_by_split: dict[str, int] = {}
    classes: dict[str, int] = Field({}, description="Readable images.")
    splits: dict[str, dict[str, int]] = Field({}, description="Images by split and class.")
    unreadable: dict[str, int] = Field({}, description="Files left out, by class.")
    unreadable_reasons: dict[str, int] = {}
    masks_left_out: int = 0
    passed_over: dict[str, int] = {}
    sizes: dict[str, dict[str, int]] = Field({}, description="Of the originals.")
    grey: GreyHistogram | None = None
    grey_by_class: dict[str, Grey] = {}
    findings: list[FindingOut] = []


class DatasetOut(BaseModel):
    """A source dataset of this hospital."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    title: str
    owner_id: UUID
    created_at: datetime
    state: State = Field(
        description="`registered` until a check made it `ready` or `faulty`; then perhaps `removed`."
    )
    path: str | None = Field(description="Where it lies below a data root; null for an upload.")
    upload_sha256: str | None
    upload_size: int | None
    rows: dict[str, str]
    checked_at: datetime | None
    image_size: int | None
    fingerprint: str | None = Field(
        description="sha256 over pixels, labels, patients and splits, as they were checked."
    )
    images: int | None = Field(None, description="Readable images; null before a check.")
    classes: dict[str, int] | None = Field(None, description="Of them in each class.")

    @classmethod
    def of(cls, row: SourceDataset) -> Self:
        """Return what is shown of a row."""
        shown = cls.model_validate(row)
        found: dict[str, Any] = row.findings or {}
        return shown.model_copy(
            update={"images": found.get("images"), "classes": found.get("classes")}
        )


class DatasetDetail(DatasetOut):
    """A source dataset with what its last check found."""

    findings: FindingsOut | None = Field(description="null before a check.")


class ThumbnailOut(BaseModel):
    """Where one small picture is."""

    number: int
    href: str


class ClassThumbnails(BaseModel):
    """The pictures of one class."""

    label: str
    thumbnails: list[ThumbnailOut]


class ThumbnailsOut(BaseModel):
    """The pictures of a dataset, by class."""

    items: list[ClassThumbnails]
