"""The task that trains: what it learns from, what it publishes, and what it refuses when its time has come."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from ppdd_core.detector.store import load_detector
from ppdd_core.detector.use import DESCRIPTION, WEIGHTS
from services.auth.principal import Principal
from services.catalogue.models import Origin, PackageVersion
from services.detectors import service
from services.detectors.models import DetectorState
from services.detectors.service import View
from services.jobs import service as jobs
from services.jobs.models import Job, JobEvent
from services.kit.holds import ObjectHold
from services.kit.resources import Resources
from tests.services.detectors.making import PACKAGE, add_dataset, attempt, queue_training
from tests.services.packages import add_package, package_files

pytestmark = pytest.mark.usefixtures("held")
OTHER = "hospital-c/cxr@2.0.0"


def do(resources: Resources, owner: Principal, **wanted: object) -> View:
    """Train a detector and return it with its job as they are then."""
    detector, job = queue_training(resources, owner, **wanted)  # type: ignore[arg-type]
    attempt(resources, job.id)
    with resources.reading() as session:
        return service.read(session, detector.id)


def failure(view: View) -> str:
    assert view.state is DetectorState.FAILED
    assert view.job.error is not None
    return str(view.job.error["detail"])


def test_a_detector_is_published_with_its_jobs_success(
    resources: Resources, researcher: Principal, held: PackageVersion, tmp_path: Path
) -> None:
    view = do(resources, researcher, seed=5)

    assert view.state is DetectorState.READY, view.job.error
    row = view.detector
    assert row.description_sha256 is not None and row.weights_sha256 is not None
    resources.store.fetch(row.description_sha256, tmp_path / DESCRIPTION)
    resources.store.fetch(row.weights_sha256, tmp_path / WEIGHTS)
    detector = load_detector(tmp_path)
    (source,) = detector.sources
    assert (source.name, source.version, source.digest) == ("hospital-b/cxr", "1.0.0", held.digest)
    assert (detector.config.epochs, detector.seed) == (2, 5)
    assert service.packages_of(row) == [PACKAGE]
    assert not service.uses_local_images(row)
    with resources.reading() as session:
        assert session.scalars(select(ObjectHold)).all() == []
        told = session.scalars(select(JobEvent.data).where(JobEvent.kind == "progress")).all()
    assert ("epochs", 2, 2) in [(one["stage"], one["done"], one["total"]) for one in told]
    assert not (resources.settings.work_dir / str(view.job.id)).exists()


def test_the_same_request_trains_the_same_detector(
    resources: Resources, researcher: Principal
) -> None:
    one, two, other = (
        do(resources, researcher, name=name, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("three", 2))
    )

    assert one.detector.weights_sha256 == two.detector.weights_sha256
    assert one.detector.weights_sha256 != other.detector.weights_sha256


def test_it_learns_from_several_packages_under_joined_classes(
    resources: Resources, researcher: Principal, tmp_path: Path
) -> None:
    other = package_files("hospital-c", version="2.0.0", classes=("Covid", "Flu"))
    add_package(resources, tmp_path, other, Origin.PULLED)

    view = do(resources, researcher, packages=(PACKAGE, OTHER), class_map={"Covid": "COVID"})

    assert (view.detector.description or {})["classes"] == [
        "COVID", "Flu", "Lung_Opacity", "Normal"
    ]  # fmt: skip
    assert service.packages_of(view.detector) == [PACKAGE, OTHER]


def test_local_images_join_and_are_named_as_such(
    resources: Resources, researcher: Principal
) -> None:
    add_dataset(resources, researcher, each=10)

    view = do(resources, researcher, local_dataset="chests", net="convnet")

    assert view.state is DetectorState.READY, view.job.error
    packages, local = (view.detector.description or {})["sources"]
    assert packages["version"] == "1.0.0"
    assert local["name"] == "local images"
    assert 0 < local["images"] < 20  # the training part alone
    assert service.uses_local_images(view.detector)
    assert view.job.dataset_id is not None


def test_images_that_cannot_be_used_are_told_without_their_names(
    resources: Resources, researcher: Principal
) -> None:
    folder = Path(str(add_dataset(resources, researcher).path))
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    rows = [
        f"{name},{name.parent},Mustermann,{('train', 'test')[number % 2]}"
        for number, name in enumerate(names)
    ]
    (folder / "manifest.csv").write_text("\n".join(["path,label,patient_id,split", *rows]))

    view = do(resources, researcher, local_dataset="chests")

    assert "split" in failure(view)
    assert "Mustermann" not in str(view.job.error)
    assert "patient-" not in str(view.job.error)


def test_classes_of_local_images_that_look_alike_are_explained(
    resources: Resources, researcher: Principal
) -> None:
    add_dataset(resources, researcher, classes=("Covid", "Normal"))

    view = do(resources, researcher, local_dataset="chests")

    assert "'COVID' and 'Covid' look like one" in failure(view)
    assert "class_map" in failure(view)


def test_a_package_that_was_yanked_meanwhile_is_refused(
    resources: Resources, researcher: Principal, held: PackageVersion
) -> None:
    detector, job = queue_training(resources, researcher)
    with resources.transaction() as session:
        row = session.get_one(PackageVersion, held.id)
        row.state, row.yank_reason = "yanked", "a patient withdrew"

    done = attempt(resources, job.id)

    assert (done.error or {})["slug"] == "yanked-package"
    assert "a patient withdrew" in (done.error or {})["detail"]
    with resources.reading() as session:
        assert service.read(session, detector.id).state is DetectorState.FAILED


def test_a_package_by_another_key_than_it_came_with_is_refused(
    resources: Resources, researcher: Principal, held: PackageVersion
) -> None:
    with resources.transaction() as session:
        session.get_one(PackageVersion, held.id).key = "ed25519:" + "A" * 43

    view = do(resources, researcher)

    assert view.state is DetectorState.FAILED
    assert view.detector.weights_sha256 is None


def test_an_archive_that_was_exchanged_is_refused_and_named(
    resources: Resources, researcher: Principal, held: PackageVersion, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.zip"
    resources.store.fetch(held.archive_sha256, broken)
    data = bytearray(broken.read_bytes())
    at = data.index(b"distilled.safetensors") + 400
    data[at] ^= 1
    with resources.transaction() as session:
        session.get_one(PackageVersion, held.id).archive_sha256 = resources.store.put(bytes(data))

    view = do(resources, researcher)

    assert failure(view).startswith(f"{PACKAGE} cannot be used")
    assert str(resources.settings.data_dir) not in failure(view)


def test_a_detector_removed_meanwhile_stays_removed(
    resources: Resources, researcher: Principal
) -> None:
    detector, job = queue_training(resources, researcher)
    with resources.transaction() as session:
        jobs.request_cancel(session, researcher, job.id)
    with resources.transaction() as session:
        service.remove(session, researcher, detector.id)
    with resources.transaction() as session:
        jobs.resume(session, researcher, job.id)

    done = attempt(resources, job.id)

    assert (done.state, (done.error or {})["slug"]) == ("failed", "detector-not-ready")
    with resources.reading() as session:
        assert service.read(session, detector.id).state is DetectorState.REMOVED


def test_a_worker_that_was_given_up_publishes_nothing(
    resources: Resources, researcher: Principal
) -> None:
    from worker.context import JobContext
    from worker.run import _publish
    from worker.tasks import train

    detector, job = queue_training(resources, researcher)
    with resources.transaction() as session:
        claim = jobs.claim(session, job.id, worker="slow", settings=resources.settings.jobs)
        assert claim is not None
    outcome = train.run(JobContext(resources, claim.job, claim.fence))
    with resources.transaction() as session:
        jobs.give_back(session, job.id, claim.fence, "given up")

    with pytest.raises(jobs.LostJobError), resources.transaction() as session:
        _publish(session, job.id, claim.fence, outcome, {})

    with resources.reading() as session:
        assert service.get(session, detector.id).weights_sha256 is None
        assert session.get_one(Job, job.id).state == "queued"
