"""The pull task: from a node that may lie to a version that is held, through broken connections and kills."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from ppdd_core.errors import PackageError, SignatureError
from ppdd_core.package.signature import fingerprint
from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role, Scope
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.catalogue.gate import Judgement
from services.catalogue.models import PackageVersion
from services.jobs import service as jobs
from services.jobs.models import Job, JobEvent
from services.kit.db import Base, new_id
from services.kit.errors import ServiceError
from services.kit.resources import Resources, open_resources
from services.peers import client
from services.peers import service as peers
from services.peers.errors import (
    PeerAnswerError,
    PeerDeniedError,
    PeerKeyError,
    PeerUnreachableError,
)
from services.settings import load_settings
from tests.services.live import serving
from tests.services.packages import add_package, give_key, key_of, package_files
from tests.services.peers.lying_peer import TOKEN, LyingPeer, lying
from worker.context import JobContext
from worker.run import explain
from worker.tasks import pull
from worker.tasks.pull import TokenGoneError

KEY = fingerprint(key_of("hospital-b"))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.001)


def _node(folder: Path, site: str) -> Iterator[Resources]:
    settings = load_settings(
        {},
        site_id=site,
        data_dir=folder / site,
        pull={"allow_private": True, "allow_http": True, "timeout_seconds": 30.0},
        limits={"disk_reserve_bytes": 0},
    )
    give_key(settings)
    settings.work_dir.mkdir(parents=True)
    with open_resources(settings, send=lambda *_: None) as made:
        Base.metadata.create_all(made.engine)
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Resources]:
    yield from _node(tmp_path, "hospital-a")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Resources]:
    yield from _node(tmp_path, "hospital-b")


Begin = Callable[..., JobContext]


@pytest.fixture
def begin(here: Resources) -> Begin:
    """Return a claimed pull job from a URL, as the worker's process finds it."""

    def made(url: str, token: str = TOKEN, key: str = KEY) -> JobContext:
        with here.transaction() as session:
            user = auth.create_user(
                session,
                SYSTEM,
                username=f"ruth{new_id()}",
                display_name="Ruth",
                role=Role.RESEARCHER,
            )
            asking = Principal(user.id, user.username, Role.RESEARCHER, "session", new_id())
            job, _ = peers.request_pull(
                session, here.settings, here.vault, asking,
                url=url, package="hospital-b/cxr@1.0.0", key=key, token=token,
            )  # fmt: skip
        return attempt(here, job.id)

    return made


def attempt(here: Resources, job_id: UUID) -> JobContext:
    with here.transaction() as session:
        claim = jobs.claim(session, job_id, worker="test", settings=here.settings.jobs)
        assert claim is not None
    return JobContext(here, claim.job, claim.fence)


def finish(job: JobContext) -> PackageVersion:
    """Do the job and end it as the worker does; return the version."""
    outcome = pull.run(job)
    assert outcome.record is not None
    with job.resources.transaction() as session:
        jobs.succeed(session, job.job.id, job.fence, result=outcome.result)
        outcome.record(session)
    with job.resources.reading() as session:
        return session.scalars(select(PackageVersion)).one()


def test_a_released_version_is_pulled_from_a_real_node(
    here: Resources, there: Resources, begin: Begin, tmp_path: Path
) -> None:
    made = add_package(there, tmp_path, package_files("hospital-b"))
    token = _offer(there, made)
    with serving(create_app(there)) as url:
        version = finish(begin(url, token))

    assert (version.state, version.origin, version.origin_url) == ("held", "pulled", url)
    assert version.digest == made.digest
    assert b"".join(here.store.read(version.archive_sha256)) == b"".join(
        there.store.read(made.archive_sha256)
    )


def test_a_draft_is_not_given(there: Resources, begin: Begin, tmp_path: Path) -> None:
    made = add_package(there, tmp_path, package_files("hospital-b"))
    token = _offer(there, made, release=False)
    with serving(create_app(there)) as url, pytest.raises(PeerDeniedError, match="HTTP 404"):
        pull.run(begin(url, token))


def test_progress_is_told_in_bytes(here: Resources, begin: Begin, tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        job = begin(served.url)
        finish(job)

    with here.reading() as session:
        told = session.scalars(select(JobEvent.data).where(JobEvent.kind == "progress")).all()
    assert told[0]["stage"] == "bytes"
    assert max(row["done"] for row in told if row["stage"] == "bytes") == len(served.archive)


def test_an_attempt_that_was_killed_is_gone_on_from(
    here: Resources, begin: Begin, tmp_path: Path
) -> None:
    with lying(tmp_path, "breaks off at once") as served:
        job = begin(served.url)
        kept = job.folder / f"{served.digest}.part"
        kept.write_bytes(served.archive[:3000])  # what a killed attempt leaves
        served.lie = ""
        with here.transaction() as session:
            jobs.give_back(session, job.job.id, job.fence, "the worker was stopped")
        version = finish(attempt(here, job.job.id))

    assert version.state == "held"
    assert served.asked[0]["Range"] == "bytes=3000-"


def test_an_archive_that_is_whole_is_not_fetched_again(begin: Begin, tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        job = begin(served.url)
        pull.run(job)  # killed before its end was written
        finish(job)

    assert len(served.asked) == 1


def test_a_connection_that_keeps_breaking_is_tried_again_later(
    begin: Begin, tmp_path: Path
) -> None:
    with (
        lying(tmp_path, "breaks off at once") as served,
        pytest.raises(PeerUnreachableError) as gone,
    ):
        pull.run(begin(served.url))

    assert explain(gone.value).retry


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (package_files("hospital-b", seed="somebody"), SignatureError, "expected was"),
        (package_files("hospital-b", version="0.9.0"), PackageError, r"is hospital-b/cxr@0\.9\.0"),
        (package_files("hospital-b", name="other"), PackageError, "is hospital-b/other@"),
        (package_files("hospital-b", expires="2026-11-23"), PackageError, "ended on 2026-11-23"),
        (
            {**package_files("hospital-b"), "README.md": b"# changed\n"},
            PackageError,
            "it was changed",
        ),
    ],
    ids=["other key", "older version", "other package", "expired", "changed file"],
)
def test_what_arrives_whole_and_is_not_what_was_asked_for_counts_for_nothing(
    here: Resources,
    begin: Begin,
    tmp_path: Path,
    files: Mapping[str, bytes],
    error: type[Exception],
    message: str,
) -> None:
    with lying(tmp_path, files=files) as served, pytest.raises(error, match=message):
        pull.run(begin(served.url))

    assert list(here.store.list()) == []


@pytest.mark.parametrize(
    ("lie", "error"),
    [("other key", PeerKeyError), ("wrong bytes", PeerAnswerError), ("redirects", PeerAnswerError)],
)
def test_a_node_that_lies_gets_no_further(
    here: Resources, begin: Begin, tmp_path: Path, lie: str, error: type[ServiceError]
) -> None:
    with lying(tmp_path, lie) as served, pytest.raises(error) as refused:
        pull.run(begin(served.url))

    assert TOKEN not in refused.value.detail
    assert list(here.store.list()) == []


def test_the_token_goes_to_nobody_whose_key_is_wrong(begin: Begin, tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        with pytest.raises(PeerKeyError):
            pull.run(begin(served.url, key="0" * 64))

        assert _authorised(served) == []


def test_a_pull_without_its_token_says_so(begin: Begin) -> None:
    job = begin("http://127.0.0.1:9")
    job.job.sealed = None

    with pytest.raises(TokenGoneError, match="ask for a new pull"):
        pull.run(job)


def _authorised(served: LyingPeer) -> list[Mapping[str, str]]:
    return [headers for headers in served.asked if "Authorization" in headers]


def _offer(there: Resources, made: PackageVersion, *, release: bool = True) -> str:
    """Release a version and return a token of a peer."""
    admin = Principal(new_id(), "admin", Role.ADMIN, "session", new_id())
    with there.transaction() as session:
        if release:
            version = catalogue.find_version(session, "hospital-b", "cxr", made.version)
            catalogue.release(session, admin, version, Judgement((), "passed", ()), None)
        peer = auth.create_user(
            session, SYSTEM, username="peer-a", display_name="A", role=Role.PEER
        )
        return auth.issue_token(
            session, SYSTEM, peer, name="a", scopes=frozenset({Scope.PACKAGES_READ}), days=1
        )[1]


def test_the_job_row_never_holds_the_token(here: Resources, begin: Begin) -> None:
    job = begin("http://127.0.0.1:9")
    with here.reading() as session:
        row = session.get_one(Job, job.job.id)
        assert TOKEN not in f"{row.spec} {row.title} {row.sealed}"
