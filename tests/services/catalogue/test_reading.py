"""Lists, search and one version, as people and as other hospitals see them."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from services.catalogue.models import Origin
from tests.services.catalogue.conftest import Add
from tests.services.conftest import Login
from tests.services.packages import package_files

PACKAGES = "/api/v1/packages"
VERSION = f"{PACKAGES}/hospital-a/cxr/versions/1.0.0"


@pytest.fixture
def filled(add: Add) -> None:
    add(package_files("hospital-a"))
    add(package_files("hospital-a", version="1.1.0", auc=0.7))
    add(package_files("hospital-b", name="lungs", classes=("COVID", "結核")), Origin.IMPORTED)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["hospital-b/lungs", "hospital-a/cxr"]),
        ({"q": "LUNG"}, ["hospital-b/lungs"]),
        ({"q": "a/cx"}, ["hospital-a/cxr"]),
        ({"q": "hospital b"}, ["hospital-b/lungs"]),
        ({"q": "%"}, []),
        ({"site": "hospital-a"}, ["hospital-a/cxr"]),
        ({"state": "held"}, ["hospital-b/lungs"]),
        ({"origin": "made"}, ["hospital-a/cxr"]),
        ({"class": "Lung_Opacity"}, ["hospital-a/cxr"]),
        ({"class": "Lung"}, []),
        ({"class": "結核"}, ["hospital-b/lungs"]),
        ({"class": "COVID", "state": "draft"}, ["hospital-a/cxr"]),
    ],
)
def test_packages_are_found_by(
    client: TestClient, login: Login, query: dict[str, str], expected: list[str]
) -> None:
    answer = client.get(PACKAGES, headers=login("researcher"), params=query)

    assert answer.status_code == 200
    assert [f"{row['site']}/{row['name']}" for row in answer.json()["items"]] == expected


@pytest.mark.usefixtures("filled")
def test_a_list_is_paged_and_says_where_the_next_page_is(client: TestClient, login: Login) -> None:
    first = client.get(PACKAGES, headers=login("auditor"), params={"limit": 1})
    second = client.get(first.links["next"]["url"], headers=login("auditor"))

    assert [row["site"] for row in first.json()["items"]] == ["hospital-b"]
    assert [row["site"] for row in second.json()["items"]] == ["hospital-a"]
    assert second.json()["items"][0]["newest"]["version"] == "1.1.0"
    assert second.json()["next"] is None


@pytest.mark.usefixtures("filled")
def test_a_package_lists_its_versions_the_newest_first(client: TestClient, login: Login) -> None:
    answer = client.get(f"{PACKAGES}/hospital-a/cxr", headers=login("researcher"))

    assert [(row["version"], row["verdict"]) for row in answer.json()["versions"]] == [
        ("1.1.0", "failed"),
        ("1.0.0", "passed"),
    ]


@pytest.mark.usefixtures("filled")
def test_a_version_says_what_it_is(client: TestClient, login: Login) -> None:
    told = client.get(VERSION, headers=login("researcher")).json()

    assert told["manifest"]["name"] == "hospital-a/cxr"
    assert told["privacy"]["said"] == "Every figure lies within this site's limits."
    assert {row["name"] for row in told["privacy"]["measurements"]} >= {"membership_inference_auc"}
    assert told["evaluation"][0]["accuracy"]["mean"] == 0.75
    assert {row["path"]: row["size"] for row in told["files"]} == {
        path: len(data) for path, data in package_files("hospital-a").items()
    }
    assert told["lineage"]["origin"] == "made"


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "path",
    ["hospital-a/nothing", "hospital-a/cxr/versions/9.9.9", "hospital-a/cxr/versions/1.0.0/archive",
     "hospital-b/lungs", "hospital-b/lungs/versions/1.0.0/files/manifest.json"],
)  # fmt: skip
def test_a_peer_finds_no_draft_and_nothing_of_others(
    client: TestClient, login: Login, path: str
) -> None:
    assert client.get(f"{PACKAGES}/{path}", headers=login("peer")).status_code == 404


@pytest.mark.usefixtures("filled")
def test_a_peer_sees_what_was_released_and_not_by_whom(client: TestClient, login: Login) -> None:
    peer = login("peer")
    assert client.get(PACKAGES, headers=peer).json()["items"] == []
    assert client.post(f"{VERSION}/release", headers=login("steward")).status_code == 200

    listed = client.get(PACKAGES, headers=peer).json()["items"]
    told = client.get(VERSION, headers=peer).json()

    assert [row["newest"]["version"] for row in listed] == ["1.0.0"]
    assert client.get(PACKAGES, headers=peer, params={"state": "draft"}).json()["items"] == []
    assert told["lineage"] is None
    assert told["release"]["by"] is None


@pytest.mark.parametrize("path", ["", "/hospital-a/cxr", "/hospital-a/cxr/versions/1.0.0"])
def test_nobody_reads_anonymously(client: TestClient, path: str) -> None:
    assert client.get(PACKAGES + path).status_code == 401


def test_a_token_without_the_scope_reads_nothing(client: TestClient, login: Login) -> None:
    narrow = login("researcher", scopes=frozenset({"jobs:read"}))

    assert client.get(PACKAGES, headers=narrow).status_code == 403


@pytest.mark.parametrize(
    "query", [{"state": "sold"}, {"limit": "0"}, {"origin": "x"}, {"q": "x" * 201}]
)
def test_a_search_that_makes_no_sense_is_refused(
    client: TestClient, login: Login, query: dict[str, str]
) -> None:
    answer = client.get(PACKAGES, headers=login("researcher"), params=query)

    assert answer.status_code == 422
    assert next(iter(query)) in answer.json()["detail"]
