"""Shapes of jobs on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StringConstraints,
)

from ppdd_core.package.manifest import Usage
from services.jobs.models import Kind, State
from services.jobs.reading import Detail
from services.jobs.submit import Identity, Work
from services.kit.keyset import AnyRow, as_dicts

Preset = Literal["quick", "small", "paper", "fast"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Whole = Annotated[StrictInt, Field(ge=-(2**53) + 1, le=2**53 - 1)]
Number = Whole | Annotated[StrictFloat, Field(allow_inf_nan=False)]

# Where jobs of the other kinds are made.
ELSEWHERE = {
    Kind.TRAIN.value: "POST /detectors",
    Kind.EVALUATE.value: "POST /detectors/{id}/evaluations",
    Kind.PREDICT.value: "POST /detectors/{id}/predictions",
    Kind.PULL.value: "POST /pulls",
    Kind.ESTIMATE.value: "POST /jobs/estimate",
}


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PackageIn(_Input):
    """What the package will be called, and what others may do with it."""

    name: Name = Field(description="Without the site, which is put before it.", examples=["chest"])
    version: Name = Field(description="A semantic version, never used before.", examples=["1.0.0"])
    licence: Name = Field(
        description="SPDX id, or the hospital's own words.", examples=["CC-BY-NC-4.0"]
    )
    purposes: list[Name] = Field(
        min_length=1,
        max_length=30,
        description="Codes of the Data Use Ontology.",
        examples=[["DUO:0000006"]],
    )
    terms_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="Of the text of the terms, in UTF-8."
    )
    expires: date | None = Field(None, description="Last day of use.")

    def identity(self) -> Identity:
        """Return the same as the rules take it."""
        usage = Usage(
            licence=self.licence,
            purposes=tuple(self.purposes),
            terms_sha256=self.terms_sha256,
            expires=self.expires.isoformat() if self.expires else None,
        )
        return Identity(name=self.name, version=self.version, usage=usage)


class _WorkIn(_Input):
    dataset: Name = Field(description="Name or id of a source dataset.", examples=["chest-2024"])
    preset: Preset = Field(description="Where the recipe starts; see `GET /jobs/presets`.")
    images_per_class: int = Field(ge=1, le=4_500, examples=[10])
    settings: dict[Name, Number | Name] = Field(
        default_factory=dict,
        max_length=100,
        description="Recipe fields other than the preset's, by dotted name.",
        examples=[{"distill.iterations": 500}],
    )
    test_rows: dict[Name, Name] = Field(
        default_factory=dict,
        max_length=20,
        description="Rows of the dataset's table, column = value, that are kept for the test.",
    )
    seed: int = Field(0, ge=0, lt=2**31)

    def work(self) -> Work:
        """Return the same as the rules take it."""
        return Work(
            dataset=self.dataset,
            preset=self.preset,
            images_per_class=self.images_per_class,
            settings=self.settings,
            test_rows=self.test_rows,
            seed=self.seed,
        )


class DistillIn(_WorkIn):
    """Distil a dataset into a package."""

    kind: Literal["distill"]
    package: PackageIn


class EstimateIn(_WorkIn):
    """What a distillation would take; the body of that job will do."""

    kind: Literal["distill"] = "distill"
    package: PackageIn | None = Field(None, description="Does not matter here.")


class CheckIn(_Input):
    """Check a dataset."""

    kind: Literal["check"]
    dataset: Name = Field(description="Name or id of a source dataset.", examples=["chest-2024"])
    image_size: int = Field(112, ge=8, le=512, description="At which its images are looked at.")


def _not_elsewhere(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind in ELSEWHERE:
        raise ValueError(f"jobs of kind {kind} are made by {ELSEWHERE[kind]}")
    return value


JobIn = Annotated[DistillIn | CheckIn, Discriminator("kind"), BeforeValidator(_not_elsewhere)]


class ProgressOut(BaseModel):
    """Where a job is."""

    model_config = ConfigDict(extra="allow")

    stage: str = ""
    done: float = 0
    total: float = 0
    eta_seconds: float | None = Field(None, description="Left of this stage.")
    note: str = ""


class JobSummary(BaseModel):
    """A job as a list shows it."""

    id: UUID
    kind: Kind
    state: State
    title: str
    owner: str
    dataset: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancelling: bool = Field(description="Asked to stop, and still running.")
    progress: ProgressOut | None = Field(description="In a list: null once the job has ended.")


class AttemptOut(BaseModel):
    """One time that a worker took a job."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    worker: str
    created_at: datetime
    ended_at: datetime | None
    outcome: str | None = Field(description="succeeded, failed, cancelled, lost or stopped.")
    exit_code: int | None
    detail: str | None


class PartOut(BaseModel):
    """One teacher of a distillation."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    state: State
    attempts: int
    worker: str | None = Field(validation_alias="lease_owner")
    error: str | None


class JobErrorOut(BaseModel):
    """Why a job failed, or why it waits to be tried again."""

    model_config = ConfigDict(extra="allow")

    slug: str
    detail: str
    resumable: bool = True


class JobOut(JobSummary):
    """A job with everything that is known of it."""

    spec: dict[str, Any] = Field(description="What is to be done, with the whole recipe.")
    attempts: int = Field(description="Used up since it was made or resumed.")
    max_attempts: int
    retry_at: datetime | None = Field(description="It is not tried again before.")
    position: int | None = Field(description="In the queue, 1 is next; null unless queued.")
    eta_seconds: float | None = Field(description="Left of the whole job, as far as is known.")
    estimate: dict[str, Any] | None
    actual: dict[str, Any] | None
    result: dict[str, Any] | None
    error: JobErrorOut | None
    history: list[AttemptOut]
    parts: list[PartOut]

    @classmethod
    def of_detail(cls, detail: Detail) -> JobOut:
        """Return everything that is known of a job."""
        job = detail.job
        return cls(
            id=job.id,
            kind=Kind(job.kind),
            state=State(job.state),
            title=job.title,
            owner=detail.owner,
            dataset=detail.dataset,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            cancelling=job.state == State.RUNNING.value and job.cancel_requested_at is not None,
            progress=None if job.progress is None else ProgressOut.model_validate(job.progress),
            spec=job.spec,
            attempts=job.attempts,
            max_attempts=job.max_attempts,
            retry_at=job.retry_at,
            position=detail.position,
            eta_seconds=detail.eta_seconds,
            estimate=job.estimate,
            actual=job.actual,
            result=job.result,
            error=None if job.error is None else JobErrorOut.model_validate(job.error),
            history=[AttemptOut.model_validate(attempt) for attempt in detail.attempts],
            parts=[PartOut.model_validate(part) for part in detail.parts],
        )


class EventOut(BaseModel):
    """Something that happened to a job."""

    id: int
    at: datetime
    kind: Literal["state", "progress"]
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events in their order; `next` is the `after` of the page that follows, null where there is none yet."""

    items: list[EventOut]
    next: int | None


class LineOut(BaseModel):
    """A line that a job wrote."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    attempt: int
    at: datetime
    text: str


class LogPage(BaseModel):
    """Lines in their order; `next` is the `after` of the page that follows, null where there is none yet."""

    items: list[LineOut]
    next: int | None


class PictureOut(BaseModel):
    """Where one picture of a job is, and what it shows."""

    kind: Literal["step", "neighbour"] = Field(
        description="`step`: distilled images after `number` steps. `neighbour`: the real image most like distilled "
        "image `number`."
    )
    number: int
    label: str = Field(description="The class of a real image.")
    caption: dict[str, Any] = Field(
        description="`iteration` and `of`; or `image`, `ssim` and `image_label`.",
        examples=[{"image": 3, "ssim": 0.41, "image_label": "COVID"}],
    )
    created_at: datetime
    href: str


class PictureList(BaseModel):
    """The pictures of a job, by kind and number."""

    items: list[PictureOut]


class RecipeField(BaseModel):
    """One field of a recipe; `default` is the preset's value at these images per class."""

    name: str = Field(examples=["distill.iterations"])
    type: Literal["int", "float", "str"]
    default: int | float | str
    choices: list[str] | None = Field(description="The values there are, where they are few.")


class PresetOut(BaseModel):
    """A named recipe: where settings start from."""

    name: Preset
    summary: str
    recipe: dict[str, Any]
    fields: list[RecipeField]


class PresetList(BaseModel):
    """The presets at some number of images per class."""

    images_per_class: int
    items: list[PresetOut]


def summaries(rows: Sequence[AnyRow]) -> list[dict[str, Any]]:
    """Return what `reading.list_jobs` found as the fields of `JobSummary`, ready to be written."""
    items = as_dicts(rows)
    for item in items:
        if item["progress"] is not None:
            item["progress"] = ProgressOut.model_validate(item["progress"])
    return items
