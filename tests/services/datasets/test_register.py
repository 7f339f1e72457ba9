"""Registering what lies below a data root, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from ppdd_core.errors import UnsafeSourceError
from services.audit.models import AuditEvent
from services.datasets import places
from services.kit.resources import Resources
from tests.services.conftest import Login
from tests.services.datasets.images import class_files, write_folder, zip_bytes

URL = "/api/v1/datasets"


@pytest.fixture
def root(resources: Resources) -> Path:
    """The node's data root, with a folder, a ZIP and a manifest in it."""
    root = resources.settings.data_roots[0]
    write_folder(root / "covid", class_files())
    (root / "covid.zip").write_bytes(zip_bytes(class_files()))
    (root / "table.csv").write_text("path,label\ncovid/COVID/patient-0.png,COVID\n")
    (root / "notes.txt").write_text("not a dataset")
    (root / ".hidden").mkdir()
    return root


def test_a_folder_is_registered_and_read_back(
    client: TestClient, login: Login, root: Path, resources: Resources
) -> None:
    asked = {"name": "covid", "title": " Covid, 2020 ", "path": "covid"}
    answer = client.post(URL, json=asked, headers=login("researcher"))
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"{URL}/{made['id']}"
    assert made["state"] == "registered"
    assert made["title"] == "Covid, 2020"
    assert made["path"] == str(root.resolve() / "covid")
    assert client.get(answer.headers["location"], headers=login("auditor")).json() == {
        **made,
        "findings": None,
    }
    with resources.sessions() as session:
        event = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "dataset.register")
        ).one()
        assert event.subject == made["id"]
        assert str(root) not in str(event.detail)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("covid.zip", "covid.zip", id="zip"),
        pytest.param("table.csv", "table.csv", id="manifest"),
        pytest.param("covid/COVID", "covid/COVID", id="deeper"),
        pytest.param("covid/", "covid", id="trailing slash"),
        pytest.param("./covid", "covid", id="dot"),
        pytest.param(".", "", id="the root itself"),
        pytest.param("{root}/covid", "covid", id="absolute"),
        pytest.param("{root}", "", id="absolute root"),
    ],
)
def test_paths_below_a_root(root: Path, path: str, found: str) -> None:
    assert places.find([root], path.format(root=root)) == root.resolve() / found


def test_what_lies_outside_is_not_told(
    client: TestClient, login: Login, root: Path, tmp_path: Path
) -> None:
    outside = write_folder(tmp_path / "secret", class_files())
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "inside").mkdir()
    (root / "inside" / "up").symlink_to("../../secret")
    (root / "fifo.zip").parent.mkdir(exist_ok=True)
    os.mkfifo(root / "fifo.zip")
    headers = login("researcher")
    answers = [
        client.post(URL, json={"name": "x", "path": path}, headers=headers)
        for path in (
            str(outside),
            str(tmp_path / "nothing"),
            "/etc",
            "/no/such/place",
            "link",
            f"{root}/link",
            "link/COVID",
            "dangling",
            "inside/up",
            "absent",
            "notes.txt",
            "fifo.zip",
            f"{root}-beside",
        )
    ]
    assert {answer.status_code for answer in answers} == {422}
    without_id = [
        {k: v for k, v in answer.json().items() if k != "correlation_id"} for answer in answers
    ]
    assert all(one == without_id[0] for one in without_id)
    assert without_id[0]["type"] == "/problems/unknown-path"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "covid/../../secret",
        "{root}/../secret",
        "covid//x",
        "a\\b",
        "C:\\x",
        "covid/..",
    ],
)
def test_paths_that_climb_are_refused(root: Path, path: str) -> None:
    (root.parent / "secret").mkdir()
    with pytest.raises((UnsafeSourceError, places.UnknownPathError)):
        places.find([root], path.format(root=root))


def test_a_path_that_climbs_is_answered_with_a_problem(
    client: TestClient, login: Login, root: Path
) -> None:
    answer = client.post(URL, json={"name": "x", "path": "../x"}, headers=login("researcher"))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unsafe-source")


def test_a_link_within_the_root_is_followed_to_where_it_leads(
    client: TestClient, login: Login, root: Path
) -> None:
    (root / "latest").symlink_to("covid")
    answer = client.post(URL, json={"name": "x", "path": "latest"}, headers=login("researcher"))
    assert answer.json()["path"] == str(root.resolve() / "covid")


def test_the_second_root_is_chosen_by_number(tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    for each in roots:
        (each / "same").mkdir(parents=True)
    (roots[1] / "other").mkdir()
    assert places.find(roots, "same") == (roots[0] / "same").resolve()
    assert places.find(roots, "same", number=1) == (roots[1] / "same").resolve()
    assert places.find(roots, "other") == (roots[1] / "other").resolve()
    for number in (0, 7):
        with pytest.raises(places.UnknownPathError):
            places.find(roots, "other", number=number)


def test_the_same_name_or_the_same_images_answer_with_what_is_there(
    client: TestClient, login: Login, root: Path
) -> None:
    headers = login("researcher")
    first = client.post(URL, json={"name": "covid", "path": "covid"}, headers=headers).json()
    for asked in (
        {"name": "covid", "path": "covid.zip"},
        {"name": "other", "path": "covid"},
        {"name": "other", "path": f"{root}/covid"},
    ):
        answer = client.post(URL, json=asked, headers=headers)
        assert answer.status_code == 409
        assert answer.json()["type"] == "/problems/dataset-exists"
        assert answer.json()["dataset_id"] == first["id"]
    other_rows = {"name": "other", "path": "covid", "rows": {"hospital": "b"}}
    assert client.post(URL, json=other_rows, headers=headers).status_code == 201


def test_input_that_is_wrong_is_named(client: TestClient, login: Login, root: Path) -> None:
    headers = login("researcher")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"name": "No Capitals"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"path": ""}, "path"),
        ({"path": "a\u0000b"}, "path"),
        ({"title": "a\u0007b"}, "title"),
        ({"rows": {"": "x"}}, "rows"),
        ({"rows": {str(n): "x" for n in range(17)}}, "rows"),
        ({"rows": {"a": "\u0000"}}, "rows"),
        ({"root": -1}, "root"),
        ({"state": "ready"}, "state"),
        ({"owner_id": "x"}, "owner_id"),
        ({"id": "x"}, "id"),
    ]
    for change, word in changes:
        answer = client.post(
            URL, json={"name": "covid", "path": "covid", **change}, headers=headers
        )
        assert answer.status_code == 422, change
        assert word in answer.json()["detail"]


def test_roots_list_what_could_be_registered(
    client: TestClient, login: Login, root: Path, tmp_path: Path
) -> None:
    (root / "link").symlink_to(tmp_path)
    (root / os.fsdecode(b"bad\xff")).mkdir()
    items = client.get(f"{URL}/roots", headers=login("researcher")).json()["items"]
    assert items == [
        {
            "number": 0,
            "name": "images",
            "available": True,
            "more": False,
            "candidates": [
                {"path": "covid", "kind": "folder"},
                {"path": "covid.zip", "kind": "zip"},
                {"path": "table.csv", "kind": "csv"},
            ],
        }
    ]


def test_a_root_that_is_not_there_or_very_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    for number in range(9):
        (full / f"{number}").mkdir(parents=True)
    monkeypatch.setattr(places, "MAX_LISTED", 3)
    absent, listed = places.list_roots([tmp_path / "absent", full])
    assert not absent.available
    assert len(listed.candidates) == 3
    assert listed.more


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("GET", "/roots", {"researcher", "steward", "admin"}),
        ("POST", "", {"researcher", "steward", "admin"}),
        ("GET", "", {"researcher", "steward", "admin", "auditor"}),
    ],
)
def test_who_may(client: TestClient, login: Login, method: str, path: str, roles: set[str]) -> None:
    assert client.request(method, URL + path).status_code == 401
    for role in ("admin", "steward", "researcher", "auditor", "peer"):
        answer = client.request(method, URL + path, headers=login(role), json=None)
        assert (answer.status_code != 403) == (role in roles), role
