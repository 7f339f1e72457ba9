"""Datasets as tasks read them: only where they may be read, and uploads fetched once."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ppdd_core.data import cache
from services.datasets.models import SourceDataset
from services.datasets.places import UnknownPathError
from services.datasets.service import DatasetRemovedError
from services.kit.storage import ObjectDamagedError, StoreError
from tests.services.datasets.images import class_files, write_folder, zip_bytes
from tests.worker.conftest import Node
from worker import source
from worker.source import open_dataset, read_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "root", {f"xrays/{k}": v for k, v in class_files().items()})


@pytest.fixture
def small(make_node: Callable[..., Node], root: Path) -> Node:
    """A node whose data root holds one small dataset."""
    return make_node(PPDD_DATA_ROOTS=str(root))


def dataset(**place: object) -> SourceDataset:
    return SourceDataset(
        **{"name": "x", "title": "x", "state": "ready", "path": None, "upload_sha256": None, "rows": {}} | place
    )  # fmt: skip


def uploaded(node: Node, *, each: int = 4, kept: bool = True) -> SourceDataset:
    """Return a dataset whose ZIP is in the store."""
    data = zip_bytes(class_files(each=each))
    row = dataset(
        name=f"upload-{each}", owner_id=node.owner.user_id, upload_sha256=node.resources.store.put(data)
    )  # fmt: skip
    if kept:
        with node.resources.sessions.begin() as session:
            session.add(row)
    return row


def test_a_path_is_looked_at_again_at_use(small: Node, root: Path, tmp_path: Path) -> None:
    row = dataset(path=str(root / "xrays"), rows={"hospital": "a"})
    with open_dataset(small.resources, row) as (path, rows):
        assert (path, rows) == (root / "xrays", {"hospital": "a"})
    shutil.move(root / "xrays", tmp_path / "elsewhere")
    (root / "xrays").symlink_to(tmp_path / "elsewhere")
    for gone in (row, dataset(path="/etc"), dataset(path=str(root / "absent"))):
        with pytest.raises(UnknownPathError), open_dataset(small.resources, gone):
            pass


def test_a_removed_dataset_is_not_read(small: Node) -> None:
    with pytest.raises(DatasetRemovedError), open_dataset(small.resources, dataset()):
        pass


def test_an_upload_is_fetched_once_and_read(small: Node) -> None:
    row = uploaded(small)
    data, found = read_images(small.resources, row, image_size=16, on_progress=lambda *_: None)
    assert data.counts() == found.classes == {"COVID": 4, "Normal": 4}
    with open_dataset(small.resources, row) as (path, _):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row.upload_sha256
        assert path.stat().st_mode & 0o077 == 0
    assert row.upload_sha256 is not None
    small.resources.store.delete(row.upload_sha256)
    with open_dataset(small.resources, row) as (again, _):
        assert again == path


def test_a_damaged_upload_is_not_kept(small: Node) -> None:
    row = uploaded(small)
    assert row.upload_sha256 is not None
    stored = next(small.settings.data_dir.glob(f"objects/**/{row.upload_sha256}"))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(ObjectDamagedError), open_dataset(small.resources, row):
        pass
    assert list((small.settings.cache_dir / "uploads").glob("*zip*")) == []
    small.resources.store.delete(row.upload_sha256)
    with pytest.raises(StoreError), open_dataset(small.resources, row):
        pass


def test_what_a_killed_fetch_left_is_removed(small: Node) -> None:
    row = uploaded(small)
    folder = small.settings.cache_dir / "uploads"
    folder.mkdir(parents=True)
    left = folder / f".{row.upload_sha256}.zip.0123"
    left.write_bytes(b"half")
    with open_dataset(small.resources, row):
        assert not left.exists()


def test_room_is_made_by_dropping_what_is_unused(
    small: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used, removed = (
        uploaded(small, each=4),
        uploaded(small, each=5),
        uploaded(small, each=6, kept=False),
    )
    names = {}
    for at, row in enumerate((old, used, removed)):
        with open_dataset(small.resources, row) as (path, _):
            names[row.name] = path
        os.utime(path.with_suffix(".used"), (at, at))
    monkeypatch.setattr(source, "CACHE_BYTES", 1)
    with (
        open_dataset(small.resources, used),
        open_dataset(small.resources, uploaded(small, each=7)) as (path, _),
    ):
        assert path.exists()
        assert [names[row.name].exists() for row in (old, used, removed)] == [False, True, False]


def test_what_no_dataset_refers_to_is_dropped_though_there_is_room(small: Node) -> None:
    with open_dataset(small.resources, uploaded(small, each=6, kept=False)) as (gone, _):
        pass
    with open_dataset(small.resources, uploaded(small, each=7)):
        assert not gone.exists()


def test_a_full_disk_is_not_the_datasets_fault(
    small: Node, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_reserve", full)
    row = dataset(path=str(root / "xrays"))
    with pytest.raises(OSError, match="No space left") as caught:
        read_images(small.resources, row, image_size=16, on_progress=lambda *_: None)
    assert caught.value.errno == errno.ENOSPC
