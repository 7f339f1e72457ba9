"""Garbage collection deletes what nothing refers to, and nothing else, whoever publishes meanwhile."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Column, select, update

from services.audit.actor import SYSTEM
from services.audit.models import AuditEvent
from services.auth import service as auth
from services.auth.permissions import Role
from services.datasets.models import SourceDataset
from services.kit.db import Base, now
from services.kit.folder_store import FolderStore
from services.kit.holds import ObjectHold, hold, holding, release
from services.kit.resources import Resources, open_resources
from services.kit.storage import ObjectMissingError, StoreError
from services.settings import load_settings
from services.system.collect import Collected, collect, referring_columns
from services.system.tables import METADATA
from tests.services.conftest import Bell

NOW = timedelta(0)
REFERRING = {
    "detectors.description_sha256",
    "detectors.weights_sha256",
    "job_parts.sha256",
    "package_files.sha256",
    "package_versions.archive_sha256",
    "prediction_images.sha256",
    "source_datasets.upload_sha256",
    "thumbnails.sha256",
}
NO_OBJECTS = {
    "api_tokens.sha256",
    "jobs.request_sha256",
    "login_sessions.sha256",
    "object_holds.sha256",
    "one_time_links.sha256",
    "recovery_codes.sha256",
}


def _name(column: Column[Any]) -> str:
    return f"{column.table.name}.{column.name}"


def _is_there(resources: Resources, sha256: str) -> bool:
    try:
        resources.store.size(sha256)
    except ObjectMissingError:
        return False
    return True


def _events(resources: Resources) -> list[AuditEvent]:
    with resources.reading() as session:
        return list(session.scalars(select(AuditEvent).where(AuditEvent.action == "store.collect")))


# ------------------------------------------------------------------------------------- what refers


def test_every_digest_column_is_known_to_refer_to_an_object_or_not() -> None:
    digests = {
        _name(column): column
        for table in METADATA.sorted_tables
        for column in table.columns
        if "sha256" in column.name
    }
    assert {_name(column) for column in referring_columns()} == REFERRING
    assert set(digests) == REFERRING | NO_OBJECTS
    assert all(digests[name].info == {"object": False} for name in NO_OBJECTS)


@pytest.mark.parametrize("column", referring_columns(), ids=_name)
def test_a_row_keeps_its_object(resources: Resources, column: Column[Any]) -> None:
    kept = resources.store.put(b"kept")
    _insert_alone(resources.settings.data_dir / "node.db", column, kept)
    free = resources.store.put(b"free")
    assert collect(resources, grace=NOW) == Collected(seen=2, objects=1, bytes=4)
    assert _is_there(resources, kept)
    assert not _is_there(resources, free)


def _insert_alone(path: Path, column: Column[Any], sha256: str) -> None:
    """Write a row without those it belongs to."""
    made: dict[type, Callable[[], object]] = {
        str: lambda: "text", int: lambda: 1, UUID: lambda: uuid4().hex, dict: lambda: "{}",
        object: lambda: "2026-01-01 00:00:00.000000",  # a moment, which is a type of ours
    }  # fmt: skip
    values = {
        one.name: made[one.type.python_type]()
        for one in column.table.columns
        if not one.nullable and not (one.primary_key and one.type.python_type is int)
    } | {column.name: sha256}
    marks = ", ".join("?" * len(values))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            f"INSERT INTO {column.table.name} ({', '.join(values)}) VALUES ({marks})",
            tuple(values.values()),
        )


# --------------------------------------------------------------------------------- what is deleted


def test_young_objects_stay(resources: Resources) -> None:
    young, old = resources.store.put(b"young"), resources.store.put(b"old")
    assert isinstance(resources.store, FolderStore)
    yesterday = (datetime.now(UTC) - timedelta(hours=25)).timestamp()
    os.utime(resources.store.root / old[:2] / old[2:4] / old, (yesterday, yesterday))
    assert collect(resources) == Collected(seen=2, objects=1, bytes=3)
    assert _is_there(resources, young)
    assert not _is_there(resources, old)


def test_deletions_are_counted_and_audited(resources: Resources) -> None:
    for number in range(103):  # more than one batch
        resources.store.put(b"%03d" % number)
    assert collect(resources, grace=NOW) == Collected(seen=103, objects=103, bytes=309)
    assert [(event.actor_kind, event.outcome, event.detail) for event in _events(resources)] == [
        ("system", "done", {"objects": 100, "bytes": 300}),
        ("system", "done", {"objects": 3, "bytes": 9}),
    ]
    assert collect(resources, grace=NOW) == Collected()
    assert len(_events(resources)) == 2


def test_a_dry_run_counts_and_changes_nothing(resources: Resources) -> None:
    sha256 = resources.store.put(b"free")
    assert collect(resources, grace=NOW, dry_run=True) == Collected(seen=1, objects=1, bytes=4)
    assert _is_there(resources, sha256)
    assert _events(resources) == []


def test_held_objects_stay_until_the_hold_ends(resources: Resources) -> None:
    sha256 = resources.store.put(b"to be published")
    with holding(resources.sessions, [sha256]):
        assert collect(resources, grace=NOW).objects == 0
    assert collect(resources, grace=NOW).objects == 1


def test_a_hold_ends_when_its_block_fails(resources: Resources) -> None:
    sha256 = resources.store.put(b"to be published")
    with pytest.raises(RuntimeError), holding(resources.sessions, [sha256]):
        raise RuntimeError
    assert collect(resources, grace=NOW).objects == 1


def test_a_hold_is_given_up_with_the_transaction_of_the_rows(resources: Resources) -> None:
    sha256 = resources.store.put(b"to be published")
    holder = hold(resources.sessions, [sha256])
    with pytest.raises(RuntimeError):
        _release_in_vain(resources, holder)
    assert collect(resources, grace=NOW).objects == 0
    with resources.transaction() as session:
        release(session, holder)
    assert collect(resources, grace=NOW).objects == 1


def _release_in_vain(resources: Resources, holder: UUID) -> None:
    with resources.transaction() as session:
        release(session, holder)
        raise RuntimeError


def test_a_holder_can_hold_more_and_longer(resources: Resources) -> None:
    one, two = resources.store.put(b"one"), resources.store.put(b"two")
    holder = hold(resources.sessions, [one, one])
    with resources.transaction() as session:
        session.execute(update(ObjectHold).values(expires_at=now() + timedelta(seconds=1)))
    assert hold(resources.sessions, [one, two], holder) == holder
    with resources.reading() as session:
        rows = session.scalars(select(ObjectHold)).all()
    assert {row.sha256 for row in rows} == {one, two}
    assert all(row.expires_at > now() + timedelta(hours=23) for row in rows)


def test_what_is_no_digest_is_not_held(resources: Resources) -> None:
    with pytest.raises(ValueError, match="not a sha256"):
        hold(resources.sessions, ["../../etc"])


def test_the_hold_of_a_dead_process_ends(resources: Resources) -> None:
    sha256 = resources.store.put(b"never published")
    hold(resources.sessions, [sha256])
    with resources.transaction() as session:
        session.execute(update(ObjectHold).values(expires_at=now() - timedelta(seconds=1)))
    assert collect(resources, grace=NOW).objects == 1
    with resources.reading() as session:
        assert session.scalars(select(ObjectHold)).all() == []


def test_files_left_by_broken_writes_go_with_the_garbage(resources: Resources) -> None:
    assert isinstance(resources.store, FolderStore)
    resources.store.check()
    left = resources.store.root / "incoming" / "left"
    left.write_bytes(b"half")
    collect(resources, grace=NOW)
    assert left.exists()  # an upload may be on its way, whatever the grace
    os.utime(left, (0, 0))
    collect(resources, grace=NOW)
    assert not left.exists()


class _FailingStore(FolderStore):
    """Deletes so many objects, then is away."""

    lives = 2

    def delete(self, sha256: str) -> None:
        if self.lives == 0:
            raise StoreError("the object store does not answer")
        self.lives -= 1
        super().delete(sha256)


def test_what_was_deleted_before_the_store_went_away_is_in_the_log(
    resources: Resources, bell: Bell
) -> None:
    store = _FailingStore(resources.settings.data_dir / "objects")
    with open_resources(resources.settings, send=bell, store=store) as failing:
        for number in range(5):
            store.put(b"%d" % number)
        with pytest.raises(StoreError, match="does not answer"):
            collect(failing, grace=NOW)
    assert [event.detail for event in _events(resources)] == [{"objects": 2, "bytes": 2}]
    assert collect(resources, grace=NOW).objects == 3


# ------------------------------------------------------------------------------- beside publishers


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path: Path, bell: Bell) -> Iterator[Resources]:
    given: dict[str, Any] = {"data_dir": tmp_path / "node"}
    if request.param == "postgresql":
        given["database"] = {"url": request.getfixturevalue("postgres_url")}
    with open_resources(load_settings({}, **given), send=bell) as made:
        Base.metadata.create_all(made.engine)
        yield made


def test_collecting_never_takes_what_is_being_published(node: Resources) -> None:
    with node.transaction() as session:
        owner = auth.create_user(
            session, SYSTEM, username="eve", display_name="Eve", role=Role.RESEARCHER
        ).id
    lost: list[str] = []
    done = threading.Event()

    def publish(number: int) -> None:
        for turn in range(40):
            data = b"content %d" % (turn % 3)  # the publishers' objects are the same ones
            if not _publish(node, owner, f"set-{number}-{turn}", data):
                lost.append(f"{number}/{turn}")

    publishers = [threading.Thread(target=publish, args=(number,)) for number in range(2)]

    def wait() -> None:
        for thread in publishers:
            thread.join()
        done.set()

    waiter = threading.Thread(target=wait)
    for thread in (*publishers, waiter):
        thread.start()
    deleted = 0
    while not done.is_set():
        deleted += collect(node, grace=NOW).objects
    waiter.join()
    assert lost == []
    assert deleted > 3  # the two did meet


def _publish(node: Resources, owner: UUID, name: str, data: bytes) -> bool:
    """Publish an upload, see whether it can be read, and take it back."""
    sha256 = hashlib.sha256(data).hexdigest()
    with holding(node.sessions, [sha256]):
        node.store.put(data)
        with node.transaction() as session:
            row = SourceDataset(
                name=name, title=name, owner_id=owner, upload_sha256=sha256, rows={}, state="ready"
            )
            session.add(row)
    try:
        intact = b"".join(node.store.read(sha256)) == data
    except StoreError:
        intact = False
    with node.transaction() as session:
        session.execute(
            update(SourceDataset).where(SourceDataset.name == name).values(upload_sha256=None)
        )
    return intact
