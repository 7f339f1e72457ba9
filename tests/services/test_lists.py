"""Lists that programs read page by page: what they write without asking their models again, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy import event, insert, update

from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.models import ApiToken, User
from services.auth.permissions import Role, role_scopes
from services.catalogue.models import Package, PackageVersion
from services.catalogue.schemas import PackageSummary
from services.datasets.models import SourceDataset
from services.jobs.models import Job, Kind, State
from services.jobs.schemas import JobSummary
from services.kit.db import Base, new_id, now
from services.kit.paging import Page
from services.kit.resources import Resources, open_resources
from services.settings import Settings
from tests.services.conftest import Bell

JOBS, PACKAGES, PULLS = "/api/v1/jobs", "/api/v1/packages", "/api/v1/pulls"
LISTS: list[tuple[str, type[BaseModel]]] = [
    (JOBS, Page[JobSummary]),
    (PULLS, Page[JobSummary]),
    (PACKAGES, Page[PackageSummary]),
]
PROGRESS: dict[str, Any] = {
    State.RUNNING.value: {"stage": "teachers", "done": 1, "total": 2, "numbers": {"loss": 0.5}},
    State.QUEUED.value: {"note": "again, after a worker was lost"},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, settings: Settings, bell: Bell) -> Iterator[Resources]:
    """A node with jobs in every state and packages of several versions, on each of the two databases."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        database = settings.database.model_copy(update={"url": url})
        settings = settings.model_copy(update={"database": database})
    with open_resources(settings, send=bell) as made:
        Base.metadata.create_all(made.engine)
        _fill(made)
        yield made


@pytest.fixture
def api(node: Resources) -> Iterator[TestClient]:
    with TestClient(create_app(node), raise_server_exceptions=False) as made:
        yield made


def _fill(node: Resources) -> None:
    with node.sessions.begin() as session:
        ruth = auth.create_user(
            session, SYSTEM, username="ruth", display_name="Ruth", role=Role.RESEARCHER
        )
        dataset = SourceDataset(name="chests", title="", owner_id=ruth.id, rows={}, state="ready")
        session.add(dataset)
        session.flush()
        session.execute(
            insert(Job),
            [
                _job(kind, state, ruth, dataset.id if kind == Kind.CHECK else None)
                for kind in (Kind.CHECK, Kind.PULL)
                for state in State
            ],
        )
        packages = [
            {"id": new_id(), "created_at": now(), "site": site, "name": f"chest-{number}"}
            for number, site in enumerate(("hospital-a", "hospital-a", "hospital-b", "hospital-a"))
        ]
        session.execute(insert(Package), packages)
        one, two, foreign, yanked = packages
        session.execute(
            insert(PackageVersion),
            [
                _version(one, "1.0.0", "released"),
                _version(two, "1.0.0", "draft"),
                _version(foreign, "1.0.0", "held"),
                _version(yanked, "1.0.0", "yanked"),
                _version(one, "1.1.0", "draft"),
            ],
        )


def _job(kind: Kind, state: State, owner: User, dataset_id: Any) -> dict[str, Any]:
    ended = state not in (State.QUEUED, State.RUNNING)
    return {
        "id": new_id(), "created_at": now(), "kind": kind.value, "title": f"Röntgen “{state.value}”",
        "state": state.value, "owner_id": owner.id, "dataset_id": dataset_id, "spec": {}, "attempts": 1,
        "max_attempts": 5, "fence": 1, "started_at": now().replace(microsecond=0),
        "finished_at": now() if ended else None,
        "cancel_requested_at": now(), "progress": PROGRESS.get(state.value, {"stage": "package"}),
    }  # fmt: skip


def _version(package: dict[str, Any], version: str, state: str) -> dict[str, Any]:
    return {
        "id": new_id(), "created_at": now(), "package_id": package["id"], "version": version, "state": state,
        "digest": new_id().hex * 2, "key": "0" * 64, "site_name": "Charité", "manifest": {},
        "classes": ["COVID", "Lungenentzündung"], "images_per_class": 10, "image_size": 112,
        "archive_sha256": new_id().hex * 2, "archive_size": 2**40, "verdict": "passed", "origin": "made",
        "released_at": None if state == "draft" else now(), "yanked_at": now() if state == "yanked" else None,
    }  # fmt: skip


def _headers(node: Resources, role: Role = Role.STEWARD) -> dict[str, str]:
    with node.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username=role.value, display_name=role.value, role=role
        )
        _, text = auth.issue_token(
            session, SYSTEM, user, name="test", scopes=role_scopes(role), days=1
        )
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize(("path", "page"), LISTS)
def test_a_list_writes_what_its_model_would(
    api: TestClient, node: Resources, path: str, page: type[BaseModel]
) -> None:
    headers = _headers(node)
    for query in ("", "?limit=2", "?limit=1"):
        answer = api.get(path + query, headers=headers)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.json() == json.loads(page.model_validate(answer.json()).model_dump_json())


def test_of_an_ended_job_a_list_shows_no_progress_and_of_another_all_of_it(
    api: TestClient, node: Resources
) -> None:
    shown = api.get(f"{JOBS}?kind=check", headers=_headers(node)).json()["items"]
    assert {job["state"]: job["progress"] for job in shown} == {
        "running": PROGRESS["running"] | {"eta_seconds": None, "note": ""},
        "queued": {"stage": "", "done": 0, "total": 0, "eta_seconds": None, "note": PROGRESS["queued"]["note"]},
        "succeeded": None, "failed": None, "cancelled": None,
    }  # fmt: skip
    assert [job["state"] for job in shown if job["cancelling"]] == ["running"]
    assert {(job["owner"], job["dataset"]) for job in shown} == {("ruth", "chests")}


@pytest.mark.parametrize(
    ("role", "query", "found"),
    [
        (Role.STEWARD, "", ["chest-3 1.0.0", "chest-2 1.0.0", "chest-1 1.0.0", "chest-0 1.1.0"]),
        (Role.STEWARD, "?state=released", ["chest-0 1.0.0"]),
        (Role.STEWARD, "?q=hospital-b", ["chest-2 1.0.0"]),
        (Role.STEWARD, "?site=hospital-b&class=COVID", ["chest-2 1.0.0"]),
        (Role.STEWARD, "?class=Lungenentz%C3%BCndung&state=draft", ["chest-1 1.0.0", "chest-0 1.1.0"]),
        (Role.PEER, "", ["chest-3 1.0.0", "chest-0 1.0.0"]),
        (Role.PEER, "?state=draft", []),
    ],
)  # fmt: skip
def test_a_package_is_listed_with_the_newest_version_that_fits_and_may_be_seen(
    api: TestClient, node: Resources, role: Role, query: str, found: list[str]
) -> None:
    page = api.get(PACKAGES + query, headers=_headers(node, role)).json()
    assert [f"{one['name']} {one['newest']['version']}" for one in page["items"]] == found


def test_a_token_that_is_revoked_between_two_pages_reads_no_second_one(
    api: TestClient, node: Resources
) -> None:
    headers = _headers(node)
    first = api.get(f"{JOBS}?limit=1", headers=headers)
    with node.sessions.begin() as session:
        session.execute(update(ApiToken).values(revoked_at=now() - timedelta(seconds=1)))
    assert api.get(first.links["next"]["url"], headers=headers).status_code == 401


@pytest.mark.parametrize("path", [path for path, _ in LISTS])
def test_strangers_are_not_told_what_is_wrong_with_their_query(
    api: TestClient, node: Resources, path: str
) -> None:
    assert api.get(f"{path}?limit=0").status_code == 401
    refused = api.get(f"{path}?limit=0&cursor=1", headers=_headers(node))
    assert (refused.status_code, refused.json()["errors"][0]["where"]) == (422, "query/limit")


@pytest.mark.parametrize("path", [path for path, _ in LISTS])
def test_a_page_is_one_query_beside_that_for_the_caller(
    api: TestClient, node: Resources, path: str
) -> None:
    headers = _headers(node)
    api.get(path, headers=headers)  # the token's first use is noted
    asked: list[str] = []
    event.listen(
        node.engine, "before_cursor_execute", lambda *given: asked.append(given[2].split()[0])
    )
    api.get(f"{path}?limit=2", headers=headers)
    assert asked.count("SELECT") == 2, asked


def test_what_two_callers_search_for_is_not_mixed_up(api: TestClient, node: Resources) -> None:
    """Statements are kept; what a caller may see is part of what they are kept by."""
    peer, steward = _headers(node, Role.PEER), _headers(node)
    for _ in range(2):
        assert len(api.get(PACKAGES, headers=steward).json()["items"]) == 4
        assert len(api.get(PACKAGES, headers=peer).json()["items"]) == 2
        assert len(api.get(JOBS, headers=steward).json()["items"]) == 10
        assert api.get(f"{JOBS}?owner=me", headers=steward).json()["items"] == []
