"""Jobs done by real processes: whatever is killed, cancelled or lost, the job ends once and says how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from services.datasets.models import SourceDataset
from services.jobs import service as jobs
from services.jobs.models import Attempt
from tests.worker.conftest import Node, supervised, wait_until
from worker import supervise


def attempts(node: Node, job_id: UUID) -> list[tuple[str | None, int | None]]:
    with node.resources.sessions() as session:
        rows = session.scalars(
            select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
        )
        return [(row.outcome, row.exit_code) for row in rows]


def test_a_message_delivered_twice_runs_once(node: Node) -> None:
    job_id = node.check()
    both = [
        threading.Thread(target=supervise.work, args=(node.post(name), job_id))
        for name in ("cpu@one", "cpu@two")
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(120)
    supervise.work(node.post(), job_id)
    assert node.job(job_id).state == "succeeded"
    assert attempts(node, job_id) == [("succeeded", None)]
    assert set(node.job(job_id).actual or {}) == {"seconds", "peak_bytes"}
    assert not (node.settings.work_dir / str(job_id)).exists()


def test_a_killed_process_is_tried_again_and_goes_on(node: Node) -> None:
    job_id = node.check(image_size=256)
    with supervised(node.post(), job_id) as child:
        os.kill(child, signal.SIGKILL)
    job = node.job(job_id)
    assert job.state == "queued"
    assert job.error is not None and job.error["slug"] == "out-of-memory"
    assert job.retry_at is not None
    supervise.work(node.post(), job_id)
    assert node.job(job_id).state == "queued", "it waits for its time"
    node.change(job_id, {"retry_at": None})
    supervise.work(node.post(), job_id)
    assert node.job(job_id).state == "succeeded"
    assert attempts(node, job_id) == [("failed", -9), ("succeeded", None)]


def cancel(node: Node, job_id: UUID) -> None:
    with node.resources.transaction() as session:
        jobs.request_cancel(session, node.owner, job_id)


def while_it_stands_still(child: int, act: Callable[[], None]) -> None:
    """Freeze the process, act, and let it go on once it has been asked to stop: it cannot finish first."""
    os.kill(child, signal.SIGSTOP)
    act()
    asked = 1 << (signal.SIGTERM - 1)
    status = Path(f"/proc/{child}/status")
    wait_until(
        lambda: bool(int(status.read_text().split("ShdPnd:")[1].split()[0], 16) & asked), "a signal"
    )
    os.kill(child, signal.SIGCONT)


def test_a_cancelled_job_stops_in_order(node: Node) -> None:
    job_id = node.check(image_size=256)
    with supervised(node.post(), job_id) as child:
        while_it_stands_still(child, lambda: cancel(node, job_id))
    assert node.job(job_id).state == "cancelled"
    assert attempts(node, job_id) == [("cancelled", None)]


def test_what_does_not_stop_is_killed(make_node: Callable[..., Node]) -> None:
    node = make_node(PPDD_JOBS__CANCEL_GRACE_SECONDS="0.5")
    job_id = node.check(image_size=256)
    with supervised(node.post(), job_id) as child:
        os.kill(child, signal.SIGSTOP)  # it cannot even answer
        cancel(node, job_id)
    assert node.job(job_id).state == "cancelled"
    assert not Path(f"/proc/{child}").exists()


def test_a_worker_that_stops_gives_its_job_back(node: Node) -> None:
    job_id, stopping = node.check(image_size=256), threading.Event()
    with supervised(node.post(stopping=stopping.is_set), job_id) as child:
        while_it_stands_still(child, stopping.set)
    job = node.job(job_id)
    assert (job.state, job.attempts, job.retry_at) == ("queued", 0, None)
    assert attempts(node, job_id) == [("stopped", None)]


def test_a_process_whose_job_was_given_to_another_is_ended_and_changes_nothing(node: Node) -> None:
    job_id = node.check(image_size=256)
    with supervised(node.post(), job_id) as child:
        os.kill(child, signal.SIGSTOP)
        node.change(job_id, {"fence": 7, "lease_owner": "cpu@other"})
    assert not Path(f"/proc/{child}").exists()
    job = node.job(job_id)
    assert (job.state, job.fence, job.lease_owner) == ("running", 7, "cpu@other")


def test_a_process_ends_with_its_supervisor(node: Node) -> None:
    job_id = node.check(image_size=256)
    program = (
        "import sys; from uuid import UUID; from services.settings import load_settings\n"
        "from services.kit.resources import open_resources; from worker import supervise\n"
        "import os\n"
        "with open_resources(load_settings()) as made:\n"
        "    post = supervise.Post(made, 'cpu@killed', dict(os.environ), lambda: False)\n"
        "    supervise.work(post, UUID(sys.argv[1]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(job_id)], env=node.environ) as parent:
        wait_until(lambda: bool(node.job(job_id).progress), "progress")
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    wait_until(lambda: not _lives(child), "the end of the process", seconds=10)
    assert node.job(job_id).state == "running", "its lease runs out later"


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_refusal_is_the_jobs_end_with_its_reason(node: Node) -> None:
    job_id = node.check(image_size=16)
    with node.resources.sessions.begin() as session:
        session.scalars(select(SourceDataset)).one().state = "removed"
    supervise.work(node.post(), job_id)
    job = node.job(job_id)
    assert job.state == "failed"
    assert job.error is not None and job.error["slug"] == "dataset-removed"


def test_a_bug_leaves_its_traceback_in_the_log(node: Node) -> None:
    job_id = node.check()
    node.change(job_id, {"spec": {}})
    supervise.work(node.post(), job_id)
    job = node.job(job_id)
    assert job.state == "failed"
    assert job.error is not None and job.error["slug"] == "internal"
    assert any("worker/tasks/check.py" in line for line in node.log(job_id))


def test_a_courier_leaves_what_computes_alone(make_node: Callable[..., Node]) -> None:
    node = make_node(PPDD_WORKER__KINDS="pull")
    job_id = node.check()
    supervise.work(node.post("pull@test"), job_id)
    assert node.job(job_id).state == "queued"


def test_a_job_without_enough_memory_says_so(make_node: Callable[..., Node]) -> None:
    node = make_node(PPDD_JOBS__MEMORY_BYTES=str(400 * 2**20))
    job_id = node.check(image_size=512)
    supervise.work(node.post(), job_id)
    job = node.job(job_id)
    assert job.state == "queued"
    assert job.error is not None and job.error["slug"] == "out-of-memory"
    assert "PPDD_WORKER__PROCESSES" in job.error["detail"]
