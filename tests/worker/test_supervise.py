"""Jobs done by real processes: whatever is killed, the job ends once, in the same bytes."""

from __future__ import annotations

from tests.worker.conftest import Node
from worker import supervise


def test_a_distillation_ends_as_a_draft_package(node: Node) -> None:
    job_id = node.distill()
    supervise.work(node.post(), job_id)
    job = node.job(job_id)
    print(*node.log(job_id), sep="\n")
    print(job.state, job.error, job.progress, job.actual, job.result)
    assert job.state == "succeeded"
