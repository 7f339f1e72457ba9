from __future__ import annotations

from services.jobs import reading
from services.jobs import service as jobs
from services.kit.resources import Resources
from tests.services.jobs.conftest import add_job, person


def test_a_course_has_both_ends_and_no_other_jobs_events(node: Resources) -> None:
    owner = person(node)
    job, other = add_job(node, owner), add_job(node, owner)
    with node.reading() as session:
        assert list(reading.read_course(session, job.id)) == []
    for number in range(400):
        with node.sessions.begin() as session:
            stage = "teachers" if number < 380 else "distillation"
            data = {"stage": stage, "done": number, "numbers": {"loss": 1.0}}
            jobs.tell(session, job.id, "progress", data)
            jobs.tell(session, other.id, "progress", {**data, "done": -1})
    with node.sessions.begin() as session:
        jobs.tell(session, job.id, "state", {"state": "running"})
    with node.reading() as session:
        found = [event.data for event in reading.read_course(session, job.id)]
    done = [one["done"] for one in found]
    assert (done[0], done[-1]) == (0, 399)
    assert done == sorted(set(done))
    assert 120 <= len(done) <= 400
    assert sum(one["stage"] == "distillation" for one in found) == 20


def test_the_end_of_a_log_is_its_newest_lines_in_order(node: Resources) -> None:
    job = add_job(node, person(node))
    with node.sessions.begin() as session:
        jobs.add_log(session, job.id, 1, [f"line {number}" for number in range(50)])
    with node.reading() as session:
        found = reading.read_log_end(session, job.id, limit=3)
    assert [line.text for line in found] == ["line 47", "line 48", "line 49"]
