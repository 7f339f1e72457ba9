from __future__ import annotations

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select

from services.audit.models import AuditEvent
from services.auth.principal import Principal
from services.datasets import service as datasets
from services.datasets.models import SourceDataset
from services.jobs import pictures
from services.jobs import service as jobs
from services.jobs.errors import LostJobError
from services.jobs.models import Job, JobPicture
from services.jobs.pictures import MOST, MOST_BYTES, Picture, Shows
from services.kit.resources import Resources
from tests.services.conftest import Login
from tests.services.jobs.conftest import Make

API = "/api/v1/jobs"


def png() -> bytes:
    drawn = io.BytesIO()
    Image.new("L", (8, 8), 90).save(drawn, "PNG")
    return drawn.getvalue()


def claimed(resources: Resources, job: Job) -> int:
    with resources.sessions.begin() as session:
        held = jobs.claim(session, job.id, worker="w", settings=resources.settings.jobs)
    assert held is not None
    return held.fence


def add(resources: Resources, job: Job, fence: int, *some: Picture) -> int:
    with resources.sessions.begin() as session:
        return pictures.add(session, job.id, fence, some)


def test_pictures_are_listed_read_and_audited(
    resources: Resources, client: TestClient, login: Login, make: Make
) -> None:
    job, data = make(), png()
    fence = claimed(resources, job)
    near = Picture(Shows.NEIGHBOUR, 3, data, "COVID", {"image": 3, "ssim": 0.5})
    assert add(resources, job, fence, Picture(Shows.STEP, 20, data), near) == 2
    headers = login("researcher")
    found = client.get(f"{API}/{job.id}/pictures", headers=headers).json()["items"]
    assert [(one["kind"], one["number"], one["label"]) for one in found] == [
        ("neighbour", 3, "COVID"),
        ("step", 20, ""),
    ]
    assert found[0]["caption"] == {"image": 3, "ssim": 0.5}
    answer = client.get(found[0]["href"], headers=headers)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "image/png"
    known = {**headers, "If-None-Match": answer.headers["etag"]}
    assert client.get(found[0]["href"], headers=known).status_code == 304
    with resources.sessions() as session:
        event = session.scalars(select(AuditEvent).where(AuditEvent.action == "job.view")).one()
    assert (event.subject, event.detail) == (str(job.id), {"pictures": 2})


@pytest.mark.parametrize("role", ["auditor", "peer"])
def test_who_may_see_no_images_gets_none(
    resources: Resources, client: TestClient, login: Login, make: Make, role: str
) -> None:
    job = make()
    add(resources, job, claimed(resources, job), Picture(Shows.STEP, 1, png()))
    for path in ("pictures", "pictures/step/1"):
        assert client.get(f"{API}/{job.id}/{path}").status_code == 401
        answer = client.get(f"{API}/{job.id}/{path}", headers=login(role))
        assert answer.status_code == 403


def test_what_is_not_there_is_404_and_what_makes_no_sense_422(
    client: TestClient, login: Login, make: Make
) -> None:
    headers, job = login("researcher"), make()
    missing = "00000000-0000-7000-8000-000000000000"
    for path, status in (
        (f"{missing}/pictures", 404),
        (f"{job.id}/pictures/step/1", 404),
        (f"{job.id}/pictures/photo/1", 422),
        (f"{job.id}/pictures/step/-1", 422),
    ):
        assert client.get(f"{API}/{path}", headers=headers).status_code == status, path


def test_a_step_that_is_taken_again_is_shown_once(resources: Resources, make: Make) -> None:
    job = make()
    fence = claimed(resources, job)
    one = Picture(Shows.STEP, 20, png())
    assert [add(resources, job, fence, one), add(resources, job, fence, one, one)] == [1, 0]


def test_a_worker_that_lost_its_job_shows_nothing(resources: Resources, make: Make) -> None:
    job = make()
    fence = claimed(resources, job)
    with pytest.raises(LostJobError):
        add(resources, job, fence - 1, Picture(Shows.STEP, 1, png()))


def test_a_job_has_only_so_many_and_so_large_ones(resources: Resources, make: Make) -> None:
    job = make()
    fence, data = claimed(resources, job), png()
    many = [Picture(Shows.STEP, number, data) for number in range(30)]
    assert add(resources, job, fence, *many) == MOST[Shows.STEP]
    assert add(resources, job, fence, Picture(Shows.NEIGHBOUR, 0, data)) == 1
    with pytest.raises(ValueError, match="at most 200,000 bytes"):
        add(resources, job, fence, Picture(Shows.NEIGHBOUR, 1, b"x" * (MOST_BYTES + 1)))


def test_pictures_go_with_their_dataset(
    resources: Resources, owner: Principal, dataset: SourceDataset, make: Make
) -> None:
    job, other = make(dataset_id=dataset.id), make()
    for one in (job, other):
        fence = claimed(resources, one)
        add(resources, one, fence, Picture(Shows.NEIGHBOUR, 1, png()))
        with resources.sessions.begin() as session:
            jobs.succeed(session, one.id, fence, result={})
    with resources.sessions.begin() as session:
        datasets.remove(session, owner, dataset.id)
    with resources.sessions() as session:
        assert session.scalars(select(JobPicture.job_id)).all() == [other.id]
