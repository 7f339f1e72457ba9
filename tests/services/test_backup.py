from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from ppdd_core.package.verify import verify_package
from services.audit import service as audit
from services.audit.models import AuditEvent
from services.auth import login as logins
from services.auth import service as auth
from services.auth.models import LoginSession, User
from services.backup import (
    MANIFEST,
    SECRET_KEY,
    SITE_KEY,
    BackupError,
    Summary,
    back_up,
    last_backup,
    restore,
)
from services.catalogue.models import PackageVersion
from services.jobs.models import LogLine
from services.kit.migrate import upgrade
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings
from tests.services.conftest import Bell
from tests.services.packages import add_package, give_key, package_files

HERE = logins.Client("127.0.0.1", "test")
PASSWORD = "four brass kettles whistle"  # of a test


@contextmanager
def populated(folder: Path) -> Iterator[Resources]:
    """Yield a node with an administrator, a package and an object."""
    settings = load_settings({}, site_id="hospital-a", data_dir=folder / "node")
    upgrade(settings)
    give_key(settings)
    with open_resources(settings, send=Bell()) as made:
        with made.sessions.begin() as session:
            link = auth.open_setup_link(session, settings)
        assert link
        logins.set_up(
            made, HERE, token=link.partition("#")[2], username="root", display_name="Root", password=PASSWORD
        )  # fmt: skip
        add_package(made, folder, package_files(settings.site_id))
        made.store.put(b"an upload")
        yield made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Resources]:
    with populated(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Resources, Path]]:
    """A node and its backup, which tests only read."""
    folder = tmp_path_factory.mktemp("original")
    with populated(folder) as made:
        back_up(made, folder / "node.backup")
        yield made, folder / "node.backup"


@pytest.fixture
def backup(original: tuple[Resources, Path]) -> Path:
    return original[1]


def fresh(tmp_path: Path, name: str = "fresh", **more: object) -> Settings:
    return load_settings({}, site_id="hospital-a", data_dir=tmp_path / name, **more)


def test_a_node_comes_back_whole(original: tuple[Resources, Path], tmp_path: Path) -> None:
    node, backup = original
    settings = fresh(tmp_path)
    found = restore(settings, backup)
    assert (found.packages, found.site_id) == (1, "hospital-a")
    with open_resources(settings) as again:
        assert {one.sha256 for one in again.store.list()} == {
            one.sha256 for one in node.store.list()
        }
        with again.sessions() as session:
            version = session.scalars(select(PackageVersion)).one()
            assert audit.verify(session).intact
            assert session.scalar(select(func.count()).select_from(LoginSession)) == 0
        again.store.fetch(version.archive_sha256, tmp_path / "package.zip")
        assert verify_package(tmp_path / "package.zip", trusted_key=version.key).ok
        logins.log_in(again, HERE, username="root", password=PASSWORD, code=None)
        assert again.vault.open(node.vault.seal("a token", "job"), "job") == "a token"


def test_a_backup_is_for_its_owner_only_and_names_its_secrets(backup: Path) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with zipfile.ZipFile(backup) as archive:
        names = set(archive.namelist())
    assert {SITE_KEY, SECRET_KEY, MANIFEST} <= names
    assert "SECRET" in SITE_KEY
    assert "SECRET" in SECRET_KEY


def test_another_file_is_never_overwritten(node: Resources, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BackupError, match="exists already"):
        back_up(node, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_damaged_store_is_found_out_and_leaves_no_backup(node: Resources, tmp_path: Path) -> None:
    digest = node.store.put(b"x" * 100)
    path = next((node.settings.data_dir / "objects").rglob(digest))
    path.write_bytes(b"y" * 100)
    with pytest.raises(Exception, match=digest[:12]):
        back_up(node, tmp_path / "out")
    assert not [one for one in tmp_path.iterdir() if "out" in one.name]
    with node.reading() as session:
        assert last_backup(session) is None


def test_a_backup_that_was_written_is_remembered_with_what_it_holds(
    node: Resources, tmp_path: Path
) -> None:
    made = back_up(node, tmp_path / "out")
    with node.reading() as session:
        event = last_backup(session)
    assert event is not None
    assert event.detail == {
        "rows": made.rows, "objects": made.objects, "packages": made.packages, "bytes": made.bytes,
    }  # fmt: skip
    assert str(tmp_path) not in str(event.detail)


def test_only_an_empty_node_is_restored_into(original: tuple[Resources, Path]) -> None:
    node, backup = original
    with pytest.raises(BackupError, match="not empty"):
        restore(node.settings, backup)


def altered(backup: Path, folder: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Return a copy of the backup whose entries went through `change`."""
    out = folder / "altered"
    with zipfile.ZipFile(backup) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


def flip(name: str) -> Callable[[str, bytes], bytes]:
    return lambda entry, data: data[:-2] + b"\x00\x00" if entry.startswith(name) else data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(flip("objects/"), "other bytes", id="object"),
        pytest.param(flip("database/users"), "other bytes", id="rows"),
        pytest.param(flip("keys/"), "other bytes", id="key"),
        pytest.param(lambda n, d: None if n == MANIFEST else d, "manifest", id="no manifest"),
        pytest.param(lambda n, d: None if n.startswith("objects/") else d, "cannot be read", id="missing"),
        pytest.param(lambda n, d: b"[]" if n == MANIFEST else d, "manifest", id="no object"),
        pytest.param(
            lambda n, d: d.replace(b"objects/", b"objects/../") if n == MANIFEST else d,
            "no backup holds",
            id="hostile name",
        ),
    ],
)  # fmt: skip
def test_a_damaged_backup_changes_nothing(
    backup: Path, tmp_path: Path, change: Callable[[str, bytes], bytes | None], said: str
) -> None:
    settings = fresh(tmp_path)
    with pytest.raises(BackupError, match=said):
        restore(settings, altered(backup, tmp_path, change))
    assert not settings.data_dir.exists()


def test_what_is_no_backup_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", tmp_path / "nothing", tmp_path):
        with pytest.raises(BackupError, match="is no backup"):
            restore(fresh(tmp_path), path)


def forged(backup: Path, folder: Path, table: str, change: Callable[[bytes], bytes]) -> Path:
    """Return a backup with other rows and hashes to match: somebody altered it on purpose."""
    import hashlib

    with zipfile.ZipFile(backup) as archive:
        rows = change(archive.read(f"database/{table}.jsonl"))
        about = json.loads(archive.read(MANIFEST))
    about["files"][f"database/{table}.jsonl"] = {
        "sha256": hashlib.sha256(rows).hexdigest(),
        "size": len(rows),
    }
    return altered(
        backup,
        folder,
        lambda name, data: (
            rows
            if name == f"database/{table}.jsonl"
            else json.dumps(about).encode()
            if name == MANIFEST
            else data
        ),
    )


def test_a_forged_audit_log_is_refused_and_the_true_backup_still_fits(
    backup: Path, tmp_path: Path
) -> None:
    settings = fresh(tmp_path)
    false = forged(
        backup, tmp_path, "audit_events", lambda rows: rows.replace(b"user.create", b"user.forget")
    )
    with pytest.raises(BackupError, match="audit log is broken"):
        restore(settings, false)
    with open_resources(settings) as resources, resources.sessions() as session:
        assert session.scalar(select(func.count()).select_from(User)) == 0
    assert restore(settings, backup).packages == 1


def test_a_package_of_another_key_is_refused(backup: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(backup) as archive:
        row = json.loads(archive.read("database/package_versions.jsonl"))
    false = forged(
        backup,
        tmp_path,
        "package_versions",
        lambda rows: rows.replace(row["key"].encode(), b"0" * len(row["key"])),
    )
    with pytest.raises(BackupError, match="does not verify"):
        restore(fresh(tmp_path), false)


def test_another_key_in_place_is_refused(backup: Path, tmp_path: Path) -> None:
    settings = fresh(tmp_path)
    give_key(settings, "somebody else")
    with pytest.raises(BackupError, match="another key than the backup's"):
        restore(settings, backup)


def test_a_backup_of_sqlite_restores_into_postgresql_and_back(
    backup: Path, tmp_path: Path, postgres_url: str
) -> None:
    first = fresh(tmp_path, "first", database={"url": postgres_url})
    before = restore(first, backup)
    with open_resources(first) as moved:
        with moved.sessions.begin() as session:  # PostgreSQL goes on counting where rows end
            job_lines = session.scalar(select(func.count()).select_from(LogLine))
            assert job_lines == 0
        back_up(moved, tmp_path / "second.backup")
    second = fresh(tmp_path, "second")
    after: Summary = restore(second, tmp_path / "second.backup")
    assert (after.objects, after.packages) == (before.objects, before.packages)
    with open_resources(second) as again, again.sessions() as session:
        actions = set(session.scalars(select(AuditEvent.action)))
        assert {"backup.create", "backup.restore"} <= actions
        assert audit.verify(session).intact
    with open_resources(second) as again:
        logins.log_in(again, HERE, username="root", password=PASSWORD, code=None)
