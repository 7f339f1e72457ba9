"""Detectors, datasets and people for tests of detectors; and an attempt at a job, made in this process."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.detector.use import DESCRIPTION, WEIGHTS
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.datasets.models import SourceDataset
from services.detectors import service
from services.detectors.models import Detector
from services.detectors.service import Training
from services.jobs import service as jobs
from services.jobs.models import Job
from services.kit.db import new_id
from services.kit.resources import Resources
from tests.services.datasets.images import class_files, write_folder

PACKAGE = "hospital-b/cxr@1.0.0"
CLASSES = ("COVID", "Lung_Opacity", "Normal")


def person(resources: Resources, name: str = "ruth", role: Role = Role.RESEARCHER) -> Principal:
    """Add a user and return them as a caller."""
    with resources.sessions.begin() as session:
        user = auth.create_user(session, SYSTEM, username=name, display_name=name, role=role)
        return Principal(user.id, user.username, role, "token", new_id())


def add_dataset(
    resources: Resources,
    owner: Principal,
    *,
    name: str = "chests",
    classes: tuple[str, ...] = ("COVID", "Normal"),
    each: int = 8,
    state: str = "registered",
) -> SourceDataset:
    """Write images below the data root and register them, unchecked."""
    path = write_folder(resources.settings.data_roots[0] / name, class_files(classes, each))
    with resources.sessions.begin() as session:
        row = SourceDataset(
            name=name, title=name, owner_id=owner.user_id, path=str(path), rows={}, state=state
        )
        session.add(row)
    return row


def queue_training(
    resources: Resources, owner: Principal, name: str = "first", **wanted: object
) -> tuple[Detector, Job]:
    """Queue a short training from PACKAGE, as the route does."""
    values = {"packages": (PACKAGE,), "epochs": 2, **wanted}
    training = Training(name=name, **values)  # type: ignore[arg-type]
    with resources.transaction() as session:
        view = service.train(session, resources.settings.jobs, owner, training)
    return view.detector, view.job


def add_detector(resources: Resources, owner: Principal, name: str = "ready") -> Detector:
    """Add a detector that is ready, without training it anew; the package must be held."""
    detector, job = queue_training(resources, owner, name)
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in _files().items()}
    for data in _files().values():
        resources.store.put(data)
    with resources.transaction() as session:
        claim = jobs.claim(session, job.id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        jobs.succeed(session, job.id, claim.fence, result={})
        service.note_trained(
            session,
            job.id,
            description=json.loads(_files()[DESCRIPTION]),
            description_sha256=digests[DESCRIPTION],
            weights_sha256=digests[WEIGHTS],
        )
    with resources.reading() as session:
        return service.get(session, detector.id)


def attempt(resources: Resources, job_id: UUID) -> Job:
    """Do one attempt at a job as a worker's child process does, and return the job as it is then."""
    from worker.run import _do_job

    with resources.transaction() as session:
        claim = jobs.claim(session, job_id, worker="test", settings=resources.settings.jobs)
    assert claim is not None
    _do_job(resources, job_id, claim.fence)
    with resources.reading() as session:
        return jobs.get(session, job_id)


@cache
def _files() -> dict[str, bytes]:
    import torch

    from ppdd_core.data.distilled import DistilledSet, Normalisation
    from ppdd_core.detector.store import save_detector
    from ppdd_core.detector.train import train_detector

    net = NetConfig(width=4, depth=2)
    generator = torch.Generator().manual_seed(3)
    learned = DistilledSet(
        images=torch.randn(6, 1, 16, 16, generator=generator),
        labels=torch.arange(3).repeat_interleave(2),
        learning_rate=0.01,
        classes=CLASSES,
        normalisation=Normalisation(0.5, 0.25),
        net=net,
        augment="",
    )
    site, _, version = PACKAGE.partition("@")
    detector = train_detector(
        [learned],
        net=net,
        config=DetectorConfig(epochs=1, augment=""),
        seed=0,
        names=[(site, version, "ab" * 32)],
    )
    with TemporaryDirectory() as folder:
        saved = save_detector(detector, Path(folder) / "detector")
        return {name: (saved / name).read_bytes() for name in (DESCRIPTION, WEIGHTS)}
