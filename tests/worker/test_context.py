"""What a task is given: folders that last or are empty, progress that is neither too much nor too little."""

from __future__ import annotations

from services.jobs import service as jobs
from services.kit.db import Base
from tests.worker.conftest import Node
from worker.context import JobContext


def claimed(node: Node) -> JobContext:
    job_id = node.check()
    with node.resources.transaction() as session:
        claim = jobs.claim(session, job_id, worker="cpu@test", settings=node.settings.jobs)
    assert claim is not None
    return JobContext(node.resources, claim.job, claim.fence)


def told(node: Node, job: JobContext) -> list[tuple[str, int]]:
    events = node.events(job.job.id)
    return [(event["stage"], event["done"]) for event in events if "stage" in event]


def test_the_folder_lasts_and_scratch_does_not(node: Node) -> None:
    first = claimed(node)
    (first.folder / "kept").write_text("kept")
    (first.scratch / "gone").write_text("gone")
    second = JobContext(first.resources, first.job, first.fence)
    assert (second.folder / "kept").exists()
    assert list(second.scratch.iterdir()) == []


def test_the_first_and_the_last_value_of_a_stage_are_always_told(node: Node) -> None:
    job = claimed(node)
    for done in range(101):
        job.progress("images", done, 100)
    job.progress("teachers", 3, 7, note="accuracy 0.50", accuracy=0.5)
    found = told(node, job)
    assert found[0] == ("images", 0)
    assert found[-2:] == [("images", 100), ("teachers", 3)]
    assert len(found) < 50, "about two a second"
    last = node.job(job.job.id).progress
    assert last is not None and last["numbers"] == {"accuracy": 0.5}
    assert set(job.seconds) == {"images", "teachers"}


def test_the_work_goes_on_without_the_database(node: Node) -> None:
    job = claimed(node)
    Base.metadata.tables["job_events"].drop(node.resources.engine)
    job.progress("images", 0, 1)
    job.progress("images", 1, 1)
