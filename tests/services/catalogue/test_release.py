"""The privacy gate judges what is stored; decisions are made once and stay."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.audit.models import AuditEvent
from services.catalogue.models import Origin, PackageFile, PackageVersion
from services.kit.resources import Resources
from tests.services.catalogue.conftest import Add
from tests.services.conftest import Login
from tests.services.packages import LENIENT, package_files

VERSION = "/api/v1/packages/hospital-a/cxr/versions/1.0.0"
RELEASE, YANK = f"{VERSION}/release", f"{VERSION}/yank"
REASON = "the figure comes from one phantom patient"


def test_a_draft_that_passed_is_released_and_remembers_by_whom(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    add(package_files("hospital-a"))

    answer = client.post(RELEASE, headers=login("steward"))

    assert answer.status_code == 200, answer.json()
    assert answer.json()["state"] == "released"
    assert answer.json()["release"]["by"] == "steward"
    assert answer.json()["release"]["reason"] is None
    assert _events(resources, "package.release") == [
        {"digest": answer.json()["digest"], "verdict": "passed"}
    ]


def test_a_failed_verdict_is_not_released_without_a_reason(
    client: TestClient, login: Login, add: Add
) -> None:
    add(package_files("hospital-a", auc=0.7))

    answer = client.post(RELEASE, headers=login("steward"))

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/privacy-gate"
    assert "membership inference" in answer.json()["reasons"][0]
    assert client.get(VERSION, headers=login("steward")).json()["state"] == "draft"


def test_thresholds_weaker_than_the_sites_do_not_help(
    client: TestClient, login: Login, add: Add
) -> None:
    version = add(package_files("hospital-a", auc=0.7, policy=LENIENT))

    assert version.verdict == "failed"
    assert client.post(RELEASE, headers=login("steward")).status_code == 409


def test_a_steward_may_set_a_failed_verdict_aside_and_says_why(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    add(package_files("hospital-a", auc=0.7))

    answer = client.post(RELEASE, headers=login("steward"), json={"override_reason": REASON})

    assert answer.status_code == 200
    assert answer.json()["release"]["reason"] == REASON
    assert answer.json()["privacy"]["verdict"] == "failed"
    assert client.get(VERSION, headers=login("peer")).json()["release"]["reason"] == REASON
    (event,) = _events(resources, "package.release")
    assert event["override_reason"] == REASON


def test_a_reason_is_kept_only_where_it_was_needed(
    client: TestClient, login: Login, add: Add
) -> None:
    add(package_files("hospital-a"))

    answer = client.post(RELEASE, headers=login("steward"), json={"override_reason": REASON})

    assert answer.json()["release"]["reason"] is None


@pytest.mark.parametrize("body", [{"override_reason": "short"}, {"state": "released"}])
def test_a_release_takes_nothing_but_a_proper_reason(
    client: TestClient, login: Login, add: Add, body: dict[str, str]
) -> None:
    add(package_files("hospital-a", auc=0.7))

    assert client.post(RELEASE, headers=login("steward"), json=body).status_code == 422


@pytest.mark.parametrize("path", ["privacy.json", "manifest.json", "previews/image-0001.png"])
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_artefacts_that_are_not_what_was_signed_are_never_released(
    client: TestClient, login: Login, add: Add, resources: Resources, path: str, how: str
) -> None:
    version = add(package_files("hospital-a"))
    _spoil(resources, _digest(resources, version, path), how)

    answer = client.post(RELEASE, headers=login("admin"), json={"override_reason": REASON})

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/privacy-gate"


def test_a_spoiled_archive_is_never_released(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    _spoil(resources, add(package_files("hospital-a")).archive_sha256, "changed")

    answer = client.post(RELEASE, headers=login("admin"), json={"override_reason": REASON})

    assert answer.status_code == 409


def test_a_row_that_points_to_a_better_report_does_not_help(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    """Somebody with the database in hand swaps the report of a bad version for that of a good one."""
    good = add(package_files("hospital-a", version="0.9.0"))
    bad = add(package_files("hospital-a", auc=0.7))
    with resources.transaction() as session:
        row = session.get_one(PackageFile, (bad.id, "privacy.json"))
        row.sha256 = session.get_one(PackageFile, (good.id, "privacy.json")).sha256
        session.get_one(PackageVersion, bad.id).verdict = "passed"

    answer = client.post(RELEASE, headers=login("admin"), json={"override_reason": REASON})

    assert answer.status_code == 409
    assert "privacy.json is not the one in the archive" in answer.json()["detail"]


def test_of_two_who_release_at_once_one_wins(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    add(package_files("hospital-a"))
    headers, answers = login("steward"), []
    both = threading.Barrier(2)

    def ask() -> None:
        both.wait()
        answers.append(client.post(RELEASE, headers=headers).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [200, 409]
    assert len(_events(resources, "package.release")) == 1


def test_another_hospitals_version_is_not_ours_to_release(
    client: TestClient, login: Login, add: Add
) -> None:
    add(package_files("hospital-b"), Origin.IMPORTED)

    answer = client.post(
        "/api/v1/packages/hospital-b/cxr/versions/1.0.0/release", headers=login("admin")
    )

    assert answer.status_code == 409
    assert "only hospital-b can release it" in answer.json()["detail"]


def test_a_yanked_version_says_why_and_there_is_no_way_back(
    client: TestClient, login: Login, add: Add, resources: Resources
) -> None:
    add(package_files("hospital-a"))
    steward, why = login("steward"), {"reason": "consent was withdrawn"}
    assert client.post(YANK, headers=steward, json=why).status_code == 409  # not released yet
    client.post(RELEASE, headers=steward)

    answer = client.post(YANK, headers=steward, json=why)

    assert answer.status_code == 200
    assert answer.json()["yank"]["reason"] == "consent was withdrawn"
    assert client.post(RELEASE, headers=steward).status_code == 409
    assert client.post(YANK, headers=steward, json=why).status_code == 409
    assert len(_events(resources, "package.yank")) == 1


@pytest.mark.parametrize("url", [RELEASE, YANK])
@pytest.mark.parametrize(
    ("role", "status"), [("", 401), ("researcher", 403), ("auditor", 403), ("peer", 403)]
)
def test_only_stewards_decide(
    client: TestClient, login: Login, add: Add, url: str, role: str, status: int
) -> None:
    add(package_files("hospital-a"))
    headers = login(role) if role else {}

    answer = client.post(url, headers=headers, json={"reason": "because"} if url == YANK else None)

    assert answer.status_code == status


@pytest.mark.parametrize("url", [RELEASE, YANK])
def test_what_is_not_there_cannot_be_decided(client: TestClient, login: Login, url: str) -> None:
    body = {"reason": "because"} if url == YANK else None

    assert client.post(url, headers=login("steward"), json=body).status_code == 404


def _events(resources: Resources, action: str) -> list[dict[str, object]]:
    with resources.reading() as session:
        found = select(AuditEvent.detail).where(AuditEvent.action == action)
        return list(session.scalars(found.where(AuditEvent.outcome == "done")))


def _digest(resources: Resources, version: PackageVersion, path: str) -> str:
    with resources.reading() as session:
        return session.get_one(PackageFile, (version.id, path)).sha256


def _spoil(resources: Resources, sha256: str, how: str) -> None:
    if how == "gone":
        resources.store.delete(sha256)
        return
    path: Path = resources.settings.data_dir / "objects" / sha256[:2] / sha256[2:4] / sha256
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
