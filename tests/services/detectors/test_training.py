"""Asking for a training: what is queued, what is refused at once, and what the detector is until it is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.audit.models import AuditEvent
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.catalogue.models import Origin, PackageVersion
from services.jobs import service as jobs
from services.jobs.service import Failure
from services.kit.resources import Resources
from tests.services.conftest import Bell, Login
from tests.services.detectors.making import PACKAGE, add_dataset, person, queue_training
from tests.services.packages import add_package, package_files

DETECTORS = "/api/v1/detectors"
pytestmark = pytest.mark.usefixtures("held")
ASKED: dict[str, Any] = {"name": "first", "packages": [PACKAGE], "epochs": 2, "seed": 3}


def test_a_training_is_queued_and_its_detector_is_there(
    client: TestClient, login: Login, bell: Bell, resources: Resources
) -> None:
    answer = client.post(DETECTORS, headers=login("researcher"), json=ASKED)

    found = answer.json()
    assert answer.status_code == 202, found
    assert answer.headers["location"] == f"/api/v1/jobs/{found['job_id']}"
    assert found["state"] == "queued"
    assert found["packages"] == [PACKAGE]
    assert found["use"] == "Research use only. Not for diagnosis."
    assert (found["classes"], found["files"], found["seed"]) == (None, {}, 3)
    assert [job_id for _, job_id in bell.rung] == [UUID(found["job_id"])]
    assert client.get(f"{DETECTORS}/{found['id']}", headers=login("auditor")).json() == found
    with resources.reading() as session:
        told = session.scalars(select(AuditEvent.action)).all()
    assert {"job.create", "detector.train"} <= set(told)


def test_the_same_key_makes_one_detector(client: TestClient, login: Login) -> None:
    headers = {**login("researcher"), "Idempotency-Key": "once"}

    first = client.post(DETECTORS, headers=headers, json=ASKED)
    again = client.post(DETECTORS, headers=headers, json=ASKED)
    other = client.post(DETECTORS, headers=headers, json=ASKED | {"seed": 4})

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert (other.status_code, other.json()["type"]) == (409, "/problems/idempotency-conflict")


@pytest.mark.parametrize(("role", "status"), [("auditor", 403), ("peer", 403), ("steward", 202)])
def test_who_may_train(client: TestClient, login: Login, role: str, status: int) -> None:
    assert client.post(DETECTORS, headers=login(role), json=ASKED).status_code == status
    assert client.post(DETECTORS, json=ASKED).status_code == 401


@pytest.mark.parametrize(
    ("changed", "status", "slug", "said"),
    [
        ({"packages": ["hospital-z/cxr@1.0.0"]}, 422, "unknown-package", "hospital-z/cxr@1.0.0"),
        ({"packages": ["hospital-b/cxr@9.0.0"]}, 422, "unknown-package", "hospital-b/cxr@9.0.0"),
        ({"packages": [PACKAGE, PACKAGE]}, 422, "bad-config", "given twice"),
        ({"class_map": {"Flu": "COVID"}}, 422, "bad-config", "there are COVID, Lung_Opacity"),
        ({"local_dataset": "nothing"}, 404, "not-found", "nothing"),
        ({"local_rows": {"hospital": "a"}}, 422, "unprocessable", "local_dataset"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    client: TestClient, login: Login, changed: dict[str, Any], status: int, slug: str, said: str
) -> None:
    headers = login("researcher")

    answer = client.post(DETECTORS, headers=headers, json=ASKED | changed)

    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{slug}"), problem
    assert said in problem["detail"]
    assert client.get(DETECTORS, headers=headers).json()["items"] == []
    assert client.get("/api/v1/jobs", headers=headers).json()["items"] == []


def test_a_body_of_another_shape_is_refused_by_field(client: TestClient, login: Login) -> None:
    headers = login("researcher")
    wrong: dict[str, Any] = {
        "packages": [PACKAGE] * 33,
        "name": "First One",
        "seed": 2**31,
        "epochs": 0,
        "colour": "red",
        "class_map": {"a\0": "b"},
        "net": "perceptron",
    }

    for field, value in [*wrong.items(), ("packages", []), ("packages", ["cxr"])]:
        answer = client.post(DETECTORS, headers=headers, json=ASKED | {field: value})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")
        assert f"body/{field}" in answer.json()["detail"]


def test_a_name_is_taken_until_its_detector_is_removed(
    client: TestClient, login: Login, resources: Resources
) -> None:
    headers = login("researcher")
    first = client.post(DETECTORS, headers=headers, json=ASKED).json()

    taken = client.post(DETECTORS, headers=headers, json=ASKED)
    with resources.transaction() as session:
        claim = jobs.claim(
            session, UUID(first["job_id"]), worker="test", settings=resources.settings.jobs
        )
        assert claim is not None
        jobs.fail(session, claim.job.id, claim.fence, Failure("bad-package", "it is broken"))
    failed = client.get(f"{DETECTORS}/{first['id']}", headers=headers).json()
    removed = client.delete(f"{DETECTORS}/{first['id']}", headers=headers)
    again = client.post(DETECTORS, headers=headers, json=ASKED)

    assert (taken.status_code, taken.json()["type"]) == (409, "/problems/name-taken")
    assert first["id"] in taken.json()["detail"]
    assert (failed["state"], failed["error"]) == ("failed", "it is broken")
    assert (removed.status_code, again.status_code) == (204, 202)


def test_a_yanked_package_is_refused_unless_allowed(
    client: TestClient, login: Login, resources: Resources, held: PackageVersion
) -> None:
    with resources.transaction() as session:
        row = session.get_one(PackageVersion, held.id)
        row.state, row.yank_reason = "yanked", "two patients withdrew"

    headers = login("researcher")
    refused = client.post(DETECTORS, headers=headers, json=ASKED)
    allowed = client.post(DETECTORS, headers=headers, json=ASKED | {"allow_yanked": True})

    assert refused.json()["type"] == "/problems/yanked-package"
    assert "two patients withdrew" in refused.json()["detail"]
    assert allowed.status_code == 202


def test_classes_that_look_alike_are_explained(
    client: TestClient, login: Login, resources: Resources, tmp_path: Path
) -> None:
    other = package_files("hospital-c", classes=("Covid", "Normal", "Lung Opacity"))
    add_package(resources, tmp_path, other, Origin.PULLED)
    both = ASKED | {"packages": [PACKAGE, "hospital-c/cxr@1.0.0"]}
    headers = login("researcher")

    unclear = client.post(DETECTORS, headers=headers, json=both)
    joined = {"Covid": "COVID", "Lung Opacity": "Lung_Opacity"}
    clear = client.post(DETECTORS, headers=headers, json=both | {"class_map": joined})

    assert unclear.status_code == 422
    assert "'COVID' and 'Covid' look like one" in unclear.json()["detail"]
    assert "class_map" in unclear.json()["detail"]
    assert clear.status_code == 202, clear.json()


def test_a_dataset_that_cannot_be_used_is_refused(
    client: TestClient, login: Login, resources: Resources, researcher: Principal
) -> None:
    add_dataset(resources, researcher, state="faulty")

    answer = client.post(
        DETECTORS, headers=login("researcher"), json=ASKED | {"local_dataset": "chests"}
    )

    assert answer.json()["type"] == "/problems/dataset-unusable"


def test_a_filter_cannot_widen_what_was_registered(
    client: TestClient, login: Login, resources: Resources, researcher: Principal
) -> None:
    dataset = add_dataset(resources, researcher)
    with resources.transaction() as session:
        session.merge(dataset).rows = {"hospital": "a"}
    asked = ASKED | {"local_dataset": str(dataset.id), "local_rows": {"hospital": "b"}}

    answer = client.post(DETECTORS, headers=login("researcher"), json=asked)

    assert answer.status_code == 422
    assert "hospital=a" in answer.json()["detail"]


def test_what_its_job_is_the_detector_is(
    client: TestClient, login: Login, resources: Resources, researcher: Principal
) -> None:
    detector, job = queue_training(resources, researcher)
    headers = login("researcher")

    def state() -> str:
        found: str = client.get(f"{DETECTORS}/{detector.id}", headers=headers).json()["state"]
        return found

    seen = [state()]
    with resources.transaction() as session:
        jobs.claim(session, job.id, worker="test", settings=resources.settings.jobs)
    seen.append(state())
    with resources.transaction() as session:
        jobs.give_back(session, job.id, 1, "shutting down")
    seen.append(state())
    client.post(f"/api/v1/jobs/{job.id}/cancel", headers=headers)
    seen.append(state())
    client.post(f"/api/v1/jobs/{job.id}/resume", headers=headers)
    seen.append(state())

    assert seen == ["queued", "training", "queued", "cancelled", "queued"]


def test_a_detector_in_training_is_not_removed_and_not_used(
    client: TestClient, login: Login, resources: Resources, researcher: Principal
) -> None:
    detector, job = queue_training(resources, researcher)
    headers, place = login("researcher"), f"{DETECTORS}/{detector.id}"

    answers = [
        client.delete(place, headers=headers),
        client.post(f"{place}/evaluations", headers=headers, json={"dataset": "chests"}),
        client.get(f"{place}/files/detector.json", headers=headers),
        client.post(
            f"{place}/predictions", headers={**headers, "Content-Type": "image/png"}, content=b"x"
        ),
    ]

    assert [answer.status_code for answer in answers] == [409, 409, 409, 409]
    assert str(job.id) in answers[0].json()["detail"]
    assert "queued, not ready" in answers[1].json()["detail"]


def test_others_detectors_are_seen_and_not_removed(
    client: TestClient, login: Login, resources: Resources
) -> None:
    eve = person(resources, "eve", Role.RESEARCHER)
    detector, job = queue_training(resources, eve)
    with resources.transaction() as session:
        jobs.request_cancel(session, eve, job.id)
    place = f"{DETECTORS}/{detector.id}"

    seen = client.get(place, headers=login("researcher"))
    refused = client.delete(place, headers=login("researcher"))
    removed = client.delete(place, headers=login("steward"))

    assert (seen.status_code, refused.status_code, removed.status_code) == (200, 403, 204)
    assert client.get(place, headers=login("researcher")).json()["state"] == "removed"


def test_an_unknown_detector_is_404(client: TestClient, login: Login) -> None:
    headers = login("researcher")
    place = f"{DETECTORS}/{UUID(int=7)}"

    answers = [
        client.get(place, headers=headers),
        client.delete(place, headers=headers),
        client.get(f"{place}/evaluations", headers=headers),
        client.post(f"{place}/evaluations", headers=headers, json={"dataset": "chests"}),
        client.get(f"{place}/files/detector.json", headers=headers),
        client.post(
            f"{place}/predictions", headers={**headers, "Content-Type": "image/png"}, content=b"x"
        ),
    ]

    assert [answer.status_code for answer in answers] == [404] * 6
    assert client.get(f"{DETECTORS}/none", headers=headers).status_code == 422


def test_lists_are_pages_newest_first(
    client: TestClient, login: Login, resources: Resources, researcher: Principal
) -> None:
    for number in range(5):
        queue_training(resources, researcher, f"number-{number}")
    headers, names, query = login("auditor"), [], {"limit": "2"}

    while True:
        page = client.get(DETECTORS, headers=headers, params=query).json()
        names += [one["name"] for one in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]

    assert names == [f"number-{number}" for number in (4, 3, 2, 1, 0)]
    assert client.get(DETECTORS, headers=headers, params={"cursor": "x"}).status_code == 400
