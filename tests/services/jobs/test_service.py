"""The rules of jobs: created once, claimed once, fenced, given up, ended, gone on with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.audit.models import AuditEvent
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.jobs import service as jobs
from services.jobs.errors import LostJobError
from services.jobs.models import Attempt, Job, JobEvent, Kind, LogLine
from services.jobs.service import Claim, Failure
from services.kit.db import now
from services.kit.errors import ForbiddenError, NotFoundError, UnprocessableError
from services.kit.resources import Resources
from tests.services.conftest import Bell
from tests.services.jobs.conftest import Make, add_job, person, read

LONG_AGO = timedelta(hours=1)


def take(resources: Resources, job_id: UUID, worker: str = "w1", **given: object) -> Claim:
    with resources.sessions.begin() as session:
        claim = jobs.claim(
            session,
            job_id,
            worker=worker,
            settings=resources.settings.jobs,
            **given,  # type: ignore[arg-type]
        )
    assert claim is not None
    return claim


def silent_since_long(resources: Resources, job_id: UUID) -> Claim:
    """A claim whose worker has said nothing for an hour."""
    return take(resources, job_id, at=now() - LONG_AGO)


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """Call `work` from many threads at once, and return what they answered."""
    gate = threading.Barrier(count)

    def start(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def states(resources: Resources, job_id: UUID) -> list[str]:
    with resources.sessions() as session:
        found = session.scalars(
            select(JobEvent)
            .where(JobEvent.job_id == job_id, JobEvent.kind == "state")
            .order_by(JobEvent.id)
        )
        return [event.data["state"] for event in found]


def attempts(resources: Resources, job_id: UUID) -> list[str | None]:
    with resources.sessions() as session:
        rows = session.scalars(
            select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
        )
        return [row.outcome for row in rows]


# ------------------------------------------------------------------------------------------ creating


def test_a_new_job_waits_and_is_rung_for_after_the_commit(
    resources: Resources, bell: Bell, make: Make
) -> None:
    job = make()
    assert (job.state, job.attempts, job.fence) == ("queued", 0, 0)
    assert bell.rung == [("ppdd.work", job.id)]


def test_nobody_is_rung_for_a_job_that_was_rolled_back(
    resources: Resources, bell: Bell, owner: Principal
) -> None:
    def change_of_mind() -> None:
        with resources.transaction() as session:
            jobs.create(
                session, resources.settings.jobs, owner, kind=Kind.CHECK, title="x", spec={}
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_of_mind()
    assert bell.rung == []


def test_the_same_key_gives_the_same_job(make: Make) -> None:
    assert make(idempotency_key="a").id == make(idempotency_key="a").id
    assert make(idempotency_key="b").id != make(idempotency_key="a").id


def test_a_key_for_another_request_is_refused(make: Make) -> None:
    job = make(idempotency_key="a")
    with pytest.raises(jobs.IdempotencyConflictError, match=str(job.id)):
        make(idempotency_key="a", spec={"image_size": 64})


def test_a_key_is_its_owners_own(resources: Resources, make: Make) -> None:
    job = make(idempotency_key="a")
    assert add_job(resources, person(resources, "eve"), idempotency_key="a").id != job.id


def test_many_posts_of_one_key_at_once_make_one_job(node: Resources, bell: Bell) -> None:
    caller = person(node)
    made = together(6, lambda _: add_job(node, caller, idempotency_key="k").id)
    assert len(set(made)) == 1
    assert len(bell.rung) == 1


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(2**53, id="number that JSON rounds"),
        pytest.param(float("nan"), id="not a number"),
        pytest.param("a\x00b", id="NUL"),
        pytest.param("\ud800", id="half a character"),
    ],
)
def test_a_spec_that_no_database_keeps_is_refused(make: Make, value: object) -> None:
    with pytest.raises(UnprocessableError, match="Unicode"):
        make(spec={"inner": [value]})


def test_a_credential_is_sealed_for_its_job_and_gone_when_that_ends(
    resources: Resources, make: Make
) -> None:
    job = make(kind=Kind.PULL, credential="ppdd_secret", vault=resources.vault)
    sealed = read(resources, job.id).sealed
    assert sealed is not None and "secret" not in sealed
    assert resources.vault.open(sealed, jobs.purpose_of(job.id)) == "ppdd_secret"
    claim = take(resources, job.id)
    with resources.sessions.begin() as session:
        jobs.fail(session, job.id, claim.fence, Failure("refused", "no"))
    assert read(resources, job.id).sealed is None


def test_a_pull_cannot_go_on_without_its_credential(
    resources: Resources, owner: Principal, make: Make
) -> None:
    job = make(kind=Kind.PULL, credential="ppdd_secret", vault=resources.vault)
    with resources.sessions.begin() as session:
        jobs.request_cancel(session, owner, job.id)
    assert read(resources, job.id).sealed is None
    with resources.sessions.begin() as session, pytest.raises(UnprocessableError, match="new pull"):
        jobs.resume(session, owner, job.id)


# ------------------------------------------------------------------------------------------ claiming


def test_one_of_many_claimers_gets_the_job(node: Resources) -> None:
    job = add_job(node, person(node))

    def claim(number: int) -> Claim | None:
        with node.sessions.begin() as session:
            return jobs.claim(session, job.id, worker=f"w{number}", settings=node.settings.jobs)

    claims = [one for one in together(6, claim) if one is not None]
    assert len(claims) == 1
    assert read(node, job.id).fence == read(node, job.id).attempts == 1
    assert attempts(node, job.id) == [None]


def test_a_claimed_job_is_running_under_a_lease(resources: Resources, make: Make) -> None:
    claim = take(resources, make().id, worker="gpu-1")
    job = read(resources, claim.job.id)
    assert (job.state, job.lease_owner, job.fence) == ("running", "gpu-1", 1)
    assert job.lease_expires_at is not None and job.lease_expires_at > now()
    assert job.started_at is not None


def test_a_job_that_does_not_exist_is_not_claimed(resources: Resources, owner: Principal) -> None:
    with resources.sessions.begin() as session:
        missing = owner.user_id
        assert jobs.claim(session, missing, worker="w", settings=resources.settings.jobs) is None
        with pytest.raises(NotFoundError):
            jobs.get(session, missing)


def test_a_lost_worker_can_change_nothing(resources: Resources, make: Make) -> None:
    old = silent_since_long(resources, make().id)
    job_id = old.job.id
    with resources.transaction() as session:
        jobs.sweep(session)
    new = take(resources, job_id, worker="w2")
    assert new.fence == old.fence + 1
    changes: list[Callable[[Session], object]] = [
        lambda s: jobs.heartbeat(s, job_id, old.fence, settings=resources.settings.jobs),
        lambda s: jobs.note_progress(s, job_id, old.fence, {"stage": "x"}),
        lambda s: jobs.note_estimate(s, job_id, old.fence, {}),
        lambda s: jobs.succeed(s, job_id, old.fence, result={}),
        lambda s: jobs.fail(s, job_id, old.fence, Failure("x", "y")),
        lambda s: jobs.cancelled(s, job_id, old.fence),
        lambda s: jobs.give_back(s, job_id, old.fence, "bye"),
    ]
    for change in changes:
        with pytest.raises(LostJobError), resources.sessions.begin() as session:
            change(session)
    job = read(resources, job_id)
    assert (job.state, job.lease_owner, job.progress, job.result) == ("running", "w2", None, None)


def test_a_job_ends_once(resources: Resources, make: Make) -> None:
    claim = take(resources, make().id)
    with resources.sessions.begin() as session:
        jobs.succeed(session, claim.job.id, claim.fence, result={"loss": float("nan")})
    with pytest.raises(LostJobError), resources.sessions.begin() as session:
        jobs.succeed(session, claim.job.id, claim.fence, result={})
    job = read(resources, claim.job.id)
    assert (job.state, job.result, job.lease_owner) == ("succeeded", {"loss": None}, None)
    assert states(resources, job.id) == ["queued", "running", "succeeded"]


def test_a_heartbeat_renews_the_lease_and_tells_of_a_cancellation(
    resources: Resources, owner: Principal, make: Make
) -> None:
    claim = silent_since_long(resources, make().id)
    settings = resources.settings.jobs
    with resources.sessions.begin() as session:
        assert not jobs.heartbeat(session, claim.job.id, claim.fence, settings=settings)
    with resources.transaction() as session:
        assert jobs.sweep(session) == []
        jobs.request_cancel(session, owner, claim.job.id)
    with resources.sessions.begin() as session:
        assert jobs.heartbeat(session, claim.job.id, claim.fence, settings=settings)


def test_progress_is_kept_and_told(node: Resources) -> None:
    claim = take(node, add_job(node, person(node)).id)
    with node.sessions.begin() as session:
        numbers = {"loss": float("inf"), "note": "a\x00b"}
        jobs.note_progress(session, claim.job.id, claim.fence, {"done": 1, "numbers": numbers})
    stored = {"done": 1, "numbers": {"loss": None, "note": "a\N{REPLACEMENT CHARACTER}b"}}
    assert read(node, claim.job.id).progress == stored
    with node.sessions() as session:
        event = session.scalars(select(JobEvent).where(JobEvent.kind == "progress")).one()
    assert event.data == stored


def test_log_lines_are_cut_and_limited(node: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_LOG_LINES", 4)
    job = add_job(node, person(node))
    for lines in (["a" * 5000, "b\x00\udc80"], ["c", "d", "e"], ["f"]):
        with node.sessions.begin() as session:
            jobs.add_log(session, job.id, 1, lines)
    with node.sessions() as session:
        kept = [line.text for line in session.scalars(select(LogLine).order_by(LogLine.id))]
    assert len(kept[0]) == jobs.MAX_LINE
    assert kept[1:3] == ["b\N{REPLACEMENT CHARACTER}?", "c"]
    assert "not kept" in kept[3] and len(kept) == 4


# ------------------------------------------------------------------------------------------ failing


def test_a_refusal_fails_at_once(resources: Resources, bell: Bell, make: Make) -> None:
    claim = take(resources, make().id)
    with resources.transaction() as session:
        jobs.fail(
            session, claim.job.id, claim.fence, Failure("bad-source", "no images"), exit_code=3
        )
    job = read(resources, claim.job.id)
    assert job.state == "failed"
    assert job.error == {"slug": "bad-source", "detail": "no images", "resumable": True}
    assert attempts(resources, job.id) == ["failed"]


def test_an_outage_is_tried_again_later_each_time_and_at_last_given_up(
    resources: Resources, make: Make
) -> None:
    job_id = make().id
    most, waits = resources.settings.jobs.max_attempts, []
    for number in range(most):
        claim = take(resources, job_id, at=now() + number * LONG_AGO)
        with resources.transaction() as session:
            jobs.fail(session, job_id, claim.fence, Failure("store", "away", retry=True))
        job = read(resources, job_id)
        if job.retry_at is not None:
            assert job.state == "queued"
            waits.append(round((job.retry_at - now()).total_seconds()))
    assert waits == [10, 20, 40, 80]
    assert (job.state, job.attempts) == ("failed", most)


def test_a_job_is_not_claimed_before_its_time(resources: Resources, bell: Bell, make: Make) -> None:
    claim = take(resources, make().id)
    with resources.transaction() as session:
        jobs.fail(session, claim.job.id, claim.fence, Failure("store", "away", retry=True))
    settings = resources.settings.jobs
    with resources.transaction() as session:
        assert jobs.claim(session, claim.job.id, worker="w", settings=settings) is None
        assert jobs.sweep(session) == []
        assert jobs.sweep(session, at=now() + LONG_AGO) == [claim.job.id]


def test_giving_back_spends_no_attempt(resources: Resources, bell: Bell, make: Make) -> None:
    claim = take(resources, make().id)
    bell.rung.clear()
    with resources.transaction() as session:
        jobs.give_back(session, claim.job.id, claim.fence, "the worker stops")
    job = read(resources, claim.job.id)
    assert (job.state, job.attempts, job.fence) == ("queued", 0, 1)
    assert bell.rung == [("ppdd.work", job.id)]
    assert take(resources, job.id).fence == 2
    assert attempts(resources, job.id) == ["stopped", None]


# ------------------------------------------------------------------------------------------ sweeping


def test_a_silent_workers_job_is_queued_again_and_rung_for(node: Resources, bell: Bell) -> None:
    claim = silent_since_long(node, add_job(node, person(node)).id)
    bell.rung.clear()
    with node.transaction() as session:
        assert jobs.sweep(session) == [claim.job.id]
    assert bell.rung == [("ppdd.work", claim.job.id)]
    assert read(node, claim.job.id).state == "queued"
    assert attempts(node, claim.job.id) == ["lost"]


def test_a_living_workers_job_is_left_alone(resources: Resources, make: Make) -> None:
    claim = take(resources, make().id)
    with resources.transaction() as session:
        assert jobs.sweep(session) == []
    assert read(resources, claim.job.id).state == "running"


def test_a_job_that_keeps_killing_its_worker_fails(resources: Resources, make: Make) -> None:
    job_id = make().id
    for _ in range(resources.settings.jobs.max_attempts):
        silent_since_long(resources, job_id)
        with resources.transaction() as session:
            jobs.sweep(session)
    job = read(resources, job_id)
    assert job.state == "failed"
    assert job.error is not None and job.error["slug"] == "worker-lost"
    assert "5 times" in job.error["detail"]


def test_sweeps_at_once_do_what_one_does(node: Resources) -> None:
    caller = person(node)
    lost = [silent_since_long(node, add_job(node, caller).id).job.id for _ in range(5)]

    def sweep(_: int) -> None:
        with node.transaction() as session:
            jobs.sweep(session)

    together(4, sweep)
    assert [read(node, one).state for one in lost] == ["queued"] * 5
    assert [attempts(node, one) for one in lost] == [["lost"]] * 5


def test_sweeping_while_jobs_end_and_are_cancelled_locks_nobody_out(node: Resources) -> None:
    """Who ends a job locks its row, then the audit log; a sweep that did it in another order would be waited for."""
    caller = person(node)
    claims = [silent_since_long(node, add_job(node, caller).id) for _ in range(12)]
    for claim in claims[:6]:
        with node.sessions.begin() as session:
            jobs.request_cancel(session, caller, claim.job.id)

    def act(number: int) -> None:
        if number < 2:
            with node.transaction() as session:
                jobs.sweep(session)
            return
        for claim in claims[number - 2 :: 4]:
            try:
                with node.sessions.begin() as session:
                    jobs.succeed(session, claim.job.id, claim.fence, result={})
            except LostJobError:
                pass

    together(6, act)
    ended = [read(node, claim.job.id) for claim in claims]
    assert {job.state for job in ended[:6]} <= {"succeeded", "cancelled"}
    assert {job.state for job in ended[6:]} <= {"succeeded", "queued"}


def test_only_so_many_are_rung_for(resources: Resources, make: Make) -> None:
    first = make()
    make()
    with resources.transaction() as session:
        assert jobs.sweep(session, rings=1) == [first.id]
        assert jobs.sweep(session, rings=0) == []


# ------------------------------------------------------------------------------------------ cancelling


def test_a_queued_job_is_cancelled_at_once(
    resources: Resources, owner: Principal, make: Make
) -> None:
    job = make()
    with resources.sessions.begin() as session:
        jobs.request_cancel(session, owner, job.id)
    assert read(resources, job.id).state == "cancelled"
    with resources.sessions.begin() as session:
        assert jobs.claim(session, job.id, worker="w", settings=resources.settings.jobs) is None
        with pytest.raises(jobs.JobEndedError, match="cancelled already"):
            jobs.request_cancel(session, owner, job.id)


def test_a_running_job_is_asked_and_then_cancelled(
    resources: Resources, owner: Principal, make: Make
) -> None:
    claim = take(resources, make().id)
    for _ in range(2):  # asking twice changes nothing
        with resources.sessions.begin() as session:
            assert jobs.request_cancel(session, owner, claim.job.id).state == "running"
    with resources.sessions.begin() as session:
        jobs.cancelled(session, claim.job.id, claim.fence)
    assert states(resources, claim.job.id) == ["queued", "running", "running", "cancelled"]


@pytest.mark.parametrize("how", ["give back", "outage", "lost"])
def test_a_job_asked_to_stop_does_not_go_back_into_the_queue(
    resources: Resources, owner: Principal, make: Make, how: str
) -> None:
    """In the queue nobody could claim it, and nobody would end it."""
    claim = silent_since_long(resources, make().id)
    job_id, fence = claim.job.id, claim.fence
    with resources.sessions.begin() as session:
        jobs.request_cancel(session, owner, job_id)
    with resources.transaction() as session:
        if how == "give back":
            jobs.give_back(session, job_id, fence, "bye")
        elif how == "outage":
            jobs.fail(session, job_id, fence, Failure("store", "away", retry=True))
        else:
            jobs.sweep(session)
    assert read(resources, job_id).state == ("failed" if how == "outage" else "cancelled")


def test_others_jobs_are_cancelled_and_resumed_by_a_steward_only(
    resources: Resources, make: Make
) -> None:
    job = make()
    with resources.sessions.begin() as session:
        for act in (jobs.request_cancel, jobs.resume):
            with pytest.raises(ForbiddenError):
                act(session, Principal(job.id, "eve", Role.RESEARCHER, "token", job.id), job.id)
    with resources.sessions.begin() as session:
        jobs.request_cancel(session, person_in(session), job.id)
    assert read(resources, job.id).state == "cancelled"


def person_in(session: Session) -> Principal:
    job = session.scalars(select(Job)).first()
    assert job is not None
    return Principal(job.owner_id, "steward", Role.STEWARD, "token", job.id)


# ------------------------------------------------------------------------------------------ going on


def test_a_failed_job_goes_on_with_fresh_attempts(
    resources: Resources, bell: Bell, owner: Principal, make: Make
) -> None:
    claim = take(resources, make().id)
    with resources.sessions.begin() as session:
        jobs.fail(session, claim.job.id, claim.fence, Failure("bug", "x"))
    bell.rung.clear()
    with resources.transaction() as session:
        job = jobs.resume(session, owner, claim.job.id)
        assert (job.state, job.attempts, job.error, job.finished_at) == ("queued", 0, None, None)
    assert bell.rung == [("ppdd.work", claim.job.id)]
    assert take(resources, claim.job.id).fence == 2


def test_a_job_that_would_fail_again_does_not_go_on(
    resources: Resources, owner: Principal, make: Make
) -> None:
    claim = take(resources, make().id)
    with resources.sessions.begin() as session:
        jobs.fail(session, claim.job.id, claim.fence, Failure("taken", "is there", resumable=False))
    with (
        resources.sessions.begin() as session,
        pytest.raises(jobs.NotResumableError, match="is there"),
    ):
        jobs.resume(session, owner, claim.job.id)


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_job_that_did_not_end_badly_does_not_go_on(
    resources: Resources, owner: Principal, make: Make, state: str
) -> None:
    job = make()
    if state != "queued":
        claim = take(resources, job.id)
        if state == "succeeded":
            with resources.sessions.begin() as session:
                jobs.succeed(session, job.id, claim.fence, result={})
    with resources.sessions.begin() as session, pytest.raises(jobs.NotResumableError, match=state):
        jobs.resume(session, owner, job.id)


def test_what_people_and_the_node_do_to_a_job_is_audited(
    resources: Resources, owner: Principal, make: Make
) -> None:
    job = make()
    with resources.sessions.begin() as session:
        jobs.request_cancel(session, owner, job.id)
        jobs.resume(session, owner, job.id)
    claim = take(resources, job.id)
    with resources.sessions.begin() as session:
        jobs.succeed(session, job.id, claim.fence, result={})
    with resources.sessions() as session:
        rows = session.scalars(
            select(AuditEvent).where(AuditEvent.subject == str(job.id)).order_by(AuditEvent.seq)
        )
        done = [(row.action, row.actor_name) for row in rows]
    assert done == [
        ("job.create", "ruth"),
        ("job.cancel", "ruth"),
        ("job.resume", "ruth"),
        ("job.succeeded", "the node itself"),
    ]
