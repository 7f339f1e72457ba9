"""Measuring a detector on a source dataset of this hospital."""

from __future__ import annotations

from sqlalchemy.orm import Session

from ppdd_core.detector.use import USE
from services.detectors import service
from worker.context import JobContext, Outcome
from worker.detector import answer, fetch_detector, local_images


def run(job: JobContext) -> Outcome:
    """Measure the job's detector and keep the figures, with their intervals, beside it."""
    spec = job.job.spec
    row, detector = fetch_detector(job)
    data, unreadable = local_images(
        job, spec["rows"], image_size=detector.image_size, part=spec["split"], seed=detector.seed
    )
    job.progress("evaluating", 0, 1)
    found = detector.evaluate(data, class_map=spec["class_map"])
    job.progress("evaluating", 1, 1)
    metrics = {
        "split": spec["split"],
        "rows": spec["rows"],
        "class_map": spec["class_map"],
        "unreadable": unreadable,
        "images": found.images,
        "classes": list(detector.classes),
        **found.to_dict(),
    }

    def record(session: Session) -> None:
        service.note_evaluated(session, job.job, metrics)

    return Outcome(answer(row, {"metrics": metrics, "use": USE}), record)
