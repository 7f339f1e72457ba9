"""Checking a source dataset: read every image once, say what is there and what is wrong, draw thumbnails.

That a dataset cannot be used is a finding, not a failure: the job succeeds and the dataset is `faulty`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session

from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.package.previews import draw_image
from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.datasets import service as datasets
from services.datasets.findings import blank_names, refusal, without_names
from services.datasets.places import UnknownPathError
from services.datasets.service import Checked
from services.kit.holds import hold, release
from worker.context import JobContext, Outcome
from worker.source import read_images

PER_CLASS = 12
IN_ALL = 600  # thumbnails of a dataset with many classes
SIDE = 96
LONGEST_LABEL = 200  # a thumbnail's label in the database


def run(job: JobContext) -> Outcome:
    """Check the job's dataset at the image size asked for."""
    image_size = int(job.job.spec["image_size"])
    assert job.job.dataset_id is not None
    with job.resources.sessions() as session:
        dataset = datasets.get_present(session, job.job.dataset_id)
    try:
        data, found = read_images(
            job.resources,
            dataset,
            image_size=image_size,
            on_progress=lambda done, total: job.progress("images", done, total),
        )
    except (SourceError, BadConfigError, UnknownPathError) as fault:
        reason = blank_names(str(fault))
        job.log(f"the dataset cannot be used: {reason}")
        return _outcome(job, Checked(False, image_size, refusal(str(fault))), {"reason": reason})
    pictures = draw_thumbnails(data)
    checked = Checked(
        usable=not found.errors,
        image_size=image_size,
        findings=without_names(found.to_dict(), _patients_by_split(data)),
        fingerprint=data.fingerprint,
        thumbnails={
            place: hashlib.sha256(picture).hexdigest() for place, picture in pictures.items()
        },
    )
    _store(job, checked, pictures)
    _report(job, checked)
    return _outcome(job, checked, {"images": found.images, "findings": _codes(found)})


def draw_thumbnails(data: LabelledImages) -> dict[tuple[str, int], bytes]:
    """Return a few small PNGs of every class by (class, number): the same images give the same pictures."""
    each = max(1, min(PER_CLASS, IN_ALL // max(1, len(data.classes))))
    pictures = {}
    for at, label in enumerate(data.classes[:IN_ALL]):
        if len(label) > LONGEST_LABEL:
            continue
        rows = sorted(np.flatnonzero(data.labels_R == at), key=lambda row: data.digests[int(row)])
        for number, row in enumerate(rows[:each]):
            image = Image.fromarray(np.ascontiguousarray(data.pixels_RHW[row]))
            small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pictures[label, number] = draw_image(np.asarray(small))
    return pictures


def _store(job: JobContext, checked: Checked, pictures: dict[tuple[str, int], bytes]) -> None:
    """Store the pictures, held for this job until `record` has written their rows."""
    hold(job.resources.sessions, checked.thumbnails.values(), holder=job.job.id)
    for done, picture in enumerate(pictures.values(), start=1):
        job.resources.store.put(picture)
        job.progress("thumbnails", done, len(pictures))


def _outcome(job: JobContext, checked: Checked, result: dict[str, Any]) -> Outcome:
    dataset_id = job.job.dataset_id
    assert dataset_id is not None

    def record(session: Session) -> None:
        datasets.record_check(session, dataset_id, checked)
        release(session, job.job.id)
        audit.record(
            session, SYSTEM, "dataset.check", str(dataset_id),
            detail={"usable": checked.usable, "image_size": checked.image_size},
        )  # fmt: skip

    return Outcome({"usable": checked.usable, "dataset_id": str(dataset_id), **result}, record)


def _report(job: JobContext, checked: Checked) -> None:
    for label, count in checked.findings["classes"].items():
        job.log(f"{count:,} images of class {label!r}")
    for one in checked.findings["findings"]:
        job.log(f"{one['severity']}: {one['message']} {one['advice']}")


def _codes(found: Findings) -> list[dict[str, Any]]:
    return [
        {"code": one.code, "severity": one.severity, "count": one.count} for one in found.findings
    ]


def _patients_by_split(data: LabelledImages) -> dict[str, int]:
    """Count the known patients of each split."""
    pairs = {
        (split, patient)
        for split, patient in zip(data.splits, data.patients, strict=True)
        if not patient.startswith("image:")  # no patient is known
    }
    return dict(Counter(split or "unassigned" for split, _ in pairs))
