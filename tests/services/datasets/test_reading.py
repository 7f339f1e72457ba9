"""Listing, reading, looking at and removing datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from services.audit.models import AuditEvent
from services.datasets import service
from services.datasets.models import SourceDataset, Thumbnail
from services.datasets.service import Checked
from services.jobs.models import Job
from services.kit.resources import Resources
from tests.services.conftest import Bell, Login
from tests.services.datasets.images import class_files, picture, zip_bytes

URL = "/api/v1/datasets"
LABELS = ("COVID", "Lung Opacity", "a/b & c")

Upload = Callable[..., str]


@pytest.fixture
def upload(client: TestClient, login: Login) -> Upload:
    """Return the id of a dataset that was uploaded: `upload("name", role="researcher")`."""

    def make(name: str, *, each: int = 2, username: str = "") -> str:
        headers = {**login("researcher", username=username), "Content-Type": "application/zip"}
        body = zip_bytes(class_files(each=each))
        answer = client.post(f"{URL}/uploads?name={name}", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    return make


def check(resources: Resources, dataset_id: str) -> None:
    """Record what a check of a dataset might have found, with thumbnails."""
    digests = {
        (label, number): resources.store.put(picture(10 * at + number))
        for at, label in enumerate(LABELS)
        for number in range(2)
    }
    findings: dict[str, Any] = {
        "refusal": None,
        "images": 6,
        "classes": dict.fromkeys(LABELS, 2),
        "findings": [],
    }
    with resources.sessions.begin() as session:
        service.record_check(
            session, UUID(dataset_id), Checked(True, 112, findings, "f" * 64, digests)
        )


def test_lists_are_pages_without_what_was_removed(
    client: TestClient, login: Login, upload: Upload
) -> None:
    ids = [upload(f"d{number}", each=number + 1) for number in range(3)]
    headers = login("auditor")
    first = client.get(f"{URL}?limit=2", headers=headers)
    assert [row["id"] for row in first.json()["items"]] == [ids[2], ids[1]]
    assert 'rel="next"' in first.headers["link"]
    second = client.get(f"{URL}?cursor={first.json()['next']}", headers=headers).json()
    assert ([row["id"] for row in second["items"]], second["next"]) == ([ids[0]], None)
    assert client.delete(f"{URL}/{ids[1]}", headers=login("researcher")).status_code == 204
    left = client.get(URL, headers=headers).json()["items"]
    assert [row["id"] for row in left] == [ids[2], ids[0]]
    gone = client.get(f"{URL}?state=removed", headers=headers).json()["items"]
    assert [row["id"] for row in gone] == [ids[1]]
    assert client.get(f"{URL}?state=other", headers=headers).status_code == 422
    assert client.get(f"{URL}?cursor=other", headers=headers).status_code == 400


def test_what_a_check_found_is_read(
    client: TestClient, login: Login, upload: Upload, resources: Resources
) -> None:
    dataset_id = upload("covid")
    check(resources, dataset_id)
    detail = client.get(f"{URL}/{dataset_id}", headers=login("auditor")).json()
    assert (detail["state"], detail["images"], detail["image_size"]) == ("ready", 6, 112)
    assert detail["findings"]["classes"] == dict.fromkeys(LABELS, 2)
    listed = client.get(URL, headers=login("auditor")).json()["items"][0]
    assert listed["classes"] == dict.fromkeys(LABELS, 2)
    assert "findings" not in listed


def test_thumbnails_are_pngs_that_only_those_see_who_may_see_images(
    client: TestClient, login: Login, upload: Upload, resources: Resources
) -> None:
    dataset_id = upload("covid")
    check(resources, dataset_id)
    url, headers = f"{URL}/{dataset_id}/thumbnails", login("researcher")
    items = client.get(url, headers=headers).json()["items"]
    assert [group["label"] for group in items] == sorted(LABELS)
    pictures = [one["href"] for group in items for one in group["thumbnails"]]
    assert len(pictures) == 6
    for href in pictures:
        answer = client.get(href, headers=headers)
        assert answer.content.startswith(b"\x89PNG")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["cache-control"].startswith("private")
        assert client.get(href).status_code == 401
        assert client.get(href, headers=login("auditor")).status_code == 403
        assert client.get(href, headers=login("peer")).status_code == 403
        without = login("researcher", scopes=frozenset({"datasets:read"}))
        assert client.get(href, headers=without).status_code == 403
    assert client.get(url).status_code == 401
    assert client.get(url, headers=login("auditor")).status_code == 403
    with resources.sessions() as session:
        looked = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "dataset.view")
        ).all()
    assert [event.subject for event in looked] == [dataset_id]


def test_what_is_not_there_is_404(client: TestClient, login: Login, upload: Upload) -> None:
    unknown, dataset_id, headers = uuid4(), upload("covid"), login("steward")
    for method, path in (
        ("GET", f"/{unknown}"),
        ("DELETE", f"/{unknown}"),
        ("GET", f"/{unknown}/thumbnails"),
        ("GET", f"/{unknown}/thumbnails/COVID/0"),
        ("GET", f"/{dataset_id}/thumbnails/COVID/0"),
        ("POST", f"/{unknown}/check"),
    ):
        answer = client.request(method, URL + path, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), path
    for path in ("/x", f"/{dataset_id}/thumbnails/COVID/x", f"/{dataset_id}/thumbnails/%00/0"):
        assert client.get(URL + path, headers=headers).status_code == 422, path


def test_removing_gives_up_upload_and_thumbnails_and_keeps_the_row(
    client: TestClient, login: Login, upload: Upload, resources: Resources
) -> None:
    dataset_id = upload("covid")
    check(resources, dataset_id)
    url, owner = f"{URL}/{dataset_id}", login("researcher")
    assert client.delete(url).status_code == 401
    assert client.delete(url, headers=login("auditor")).status_code == 403
    assert client.delete(url, headers=login("researcher", username="eve")).status_code == 403
    assert client.delete(url, headers=owner).status_code == 204
    after = client.get(url, headers=owner).json()
    assert (after["state"], after["upload_sha256"], after["images"]) == ("removed", None, 6)
    with resources.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Thumbnail)) == 0
        event = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "dataset.remove")
        ).one()
        assert len(event.detail["upload_sha256"]) == 64
    again = client.delete(url, headers=owner)
    assert (again.status_code, again.json()["type"]) == (409, "/problems/dataset-removed")
    named = client.post(
        f"{URL}/uploads?name=covid",
        content=b"",
        headers={**owner, "Content-Type": "application/zip"},
    )
    assert named.status_code == 409
    assert "removed" in named.json()["detail"]
    upload("covid-2")  # the same bytes are welcome again


def test_a_steward_removes_others_datasets(
    client: TestClient, login: Login, upload: Upload
) -> None:
    assert client.delete(f"{URL}/{upload('covid')}", headers=login("steward")).status_code == 204


def test_checking_makes_a_job_and_keeps_the_dataset_from_being_removed(
    client: TestClient, login: Login, upload: Upload, resources: Resources, bell: Bell
) -> None:
    dataset_id, headers = upload("covid"), login("researcher")
    url = f"{URL}/{dataset_id}/check"
    assert client.post(url).status_code == 401
    assert client.post(url, headers=login("auditor")).status_code == 403
    for wrong in ({"image_size": 7}, {"image_size": 513}, {"image_size": "x"}, {"other": 1}):
        assert client.post(url, json=wrong, headers=headers).status_code == 422
    answer = client.post(url, headers={**headers, "Idempotency-Key": "one"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["kind"], job["dataset"], job["spec"]["image_size"]) == ("check", "covid", 112)
    assert UUID(job["id"]) in [job_id for _, job_id in bell.rung]
    again = client.post(url, headers={**headers, "Idempotency-Key": "one"})
    assert again.json()["id"] == job["id"]
    other = client.post(url, json={"image_size": 64}, headers={**headers, "Idempotency-Key": "one"})
    assert other.status_code == 409

    refused = client.delete(f"{URL}/{dataset_id}", headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/dataset-in-use")
    with resources.sessions.begin() as session:
        session.execute(update(Job).values(state="succeeded"))
    assert client.delete(f"{URL}/{dataset_id}", headers=headers).status_code == 204
    gone = client.post(url, headers=headers)
    assert gone.status_code == 422
    with resources.sessions() as session:
        assert session.get_one(SourceDataset, UUID(dataset_id)).state == "removed"


def test_a_check_that_ends_after_the_removal_brings_nothing_back(
    client: TestClient, login: Login, upload: Upload, resources: Resources
) -> None:
    dataset_id = upload("covid")
    client.delete(f"{URL}/{dataset_id}", headers=login("researcher"))
    with pytest.raises(service.DatasetRemovedError):
        check(resources, dataset_id)
