"""Training a detector from packages out of the store, and on local images where the job names a dataset."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from ppdd_core.config import Recipe
from ppdd_core.detector.joining import choose_net, refuse_repeated
from ppdd_core.detector.store import save_detector
from ppdd_core.detector.train import train_detector
from ppdd_core.detector.use import DESCRIPTION, USE, WEIGHTS
from ppdd_core.package.load import to_distilled_set
from ppdd_core.package.verify import VerifiedPackage, read_package, refusal, verify_files
from services.catalogue.models import PackageVersion
from services.detectors import service
from services.kit.db import now
from services.kit.holds import hold, release
from worker.context import JobContext, Outcome
from worker.detector import local_images


def run(job: JobContext) -> Outcome:
    """Train the job's detector and publish it with the job's success."""
    spec = job.job.spec
    packages = _open_packages(job)
    sets = [to_distilled_set(package) for package in packages]
    names = [
        (one.manifest.name, one.manifest.version, one.verification.digest or "") for one in packages
    ]
    refuse_repeated(names)
    local = None
    if spec["dataset_id"] is not None:
        local, _ = local_images(
            job, spec["rows"], image_size=sets[0].image_size, part="train", seed=spec["seed"]
        )
        job.log(f"{len(local):,} local images join in")
    config = Recipe.from_dict(packages[0].manifest.recipe).detector
    detector = train_detector(
        sets,
        net=choose_net(spec["net"], [one.net for one in sets], names),
        config=config if spec["epochs"] is None else replace(config, epochs=spec["epochs"]),
        seed=spec["seed"],
        local=local,
        class_map=spec["class_map"],
        names=names,
        device=str(job.device),
        on_progress=lambda done, total, loss: job.progress("epochs", done, total, loss=loss),
    )
    folder = save_detector(detector, job.scratch / "trained")
    sources = [asdict(one) for one in detector.sources]
    result = {"classes": list(detector.classes), "sources": sources, "use": USE}
    return _published(job, folder, result)


def _open_packages(job: JobContext) -> list[VerifiedPackage]:
    """Return the packages that the job names, each verified anew and pinned to the key it came in with."""
    spec = job.job.spec
    with job.resources.reading() as session:
        service.trained_by(session, job.job.id)
        versions = [
            service.require_usable(session, one, allow_yanked=spec["allow_yanked"])
            for one in spec["packages"]
        ]
    opened = []
    for number, (name, version) in enumerate(zip(spec["packages"], versions, strict=True)):
        job.progress("packages", number, len(versions))
        opened.append(_open(job, name, version))
        job.log(f"{name}: verified, signed by key {version.key}")
    return opened


def _open(job: JobContext, name: str, version: PackageVersion) -> VerifiedPackage:
    path = job.scratch / f"{version.id}.zip"
    job.resources.store.fetch(version.archive_sha256, path)
    contents = read_package(path)
    path.unlink()
    found = verify_files(
        contents.files, refused=contents.refused, trusted_key=version.key, today=now().date()
    )
    if found.manifest is None or not found.ok:
        raise refusal(found, name)
    return VerifiedPackage(found.manifest, contents.files, found)


def _published(job: JobContext, folder: Path, result: dict[str, Any]) -> Outcome:
    """Store the two files, held until `record` has written their row."""
    files = {name: folder / name for name in (DESCRIPTION, WEIGHTS)}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    description = json.loads(files[DESCRIPTION].read_text(encoding="utf-8"))
    hold(job.resources.sessions, digests.values(), holder=job.job.id)
    for name, path in files.items():
        job.resources.store.put_file(path, digests[name])

    def record(session: Session) -> None:
        service.note_trained(
            session,
            job.job.id,
            description=description,
            description_sha256=digests[DESCRIPTION],
            weights_sha256=digests[WEIGHTS],
        )
        release(session, job.job.id)

    return Outcome(result, record)
