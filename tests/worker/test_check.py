"""The task that checks a dataset: what it finds is kept without names, and finding faults is a success."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import func, select, text

from services.datasets import repository, service
from services.datasets.models import SourceDataset
from services.jobs import service as jobs
from services.jobs import submit
from services.jobs.models import Job, JobEvent, State
from services.kit.db import now
from tests.services.datasets.images import class_files, picture, write_folder
from tests.worker.conftest import Node
from worker.context import JobContext, Outcome
from worker.tasks import check

Checker = Callable[..., tuple[Job, SourceDataset]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def small(make_node: Callable[..., Node], root: Path) -> Node:
    """A node with an empty data root."""
    return make_node(PPDD_DATA_ROOTS=str(root))


def add_dataset(node: Node, path: Path, **rows: str) -> UUID:
    with node.resources.sessions.begin() as session:
        row = SourceDataset(
            name="mine", title="X", owner_id=node.owner.user_id, path=str(path), rows=rows, state="registered"
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row.id


def start(node: Node, dataset_id: UUID, *, image_size: int = 32) -> JobContext:
    """Return the context of a claimed check."""
    with node.resources.transaction() as session:
        job, _ = submit.submit_check(
            session, node.settings, node.owner, dataset_id, image_size=image_size, idempotency_key=None
        )  # fmt: skip
    with node.resources.sessions.begin() as session:
        claim = jobs.claim(session, job.id, worker="test", settings=node.settings.jobs)
        assert claim is not None
        session.expunge_all()
    return JobContext(node.resources, claim.job, claim.fence)


def finish(node: Node, context: JobContext, outcome: Outcome) -> tuple[Job, SourceDataset]:
    """End the job as its process does, and return it with its dataset."""
    assert outcome.record is not None
    with node.resources.transaction() as session:
        jobs.succeed(session, context.job.id, context.fence, result=outcome.result)
        outcome.record(session)
    with node.resources.sessions() as session:
        job = jobs.get(session, context.job.id)
        assert job.dataset_id is not None
        return job, service.get(session, job.dataset_id)


def run(node: Node, dataset_id: UUID, **asked: Any) -> tuple[Job, SourceDataset]:
    context = start(node, dataset_id, **asked)
    return finish(node, context, check.run(context))


def test_a_good_dataset_becomes_ready_with_statistics_and_thumbnails(
    small: Node, root: Path
) -> None:
    write_folder(root / "xrays", class_files(("COVID", "a/b"), each=24))
    job, dataset = run(small, add_dataset(small, root / "xrays"))
    assert (dataset.state, dataset.image_size) == ("ready", 32)
    assert dataset.checked_at is not None
    assert dataset.checked_at <= now()
    assert dataset.fingerprint is not None
    assert dataset.findings is not None
    assert dataset.findings["classes"] == {"COVID": 24, "a": 24}
    assert "patient-" not in str(dataset.findings)
    assert sum(dataset.findings["grey"]["histogram"]) == 48 * 32 * 32
    assert job.result is not None
    assert job.result["usable"] is True
    assert job.state == State.SUCCEEDED
    with small.resources.sessions() as session:
        thumbnails = repository.thumbnails(session, dataset.id)
        assert session.execute(text("SELECT count(*) FROM object_holds")).scalar() == 0
        assert session.scalars(select(func.count()).where(JobEvent.kind == "progress")).one() > 1
    assert [(one.label, one.number) for one in thumbnails] == [
        (label, number) for label in ("COVID", "a") for number in range(12)
    ]
    for one in thumbnails:
        data = b"".join(small.resources.store.read(one.sha256))
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.mode, image.info) == ((96, 96), "L", {})
        assert data.count(b"tEXt") + data.count(b"iTXt") + data.count(b"eXIf") == 0


def test_faults_make_it_faulty_and_the_job_succeeds(small: Node, root: Path) -> None:
    write_folder(root / "xrays", {"COVID/Miller.png": picture(1), "COVID/Smith.png": b"broken"})
    job, dataset = run(small, add_dataset(small, root / "xrays"))
    assert (job.state, dataset.state) == ("succeeded", "faulty")
    assert dataset.findings is not None
    codes = {one["code"] for one in dataset.findings["findings"] if one["severity"] == "error"}
    assert codes == {"too-few-classes", "too-small-class", "unreadable"}
    for name in ("Miller", "Smith"):
        assert name not in str(dataset.findings) + str(job.result)


@pytest.mark.parametrize(
    ("files", "rows", "reason"),
    [
        pytest.param(
            {"COVID/masks/Smith.png": b"x", "N/masks/b.png": b"x"}, {}, "only masks were found", id="masks"
        ),
        pytest.param({"COVID/Smith.png": b"x", "N/Smith.png": b""}, {}, "none of the 2", id="all bad"),
        pytest.param({"notes.txt": b"x"}, {}, "no images", id="nothing"),
        pytest.param(
            {"COVID/a.png": picture(1)}, {"patient": "Smith"}, "--where needs a manifest.csv", id="no manifest"
        ),
        pytest.param({"manifest.csv": b"path,label\n../Smith.png,x\n"}, {}, "leaves its folder", id="climbs"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_at_all_is_faulty_with_the_reason(
    small: Node, root: Path, files: dict[str, bytes], rows: dict[str, str], reason: str
) -> None:
    write_folder(root / "xrays", files)
    job, dataset = run(small, add_dataset(small, root / "xrays", **rows))
    assert (job.state, dataset.state) == ("succeeded", "faulty")
    assert job.result is not None
    assert job.result["usable"] is False
    assert reason in job.result["reason"]
    assert dataset.findings is not None
    assert reason in dataset.findings["refusal"]
    assert "Smith" not in str(job.result) + str(dataset.findings)


def test_a_path_that_is_gone_is_faulty_until_it_is_back(small: Node, root: Path) -> None:
    write_folder(root / "xrays", class_files())
    dataset_id = add_dataset(small, root / "xrays")
    (root / "xrays").rename(root / "away")
    _, dataset = run(small, dataset_id)
    assert (dataset.state, dataset.fingerprint) == ("faulty", None)
    (root / "away").rename(root / "xrays")
    _, dataset = run(small, dataset_id)
    assert dataset.state == "ready"


def test_checking_again_replaces_what_was_found(small: Node, root: Path) -> None:
    write_folder(root / "xrays", class_files(each=3))
    dataset_id = add_dataset(small, root / "xrays")
    _, first = run(small, dataset_id)
    write_folder(root / "xrays", class_files(("COVID", "Normal", "Other"), each=3))
    _, second = run(small, dataset_id, image_size=16)
    assert second.fingerprint != first.fingerprint
    assert second.image_size == 16
    with small.resources.sessions() as session:
        labels = {one.label for one in repository.thumbnails(session, dataset_id)}
    assert labels == {"COVID", "Normal", "Other"}


def test_an_attempt_that_lost_its_job_records_nothing(small: Node, root: Path) -> None:
    write_folder(root / "xrays", class_files())
    dataset_id = add_dataset(small, root / "xrays")
    context = start(small, dataset_id)
    outcome = check.run(context)
    small.change(context.job.id, {"fence": context.fence + 1})
    with pytest.raises(jobs.LostJobError):
        finish(small, context, outcome)
    with small.resources.sessions() as session:
        assert service.get(session, dataset_id).state == "registered"
        assert repository.thumbnails(session, dataset_id) == []
