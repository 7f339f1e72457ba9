"""The pages of the node itself, its policy, and what the overview says is due."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from ppdd_core.package.signature import fingerprint, printable
from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.audit.models import AuditEvent
from services.auth import service as auth
from services.auth.models import ApiToken
from services.auth.permissions import Scope
from services.backup import COMPLETE, last_backup
from services.catalogue.contents import POLICY
from services.catalogue.models import PackageVersion
from services.jobs import workers
from services.kit.db import now
from services.kit.resources import Resources
from tests.services.dashboard.conftest import NewBrowser
from tests.services.packages import add_package, give_key, package_files

ROLES = ("researcher", "steward", "admin", "auditor")


@pytest.mark.parametrize("role", ROLES)
def test_everybody_sees_what_the_node_is_and_who_looks_after_it_may_look_closer(
    browser: NewBrowser, resources: Resources, role: str
) -> None:
    with resources.sessions.begin() as session:
        workers.note_worker(
            session, "gpu@<b>node</b>", device="NVIDIA H100", version="0.0.1", free_disk_bytes=10**9
        )  # fmt: skip
    one = browser(role)
    page = one.get("/system").text
    for fact in ("hospital-a", printable(fingerprint(resources.key)), "NVIDIA H100", "1.0 GB"):
        assert fact in page
    assert "another one than the node" in page
    assert "<b>node" not in page
    assert "/api/v1/openapi.json" in page
    assert str(resources.settings.data_dir) not in page
    assert ("/system/checks" in page) == (role in ("admin", "auditor"))


def test_the_checks_say_what_to_do(browser: NewBrowser, resources: Resources) -> None:
    resources.settings.data_dir.chmod(0o755)
    page = browser("admin").post("/system/checks")
    assert page.status_code == 200
    assert f"chmod 700 {resources.settings.data_dir}" in page.text
    assert "object store" in page.text
    assert "nvidia" not in page.text.lower()  # of a worker's machine


def test_a_backup_is_recorded_with_what_it_holds_and_gets_old(
    browser: NewBrowser, resources: Resources
) -> None:
    one = browser("admin")
    assert "No backup is recorded." in one.get("/system").text
    with resources.sessions.begin() as session:
        held = {"rows": 12345, "objects": 7, "packages": 2, "bytes": 3_000_000}
        event = audit.record(session, SYSTEM, COMPLETE, detail=held)
    page = one.get("/system").text
    for fact in ("fresh", "12,345", "3.0 MB"):
        assert fact in page
    with resources.engine.begin() as connection:
        old = {"at": event.at - timedelta(days=8)}
        connection.execute(update(AuditEvent).where(AuditEvent.seq == event.seq), old)
    assert ">old<" in one.get("/system").text
    with resources.reading() as session:
        found = last_backup(session)
        assert found is not None and found.seq == event.seq


def test_the_policy_is_the_one_that_the_release_gate_uses(browser: NewBrowser) -> None:
    for role in ROLES:
        page = browser(role).get("/policy").text
        for limit in (
            f"more than {POLICY.max_near_copies}<",
            f"more than {POLICY.max_membership_auc}<",
            f"more than {POLICY.max_tpr_at_1_fpr}<",
            f"less than {POLICY.min_class_size}<",
            f"is {POLICY.near_copy_ssim} or more",
        ):
            assert limit in page
        assert page.count("or could not be measured") == 3
        assert "Differential privacy" in page


# ------------------------------------------------------------------------------------------ the overview


def _token(resources: Resources, username: str, days: int) -> None:
    with resources.sessions.begin() as session:
        user = auth.find_user(session, username)
        assert user is not None
        name = f"{username}-{days}"
        auth.issue_token(
            session, SYSTEM, user, name=name, scopes=frozenset({Scope.JOBS_READ}), days=days
        )


def test_tokens_that_expire_soon_are_shown_to_their_owner_and_to_admins(
    browser: NewBrowser, resources: Resources
) -> None:
    researcher, admin = browser("researcher"), browser("admin")
    for name in ("researcher", "admin"):
        _token(resources, name, 5)
        _token(resources, name, 90)
    mine, all_ = researcher.get("/").text, admin.get("/").text
    assert ("researcher-5" in mine, "admin-5" in mine) == (True, False)
    assert ("researcher-5" in all_, "admin-5" in all_) == (True, True)
    assert f'href="/users/{researcher.user_id}"' in all_
    for page in (mine, all_):
        assert "researcher-90" not in page
    with resources.sessions.begin() as session:
        session.execute(update(ApiToken).values(revoked_at=now()))
    assert "Expires soon" not in admin.get("/").text


def test_packages_near_their_last_day_are_shown_and_the_oldest_draft_comes_first(
    browser: NewBrowser, resources: Resources, tmp_path: Path
) -> None:
    give_key(resources.settings)
    today = now().date()
    for version, days in (("1.0.0", 20), ("1.1.0", 40), ("1.2.0", -1), ("1.3.0", -40)):
        files = package_files("hospital-a", "cxr", version)
        added = add_package(resources, tmp_path, files)
        with resources.sessions.begin() as session:
            one = session.get_one(PackageVersion, added.id)
            usage = {**one.manifest["usage"], "expires": str(today + timedelta(days=days))}
            one.manifest = {**one.manifest, "usage": usage}
    page = browser("steward").get("/").text
    drafts, _, expiring = page.partition("Expires soon")
    places = [drafts.index(f"hospital-a/cxr 1.{minor}.0") for minor in range(4)]
    assert places == sorted(places)
    assert ("cxr 1.0.0" in expiring, "cxr 1.2.0" in expiring) == (True, True)
    assert ("cxr 1.1.0" in expiring, "cxr 1.3.0" in expiring) == (False, False)
    assert ">past<" in expiring
