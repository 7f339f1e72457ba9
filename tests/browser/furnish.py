"""A node with something on every page: people, a checked dataset, jobs in every state, packages, a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update

from ppdd_core.presets import preset
from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.models import User
from services.auth.passwords import hash_password
from services.auth.permissions import Role, role_scopes
from services.auth.principal import Principal
from services.catalogue.models import Origin, Package, PackageVersion, VersionState
from services.datasets.models import SourceDataset
from services.detectors.models import Detector
from services.jobs import submit, workers
from services.jobs.models import Attempt, Job, JobEvent, Kind, LogLine, State
from services.kit.db import new_id, now
from services.kit.resources import Resources
from tests.services.detectors.making import PACKAGE, add_dataset, add_detector, attempt
from tests.services.packages import add_package, give_key, package_files

PASSWORD = "lantern-orbit-velvet-27"
PEOPLE = {"ada": Role.ADMIN, "stella": Role.STEWARD, "ruth": Role.RESEARCHER, "otto": Role.AUDITOR}
# What would run if a page took it for HTML, for an attribute, for an address or for a script.
HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'-alert(3)-'<svg/onload=alert(4)>"
    "{{7*7}}${alert(5)}javascript:alert(6)"
)


@dataclass(frozen=True)
class Furnished:
    """Where the things are that a page's address names."""

    values: dict[str, str]  # path parameter: value
    users: dict[str, UUID]


def furnish(
    resources: Resources, folder: Path, *, hostile: bool = False, jobs: int = 0, packages: int = 0
) -> Furnished:
    """Fill a node; `jobs` and `packages` add that many rows more, for pages that must stay quick."""
    give_key(resources.settings)
    people = _people(resources)
    ruth = people["ruth"]
    dataset = add_dataset(resources, ruth, classes=("COVID", "Lung_Opacity", "Normal"))
    _check(resources, ruth, dataset)
    made = _packages(resources, folder)
    detector = add_detector(resources, ruth)
    running = _distilling(resources, ruth, dataset)
    predicted = _predicted(resources, ruth, detector)
    _more(resources, ruth, jobs, packages)
    if hostile:
        _poison(resources)
    return Furnished(
        values={
            "dataset_id": str(dataset.id),
            "job_id": str(running),
            "site": "hospital-a",
            "name": "cxr",
            "version": made,
            "detector_id": str(detector.id),
            "prediction_id": str(predicted),
            "user_id": str(people["otto"].user_id),
        },
        users={name: one.user_id for name, one in people.items()},
    )


def _people(resources: Resources) -> dict[str, Principal]:
    hashed = hash_password(PASSWORD)
    made = {}
    with resources.sessions.begin() as session:
        for name, role in PEOPLE.items():
            user = auth.create_user(
                session, SYSTEM, username=name, display_name=name.title(), role=role
            )
            user.password_hash = hashed
            auth.issue_token(session, SYSTEM, user, name="script", scopes=role_scopes(role), days=9)
            made[name] = Principal(user.id, name, role, "session", new_id())
        workers.note_worker(
            session, "cpu@node", device="CPU, 2 cores", version="0.1.0", free_disk_bytes=50_000_000_000
        )  # fmt: skip
    return made


def _check(resources: Resources, owner: Principal, dataset: SourceDataset) -> None:
    with resources.transaction() as session:
        job, _ = submit.submit_check(
            session, resources.settings, owner, dataset.id, image_size=24, idempotency_key=None
        )
    assert attempt(resources, job.id).state == "succeeded"


def _packages(resources: Resources, folder: Path) -> str:
    """Add a released version, a draft, a draft whose verdict failed, a yanked one, and one of another hospital."""
    for version, state, auc in (
        ("1.0.0", VersionState.YANKED, 0.52),
        ("1.1.0", VersionState.RELEASED, 0.52),
        ("1.2.0", VersionState.DRAFT, 0.9),
        ("1.3.0", VersionState.DRAFT, 0.52),
    ):
        added = add_package(resources, folder, package_files("hospital-a", "cxr", version, auc=auc))
        with resources.sessions.begin() as session:
            session.execute(
                update(PackageVersion)
                .where(PackageVersion.id == added.id)
                .values(
                    state=state.value, released_at=now(), released_by="stella",
                    yanked_at=now() if state is VersionState.YANKED else None,
                    yank_reason="a label was wrong" if state is VersionState.YANKED else None,
                )
            )  # fmt: skip
    held = add_package(resources, folder, package_files("hospital-b"), origin=Origin.PULLED)
    with resources.sessions.begin() as session:
        session.execute(
            update(PackageVersion)
            .where(PackageVersion.id == held.id)
            .values(state="held", origin_url="https://hospital-b.example")
        )
    assert PACKAGE == "hospital-b/cxr@1.0.0"
    return "1.3.0"


def _distilling(resources: Resources, owner: Principal, dataset: SourceDataset) -> UUID:
    """Add a distillation at work, with events, lines and an attempt that was lost; return its job."""
    recipe = preset("quick", 2).to_dict()
    spec = {
        "dataset": dataset.name, "preset": "quick", "images_per_class": 2, "settings": {}, "test_rows": {},
        "seed": 0, "recipe": recipe, "workload": "0" * 64,
        "package": {"name": "next", "version": "1.0.0", "licence": "CC0-1.0", "purposes": ["DUO:0000042"],
                    "terms_sha256": None, "expires": None},
    }  # fmt: skip
    estimate = {
        "seconds": {"teachers": 60.0, "distillation": 90.0, "evaluation": 20.0, "privacy": 10.0}
    }
    with resources.sessions.begin() as session:
        for state in State:
            session.add(_job(owner, dataset, state, spec))
        job = _job(owner, dataset, State.RUNNING, spec)
        job.estimate = estimate
        job.progress = {
            "stage": "distillation", "done": 40, "total": 100, "eta_seconds": 54.0, "note": "",
            "numbers": {"loss": 0.7, "learning_rate": 0.02, "pruned": 0.1},
        }  # fmt: skip
        session.add(job)
        session.flush()
        session.add(
            Attempt(
                job_id=job.id, number=1, worker="cpu@node", ended_at=now(), outcome="lost",
                detail="its lease ran out",
            )
        )  # fmt: skip
        session.add(Attempt(job_id=job.id, number=2, worker="cpu@node"))
        session.execute(
            insert(JobEvent),
            [
                {"job_id": job.id, "at": now(), "kind": "progress", "data": _progress(step)}
                for step in range(0, 41, 2)
            ],
        )
        session.execute(
            insert(LogLine),
            [
                {"job_id": job.id, "attempt": 2, "at": now(), "text": f"iteration {step}"}
                for step in range(40)
            ],
        )
        return job.id


def _predicted(resources: Resources, owner: Principal, detector: Detector) -> UUID:
    """Add a prediction that has its answer."""
    with resources.sessions.begin() as session:
        job = Job(
            kind=Kind.PREDICT.value, state=State.SUCCEEDED.value, title=f"predict with {detector.name}",
            owner_id=owner.user_id, spec={"detector_id": str(detector.id)}, attempts=1, max_attempts=5, fence=1,
            started_at=now(), finished_at=now(),
            result={"probabilities": {"COVID": 0.7, "Lung_Opacity": 0.2, "Normal": 0.1}},
        )  # fmt: skip
        session.add(job)
        session.flush()
        return job.id


def _job(owner: Principal, dataset: SourceDataset, state: State, spec: dict[str, Any]) -> Job:
    ended = state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    failed = {"slug": "disk-full", "detail": "the disk is full", "resumable": True}
    return Job(
        kind=Kind.DISTILL.value, state=state.value, title=f"Distil chests into hospital-a/{state.value} 1.0.0",
        owner_id=owner.user_id, dataset_id=dataset.id, spec=spec, attempts=2, max_attempts=5, fence=2,
        started_at=None if state is State.QUEUED else now() - timedelta(minutes=3),
        finished_at=now() if ended else None, error=failed if state is State.FAILED else None,
        actual={"seconds": {"teachers": 66.0, "distillation": 80.0}} if ended else None,
        lease_expires_at=now() + timedelta(hours=1) if state is State.RUNNING else None,
    )  # fmt: skip


def _progress(step: int) -> dict[str, Any]:
    return {
        "stage": "distillation", "done": step, "total": 100, "eta_seconds": 100.0 - step, "note": "",
        "numbers": {"loss": 0.6 + math.exp(-step / 20), "learning_rate": 0.02 + step / 10_000, "pruned": step / 400},
    }  # fmt: skip


def _more(resources: Resources, owner: Principal, jobs: int, packages: int) -> None:
    """Add rows by the thousand: succeeded jobs, and packages with a copy of a version that is there."""
    with resources.sessions.begin() as session:
        pattern = session.scalars(select(PackageVersion).limit(1)).one()
        copied = {
            column.name: getattr(pattern, column.name)
            for column in PackageVersion.__table__.columns
            if column.name not in ("id", "package_id", "digest", "archive_sha256")
        }
        for start in range(0, jobs, 1000):
            session.execute(
                insert(Job),
                [
                    {
                        "id": new_id(), "created_at": now(), "kind": "check", "state": "succeeded", "spec": {},
                        "title": f"Check {number}", "owner_id": owner.user_id, "attempts": 1, "max_attempts": 5,
                        "fence": 1, "started_at": now(), "finished_at": now(), "result": {},
                    }
                    for number in range(start, min(start + 1000, jobs))
                ],
            )  # fmt: skip
        for number in range(packages):
            package = {
                "id": new_id(),
                "created_at": now(),
                "site": "hospital-c",
                "name": f"chest-{number}",
            }
            digest = {"digest": f"{number:064x}", "archive_sha256": f"{number:064x}"}
            session.execute(insert(Package), [package])
            session.execute(
                insert(PackageVersion), [{**copied, **digest, "id": new_id(), "package_id": package["id"]}]
            )  # fmt: skip


def _poison(resources: Resources) -> None:
    """Put hostile text wherever text is kept: what a peer, a file or a colleague might send."""
    with resources.sessions.begin() as session:
        session.execute(update(User).values(display_name=HOSTILE))
        session.execute(update(SourceDataset).values(title=HOSTILE, path=f"/{HOSTILE}"))
        session.execute(update(Job).values(title=HOSTILE))
        session.execute(update(Attempt).values(worker=HOSTILE, detail=HOSTILE))
        session.execute(update(LogLine).values(text=HOSTILE))
        for job in session.scalars(select(Job)):
            job.progress = job.progress and {**job.progress, "stage": HOSTILE, "note": HOSTILE}
            job.error = job.error and {**job.error, "detail": HOSTILE}
            job.spec = _poisoned(job.spec)
        for row in session.scalars(
            select(SourceDataset).where(SourceDataset.findings.is_not(None))
        ):
            row.findings = _poisoned(row.findings)
        for version in session.scalars(select(PackageVersion)):
            version.site_name, version.origin_url = HOSTILE, f"https://x.example/{HOSTILE}"
            version.override_reason = version.yank_reason = version.released_by = HOSTILE
            version.classes = [f"{place}{HOSTILE}" for place, _ in enumerate(version.classes)]
            version.manifest = {**version.manifest, "software": {"ppdd": HOSTILE}}
        for detector in session.scalars(select(Detector)):
            detector.description = _poisoned(detector.description)
        workers.note_worker(session, HOSTILE[:190], device=HOSTILE, version="1", free_disk_bytes=1)
        audit.record(session, SYSTEM, "package.yank", HOSTILE, detail={"reason": HOSTILE})


def _poisoned(value: Any) -> Any:
    """Return the value with every sentence in it, which is a text with a space, hostile."""
    if isinstance(value, dict):
        return {key: _poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_poisoned(inner) for inner in value]
    return HOSTILE if isinstance(value, str) and " " in value else value
