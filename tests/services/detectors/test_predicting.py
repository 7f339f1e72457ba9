"""Predicting one image over REST: sealed where it lies, gone when its job has ended, and refused where it is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from services.app import create_app
from services.audit.models import AuditEvent
from services.detectors.images import drop_images
from services.detectors.models import Detector, PredictionImage
from services.jobs import service as jobs
from services.jobs.models import Job
from services.kit.resources import Resources, open_resources
from services.kit.storage import ObjectMissingError, StoreError
from services.settings import Settings
from tests.services.conftest import Bell, Login
from tests.services.datasets.images import picture
from tests.services.detectors.making import CLASSES, PACKAGE, attempt

PNG = {"Content-Type": "image/png"}
WAIT = {"Prefer": "wait=30"}


def place(detector: Detector) -> str:
    return f"/api/v1/detectors/{detector.id}/predictions"


def objects(resources: Resources) -> set[str]:
    return {one.sha256 for one in resources.store.list()}


@contextmanager
def worker(resources: Resources, bell: Bell) -> Iterator[None]:
    """Do the next job that is rung for, beside the test."""
    before = len(bell.rung)

    def serve() -> None:
        until = time.monotonic() + 60
        while len(bell.rung) == before and time.monotonic() < until:
            time.sleep(0.01)
        attempt(resources, bell.rung[-1][1])

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()


def test_an_image_waits_sealed_and_its_job_is_named(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    before, image = objects(resources), picture(5, side=200)

    answer = client.post(place(ready), headers=login("researcher") | PNG, content=image)

    assert answer.status_code == 202, answer.json()
    job_id = UUID(answer.json()["job_id"])
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    assert answer.json()["use"] == "Research use only. Not for diagnosis."
    (stored,) = objects(resources) - before
    lying = b"".join(resources.store.read(stored))
    assert image[100:140] not in lying
    assert len(lying) == len(image) + 16
    with resources.reading() as session:
        job = jobs.get(session, job_id)
        told = [event.detail for event in session.scalars(select(AuditEvent))]
    assert job.spec["image_sha256"] == stored
    assert job.sealed is not None
    assert stored not in str(told)
    assert list(resources.settings.spool_dir.iterdir()) == []


def test_who_waits_gets_the_answer_and_the_image_is_gone(
    client: TestClient, login: Login, resources: Resources, ready: Detector, bell: Bell
) -> None:
    before = objects(resources)

    with worker(resources, bell):
        answer = client.post(
            place(ready), headers=login("researcher") | PNG | WAIT, content=picture(5)
        )

    found = answer.json()
    assert answer.status_code == 200, found
    assert answer.headers["preference-applied"] == "wait=30"
    assert set(found["probabilities"]) == set(CLASSES)
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (found["detector"], found["packages"]) == ("ready", [PACKAGE])
    assert found["use"] == "Research use only. Not for diagnosis."
    assert objects(resources) == before
    with resources.reading() as session:
        assert session.scalars(select(PredictionImage)).all() == []


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        pytest.param("image/png", b"not an image at all", id="text"),
        pytest.param("image/png", picture(5)[:300], id="cut off"),
        pytest.param("image/jpeg", b"\xff\xd8\xff" + bytes(500), id="a jpeg's head alone"),
        pytest.param("application/dicom", bytes(128) + b"DICM" + b"\xff" * 400, id="dicom noise"),
        pytest.param("image/png", b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + b"\xff" * 30, id="bomb"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_and_gone(
    client: TestClient,
    login: Login,
    resources: Resources,
    ready: Detector,
    bell: Bell,
    media_type: str,
    body: bytes,
) -> None:
    before = objects(resources)

    with worker(resources, bell):
        headers = login("researcher") | {"Content-Type": media_type} | WAIT
        answer = client.post(place(ready), headers=headers, content=body)

    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/prediction-failed"), problem
    assert problem["detail"].startswith("the image ")
    assert objects(resources) == before
    again = client.post(f"/api/v1/jobs/{problem['job_id']}/resume", headers=login("researcher"))
    assert (again.status_code, again.json()["type"]) == (409, "/problems/not-resumable")


def cancel_waiting(resources: Resources, job_id: UUID) -> None:
    with resources.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state="cancelled", sealed=None))


def lose_for_good(resources: Resources, job_id: UUID) -> None:
    with resources.transaction() as session:
        claim = jobs.claim(session, job_id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        jobs.fail(session, job_id, claim.fence, jobs.Failure("worker-lost", "it was killed"))


def succeed(resources: Resources, job_id: UUID) -> None:
    attempt(resources, job_id)


@pytest.mark.parametrize("end", [cancel_waiting, lose_for_good, succeed])
def test_however_a_job_ends_its_image_is_dropped(
    client: TestClient,
    login: Login,
    resources: Resources,
    ready: Detector,
    end: Callable[[Resources, UUID], None],
) -> None:
    before = objects(resources)
    answer = client.post(place(ready), headers=login("researcher") | PNG, content=picture(5))
    job_id = UUID(answer.json()["job_id"])

    kept = drop_images(resources)  # its job has not ended
    end(resources, job_id)
    dropped = drop_images(resources)

    assert (kept, dropped) == (0, 1)
    assert objects(resources) == before
    with resources.reading() as session:
        assert jobs.get(session, job_id).sealed is None


def test_cancelling_over_rest_erases_the_key_at_once(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    headers = login("researcher")
    answer = client.post(place(ready), headers=headers | PNG, content=picture(5))

    cancelled = client.post(f"{answer.headers['location']}/cancel", headers=headers)

    assert cancelled.json()["state"] == "cancelled"
    with resources.reading() as session:
        assert jobs.get(session, UUID(answer.json()["job_id"])).sealed is None
    assert drop_images(resources) == 1


class DeafStore:
    """A store that deletes nothing, because it does not answer."""

    def delete(self, sha256: str) -> None:
        raise StoreError(f"no answer about {sha256}")


def test_a_store_that_does_not_answer_keeps_the_image_for_the_next_time(
    client: TestClient, login: Login, resources: Resources, settings: Settings, ready: Detector
) -> None:
    answer = client.post(place(ready), headers=login("researcher") | PNG, content=picture(5))
    cancel_waiting(resources, UUID(answer.json()["job_id"]))

    with open_resources(settings, store=DeafStore(), send=Bell()) as deaf:
        assert drop_images(deaf) == 0

    assert drop_images(resources) == 1


def test_images_left_by_a_killed_node_are_dropped_at_its_start(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    before = objects(resources)
    answer = client.post(place(ready), headers=login("researcher") | PNG, content=picture(5))
    cancel_waiting(resources, UUID(answer.json()["job_id"]))

    with TestClient(create_app(resources)):
        until = time.monotonic() + 30
        while objects(resources) != before and time.monotonic() < until:
            time.sleep(0.02)

    assert objects(resources) == before


def test_an_image_that_is_lost_fails_the_job_and_says_so(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    answer = client.post(place(ready), headers=login("researcher") | PNG, content=picture(5))
    job_id = UUID(answer.json()["job_id"])
    with resources.reading() as session:
        sha256 = jobs.get(session, job_id).spec["image_sha256"]
    resources.store.delete(sha256)

    job = attempt(resources, job_id)

    assert job.state == "failed"
    assert (job.error or {})["slug"] == ObjectMissingError.slug


@pytest.mark.parametrize(("role", "status"), [("auditor", 403), ("peer", 403), ("steward", 202)])
def test_who_may_predict(
    client: TestClient, login: Login, ready: Detector, role: str, status: int
) -> None:
    answer = client.post(place(ready), headers=login(role) | PNG, content=picture(5))

    assert answer.status_code == status
    assert client.post(place(ready), headers=PNG, content=picture(5)).status_code == 401


def test_a_body_that_is_no_image_is_refused_before_anything_is_stored(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    headers, before = login("researcher"), objects(resources)
    limit = resources.settings.limits.image_bytes

    other = client.post(place(ready), headers=headers | {"Content-Type": "image/gif"}, content=b"x")
    untold = client.post(place(ready), headers=headers, content=b"x")
    empty = client.post(place(ready), headers=headers | PNG, content=b"")
    large = client.post(
        place(ready), headers=headers | PNG | {"Content-Length": str(limit + 1)}, content=b"x"
    )

    assert [one.status_code for one in (other, untold, empty, large)] == [415, 415, 422, 413]
    assert "application/dicom, image/jpeg, image/png" in other.json()["detail"]
    assert objects(resources) == before
    with resources.reading() as session:
        assert session.scalars(select(Job).where(Job.kind == "predict")).all() == []


def test_a_body_without_a_length_is_counted_as_it_comes(
    login: Login, resources: Resources, ready: Detector
) -> None:
    limits = resources.settings.limits.model_copy(update={"image_bytes": 2**16})
    settings = resources.settings.model_copy(update={"limits": limits})

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(2**12)

    with open_resources(settings, send=Bell()) as small, TestClient(create_app(small)) as client:
        answer = client.post(place(ready), headers=login("researcher") | PNG, content=endless())

    assert answer.status_code == 413
    assert list(settings.spool_dir.iterdir()) == []


def test_a_removed_detector_predicts_nothing(
    client: TestClient, login: Login, ready: Detector
) -> None:
    headers = login("researcher")
    client.delete(f"/api/v1/detectors/{ready.id}", headers=headers)

    answer = client.post(place(ready), headers=headers | PNG, content=picture(5))

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/detector-not-ready")
    assert "removed" in answer.json()["detail"]


def test_a_full_disk_is_said(login: Login, resources: Resources, ready: Detector) -> None:
    limits = resources.settings.limits.model_copy(update={"disk_reserve_bytes": 2**62})
    settings = resources.settings.model_copy(update={"limits": limits})

    with open_resources(settings, send=Bell()) as full, TestClient(create_app(full)) as client:
        answer = client.post(place(ready), headers=login("researcher") | PNG, content=picture(5))

    assert answer.status_code == 507
    assert Path(settings.spool_dir).exists()
