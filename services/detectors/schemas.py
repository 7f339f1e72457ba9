"""What the routes of detectors take and give. Every answer about a detector says what it may be used for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ppdd_core.detector.use import DESCRIPTION, USE, WEIGHTS
from services.datasets.schemas import PLAIN, Column, Name, Value
from services.detectors.models import DetectorState, Evaluation
from services.detectors.service import Part, Training, View, packages_of
from services.jobs.models import Job, State

Reference = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PLAIN)]
PackageReference = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[A-Za-z0-9._+-]+$", max_length=240
    ),
]
Rows = Annotated[dict[Column, Value], Field(max_length=16)]
ClassMap = Annotated[dict[Reference, Reference], Field(max_length=200)]
Architecture = Literal["convnet", "alexnet", "vgg11", "resnet18"]
Interval = tuple[float, float]


class TrainIn(BaseModel):
    """A detector to train."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "two-hospitals", "packages": ["hospital-a/cxr@1.0.0", "hospital-b/cxr@2.1.0"]},
                {
                    "name": "with-our-own",
                    "packages": ["hospital-a/cxr@1.0.0"],
                    "local_dataset": "chest-2024",
                    "class_map": {"covid": "COVID"},
                    "seed": 3,
                },
            ]
        },
    )  # fmt: skip

    name: Name
    packages: list[PackageReference] = Field(
        min_length=1, max_length=32, description="Versions that this node holds: site/name@version."
    )
    allow_yanked: bool = Field(False, description="Also from versions that were taken back.")
    local_dataset: Reference | None = Field(
        None, description="Name or id of a source dataset whose training images join in."
    )
    local_rows: Rows = Field(
        default_factory=dict, description="Only rows of its manifest with these values."
    )
    class_map: ClassMap = Field(
        default_factory=dict,
        description="Class of a source → class of the detector. A class mapped to itself is kept apart from one whose "
        "name looks alike.",
    )
    net: Architecture | None = Field(
        None, description="Absent: what the packages were distilled for."
    )
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="Absent: as the first package was evaluated."
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Decides everything random, and which local images are kept for the test.",
    )

    def training(self) -> Training:
        """Return the same as a value of the service."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Training(**values | {"packages": tuple(self.packages)})


class EvaluateIn(BaseModel):
    """Local images to measure a detector on."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"dataset": "chest-2024", "split": "test"}]}
    )

    dataset: Reference = Field(description="Name or id of a source dataset.")
    rows: Rows = Field(
        default_factory=dict, description="Only rows of its manifest with these values."
    )
    split: Part = Field(
        "test",
        description="`test`: the patients that the detector's seed, or the manifest, holds out; `all`: every image.",
    )
    class_map: ClassMap = Field(
        default_factory=dict, description="Class of the dataset → class of the detector."
    )


class SourceOut(BaseModel):
    """One thing a detector learned from."""

    name: str = Field(description="site/name of a package, or `local images`.")
    version: str
    digest: str | None = Field(description="sha256 of the package's manifest; null until it is trained.")  # fmt: skip
    images: int | None
    classes: list[str] | None = Field(description="As the source names them.")


class NetOut(BaseModel):
    """A network."""

    architecture: str
    width: int = Field(description="Of a ConvNet: filters of every block.")
    depth: int = Field(description="Of a ConvNet: blocks.")


class EvaluationSummary(BaseModel):
    """One evaluation in short; intervals are Wilson's at 95 %."""

    id: UUID
    created_at: datetime
    job_id: UUID
    dataset_id: UUID
    dataset: str = Field(description="Its name.")
    split: Part
    images: int
    accuracy: float
    accuracy_interval: Interval
    balanced_accuracy: float
    macro_auroc: float | None

    @classmethod
    def of(cls, dataset: str, row: Evaluation) -> EvaluationSummary:
        """Return what is shown beside a detector."""
        return cls(**_measured(cls, dataset, row))


class ClassOut(BaseModel):
    """One class against the rest; null where the images cannot say."""

    name: str = Field(alias="class")
    images: int
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None
    auroc: float | None
    roc: list[float] | None = Field(
        None,
        description="True positive rates at 51 equal steps of the false positive rate, 0 to 1; null in older ones.",
    )


class EvaluationOut(EvaluationSummary):
    """One evaluation in full."""

    rows: dict[str, str] = Field(description="Which rows of the dataset it was.")
    class_map: dict[str, str]
    unreadable: int = Field(description="Files that were left out because they cannot be read.")
    classes: list[str] = Field(description="Of the detector, in the order of the confusion matrix.")
    calibration_error: float
    per_class: list[ClassOut]
    confusion: list[list[int]] = Field(description="Rows: true class; columns: predicted class.")
    use: str = USE

    @classmethod
    def of(cls, dataset: str, row: Evaluation) -> EvaluationOut:
        """Return everything that was measured."""
        return cls(**_measured(cls, dataset, row))


class DetectorSummary(BaseModel):
    """A detector, as lists show it."""

    id: UUID
    name: str
    state: DetectorState
    created_at: datetime
    owner_id: UUID
    job_id: UUID = Field(description="The job that trains or trained it.")
    packages: list[str] = Field(description="What it learns or learned from: site/name@version.")
    uses_local_images: bool = Field(
        description="Whether real images of this hospital went in: it is then not made of shareable data only."
    )
    classes: list[str] | None = Field(description="Null until it is trained.")
    use: str = USE

    @classmethod
    def of(cls, view: View) -> DetectorSummary:
        """Return what a list shows."""
        return cls(**_summary(view))


class DetectorOut(DetectorSummary):
    """A detector in full."""

    sources: list[SourceOut]
    net: NetOut | None
    image_size: int | None = Field(description="Pixels of a side, to which every image is brought.")
    epochs: int | None
    seed: int
    class_map: dict[str, str]
    error: str | None = Field(description="Why its training failed.")
    files: dict[str, str] = Field(description="File → sha256, which is also the file's ETag.")
    evaluations: list[EvaluationSummary] = Field(description="The latest, newest first.")

    @classmethod
    def of(cls, view: View) -> DetectorOut:
        """Return all that is known of a detector."""
        spec, found = view.job.spec, view.detector.description or {}
        error = (view.job.error or {}) if view.state is DetectorState.FAILED else {}
        digests = {
            DESCRIPTION: view.detector.description_sha256,
            WEIGHTS: view.detector.weights_sha256,
        }
        return cls(
            **_summary(view),
            sources=_sources(view),
            net=found.get("net"),
            image_size=found.get("image_size"),
            epochs=found["training"]["epochs"] if found else spec["epochs"],
            seed=spec["seed"],
            class_map=spec["class_map"],
            error=error.get("detail"),
            files={path: sha256 for path, sha256 in digests.items() if sha256 is not None},
            evaluations=[EvaluationSummary.of(name, row) for name, row in view.evaluations],
        )


class StartedOut(BaseModel):
    """The job that was started; its address is in `Location`."""

    job_id: UUID
    state: State
    detector_id: UUID
    use: str = USE

    @classmethod
    def of(cls, job: Job) -> StartedOut:
        """Return where to look for the result."""
        return cls(job_id=job.id, state=State(job.state), detector_id=job.spec["detector_id"])


class PredictionOut(BaseModel):
    """How probable each class is, as one detector sees one image."""

    job_id: UUID
    detector_id: UUID
    detector: str = Field(description="Its name.")
    packages: list[str] = Field(description="What it learned from: site/name@version.")
    uses_local_images: bool
    probabilities: dict[str, float] = Field(description="By class; they add up to 1.")
    use: str = USE

    @classmethod
    def of(cls, job: Job) -> PredictionOut:
        """Return the result of a job that succeeded."""
        assert job.result is not None
        shown = {name: job.result[name] for name in cls.model_fields if name in job.result}
        return cls(**shown | {"job_id": job.id})


def _summary(view: View) -> dict[str, Any]:
    detector, spec = view.detector, view.job.spec
    return {
        "id": detector.id,
        "name": detector.name,
        "state": view.state,
        "created_at": detector.created_at,
        "owner_id": detector.owner_id,
        "job_id": detector.job_id,
        "packages": packages_of(detector) or spec["packages"],
        "uses_local_images": spec["dataset_id"] is not None,
        "classes": (detector.description or {}).get("classes"),
    }


def _sources(view: View) -> list[SourceOut]:
    known = (view.detector.description or {}).get("sources")
    if known is None:
        asked = [reference.partition("@") for reference in view.job.spec["packages"]]
        return [
            SourceOut(name=name, version=version, digest=None, images=None, classes=None)
            for name, _, version in asked
        ]
    return [SourceOut.model_validate(one) for one in known]


def _measured(shape: type[BaseModel], dataset: str, row: Evaluation) -> Mapping[str, Any]:
    known = {
        "id": row.id,
        "created_at": row.created_at,
        "job_id": row.job_id,
        "dataset_id": row.dataset_id,
        "dataset": dataset,
    }
    return known | {name: row.metrics[name] for name in shape.model_fields if name in row.metrics}
