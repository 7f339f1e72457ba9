"""Rules of detectors: training from packages, measuring on local images, predicting, removing. Nothing here commits.

Training, evaluating and predicting are jobs. While a detector is trained its row says `training` and its job says how
far that is, so that a job that dies leaves nothing behind that is not true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ppdd_core.config import Recipe
from ppdd_core.detector.joining import choose_net, join_classes, refuse_repeated, refuse_sizes
from ppdd_core.detector.use import DESCRIPTION, WEIGHTS
from services.audit import service as audit
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.catalogue.models import PackageVersion, VersionState
from services.datasets.models import SourceDataset
from services.detectors import repository
from services.detectors.models import Detector, DetectorState, Evaluation, PredictionImage
from services.jobs import service as jobs
from services.jobs.models import ENDED, Job, Kind, State
from services.jobs.submit import UnusableDatasetError, find_dataset
from services.kit.errors import ConflictError, NotFoundError, UnprocessableError
from services.kit.secrets import Vault
from services.settings import JobSettings

MEDIA_TYPES = {DESCRIPTION: "application/json", WEIGHTS: "application/octet-stream"}
Part = Literal["test", "all"]

_BY_JOB = {
    State.QUEUED: DetectorState.QUEUED,
    State.FAILED: DetectorState.FAILED,
    State.CANCELLED: DetectorState.CANCELLED,
}


class UnknownPackageError(UnprocessableError):
    """This node does not hold one of the packages."""

    slug, title = "unknown-package", "There is no such package here"


class YankedPackageError(UnprocessableError):
    """Its hospital took the package back."""

    slug, title = "yanked-package", "A package was taken back"


class NameTakenError(ConflictError):
    """There is a detector of this name."""

    slug, title = "name-taken", "There is a detector of this name"


class NotReadyError(ConflictError):
    """The detector is still being trained, its training failed, or it was removed."""

    slug, title = "detector-not-ready", "The detector cannot be used"


class PredictionFailedError(UnprocessableError):
    """No prediction could be made of this image."""

    slug, title = "prediction-failed", "No prediction could be made of this image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What to train."""

    name: str
    packages: tuple[str, ...]  # site/name@version
    allow_yanked: bool = False
    local_dataset: str | None = None  # name or id
    local_rows: Mapping[str, str] | None = None
    class_map: Mapping[str, str] | None = None
    net: str | None = None
    epochs: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A detector as people see it: its row, its training's job, and its latest evaluations by dataset name."""

    detector: Detector
    job: Job
    evaluations: Sequence[tuple[str, Evaluation]] = ()

    @property
    def state(self) -> DetectorState:
        """How far it is: what the row says, except that a training that is not done is what its job says."""
        if self.detector.state != DetectorState.TRAINING.value:
            return DetectorState(self.detector.state)
        return _BY_JOB.get(State(self.job.state), DetectorState.TRAINING)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A sealed image in the store, and the key that opens it."""

    sha256: str
    key: str
    size: int  # bytes of the image
    media_type: str


# ------------------------------------------------------------------------------------------ training


def train(
    session: Session,
    settings: JobSettings,
    principal: Principal,
    wanted: Training,
    *,
    idempotency_key: str | None = None,
) -> View:
    """Queue a training and return the detector that it will make; the same key returns the one it made before.

    What can be known to fail is refused now: an unknown or yanked package (each is named), one given twice, packages of
    different image sizes or networks, classes that look alike, a dataset that cannot be used, a name that is taken.
    """
    local = None if wanted.local_dataset is None else find_dataset(session, wanted.local_dataset)
    if local is None and wanted.local_rows:
        raise UnprocessableError("local_rows chooses rows of local_dataset; give that as well")
    job, new = jobs.create(
        session,
        settings,
        principal,
        kind=Kind.TRAIN,
        title=f"train {wanted.name} from {', '.join(wanted.packages)}",
        spec=_training_spec(wanted, local),
        dataset_id=local.id if local else None,
        idempotency_key=idempotency_key,
    )
    if not new:
        made = repository.find_by_job(session, job.id)
        assert made is not None  # it was added with the job
        return View(made, job)
    if local is not None:
        _require_usable(local, wanted.local_rows or {})
    _refuse_hopeless(wanted, _held(session, wanted.packages, wanted.allow_yanked), local)
    detector = _add(session, principal, wanted.name, job)
    audit.record(
        session, principal.actor, "detector.train", str(detector.id),
        detail={"name": detector.name, "job": str(job.id), "packages": list(wanted.packages)},
    )  # fmt: skip
    return View(detector, job)


def require_usable(session: Session, reference: str, *, allow_yanked: bool) -> PackageVersion:
    """Return the version `site/name@version`; UnknownPackageError or YankedPackageError where it cannot be used."""
    try:
        version = catalogue.find_version(session, *catalogue.split_name(reference))
    except NotFoundError as error:
        raise UnknownPackageError(f"{error.detail}; pull or import it first") from None
    if version.state == VersionState.YANKED.value and not allow_yanked:
        reason = f": {version.yank_reason}" if version.yank_reason else ""
        raise YankedPackageError(
            f"{reference} was yanked{reason}; use another version, or say allow_yanked if you must"
        )
    return version


def made_by(session: Session, job_id: UUID) -> UUID | None:
    """Return the detector that a job trains or trained; None where there is none any more."""
    detector = repository.find_by_job(session, job_id)
    gone = detector is None or detector.state == DetectorState.REMOVED.value
    return None if detector is None or gone else detector.id


def trained_by(session: Session, job_id: UUID) -> Detector:
    """Return the detector that a job is to train; NotReadyError where it was removed."""
    detector = repository.find_by_job(session, job_id)
    if detector is None or detector.state != DetectorState.TRAINING.value:
        raise NotReadyError("the detector was removed or is trained already; train a new one")
    return detector


def note_trained(
    session: Session,
    job_id: UUID,
    *,
    description: Mapping[str, Any],
    description_sha256: str,
    weights_sha256: str,
) -> None:
    """Make the job's detector ready; its files are in the store and held."""
    detector = trained_by(session, job_id)
    detector.description = dict(description)
    detector.description_sha256, detector.weights_sha256 = description_sha256, weights_sha256
    detector.state = DetectorState.READY.value


# ------------------------------------------------------------------------------------------ using


def evaluate(
    session: Session,
    settings: JobSettings,
    principal: Principal,
    detector_id: UUID,
    *,
    dataset: str,
    rows: Mapping[str, str],
    split: Part,
    class_map: Mapping[str, str],
    idempotency_key: str | None = None,
) -> Job:
    """Queue the measuring of a detector on a source dataset and return the job."""
    detector = require_ready(session, detector_id)
    local = find_dataset(session, dataset)
    job, new = jobs.create(
        session,
        settings,
        principal,
        kind=Kind.EVALUATE,
        title=f"evaluate {detector.name} on {local.name}",
        spec={
            "detector_id": str(detector.id),
            "dataset_id": str(local.id),
            "rows": dict(rows),
            "split": split,
            "class_map": dict(class_map),
        },
        dataset_id=local.id,
        idempotency_key=idempotency_key,
    )
    if new:
        _require_usable(local, rows)
        audit.record(
            session, principal.actor, "detector.evaluate", str(detector.id),
            detail={"job": str(job.id), "dataset": str(local.id), "split": split},
        )  # fmt: skip
    return job


def note_evaluated(session: Session, job: Job, metrics: Mapping[str, Any]) -> None:
    """Keep what an evaluation found; NotReadyError where the detector was removed meanwhile."""
    detector = require_ready(session, UUID(job.spec["detector_id"]))
    assert job.dataset_id is not None
    session.add(
        Evaluation(
            detector_id=detector.id, dataset_id=job.dataset_id, job_id=job.id, metrics=dict(metrics)
        )
    )


def predict(
    session: Session,
    settings: JobSettings,
    vault: Vault,
    principal: Principal,
    detector_id: UUID,
    image: StoredImage,
) -> Job:
    """Queue a prediction of a sealed image that is in the store and held, and return the job.

    The image's key is the job's credential: it is erased when the job ends, and `images_left` names the bytes.
    """
    detector = require_ready(session, detector_id)
    job, _ = jobs.create(
        session,
        settings,
        principal,
        kind=Kind.PREDICT,
        title=f"predict with {detector.name}",
        spec={
            "detector_id": str(detector.id),
            "image_sha256": image.sha256,
            "image_bytes": image.size,
            "media_type": image.media_type,
        },
        credential=image.key,
        vault=vault,
    )
    session.add(PredictionImage(job_id=job.id, sha256=image.sha256))
    session.flush()
    audit.record(
        session, principal.actor, "detector.predict", str(detector.id),
        detail={"job": str(job.id), "bytes": image.size, "media_type": image.media_type},
    )  # fmt: skip
    return job


def images_left(session: Session, *, limit: int = 500) -> Sequence[PredictionImage]:
    """Return images of jobs that have ended: nobody may read them any more."""
    return repository.images_left(session, limit=limit)


# ------------------------------------------------------------------------------------------ reading


def get(session: Session, detector_id: UUID) -> Detector:
    """Return the detector, a removed one too; NotFoundError if there is none."""
    detector = session.get(Detector, detector_id)
    if detector is None:
        raise NotFoundError(f"there is no detector {detector_id}")
    return detector


def read(session: Session, detector_id: UUID, *, evaluations: int = 20) -> View:
    """Return the detector with its latest evaluations."""
    detector = get(session, detector_id)
    rows, _ = list_evaluations(session, detector_id, cursor=None, limit=evaluations)
    return View(detector, session.get_one(Job, detector.job_id), rows)


def list_page(session: Session, *, cursor: str | None, limit: int) -> tuple[list[View], str | None]:
    """Return a page of the detectors that were not removed, newest first."""
    rows, after = repository.list_detectors(session, cursor=cursor, limit=limit)
    trained = repository.jobs_by_id(session, (row.job_id for row in rows))
    return [View(row, trained[row.job_id]) for row in rows], after


def list_evaluations(
    session: Session, detector_id: UUID, *, cursor: str | None, limit: int
) -> tuple[list[tuple[str, Evaluation]], str | None]:
    """Return a page of a detector's evaluations with the names of their datasets, newest first."""
    detector = get(session, detector_id)
    rows, after = repository.list_evaluations(session, detector.id, cursor=cursor, limit=limit)
    names = repository.dataset_names(session, {row.dataset_id for row in rows})
    return [(names[row.dataset_id], row) for row in rows], after


def measuring(session: Session, detector_id: UUID) -> list[Job]:
    """Return the jobs that measure a detector and have not ended."""
    return [
        job
        for job in repository.unfinished(session, Kind.EVALUATE, limit=500)
        if job.spec["detector_id"] == str(detector_id)
    ]


def compare(
    session: Session, evaluation: Evaluation, *, limit: int = 12
) -> list[tuple[Detector, Evaluation]]:
    """Return this evaluation and, of other detectors, the newest one of the same images: comparable side by side.

    The same images are those of the same dataset, part and rows. Which patients `test` holds out is decided by a
    detector's seed, so that detectors of different seeds are compared on `all` only.
    """
    mine = get(session, evaluation.detector_id)
    found = [(mine, evaluation)]
    for detector, other in repository.evaluations_on(session, evaluation.dataset_id, limit=200):
        known = {one.id for one, _ in found}
        if detector.id in known or not _of_same_images(evaluation, mine, other, detector):
            continue
        found.append((detector, other))
    return found[:limit]


def _of_same_images(one: Evaluation, mine: Detector, other: Evaluation, its: Detector) -> bool:
    same = all(one.metrics[name] == other.metrics[name] for name in ("split", "rows", "images"))
    seeds = [(detector.description or {}).get("seed") for detector in (mine, its)]
    return same and (one.metrics["split"] == "all" or seeds[0] == seeds[1])


def foresee(session: Session, wanted: Training) -> dict[str, list[str]]:
    """Return the classes that such a detector would tell apart, and which packages offer each; refused as by `train`.

    Classes of local images are among them where the dataset was checked.
    """
    local = None if wanted.local_dataset is None else find_dataset(session, wanted.local_dataset)
    versions = _held(session, wanted.packages, wanted.allow_yanked)
    _refuse_hopeless(wanted, versions, local)
    offers = [(catalogue.title_of(one), one.classes) for one in versions]
    if local is not None and local.findings is not None and not wanted.local_rows:
        offers.append((local.name, list(local.findings.get("classes", {}))))
    renamed, classes = wanted.class_map or {}, dict[str, list[str]]()
    for title, names in offers:
        for name in names:
            classes.setdefault(renamed.get(name, name), []).append(title)
    return dict(sorted(classes.items()))


def require_ready(session: Session, detector_id: UUID) -> Detector:
    """Return the detector; NotReadyError where it cannot be used, with the reason."""
    detector = get(session, detector_id)
    if detector.state != DetectorState.READY.value:
        view = View(detector, session.get_one(Job, detector.job_id))
        raise NotReadyError(f"the detector {detector.name} is {view.state.value}, not ready")
    return detector


def file_digest(session: Session, detector_id: UUID, path: str) -> str:
    """Return the digest of one of a detector's files; NotFoundError for any other file."""
    if path not in MEDIA_TYPES:
        raise NotFoundError(f"a detector has the files {DESCRIPTION} and {WEIGHTS}")
    detector = require_ready(session, detector_id)
    found = detector.description_sha256 if path == DESCRIPTION else detector.weights_sha256
    assert found is not None  # a ready detector has both
    return found


def note_download(session: Session, principal: Principal, detector_id: UUID, path: str) -> None:
    """Write down that somebody takes a file."""
    audit.record(
        session, principal.actor, "detector.download", str(detector_id), detail={"file": path}
    )


def failure_of(job: Job) -> str:
    """Return why a job that did not succeed has no result."""
    if job.state == State.CANCELLED.value:
        return "the prediction was cancelled"
    return str((job.error or {}).get("detail", "the prediction failed"))


def packages_of(detector: Detector) -> list[str]:
    """Return the packages that a ready detector learned from, as site/name@version."""
    sources = (detector.description or {}).get("sources", [])
    return [f"{one['name']}@{one['version']}" for one in sources if one["version"]]


def uses_local_images(detector: Detector) -> bool:
    """Return whether real images of this hospital went into a ready detector."""
    return any(not one["version"] for one in (detector.description or {}).get("sources", []))


# ------------------------------------------------------------------------------------------ removing


def remove(session: Session, principal: Principal, detector_id: UUID) -> None:
    """Remove a detector: its files are given up, its row is kept, its name is free. ConflictError while it trains."""
    detector = get(session, detector_id)
    principal.require_own(detector.owner_id, "detector")
    session.refresh(detector, with_for_update=True)
    if detector.state == DetectorState.REMOVED.value:
        return
    job = session.get_one(Job, detector.job_id)
    if detector.state == DetectorState.TRAINING.value and State(job.state) not in ENDED:
        raise ConflictError(f"it is being trained; cancel job {job.id} first")
    detector.state = DetectorState.REMOVED.value
    detector.description_sha256 = detector.weights_sha256 = None
    session.flush()
    audit.record(
        session,
        principal.actor,
        "detector.remove",
        str(detector.id),
        detail={"name": detector.name},
    )


# ------------------------------------------------------------------------------------------ parts


def _training_spec(wanted: Training, local: SourceDataset | None) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "packages": list(wanted.packages),
        "allow_yanked": wanted.allow_yanked,
        "dataset_id": str(local.id) if local else None,
        "rows": dict(wanted.local_rows or {}),
        "class_map": dict(wanted.class_map or {}),
        "net": wanted.net,
        "epochs": wanted.epochs,
        "seed": wanted.seed,
    }


def _require_usable(dataset: SourceDataset, rows: Mapping[str, str]) -> None:
    for column, value in rows.items():
        if dataset.rows.get(column, value) != value:
            raise UnprocessableError(
                f"the dataset {dataset.name} has only rows with {column}={dataset.rows[column]}; "
                f"there are none with {column}={value}"
            )
    if dataset.state in ("removed", "faulty"):
        raise UnusableDatasetError(
            f"the dataset {dataset.name} was removed"
            if dataset.state == "removed"
            else f"the check of the dataset {dataset.name} found errors: mend them and check it again"
        )


def _held(session: Session, references: Sequence[str], allow_yanked: bool) -> list[PackageVersion]:
    return [require_usable(session, one, allow_yanked=allow_yanked) for one in references]


def _refuse_hopeless(
    wanted: Training, versions: Sequence[PackageVersion], local: SourceDataset | None
) -> None:
    """Raise BadConfigError where the packages cannot be learned from together; the worker looks once more."""
    names = [
        (f"{one.package.site}/{one.package.name}", one.version, one.digest) for one in versions
    ]
    refuse_repeated(names)
    refuse_sizes([one.image_size for one in versions], names)
    choose_net(
        wanted.net, [Recipe.from_dict(one.manifest["recipe"]).net for one in versions], names
    )
    offered = [name for one in versions for name in one.classes]
    if local is None:
        join_classes(offered, wanted.class_map or {})
    elif local.findings is not None and not wanted.local_rows:
        join_classes([*offered, *local.findings.get("classes", {})], wanted.class_map or {})


def _add(session: Session, principal: Principal, name: str, job: Job) -> Detector:
    detector = Detector(
        name=name, owner_id=principal.user_id, job_id=job.id, state=DetectorState.TRAINING.value
    )
    try:
        with session.begin_nested():
            session.add(detector)
    except IntegrityError:
        known = repository.find_by_name(session, name)
        if known is None:
            raise
        raise NameTakenError(
            f"{name} is detector {known.id}; choose another name or remove that one first"
        ) from None
    return detector
