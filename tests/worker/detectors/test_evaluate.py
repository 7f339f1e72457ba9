"""The task that measures a detector: which images it looks at, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ppdd_core.data.dataset import load_images, split_by_patient
from ppdd_core.seeding import split_seed
from services.auth.principal import Principal
from services.detectors import service
from services.detectors.models import Detector, Evaluation
from services.jobs.models import Job
from services.kit.resources import Resources
from tests.services.datasets.images import picture
from tests.services.detectors.making import CLASSES, PACKAGE, add_dataset, attempt


def do(resources: Resources, owner: Principal, detector: Detector, **asked: Any) -> Job:
    """Evaluate on the dataset `chests` and return the job as it is then."""
    values = {"dataset": "chests", "rows": {}, "split": "all", "class_map": {}, **asked}
    with resources.transaction() as session:
        job = service.evaluate(session, resources.settings.jobs, owner, detector.id, **values)
    return attempt(resources, job.id)


def kept(resources: Resources) -> list[dict[str, Any]]:
    with resources.reading() as session:
        return list(session.scalars(select(Evaluation.metrics).order_by(Evaluation.id)))


def test_the_held_out_part_is_that_of_the_detectors_seed(
    resources: Resources, researcher: Principal, ready: Detector, tmp_path: Path
) -> None:
    dataset = add_dataset(resources, researcher, each=12)
    data, _ = load_images(Path(str(dataset.path)), image_size=16, cache_dir=tmp_path / "cache")
    test = split_by_patient(data, seed=split_seed(0)).test

    job = do(resources, researcher, ready, split="test")

    assert job.state == "succeeded", job.error
    (metrics,) = kept(resources)
    assert (metrics["split"], metrics["images"]) == ("test", len(test))
    assert metrics["classes"] == list(CLASSES)
    result = job.result or {}
    assert result["metrics"] == metrics
    assert (result["detector"], result["packages"]) == ("ready", [PACKAGE])


def test_files_that_cannot_be_read_are_counted(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    dataset = add_dataset(resources, researcher)
    (Path(str(dataset.path)) / "COVID" / "patient-99.png").write_bytes(b"broken")

    do(resources, researcher, ready)

    (metrics,) = kept(resources)
    assert (metrics["images"], metrics["unreadable"]) == (16, 1)


def test_rows_of_a_manifest_are_chosen(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    folder = resources.settings.data_roots[0] / "listed"
    folder.mkdir()
    lines = ["path,label,hospital"]
    for number in range(16):
        (folder / f"{number}.png").write_bytes(picture(number))
        lines.append(f"{number}.png,{CLASSES[number % 2]},{'ab'[number // 8]}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    dataset = add_dataset(resources, researcher)
    with resources.transaction() as session:
        session.merge(dataset).path = str(folder / "manifest.csv")

    do(resources, researcher, ready, rows={"hospital": "b"})

    (metrics,) = kept(resources)
    assert (metrics["images"], metrics["rows"]) == (8, {"hospital": "b"})


def test_a_class_that_the_detector_does_not_know_is_explained_and_can_be_mapped(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    add_dataset(resources, researcher, classes=("Healthy", "COVID"))

    unknown = do(resources, researcher, ready)
    mapped = do(resources, researcher, ready, class_map={"Healthy": "Normal"})

    assert unknown.state == "failed"
    assert "'Healthy'" in (unknown.error or {})["detail"]
    assert "class_map" in (unknown.error or {})["detail"]
    assert mapped.state == "succeeded"


@pytest.mark.parametrize("gone", ["detector", "dataset"])
def test_what_was_removed_meanwhile_is_not_measured(
    resources: Resources, researcher: Principal, ready: Detector, gone: str
) -> None:
    dataset = add_dataset(resources, researcher)
    with resources.transaction() as session:
        job = service.evaluate(
            session, resources.settings.jobs, researcher, ready.id,
            dataset="chests", rows={}, split="all", class_map={},
        )  # fmt: skip
    with resources.transaction() as session:
        if gone == "detector":
            service.remove(session, researcher, ready.id)
        else:
            session.merge(dataset).state = "removed"

    done = attempt(resources, job.id)

    assert done.state == "failed"
    assert "removed" in (done.error or {})["detail"]
    assert kept(resources) == []
