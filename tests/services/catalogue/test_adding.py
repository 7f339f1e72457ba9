"""Packages enter the catalogue verified, once, and in the state that fits where they are from."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import func, select

from ppdd_core.errors import PackageError, SignatureError
from ppdd_core.package.signature import fingerprint
from services.audit.models import AuditEvent
from services.catalogue import service
from services.catalogue.models import Origin, PackageFile, PackageVersion
from services.kit.holds import ObjectHold
from services.kit.resources import Resources
from tests.services.catalogue.conftest import Add
from tests.services.packages import key_of, package_files, write_package


def test_an_own_package_becomes_a_draft_whose_every_file_is_in_the_store(
    add: Add, resources: Resources
) -> None:
    files = package_files("hospital-a")

    version = add(files)

    assert (version.state, version.origin, version.verdict) == ("draft", "made", "passed")
    with resources.reading() as session:
        rows = session.scalars(select(PackageFile)).all()
        assert {row.path: b"".join(resources.store.read(row.sha256)) for row in rows} == files
        assert session.scalar(select(func.count()).select_from(ObjectHold)) == 0
        event = session.scalar(select(AuditEvent).where(AuditEvent.action == "package.add"))
    assert event is not None
    assert event.subject == "hospital-a/cxr@1.0.0"


def test_the_stored_archive_has_the_same_bytes_wherever_it_is_made(
    add: Add, resources: Resources, tmp_path: Path
) -> None:
    version = add(package_files("hospital-a"))

    expected = write_package(tmp_path, package_files("hospital-a"), "again.zip").read_bytes()
    assert b"".join(resources.store.read(version.archive_sha256)) == expected


def test_another_hospitals_package_is_held(add: Add) -> None:
    version = add(package_files("hospital-b"), Origin.IMPORTED)

    assert (version.state, version.origin) == ("held", "imported")


def test_the_same_content_again_is_the_row_that_is_there(add: Add, resources: Resources) -> None:
    first = add(package_files("hospital-a"))
    again = add(package_files("hospital-a"))

    assert again.id == first.id
    with resources.reading() as session:
        assert session.scalar(select(func.count()).select_from(PackageVersion)) == 1
        assert session.scalar(select(func.count()).select_from(ObjectHold)) == 0


def test_other_content_under_a_version_that_exists_is_refused(add: Add) -> None:
    add(package_files("hospital-a"))

    with pytest.raises(service.AlreadyPublishedError, match="choose another version number"):
        add(package_files("hospital-a", auc=0.53))


def test_a_package_that_claims_this_site_under_another_key_is_refused(
    resources: Resources, tmp_path: Path
) -> None:
    path = write_package(tmp_path, package_files("hospital-a", seed="somebody"))

    with pytest.raises(SignatureError, match="this site's key did not sign it"):
        service.store_package(resources, path)


def test_a_pinned_key_that_did_not_sign_is_refused(resources: Resources, tmp_path: Path) -> None:
    path = write_package(tmp_path, package_files("hospital-b"))

    with pytest.raises(SignatureError, match="expected was"):
        service.store_package(resources, path, key=fingerprint(key_of("hospital-c")))


def test_a_second_key_of_a_hospital_needs_to_be_named(
    add: Add, resources: Resources, tmp_path: Path
) -> None:
    add(package_files("hospital-b"), Origin.IMPORTED)
    files = package_files("hospital-b", version="2.0.0", seed="new-key")

    with pytest.raises(service.OtherKeyError, match="ask that hospital for its fingerprint"):
        add(files, Origin.IMPORTED)

    path = write_package(tmp_path, files, "pinned.zip")
    stored = service.store_package(resources, path, key=fingerprint(key_of("new-key")))
    with resources.transaction() as session:
        row = service.add_version(session, stored, origin="imported", owner_id=None)
    assert row.state == "held"


def test_a_changed_file_is_refused_and_nothing_is_stored(
    resources: Resources, tmp_path: Path
) -> None:
    files = dict(package_files("hospital-a"))
    files["privacy.json"] = files["privacy.json"].replace(b"0.52", b"0.51")

    with pytest.raises(
        PackageError, match=r"the file cannot be used: privacy\.json: it was changed"
    ):
        service.store_package(resources, write_package(tmp_path, files), name="the file")
    assert list(resources.store.list()) == []


def test_a_permission_that_has_ended_is_refused_where_it_matters(
    resources: Resources, tmp_path: Path
) -> None:
    path = write_package(tmp_path, package_files("hospital-b", expires="2027-01-01"))

    service.store_package(resources, path)
    with pytest.raises(PackageError, match="ended on 2027-01-01"):
        service.store_package(resources, path, today=date(2027, 1, 2))
