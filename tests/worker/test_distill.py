"""Distillations as jobs: killed at any stage or shared by several workers, the package is the same to the last byte."""

from __future__ import annotations

import io
import os
import signal
import threading
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from ppdd_core.data.phantom import CLASSES
from ppdd_core.package.previews import read_image
from services.catalogue.models import PackageVersion
from services.jobs import parts, workers
from services.jobs.models import JobPicture, Part
from services.kit.storage import read_all
from tests.worker.conftest import Node, supervised, wait_until
from worker import supervise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # packages state when their job was made
TEACHERS = 4


@pytest.fixture
def twin(make_node: Callable[..., Node], tmp_path: Path) -> Callable[[str], Node]:
    """Return a function that makes nodes of one site: apart, but with one key."""

    def make(name: str) -> Node:
        return make_node(
            PPDD_DATA_DIR=str(tmp_path / name), PPDD_KEY_FILE=str(tmp_path / "site.pem")
        )

    return make


def submit(node: Node) -> UUID:
    job_id = node.distill(teachers=TEACHERS)
    node.change(job_id, {"created_at": SINCE})
    return job_id


def archive(node: Node, job_id: UUID) -> bytes:
    """Return the package's bytes, and check that it was published once."""
    job = node.job(job_id)
    assert job.state == "succeeded", job.error
    with node.resources.sessions() as session:
        (version,) = session.scalars(select(PackageVersion)).all()
        assert (version.state, version.job_id) == ("draft", job_id)
        return read_all(node.resources.store, version.archive_sha256, limit=2**24)


def test_a_distillation_killed_again_and_again_ends_in_the_same_package(
    twin: Callable[[str], Node],
) -> None:
    calm, harsh = twin("calm"), twin("harsh")
    undisturbed, disturbed = submit(calm), submit(harsh)
    supervise.work(calm.post(), undisturbed)
    for stage in ("images", "teachers", "distillation", "evaluation"):
        with supervised(harsh.post(), disturbed) as child:
            wait_until(lambda at=stage: _stage(harsh, disturbed) == at, stage)  # type: ignore[misc]
            os.kill(child, signal.SIGKILL)
        harsh.change(disturbed, {"retry_at": None, "progress": None})
    supervise.work(harsh.post(), disturbed)
    assert archive(harsh, disturbed) == archive(calm, undisturbed)
    numbers = [event for event in harsh.events(disturbed) if event.get("stage") == "distillation"]
    assert {"loss", "lr", "pruned"} <= set(numbers[-1]["numbers"])


def test_workers_share_the_teachers_of_a_job(twin: Callable[[str], Node]) -> None:
    alone, shared = twin("alone"), twin("shared")
    one, two = submit(alone), submit(shared)
    supervise.work(alone.post(), one)
    with shared.resources.sessions.begin() as session:
        workers.note_worker(
            session, "cpu@two", device="CPU", version="1", free_disk_bytes=1, job_id=None
        )
    with supervised(shared.post("cpu@one"), two):
        wait_until(lambda: bool(_parts(shared, two)), "parts")
        helping = threading.Thread(target=supervise.teach, args=(shared.post("cpu@two"), two))
        helping.start()
    helping.join(120)
    fetched = [line for line in shared.log(two) if "trained by another worker" in line]
    assert 0 < len(fetched) < TEACHERS, "both trained some"
    assert archive(shared, two) == archive(alone, one)
    assert [part.sha256 for part in _parts(shared, two)] == [None] * TEACHERS, (
        "collected as garbage"
    )
    assert list(shared.settings.work_dir.glob("*/")) == []


def test_a_helper_that_dies_is_done_without(twin: Callable[[str], Node]) -> None:
    node = twin("node")
    job_id = submit(node)
    with node.resources.sessions.begin() as session:
        workers.note_worker(
            session, "cpu@two", device="CPU", version="1", free_disk_bytes=1, job_id=None
        )
    with supervised(node.post("cpu@one"), job_id):
        wait_until(lambda: bool(_parts(node, job_id)), "parts")
        with node.resources.sessions.begin() as session:  # claimed, then never heard of again
            assert parts.claim_part(session, job_id, "cpu@two", node.settings.jobs)
    assert len(archive(node, job_id)) > 0


def _stage(node: Node, job_id: UUID) -> str:
    return str((node.job(job_id).progress or {}).get("stage"))


def _parts(node: Node, job_id: UUID) -> list[Part]:
    with node.resources.sessions() as session:
        return list(parts.parts_of(session, job_id))


def test_a_distillation_shows_its_images_and_their_nearest_real_ones(node: Node) -> None:
    job_id = node.distill()
    for stage in ("distillation", "privacy"):
        with supervised(node.post(), job_id) as child:
            wait_until(lambda at=stage: _stage(node, job_id) == at, stage)  # type: ignore[misc]
            os.kill(child, signal.SIGKILL)
        node.change(job_id, {"retry_at": None, "progress": None})
    supervise.work(node.post(), job_id)
    assert node.job(job_id).state == "succeeded"
    with node.resources.sessions() as session:
        found = session.scalars(select(JobPicture).where(JobPicture.job_id == job_id)).all()
    steps = {one.number: one for one in found if one.kind == "step"}
    assert sorted(steps) == [0, 4, 7, 10, 14, 17, 20]
    assert steps[20].caption == {"iteration": 20, "of": 20}
    assert steps[0].png != steps[20].png
    nearest = [one for one in found if one.kind == "neighbour"]
    assert [one.number for one in nearest] == list(range(len(CLASSES)))
    for one in nearest:
        assert one.label in CLASSES
        assert one.caption["image_label"] in CLASSES
        assert 0 < one.caption["ssim"] <= 1
        assert read_image(one.png, name="neighbour").shape == (16, 16)
    names = _archive_names(node, job_id)
    assert not [name for name in names if "nearest" in name or "neighbour" in name]


def _archive_names(node: Node, job_id: UUID) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(archive(node, job_id))) as package:
        return package.namelist()
