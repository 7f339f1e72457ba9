"""A job that the disk has no room for is refused before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from services.kit.room import DiskFullError
from tests.worker.conftest import Node
from worker.room import require_room
from worker.supervise import work


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


def kept(node: Node) -> list[str]:
    """Return the entries of decoded images."""
    return [path.name for path in (node.settings.cache_dir / "images").glob("?" * 64)]


@pytest.mark.parametrize(("bound", "left"), [(0, 0), (10**9, 1)])
def test_decoded_images_beyond_the_bound_go_when_their_job_has_ended(
    make_node: Callable[..., Node], bound: int, left: int
) -> None:
    node = make_node(PPDD_WORKER__CACHE_BYTES=str(bound))
    job_id = node.check()
    work(node.post(), job_id)
    assert node.job(job_id).state == "succeeded"
    assert len(kept(node)) == left


def test_decoded_images_are_given_up_before_a_job_is_refused(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    work(node.post(), node.check())
    node.settings.work_dir.mkdir(parents=True, exist_ok=True)
    require_room(node.resources, 1000)
    assert len(kept(node)) == 1
    with pytest.raises(DiskFullError):
        require_room(node.resources, 10**15)
    assert kept(node) == []
