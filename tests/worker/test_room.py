"""A job that the disk has no room for is refused before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from services.kit.room import DiskFullError
from tests.worker.conftest import Node
from worker.room import require_room


def test_what_fits_may_begin(node: Node) -> None:
    node.settings.work_dir.mkdir(parents=True)
    require_room(node.resources, 1000)


def test_what_does_not_fit_is_refused_with_what_is_missing(make_node: Callable[..., Node]) -> None:
    node = make_node(PPDD_LIMITS__DISK_RESERVE_BYTES=str(10**15))
    node.settings.work_dir.mkdir(parents=True)
    missing = 10**15 + 2 * 10**9 - shutil.disk_usage(node.settings.work_dir).free
    with pytest.raises(DiskFullError, match=f"; {missing / 1e9:.0f}"[:6]) as caught:
        require_room(node.resources, 2 * 10**9)
    assert caught.value.slug == "disk-full"
    assert "2.00 GB" in caught.value.detail
