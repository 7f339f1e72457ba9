"""A package that comes as a file: everything in it is verified before it is anything here."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ppdd_core.package.signature import fingerprint
from services.catalogue import contents
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.conftest import Login
from tests.services.packages import key_of, package_files, write_package

PACKAGES = "/api/v1/packages"
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
def foreign(tmp_path: Path) -> bytes:
    return write_package(tmp_path, package_files("hospital-b")).read_bytes()


def test_an_imported_package_is_held(client: TestClient, login: Login, foreign: bytes) -> None:
    headers = {**login("researcher"), **ZIP}

    first = client.post(PACKAGES, headers=headers, content=foreign)
    again = client.post(PACKAGES, headers=headers, content=foreign)

    assert first.status_code == 201, first.json()
    assert first.json()["state"] == "held"
    assert first.json()["lineage"]["origin"] == "imported"
    assert first.headers["location"] == f"{PACKAGES}/hospital-b/cxr/versions/1.0.0"
    assert again.status_code == 200
    assert client.get(f"{first.headers['location']}/archive", headers=headers).content == foreign


def test_large_files_are_stored_by_way_of_the_disk(
    client: TestClient,
    login: Login,
    resources: Resources,
    foreign: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents, "SMALL", 1000)
    files = package_files("hospital-b")
    assert min(map(len, files.values())) < 1000 < max(map(len, files.values()))

    answer = client.post(PACKAGES, headers={**login("researcher"), **ZIP}, content=foreign)

    assert answer.status_code == 201, answer.json()
    kept = {
        stored.sha256: b"".join(resources.store.read(stored.sha256))
        for stored in resources.store.list()
    }
    assert {foreign, *files.values()} == set(kept.values())
    assert list(resources.settings.spool_dir.iterdir()) == []


def test_an_own_package_comes_back_as_a_draft(
    client: TestClient, login: Login, tmp_path: Path
) -> None:
    own = write_package(tmp_path, package_files("hospital-a")).read_bytes()

    answer = client.post(PACKAGES, headers={**login("steward"), **ZIP}, content=own)

    assert answer.json()["state"] == "draft"


def test_a_named_key_must_have_signed_it(client: TestClient, login: Login, foreign: bytes) -> None:
    headers = {**login("researcher"), **ZIP}
    right, wrong = fingerprint(key_of("hospital-b")), fingerprint(key_of("hospital-c"))

    def send(key: str) -> int:
        return client.post(
            PACKAGES, headers=headers, content=foreign, params={"key": key}
        ).status_code

    assert [send("no key"), send(wrong), send(right)] == [422, 422, 201]


def test_other_content_under_a_known_version_is_a_conflict(
    client: TestClient, login: Login, foreign: bytes, tmp_path: Path
) -> None:
    headers = {**login("researcher"), **ZIP}
    other = write_package(tmp_path, package_files("hospital-b", auc=0.55), "other.zip").read_bytes()
    client.post(PACKAGES, headers=headers, content=foreign)

    answer = client.post(PACKAGES, headers=headers, content=other)

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/already-published"


def _flipped(data: bytes) -> bytes:
    place = data.index(b'"learning_rate"')
    return data[:place] + b"X" + data[place + 1 :]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-30], _flipped, lambda _: b"", lambda _: b"PK\x03\x04 no"]
)
def test_a_file_that_is_no_sound_package_is_refused_and_leaves_nothing(
    client: TestClient, login: Login, resources: Resources, foreign: bytes, spoil: object
) -> None:
    assert callable(spoil)
    answer = client.post(PACKAGES, headers={**login("researcher"), **ZIP}, content=spoil(foreign))

    assert answer.status_code == 422, answer.text
    assert "the package" in answer.json()["detail"]
    assert str(resources.settings.data_dir) not in answer.text
    assert list(resources.store.list()) == []
    assert list(resources.settings.spool_dir.iterdir()) == []


def test_a_bomb_is_not_unpacked(client: TestClient, login: Login, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"0" * 50_000_000)

    answer = client.post(
        PACKAGES, headers={**login("researcher"), **ZIP}, content=bomb.read_bytes()
    )

    assert answer.status_code == 422


def test_a_package_beyond_the_limit_is_refused(
    client: TestClient, login: Login, settings: Settings
) -> None:
    size = settings.limits.package_bytes + 1
    headers = {**login("researcher"), **ZIP, "Content-Length": str(size)}

    assert client.post(PACKAGES, headers=headers, content=b"x").status_code == 413


def test_other_types_of_body_are_refused(client: TestClient, login: Login) -> None:
    answer = client.post(PACKAGES, headers=login("researcher"), json={"package": "x"})

    assert answer.status_code == 422
    assert "application/zip" in answer.json()["detail"]


@pytest.mark.parametrize(("role", "status"), [("", 401), ("auditor", 403), ("peer", 403)])
def test_who_may_not_import(
    client: TestClient, login: Login, foreign: bytes, role: str, status: int
) -> None:
    headers = {**(login(role) if role else {}), **ZIP}

    assert client.post(PACKAGES, headers=headers, content=foreign).status_code == status
