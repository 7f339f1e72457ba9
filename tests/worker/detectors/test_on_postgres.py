"""On PostgreSQL: a name that two ask for, a training, an evaluation and a prediction, and the image dropped."""

from __future__ import annotations

import threading

import pytest

from services.auth.principal import Principal
from services.catalogue.models import PackageVersion
from services.detectors import service
from services.detectors.images import drop_images
from services.detectors.models import DetectorState
from services.kit.resources import Resources
from services.settings import Settings, load_settings
from tests.services.datasets.images import picture
from tests.services.detectors.making import add_dataset, attempt, queue_training
from tests.worker.detectors.test_predict import queue


@pytest.fixture
def settings(settings: Settings, postgres_url: str) -> Settings:
    return load_settings(
        {"PPDD_DATABASE__URL": postgres_url},
        site_id=settings.site_id,
        data_dir=settings.data_dir,
        data_roots=settings.data_roots,
    )


def test_a_detector_lives_through_all_its_jobs(
    resources: Resources, researcher: Principal, held: PackageVersion
) -> None:
    assert resources.engine.dialect.name == "postgresql"
    add_dataset(resources, researcher)
    detector, job = queue_training(resources, researcher, local_dataset="chests")
    attempt(resources, job.id)
    with resources.transaction() as session:
        measured = service.evaluate(
            session, resources.settings.jobs, researcher, detector.id,
            dataset="chests", rows={}, split="all", class_map={},
        )  # fmt: skip
    predicted = queue(resources, researcher, detector, picture(5))

    ended = [attempt(resources, one.id) for one in (measured, predicted)]

    assert [one.state for one in ended] == ["succeeded", "succeeded"], [one.error for one in ended]
    assert drop_images(resources) == 1
    with resources.reading() as session:
        view = service.read(session, detector.id)
    assert (view.state, len(view.evaluations)) == (DetectorState.READY, 1)
    assert held.digest == (view.detector.description or {})["sources"][0]["digest"]


def test_of_two_who_want_a_name_at_once_one_gets_it(
    resources: Resources, researcher: Principal, held: PackageVersion
) -> None:
    del held
    said: list[str] = []

    def ask() -> None:
        try:
            queue_training(resources, researcher, "same")
            said.append("queued")
        except service.NameTakenError:
            said.append("taken")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(said) == ["queued", "taken", "taken", "taken"]
    with resources.transaction() as session:
        rows, _ = service.list_page(session, cursor=None, limit=10)
    assert len(rows) == 1
