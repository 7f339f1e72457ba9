"""`/jobs` over HTTP: what may be asked for, what is refused, what is shown."""

from __future__ import annotations

import json
import threading
import time
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from services.datasets.models import SourceDataset
from services.jobs import service as jobs
from services.jobs.models import Job
from services.jobs.service import Claim, Failure
from services.kit.db import new_id
from services.kit.resources import Resources
from tests.services.conftest import Bell, Login
from tests.services.jobs.conftest import Make

URL = "/api/v1/jobs"
PACKAGE = {
    "name": "chest",
    "version": "1.0.0",
    "licence": "CC-BY-NC-4.0",
    "purposes": ["DUO:0000006"],
}
DISTILL = {
    "kind": "distill",
    "dataset": "chests",
    "preset": "quick",
    "images_per_class": 2,
    "settings": {"distill.iterations": 50, "teacher.teachers": "2"},
    "package": PACKAGE,
    "seed": 7,
}
CHECK = {"kind": "check", "dataset": "chests"}


@pytest.fixture
def ruth(login: Login, dataset: SourceDataset) -> dict[str, str]:
    """Headers of the owner of the dataset and of what `make` adds."""
    return login("researcher", username="ruth")


def take(resources: Resources, job_id: UUID | str) -> Claim:
    with resources.sessions.begin() as session:
        claim = jobs.claim(
            session, UUID(str(job_id)), worker="gpu-1", settings=resources.settings.jobs
        )
    assert claim is not None
    return claim


def count(resources: Resources) -> int:
    with resources.sessions() as session:
        return session.execute(select(func.count()).select_from(Job)).scalar_one()


# ------------------------------------------------------------------------------------------ creating


def test_a_distillation_is_queued_with_its_whole_recipe(
    client: TestClient, resources: Resources, bell: Bell, ruth: dict[str, str]
) -> None:
    answer = client.post(URL, json=DISTILL, headers=ruth)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["Location"] == f"{URL}/{job['id']}"
    assert answer.headers["Link"] == f'<{URL}/{job["id"]}/events>; rel="monitor"'
    assert (job["state"], job["owner"], job["dataset"]) == ("queued", "ruth", "chests")
    assert (job["position"], job["attempts"], job["history"]) == (1, 0, [])
    recipe = job["spec"]["recipe"]
    assert (recipe["seed"], recipe["distill"]["iterations"]) == (7, 50)
    assert (recipe["distill"]["images_per_class"], recipe["teacher"]["teachers"]) == (2, 2)
    assert job["spec"]["package"]["name"] == "chest"
    assert "hospital-a/chest 1.0.0" in job["title"]
    assert bell.rung == [("ppdd.work", UUID(job["id"]))]


def test_a_dataset_may_be_named_by_its_id(
    client: TestClient, ruth: dict[str, str], dataset: SourceDataset
) -> None:
    answer = client.post(URL, json={**CHECK, "dataset": str(dataset.id)}, headers=ruth)
    assert (answer.status_code, answer.json()["dataset"]) == (202, "chests")
    assert answer.json()["spec"] == {"dataset": "chests", "image_size": 112}


def changed(**values: Any) -> dict[str, Any]:
    return {**DISTILL, **values}


REFUSED: dict[str, tuple[Any, str]] = {
    "field": (changed(settings={"distill.iteration": 1}), "distill.iteration"),
    "range": (changed(settings={"distill.iterations": 0}), "at least 1"),
    "text": (changed(settings={"distill.iterations": "x"}), "whole number"),
    "truth value": (changed(settings={"distill.iterations": True}), "settings"),
    "huge": (changed(settings={"distill.iterations": "9" * 20}), "too large"),
    "long text": (changed(settings={"net.width": "1" * 5000}), "settings"),
    "beyond JSON": (changed(settings={"net.depth": 10**30}), "net.depth"),
    "beyond floats": (changed(settings={"net.depth": 10**400}), "settings"),
    "group": (changed(settings={"distill": 1}), "distill"),
    "seed twice": (changed(settings={"seed": 1}), "`seed`"),
    "preset": (changed(preset="huge"), "preset"),
    "no images": (changed(images_per_class=0), "images_per_class"),
    "seed": (changed(seed=-1), "seed"),
    "package name": (changed(package={**PACKAGE, "name": "A b"}), "name"),
    "version": (changed(package={**PACKAGE, "version": "1"}), "version"),
    "purpose": (changed(package={**PACKAGE, "purposes": ["x"]}), "purposes"),
    "expired": (changed(package={**PACKAGE, "expires": "2020-01-01"}), "expires"),
    "terms": (changed(package={**PACKAGE, "terms_sha256": "x"}), "terms_sha256"),
    "NUL": (changed(test_rows={"hospital": "a\x00"}), "test_rows"),
    "half a character": (changed(dataset="\ud800"), "dataset"),
    "unknown field": (changed(other=1), "other"),
    "train": ({"kind": "train"}, "POST /detectors"),
    "pull": ({"kind": "pull"}, "POST /pulls"),
    "estimate": ({"kind": "estimate"}, "POST /jobs/estimate"),
    "unknown kind": ({"kind": "bake"}, "kind"),
    "nothing": ({}, "kind"),
    "a list": ([], "body"),
}


def test_what_cannot_work_is_refused_now_and_named(
    client: TestClient, resources: Resources, ruth: dict[str, str]
) -> None:
    headers = {**ruth, "Content-Type": "application/json"}
    for name, (body, says) in REFUSED.items():
        answer = client.post(URL, content=json.dumps(body), headers=headers)
        assert answer.status_code == 422, (name, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert says in answer.json()["detail"], name
    assert count(resources) == 0


def test_more_images_than_a_package_holds_are_refused(
    client: TestClient, resources: Resources, ruth: dict[str, str]
) -> None:
    with resources.sessions.begin() as session:
        found = {"classes": dict.fromkeys("abcd", 1000)}
        session.execute(update(SourceDataset).values(findings=found))
    answer = client.post(URL, json=changed(images_per_class=2251), headers=ruth)
    assert answer.status_code == 422 and "at most 2250" in answer.json()["detail"]


def test_a_dataset_that_cannot_be_used_is_refused(
    client: TestClient, resources: Resources, ruth: dict[str, str]
) -> None:
    for state, status in (("faulty", 422), ("removed", 422), ("registered", 202)):
        with resources.sessions.begin() as session:
            session.execute(update(SourceDataset).values(state=state))
        for path in ("", "/estimate"):
            answer = client.post(URL + path, json=DISTILL, headers=ruth)
            assert answer.status_code == status
            if status == 422:
                assert answer.json()["type"] == "/problems/dataset-unusable"


def test_an_unknown_dataset_is_not_found(client: TestClient, ruth: dict[str, str]) -> None:
    answer = client.post(URL, json={**CHECK, "dataset": "nothing"}, headers=ruth)
    assert answer.status_code == 404 and "nothing" in answer.json()["detail"]


def test_a_version_is_made_by_one_job(
    client: TestClient, resources: Resources, ruth: dict[str, str]
) -> None:
    first = client.post(URL, json=DISTILL, headers=ruth).json()
    again = client.post(URL, json=changed(seed=8), headers=ruth)
    assert again.status_code == 409 and first["id"] in again.json()["detail"]
    other = changed(package={**PACKAGE, "version": "1.0.1"})
    assert client.post(URL, json=other, headers=ruth).status_code == 202
    client.post(f"{URL}/{first['id']}/cancel", headers=ruth)
    assert client.post(URL, json=changed(seed=8), headers=ruth).status_code == 202


def test_the_same_key_answers_with_the_same_job(
    client: TestClient, resources: Resources, ruth: dict[str, str]
) -> None:
    keyed = {**ruth, "Idempotency-Key": "one"}
    first, again = (client.post(URL, json=DISTILL, headers=keyed) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["Location"] == first.headers["Location"]
    with resources.sessions.begin() as session:
        session.execute(update(SourceDataset).values(state="removed"))
    assert client.post(URL, json=DISTILL, headers=keyed).json()["id"] == first.json()["id"]
    other = client.post(URL, json=changed(seed=8), headers=keyed)
    assert other.status_code == 409
    assert other.json()["type"] == "/problems/idempotency-conflict"
    too_long = client.post(URL, json=DISTILL, headers={**ruth, "Idempotency-Key": "x" * 201})
    assert too_long.status_code == 422


# ------------------------------------------------------------------------------------------ estimating


FIGURES = {"seconds": {"teachers": 60.0, "privacy": 5.0}, "peak_bytes": 10}


def test_an_estimate_that_is_not_there_in_time_is_a_job(
    client: TestClient, ruth: dict[str, str]
) -> None:
    answer = client.post(
        f"{URL}/estimate", json=DISTILL, headers={**ruth, "Prefer": "respond-async, wait=1"}
    )
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert (answer.json()["kind"], answer.json()["state"]) == ("estimate", "queued")
    assert answer.headers["Location"] == f"{URL}/{answer.json()['id']}"


def test_an_estimate_is_waited_for_and_then_known_to_the_distillation(
    client: TestClient, resources: Resources, bell: Bell, ruth: dict[str, str]
) -> None:
    def work() -> None:
        limit = time.monotonic() + 20
        while not bell.rung and time.monotonic() < limit:
            time.sleep(0.01)
        claim = take(resources, bell.rung[0][1])
        with resources.sessions.begin() as session:
            jobs.succeed(session, claim.job.id, claim.fence, result=FIGURES)

    worker = threading.Thread(target=work)
    worker.start()
    body = {key: value for key, value in DISTILL.items() if key not in ("package", "kind")}
    answer = client.post(f"{URL}/estimate", json=body, headers={**ruth, "Prefer": "wait=30"})
    worker.join()
    assert answer.status_code == 200, answer.text
    assert (answer.json()["state"], answer.json()["result"]) == ("succeeded", FIGURES)
    same_but_seed = client.post(URL, json=changed(seed=99), headers=ruth).json()
    assert same_but_seed["estimate"] == FIGURES
    other = changed(images_per_class=3, package={**PACKAGE, "version": "2.0.0"})
    assert client.post(URL, json=other, headers=ruth).json()["estimate"] is None


# ------------------------------------------------------------------------------------------ reading


def test_the_presets_say_what_may_be_set(client: TestClient, ruth: dict[str, str]) -> None:
    found = client.get(f"{URL}/presets", params={"images_per_class": 1}, headers=ruth).json()
    assert [one["name"] for one in found["items"]] == ["quick", "small", "paper", "fast"]
    quick = found["items"][0]
    assert quick["recipe"]["distill"]["images_per_class"] == 1
    assert "two CPU cores" in quick["summary"]
    fields = {one["name"]: one for one in quick["fields"]}
    assert fields["distill.iterations"]["default"] == 200
    assert "unroll" in fields["distill.engine"]["choices"]
    assert not {"seed", "preset", "distill.images_per_class"} & set(fields)


def test_a_running_job_tells_everything(
    client: TestClient, resources: Resources, ruth: dict[str, str], dataset: SourceDataset
) -> None:
    job_id = client.post(URL, json=DISTILL, headers=ruth).json()["id"]
    claim = take(resources, job_id)
    progress = {"stage": "teachers", "done": 1, "total": 4, "eta_seconds": 30.0, "note": ""}
    with resources.sessions.begin() as session:
        estimate = {"seconds": {"privacy": 5, "distillation": 100.0, "teachers": 40}}
        jobs.note_estimate(session, claim.job.id, claim.fence, estimate)
        jobs.note_progress(session, claim.job.id, claim.fence, progress)
    job = client.get(f"{URL}/{job_id}", headers=ruth).json()
    assert (job["state"], job["position"], job["progress"]) == ("running", None, progress)
    assert job["eta_seconds"] == 135.0
    assert [(one["number"], one["worker"], one["outcome"]) for one in job["history"]] == [
        (1, "gpu-1", None)
    ]
    with resources.sessions.begin() as session:
        jobs.fail(session, claim.job.id, claim.fence, Failure("no-memory", "too small", retry=True))
    job = client.get(f"{URL}/{job_id}", headers=ruth).json()
    assert (job["state"], job["error"]["slug"]) == ("queued", "no-memory")
    assert job["retry_at"] is not None and job["history"][0]["outcome"] == "failed"


def test_a_credential_is_never_shown(
    client: TestClient, resources: Resources, make: Make, ruth: dict[str, str]
) -> None:
    job = make(credential="ppdd_secret", vault=resources.vault)
    text = client.get(f"{URL}/{job.id}", headers=ruth).text
    assert "sealed" not in text and "secret" not in text


def test_a_list_is_filtered(
    client: TestClient, resources: Resources, login: Login, make: Make, ruth: dict[str, str]
) -> None:
    make()
    client.post(URL, json=DISTILL, headers=ruth)
    eve = login("steward")
    checked = client.post(URL, json=CHECK, headers=eve).json()
    take(resources, checked["id"])

    def kinds(**query: str) -> list[str]:
        answer = client.get(URL, params=query, headers=ruth)
        assert answer.status_code == 200, answer.text
        return [item["kind"] for item in answer.json()["items"]]

    assert kinds() == ["check", "distill", "check"]
    assert kinds(kind="distill") == ["distill"]
    assert kinds(state="running") == ["check"]
    assert kinds(dataset="chests") == ["check", "distill"]
    assert kinds(dataset="nothing") == []
    assert kinds(owner="me") == ["distill", "check"]
    assert kinds(owner="me", kind="check", dataset="chests") == []


def test_a_filter_that_is_none_is_refused(client: TestClient, ruth: dict[str, str]) -> None:
    for query in (
        {"kind": "x"},
        {"state": "x"},
        {"owner": "eve"},
        {"limit": "0"},
        {"limit": "201"},
    ):
        assert client.get(URL, params=query, headers=ruth).status_code == 422, query


def test_a_bad_cursor_is_refused(client: TestClient, ruth: dict[str, str]) -> None:
    assert client.get(URL, params={"cursor": "x"}, headers=ruth).status_code == 400


def test_pages_are_stable_while_jobs_are_added(
    client: TestClient, make: Make, ruth: dict[str, str]
) -> None:
    there = [str(make().id) for _ in range(7)][::-1]
    seen, url = [], f"{URL}?limit=3"
    while url:
        answer = client.get(url, headers=ruth)
        seen += [item["id"] for item in answer.json()["items"]]
        make()
        link = answer.headers.get("Link")
        assert (link is None) == (answer.json()["next"] is None)
        url = link.split(">")[0][1:] if link else ""
    assert seen == there


# ------------------------------------------------------------------------------------------ changing


def test_a_job_is_cancelled_and_goes_on(
    client: TestClient, bell: Bell, make: Make, ruth: dict[str, str]
) -> None:
    job = make()
    place = f"{URL}/{job.id}"
    answer = client.post(f"{place}/cancel", headers=ruth)
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert client.post(f"{place}/cancel", headers=ruth).status_code == 409
    answer = client.post(f"{place}/resume", headers=ruth)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert client.post(f"{place}/resume", headers=ruth).json()["type"] == "/problems/not-resumable"
    assert bell.rung == [("ppdd.work", job.id)] * 2


def test_a_running_job_says_that_it_is_being_cancelled(
    client: TestClient, resources: Resources, make: Make, ruth: dict[str, str]
) -> None:
    job = make()
    take(resources, job.id)
    answer = client.post(f"{URL}/{job.id}/cancel", headers=ruth).json()
    assert (answer["state"], answer["cancelling"]) == ("running", True)


# ------------------------------------------------------------------------------------------ who may

ROUTES: list[tuple[str, str]] = [
    ("POST", ""),
    ("POST", "/estimate"),
    ("GET", ""),
    ("GET", "/presets"),
    ("GET", "/{id}"),
    ("POST", "/{id}/cancel"),
    ("POST", "/{id}/resume"),
    ("GET", "/{id}/events"),
    ("GET", "/{id}/log"),
]


def test_nobody_without_a_token_and_no_other_hospital(
    client: TestClient, login: Login, make: Make
) -> None:
    refused = {
        "nobody": ({}, 401),
        "another hospital": (login("peer"), 403),
        "a token for packages": (
            login("researcher", username="narrow", scopes=frozenset({"packages:read"})),
            403,
        ),
        "an auditor": (login("auditor"), 403),
    }
    job_id = str(make().id)
    for method, path in ROUTES:
        for who, (headers, status) in refused.items():
            if (method, who) == ("GET", "an auditor"):
                continue
            url, body = URL + path.replace("{id}", job_id), DISTILL if method == "POST" else None
            answer = client.request(method, url, json=body, headers=headers)
            assert answer.status_code == status, (method, path, who)


def test_a_job_that_is_not_there_is_not_found(client: TestClient, ruth: dict[str, str]) -> None:
    for method, path in ROUTES:
        if "{id}" not in path:
            continue
        missing = client.request(method, URL + path.replace("{id}", str(new_id())), headers=ruth)
        assert missing.status_code == 404, path
        wrong = client.request(method, URL + path.replace("{id}", "x"), headers=ruth)
        assert wrong.status_code == 422, path


def test_somebody_elses_job_is_left_alone(client: TestClient, login: Login, make: Make) -> None:
    job, eve = make(), login("researcher", username="eve")
    for act in ("cancel", "resume"):
        answer = client.post(f"{URL}/{job.id}/{act}", headers=eve)
        assert answer.status_code == 403 and "somebody else's" in answer.json()["detail"]
    assert client.get(f"{URL}/{job.id}", headers=login("auditor")).status_code == 200
