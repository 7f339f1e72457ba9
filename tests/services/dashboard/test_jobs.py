from __future__ import annotations

import time
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select

from services.audit.models import AuditEvent
from services.jobs import pictures, reading
from services.jobs import service as jobs
from services.jobs.models import Job, JobEvent, Kind
from services.jobs.pictures import Picture, Shows
from services.jobs.service import Failure
from services.kit.db import new_id, now
from services.kit.resources import Resources
from tests.services.dashboard.conftest import Browser, NewBrowser
from tests.services.dashboard.work import add_dataset, add_job, as_caller, claimed, reported

HTMX = {"HX-Request": "true"}
SPEC = {
    "preset": "quick",
    "images_per_class": 2,
    "seed": 0,
    "settings": {"distill.iterations": 50},
    "test_rows": {},
    "package": {"name": "chests", "version": "1.0.0"},
}


@pytest.fixture
def one(browser: NewBrowser) -> Browser:
    return browser("researcher")


def distillation(resources: Resources, one: Browser) -> Job:
    return add_job(resources, as_caller(one), kind=Kind.DISTILL, title="Distil chests", spec=SPEC)


def step(number: int, **numbers: float) -> dict[str, object]:
    return {
        "stage": "distillation", "done": number, "total": 100, "eta_seconds": 90.0,
        "note": "", "numbers": {"loss": 1 - number / 200, "lr": 0.01, "pruned": 0.1, **numbers},
    }  # fmt: skip


def test_the_list_is_narrowed_by_kind_state_owner_and_dataset(
    one: Browser, browser: NewBrowser, resources: Resources
) -> None:
    assert "Nothing was started yet." in one.get("/jobs").text
    other = browser("researcher", username="eve")
    assert one.user_id
    dataset = add_dataset(resources, one.user_id)
    add_job(resources, as_caller(one), title="mine", dataset_id=dataset)
    add_job(resources, as_caller(other), title="others", kind=Kind.DISTILL, spec=SPEC)
    for query, there in (
        ("", {"mine", "others"}),
        ("?kind=distill", {"others"}),
        ("?state=failed", set()),
        ("?owner=me", {"mine"}),
        ("?dataset=chests", {"mine"}),
        ("?kind=&state=&owner=&dataset=", {"mine", "others"}),
    ):
        page = one.get(f"/jobs{query}").text
        assert {name for name in ("mine", "others") if f">{name}</a>" in page} == there, query


def test_the_list_goes_on_where_the_page_ended(one: Browser, resources: Resources) -> None:
    for number in range(27):
        add_job(resources, as_caller(one), title=f"job {number:02d}")
    page = one.get("/jobs?owner=me").text
    assert "job 26" in page
    assert "job 01<" not in page
    following = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "owner=me" in following
    assert "job 01<" in one.get(following).text


def test_a_job_that_runs_is_shown_live_and_one_that_ended_is_not(
    one: Browser, resources: Resources
) -> None:
    job = distillation(resources, one)
    page = one.get(f"/jobs/{job.id}").text
    assert "place 1 in the queue" in page
    fence = claimed(resources, job)
    teachers = {"stage": "teachers", "done": 4, "total": 8, "numbers": {"accuracy": 0.7}}
    reported(resources, job, fence, teachers, step(10), step(40))
    part = one.get(f"/jobs/{job.id}", headers=HTMX).text
    assert "<!doctype" not in part
    for said in (
        "every 3s",
        "distilling",
        "40 %",
        "about 1 min 30 s left",
        "Matching loss",
        "Learning rate",
        "pruned",
        "Accuracy of the teachers",
        "Cancel the job",
        "gpu@one",
    ):
        assert said in part, said
    actual = {"seconds": {"distillation": 80.0}, "peak_bytes": 10**9}
    with resources.sessions.begin() as session:
        jobs.note_estimate(session, job.id, fence, {"seconds": {"distillation": 75.0}})
        jobs.succeed(
            session, job.id, fence, result={"package": "hospital-a/chests@1.0.0"}, actual=actual
        )
    part = one.get(f"/jobs/{job.id}", headers=HTMX).text
    assert "every 3s" not in part
    for said in (
        "1 min 15 s",
        "1 min 20 s",
        "1.0 GB",
        "/packages/hospital-a/chests/1.0.0",
        "It ended well.",
    ):
        assert said in part, said


def test_a_failure_is_said_with_what_to_do_and_the_job_resumed(
    one: Browser, resources: Resources
) -> None:
    job = distillation(resources, one)
    fence = claimed(resources, job)
    with resources.sessions.begin() as session:
        jobs.add_log(session, job.id, fence, ["first line", "last line"])
        jobs.fail(session, job.id, fence, Failure("disk-full", "the disk is full"))
    page = one.get(f"/jobs/{job.id}").text
    for said in (
        "the disk is full",
        "Free space on the node",
        "It went wrong.",
        "last line",
        "All lines",
        "Resume",
    ):
        assert said in page, said
    assert one.post(f"/jobs/{job.id}/resume").status_code == 303
    again = one.post(f"/jobs/{job.id}/resume")
    assert again.status_code == 409
    assert "only a failed or cancelled one goes on" in again.text


def test_a_failure_that_would_be_the_same_again_offers_no_resume(
    one: Browser, resources: Resources
) -> None:
    job = distillation(resources, one)
    fence = claimed(resources, job)
    with resources.sessions.begin() as session:
        failure = Failure("unheard-of", "it is gone", resumable=False)
        jobs.fail(session, job.id, fence, failure)
    page = one.get(f"/jobs/{job.id}").text
    assert "It would end the same way again" in page
    assert ">Resume<" not in page
    assert f"/distil?again={job.id}" in page


def test_others_cancel_a_job_only_as_stewards(
    one: Browser, browser: NewBrowser, resources: Resources
) -> None:
    job = distillation(resources, one)
    for who in (browser("researcher", username="eve"), browser("auditor")):
        assert "Cancel the job" not in who.get(f"/jobs/{job.id}").text
        assert who.post(f"/jobs/{job.id}/cancel").status_code == 403
    assert "Cancel the job" in browser("steward").get(f"/jobs/{job.id}").text
    assert one.post(f"/jobs/{job.id}/cancel").status_code == 303
    assert "cancelled" in one.get(f"/jobs/{job.id}").text


def test_pictures_are_for_who_may_see_images_and_opening_the_page_is_audited_once(
    one: Browser, browser: NewBrowser, resources: Resources
) -> None:
    job = distillation(resources, one)
    fence = claimed(resources, job)
    near = Picture(Shows.NEIGHBOUR, 3, b"png", "COVID", {"image": 3, "ssim": 0.41234})
    with resources.sessions.begin() as session:
        shown = [Picture(Shows.STEP, 10, b"png", caption={"iteration": 10, "of": 50}), near]
        pictures.add(session, job.id, fence, shown)
    page = one.get(f"/jobs/{job.id}").text
    for said in ("/pictures/step/10", "/pictures/neighbour/3", "SSIM 0.412", "after step 10"):
        assert said in page, said
    one.get(f"/jobs/{job.id}", headers=HTMX)
    assert "/pictures/" not in browser("auditor").get(f"/jobs/{job.id}").text
    with resources.sessions() as session:
        seen = select(AuditEvent.actor_name).where(AuditEvent.action == "job.view")
        assert session.scalars(seen).all() == ["researcher"]


def test_what_is_not_there_is_404(one: Browser) -> None:
    assert one.get(f"/jobs/{new_id()}").status_code == 404
    assert one.post(f"/jobs/{new_id()}/cancel").status_code == 404


def test_a_job_that_reported_for_days_is_drawn_with_few_points_and_fast(
    one: Browser, resources: Resources
) -> None:
    job, other = distillation(resources, one), distillation(resources, one)
    claimed(resources, job)
    count, at = 30_000, now()
    teachers = {"stage": "teachers", "total": count, "note": ""}
    with resources.sessions.begin() as session:
        rows = [
            {
                "job_id": (job if number % 3 else other).id, "at": at + timedelta(seconds=number), "kind": "progress",
                "data": step(number) if number > count * 0.96
                else {**teachers, "done": number, "numbers": {"accuracy": 0.5}},
            }
            for number in range(count)
        ]  # fmt: skip
        session.execute(insert(JobEvent), rows)
    with resources.reading() as session:
        began = time.perf_counter()
        events = reading.read_course(session, job.id)
        took = time.perf_counter() - began
        newest = session.scalars(select(func.max(JobEvent.id)).where(JobEvent.job_id == job.id)).one()  # fmt: skip
    assert took < 1, "looked at by the index"
    of_stage = [event for event in events if event.data["stage"] == "distillation"]
    assert 150 <= len(of_stage) <= 300
    assert len(events) <= 700
    assert events[-1].id == newest
    assert {event.job_id for event in events} == {job.id}
