"""What every object store does, over the folder and over MinioStore with two S3 servers."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio import Minio

from services.kit.folder_store import FolderStore
from services.kit.minio_store import MinioStore
from services.kit.storage import (
    CHUNK,
    ObjectDamagedError,
    ObjectMissingError,
    ObjectStore,
    StoreError,
    read_all,
)
from tests.servers import S3

ABSENT = "0" * 64


@dataclass
class Shelf:
    """A store, and the way to its bytes behind its back."""

    store: ObjectStore
    overwrite: Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "rclone", "moto"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":
        folder = FolderStore(tmp_path / "objects")
        return Shelf(folder, lambda sha256, data: _overwrite(_file_of(folder, sha256), data))
    server: S3 = request.getfixturevalue(request.param)
    settings = server.settings()
    raw = Minio(
        server.endpoint, server.access_key, server.secret_key, secure=False, region=settings.region
    )

    def overwrite(sha256: str, data: bytes) -> None:
        raw.put_object(
            settings.bucket, f"sha256/{sha256[:2]}/{sha256}", io.BytesIO(data), len(data)
        )

    return Shelf(MinioStore(settings), overwrite)


def _file_of(store: FolderStore, sha256: str) -> Path:
    return store.root / sha256[:2] / sha256[2:4] / sha256


def _overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _written(folder: Path, data: bytes) -> tuple[Path, str]:
    path = folder / "given"
    path.write_bytes(data)
    return path, _digest(data)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_was_put_is_read_back(shelf: Shelf, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path, sha256 = _written(tmp_path, data)
    shelf.store.put_file(path, sha256)
    read = list(shelf.store.read(sha256))
    assert b"".join(read) == data
    assert all(0 < len(piece) <= CHUNK for piece in read)
    assert shelf.store.size(sha256) == size
    assert read_all(shelf.store, sha256, limit=size) == data
    shelf.store.fetch(sha256, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == data


def test_small_bytes_are_put_under_their_digest(shelf: Shelf) -> None:
    for data in (b"", b"abc", b"abc"):
        assert shelf.store.put(data) == _digest(data)
        assert b"".join(shelf.store.read(_digest(data))) == data


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (0, 10), (5, None), (1_048_570, 12), (1_500_000, 1), (1_500_000, None),
     (1_500_001, None), (9_999_999, 5), (100, 0), (0, 99_999_999), (0, 0)],
)  # fmt: skip
def test_part_of_an_object_is_read(shelf: Shelf, start: int, length: int | None) -> None:
    data = hashlib.shake_256(b"ranges").digest(1_500_001)
    sha256 = shelf.store.put(data)
    stop = None if length is None else start + length
    assert b"".join(shelf.store.read(sha256, start=start, length=length)) == data[start:stop]


def test_no_part_before_the_first_byte(shelf: Shelf) -> None:
    sha256 = shelf.store.put(b"abc")
    for start, length in ((-1, None), (0, -1)):
        with pytest.raises(ValueError, match="no part of an object"):
            shelf.store.read(sha256, start=start, length=length)


def test_an_absent_object_is_missing_at_once(shelf: Shelf, tmp_path: Path) -> None:
    for _ in range(2):  # in a store that was never written to, then in one that was
        with pytest.raises(ObjectMissingError, match="no object 000000000000"):
            shelf.store.size(ABSENT)
        with pytest.raises(ObjectMissingError):
            shelf.store.read(ABSENT)
        with pytest.raises(ObjectMissingError):
            shelf.store.read(ABSENT, start=1, length=1)
        with pytest.raises(ObjectMissingError):
            shelf.store.fetch(ABSENT, tmp_path / "absent")
        shelf.store.put(b"something")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "text", ["", "abc", "../../etc/passwd", "A" * 64, "0" * 63 + "/", "0" * 65]
)
def test_what_is_no_digest_never_becomes_a_key(shelf: Shelf, tmp_path: Path, text: str) -> None:
    path, _ = _written(tmp_path, b"x")
    calls: list[Callable[[], object]] = [
        lambda: shelf.store.size(text),
        lambda: shelf.store.read(text),
        lambda: shelf.store.fetch(text, tmp_path / "fetched"),
        lambda: shelf.store.delete(text),
        lambda: shelf.store.put_file(path, text),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a sha256"):
            call()


@pytest.mark.parametrize("size", [0, 100, 17 << 20])
def test_bytes_of_another_digest_are_not_stored(shelf: Shelf, tmp_path: Path, size: int) -> None:
    path, _ = _written(tmp_path, bytes(size))
    other = _digest(b"other")
    with pytest.raises(ObjectDamagedError, match="not those of its digest"):
        shelf.store.put_file(path, other)
    with pytest.raises(ObjectMissingError):
        shelf.store.size(other)
    assert list(shelf.store.list()) == []


def test_bytes_of_another_digest_are_refused_where_the_object_is_there(
    shelf: Shelf, tmp_path: Path
) -> None:
    sha256 = shelf.store.put(b"right")
    path, _ = _written(tmp_path, b"wrong")
    with pytest.raises(ObjectDamagedError):
        shelf.store.put_file(path, sha256)
    assert b"".join(shelf.store.read(sha256)) == b"right"


@pytest.mark.parametrize("size", [1, CHUNK + 5, 3 * CHUNK])
def test_altered_bytes_are_never_read_to_the_end(shelf: Shelf, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    sha256 = shelf.store.put(data)
    shelf.overwrite(sha256, data[:-1] + bytes([data[-1] ^ 1]))
    given: list[bytes] = []
    with pytest.raises(ObjectDamagedError, match=sha256[:12]):
        given.extend(shelf.store.read(sha256))
    assert sum(map(len, given)) < size
    with pytest.raises(ObjectDamagedError):
        shelf.store.fetch(sha256, tmp_path / "fetched")
    assert list(tmp_path.glob("*fetched*")) == []


def test_an_object_cut_short_is_damaged_and_mended_by_putting_it_again(shelf: Shelf) -> None:
    data = os.urandom(1000)
    sha256 = shelf.store.put(data)
    shelf.overwrite(sha256, data[:500])
    with pytest.raises(ObjectDamagedError):
        list(shelf.store.read(sha256))
    shelf.store.put(data)
    assert b"".join(shelf.store.read(sha256)) == data


def test_many_put_the_same_object_at_once(shelf: Shelf, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    path, sha256 = _written(tmp_path, data)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(shelf.store.put_file, path, sha256) for _ in range(24)]:
            done.result()
    assert b"".join(shelf.store.read(sha256)) == data
    assert [(one.sha256, one.size) for one in shelf.store.list()] == [(sha256, 300_000)]


def test_all_objects_are_listed_with_size_and_time(shelf: Shelf) -> None:
    began = datetime.now(UTC)
    put = {shelf.store.put(bytes(size)): size for size in range(30)}
    listed = list(shelf.store.list())
    assert len(listed) == 30
    assert {one.sha256: one.size for one in listed} == put
    slack = timedelta(seconds=2)  # S3 tells whole seconds
    assert all(began - slack < one.written_at < datetime.now(UTC) + slack for one in listed)


def test_what_is_no_object_is_not_listed(shelf: Shelf) -> None:
    assert list(shelf.store.list()) == []
    shelf.store.check()
    assert list(shelf.store.list()) == []


def test_deleting_twice_is_no_error(shelf: Shelf) -> None:
    shelf.store.delete(ABSENT)  # where nothing was ever written
    sha256 = shelf.store.put(b"short-lived")
    shelf.store.delete(sha256)
    shelf.store.delete(sha256)
    with pytest.raises(ObjectMissingError):
        shelf.store.size(sha256)


def test_a_large_file_goes_in_parts(shelf: Shelf, tmp_path: Path) -> None:
    size = 40_000_003
    data = hashlib.shake_128(b"large").digest(size)
    path, sha256 = _written(tmp_path, data)
    shelf.store.put_file(path, sha256)
    assert shelf.store.size(sha256) == size
    digest = hashlib.sha256()
    for piece in shelf.store.read(sha256):
        digest.update(piece)
    assert digest.hexdigest() == sha256
    assert b"".join(shelf.store.read(sha256, start=16_777_210, length=20)) == data[16_777_210:][:20]


def test_a_reader_that_goes_away_leaves_the_store_usable(shelf: Shelf) -> None:
    data = os.urandom(5 * CHUNK)
    sha256 = shelf.store.put(data)
    for _ in range(40):  # more than there are connections
        shelf.store.read(sha256)
        next(iter(shelf.store.read(sha256)))
    assert b"".join(shelf.store.read(sha256)) == data


def test_an_object_that_vanishes_while_being_read_is_missing(shelf: Shelf) -> None:
    sha256 = shelf.store.put(b"gone soon")
    reading = shelf.store.read(sha256)
    shelf.store.delete(sha256)
    with pytest.raises(ObjectMissingError):
        list(reading)


def test_a_source_that_cannot_be_read_is_a_store_error(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        shelf.store.put_file(tmp_path / "nowhere", ABSENT)
    with pytest.raises(StoreError):
        shelf.store.put_file(tmp_path, ABSENT)


def test_a_target_that_cannot_be_written_is_a_store_error(shelf: Shelf, tmp_path: Path) -> None:
    sha256 = shelf.store.put(b"abc")
    with pytest.raises(StoreError, match="No such file"):
        shelf.store.fetch(sha256, tmp_path / "no" / "folder" / "file")


def test_a_large_object_is_not_read_into_memory_by_mistake(shelf: Shelf) -> None:
    sha256 = shelf.store.put(bytes(101))
    with pytest.raises(StoreError, match="larger than 100 bytes"):
        read_all(shelf.store, sha256, limit=100)


def test_a_working_private_store_passes_its_checks(shelf: Shelf) -> None:
    shelf.store.check()
    shelf.store.check_private()


def test_objects_stay_when_unfinished_writes_are_dropped(shelf: Shelf) -> None:
    sha256 = shelf.store.put(b"finished")
    shelf.store.drop_unfinished(datetime.now(UTC) + timedelta(hours=1))
    assert b"".join(shelf.store.read(sha256)) == b"finished"
