"""What tasks about detectors share: a detector out of the store, and a part of the local images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from ppdd_core.data.dataset import LabelledImages, split_by_patient
from ppdd_core.detector.model import Detector
from ppdd_core.detector.store import load_detector
from ppdd_core.detector.use import DESCRIPTION, WEIGHTS
from ppdd_core.seeding import split_seed
from services.datasets import service as datasets
from services.detectors import models, service
from worker.context import JobContext
from worker.source import read_images

Part = Literal["train", "test", "all"]


def fetch_detector(job: JobContext) -> tuple[models.Detector, Detector]:
    """Return the row and the network that the job's `detector_id` names; NotReadyError for one that was removed."""
    with job.resources.reading() as session:
        row = service.require_ready(session, UUID(job.job.spec["detector_id"]))
    folder = job.scratch / "detector"
    folder.mkdir()
    for name, sha256 in ((DESCRIPTION, row.description_sha256), (WEIGHTS, row.weights_sha256)):
        assert sha256 is not None  # a ready detector has both
        job.resources.store.fetch(sha256, folder / name)
    return row, load_detector(folder)


def local_images(
    job: JobContext, rows: Mapping[str, str], *, image_size: int, part: Part, seed: int
) -> tuple[LabelledImages, int]:
    """Return a part of the job's dataset, and how many files were left out because they cannot be read.

    Patients are split as `ppdd detector` and a distillation of that seed split them: what was held out there is held
    out here. A dataset that cannot be used raises SourceError.
    """
    assert job.job.dataset_id is not None
    with job.resources.reading() as session:
        dataset = datasets.get_present(session, job.job.dataset_id)
    data, findings = read_images(
        job.resources,
        dataset,
        image_size=image_size,
        narrowed=rows,
        on_progress=lambda done, total: job.progress("images", done, total),
    )
    findings.refuse_errors()
    if part != "all":
        parts = split_by_patient(data, seed=split_seed(seed))
        data = parts.train if part == "train" else parts.test
    if findings.unreadable:
        job.log(f"{len(findings.unreadable):,} files cannot be read and were left out")
    return data, len(findings.unreadable)


def answer(row: models.Detector, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's result: `rest` under the detector's name and what it learned from."""
    return {
        "detector_id": str(row.id),
        "detector": row.name,
        "packages": service.packages_of(row),
        "uses_local_images": service.uses_local_images(row),
        **rest,
    }
