"""Evaluations and downloads of a detector that is ready, over REST."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from ppdd_core.detector.store import load_detector
from services.auth.principal import Principal
from services.detectors.models import Detector
from services.kit.resources import Resources
from tests.services.conftest import Login
from tests.services.detectors.making import PACKAGE, add_dataset, attempt


def place(detector: Detector) -> str:
    return f"/api/v1/detectors/{detector.id}"


def test_an_evaluation_is_a_job_whose_figures_are_listed(
    client: TestClient, login: Login, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    dataset = add_dataset(resources, researcher)
    headers, asked = login("researcher"), {"dataset": "chests", "split": "all"}

    started = client.post(f"{place(ready)}/evaluations", headers=headers, json=asked)
    before = client.get(f"{place(ready)}/evaluations", headers=headers).json()["items"]
    job = attempt(resources, UUID(started.json()["job_id"]))
    (found,) = client.get(f"{place(ready)}/evaluations", headers=login("auditor")).json()["items"]
    (short,) = client.get(place(ready), headers=headers).json()["evaluations"]

    assert started.status_code == 202, started.json()
    assert started.headers["location"] == f"/api/v1/jobs/{started.json()['job_id']}"
    assert before == []
    assert job.state == "succeeded", job.error
    assert (found["dataset"], found["dataset_id"]) == ("chests", str(dataset.id))
    assert (found["split"], found["images"], found["unreadable"]) == ("all", 16, 0)
    low, high = found["accuracy_interval"]
    assert 0 <= low <= found["accuracy"] <= high <= 1
    assert [one["class"] for one in found["per_class"]] == found["classes"]
    assert sum(map(sum, found["confusion"])) == 16
    assert found["use"] == "Research use only. Not for diagnosis."
    assert short["accuracy"] == found["accuracy"]


def test_the_same_key_starts_one_evaluation(
    client: TestClient, login: Login, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    add_dataset(resources, researcher)
    headers = {**login("researcher"), "Idempotency-Key": "k"}

    answers = [
        client.post(f"{place(ready)}/evaluations", headers=headers, json={"dataset": "chests"})
        for _ in range(2)
    ]

    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(("role", "status"), [("auditor", 403), ("peer", 403)])
def test_who_may_not_evaluate_or_download(
    client: TestClient, login: Login, ready: Detector, role: str, status: int
) -> None:
    headers, asked = login(role), {"dataset": "chests"}

    assert client.post(f"{place(ready)}/evaluations", headers=headers, json=asked).status_code == status  # fmt: skip
    assert client.get(f"{place(ready)}/files/detector.json", headers=headers).status_code == status
    assert client.get(f"{place(ready)}/evaluations").status_code == 401


def test_what_an_evaluation_needs_is_said(
    client: TestClient, login: Login, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    add_dataset(resources, researcher, name="gone", state="removed")
    headers = login("researcher")

    def post(**asked: object) -> tuple[int, str]:
        answer = client.post(f"{place(ready)}/evaluations", headers=headers, json=asked)
        return answer.status_code, answer.json()["type"]

    assert post(dataset="nowhere") == (404, "/problems/not-found")
    assert post(dataset="gone") == (422, "/problems/dataset-unusable")
    assert post(dataset="gone", split="train") == (422, "/problems/invalid-request")
    assert post() == (422, "/problems/invalid-request")


def test_both_files_come_back_and_make_a_detector(
    client: TestClient, login: Login, ready: Detector, tmp_path: Path
) -> None:
    headers = login("researcher")
    known = client.get(place(ready), headers=headers).json()["files"]
    folder = tmp_path / "downloaded"
    folder.mkdir()

    for name in ("detector.json", "weights.safetensors"):
        answer = client.get(f"{place(ready)}/files/{name}", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["etag"] == f'"sha256:{known[name]}"'
        assert hashlib.sha256(answer.content).hexdigest() == known[name]
        (folder / name).write_bytes(answer.content)

    sources = load_detector(folder).sources
    assert [f"{one.name}@{one.version}" for one in sources] == [PACKAGE]


def test_a_download_goes_on_where_it_broke_off(
    client: TestClient, login: Login, ready: Detector
) -> None:
    url, headers = f"{place(ready)}/files/weights.safetensors", login("researcher")
    whole = client.get(url, headers=headers)

    rest = client.get(
        url, headers=headers | {"Range": "bytes=100-", "If-Range": whole.headers["etag"]}
    )
    known = client.get(url, headers=headers | {"If-None-Match": whole.headers["etag"]})
    many = client.get(url, headers=headers | {"Range": "bytes=0-1,5-6"})

    assert (rest.status_code, rest.content) == (206, whole.content[100:])
    assert (known.status_code, known.content) == (304, b"")
    assert many.status_code == 416


def test_there_are_no_other_files(client: TestClient, login: Login, ready: Detector) -> None:
    headers = login("researcher")

    for name in ("weights.pt", "..%2Fdetector.json", "detector.json%00"):
        assert client.get(f"{place(ready)}/files/{name}", headers=headers).status_code == 404


def test_a_removed_detector_gives_its_files_up_and_stays_known(
    client: TestClient, login: Login, resources: Resources, ready: Detector
) -> None:
    headers = login("researcher")

    removed = [client.delete(place(ready), headers=headers).status_code for _ in range(2)]
    found = client.get(place(ready), headers=headers).json()

    assert removed == [204, 204]
    assert (found["state"], found["files"], found["packages"]) == ("removed", {}, [PACKAGE])
    assert client.get(f"{place(ready)}/files/detector.json", headers=headers).status_code == 409
    with resources.reading() as session:
        row = session.get_one(Detector, ready.id)
    assert (row.description_sha256, row.weights_sha256) == (None, None)
