"""What only a folder can get wrong: links, modes, full disks, files left by a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.kit.folder_store import FolderStore
from services.kit.storage import (
    ObjectDamagedError,
    ObjectMissingError,
    StoreError,
    StoreFullError,
)
from services.kit.stores import open_store
from services.settings import load_settings

DATA = b"bytes of an object"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects")


def _path(store: FolderStore) -> Path:
    return store.root / SHA256[:2] / SHA256[2:4] / SHA256


def test_opening_touches_nothing(tmp_path: Path) -> None:
    opened = open_store(load_settings({}, data_dir=tmp_path / "node"))
    assert isinstance(opened, FolderStore)
    assert not (tmp_path / "node").exists()


def test_files_and_folders_are_for_their_owner_alone(store: FolderStore) -> None:
    before = os.umask(0)
    try:
        store.put(DATA)
    finally:
        os.umask(before)
    modes = {
        path.relative_to(store.root).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in (store.root, *store.root.rglob("*"))
    }
    assert modes[f"{SHA256[:2]}/{SHA256[2:4]}/{SHA256}"] == 0o600
    assert {mode for name, mode in modes.items() if not name.endswith(SHA256)} == {0o700}


def test_a_folder_that_others_may_enter_is_said(store: FolderStore) -> None:
    store.put(DATA)
    store.root.chmod(0o755)
    with pytest.raises(StoreError, match="chmod 700"):
        store.check_private()


def test_bytes_are_on_disk_before_they_have_a_name(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check()  # makes the folders
    seen: list[tuple[str, bool]] = []
    flush = os.fsync

    def watched(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, _path(store).exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store.put(DATA)
    assert seen[0] == ("file", False)
    assert seen[-1] == ("folder", True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store.check()
    path = tmp_path / "given"
    path.write_bytes(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError, match="free some space"):
            store.put_file(path, SHA256)
        with pytest.raises(StoreFullError):
            store.check()
    assert [found for found in store.root.rglob("*") if found.is_file()] == []
    store.put_file(path, SHA256)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError):
            store.fetch(SHA256, tmp_path / "fetched")
    assert list(tmp_path.glob("*fetched*")) == []


def test_a_failing_disk_is_a_store_error(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        store.put(DATA)


def test_a_root_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("no folder")
    store = FolderStore(tmp_path / "objects")
    for call in (lambda: store.put(DATA), store.check):
        with pytest.raises(StoreError):
            call()
    with pytest.raises(ObjectMissingError):
        store.size(SHA256)


def test_a_link_in_an_objects_place_is_not_followed(store: FolderStore, tmp_path: Path) -> None:
    store.put(DATA)
    (tmp_path / "secret").write_bytes(DATA)
    _path(store).unlink()
    _path(store).symlink_to(tmp_path / "secret")
    with pytest.raises(ObjectDamagedError, match="not a plain file"):
        store.size(SHA256)
    with pytest.raises(ObjectDamagedError):
        store.read(SHA256)
    assert list(store.list()) == []
    store.put(DATA)  # replaces the link, not what it points to
    assert not _path(store).is_symlink()
    assert b"".join(store.read(SHA256)) == DATA


def test_a_link_put_in_place_after_the_look_is_not_followed(
    store: FolderStore, tmp_path: Path
) -> None:
    store.put(DATA)
    reading = store.read(SHA256)
    (tmp_path / "secret").write_bytes(DATA)
    _path(store).unlink()
    _path(store).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError):
        list(reading)


def test_a_pipe_in_an_objects_place_does_not_hang(store: FolderStore) -> None:
    store.put(DATA)
    _path(store).unlink()
    os.mkfifo(_path(store))
    with pytest.raises(ObjectDamagedError):
        store.read(SHA256)


def test_a_file_that_shrinks_while_being_read_is_damaged(store: FolderStore) -> None:
    store.put(DATA)
    reading = store.read(SHA256, start=1, length=10)
    os.truncate(_path(store), 5)
    with pytest.raises(ObjectDamagedError, match="ends too early"):
        list(reading)


def test_putting_again_renews_the_time(store: FolderStore) -> None:
    store.put(DATA)
    os.utime(_path(store), (0, 0))
    assert next(iter(store.list())).written_at.year == 1970
    store.put(DATA)
    assert datetime.now(UTC) - next(iter(store.list())).written_at < timedelta(minutes=1)


def test_files_of_a_power_cut_are_dropped_when_old(store: FolderStore) -> None:
    store.put(DATA)
    left = store.root / "incoming" / "0123"
    left.write_bytes(b"half of someth")
    store.drop_unfinished(datetime.now(UTC) - timedelta(hours=1))
    assert left.exists()
    store.drop_unfinished(datetime.now(UTC) + timedelta(hours=1))
    assert not left.exists()
    assert b"".join(store.read(SHA256)) == DATA
