"""Pages of detectors: picking packages, training, measuring, comparing, and what is said about one X-ray."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from ppdd_core.detector.metrics import measure
from services.auth.principal import Principal
from services.catalogue.models import Origin, PackageVersion
from services.datasets.models import SourceDataset
from services.detectors import service
from services.detectors.models import Detector, Evaluation
from services.detectors.service import StoredImage
from services.jobs import service as jobs
from services.jobs.models import Job, Kind
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.catalogue.conftest import add as add
from tests.services.dashboard.conftest import Browser, NewBrowser
from tests.services.detectors.making import (
    PACKAGE,
    add_dataset,
    add_detector,
    person,
    queue_training,
)
from tests.services.packages import add_package, give_key, package_files

OTHER = "hospital-c/other@1.0.0"
USE = "Research use only. Not for diagnosis."


@pytest.fixture(autouse=True)
def held(
    settings: Settings, resources: Resources, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Hold two packages of other hospitals with one class in common."""
    give_key(settings)
    folder = tmp_path_factory.mktemp("packages")
    add_package(resources, folder, package_files("hospital-b"), Origin.PULLED)
    files = package_files("hospital-c", "other", classes=("Normal", "Pneumonia"))
    add_package(resources, folder, files, Origin.PULLED)


@pytest.fixture
def researcher(resources: Resources) -> Principal:
    return person(resources, "researcher")


@pytest.fixture
def ready(resources: Resources, researcher: Principal) -> Detector:
    return add_detector(resources, researcher)


def add_evaluation(
    resources: Resources,
    owner: Principal,
    detector: Detector,
    dataset: SourceDataset,
    *,
    right: int = 6,
) -> None:
    """Keep what a detector reached on 8 images, `right` of them rightly."""
    import numpy as np

    labels = np.array([0, 0, 0, 0, 2, 2, 2, 2])
    found = np.where(np.arange(8) < right, labels, 1)
    shares = np.full((8, 3), 0.1)
    shares[np.arange(8), found] = 0.8
    names = ("COVID", "Lung_Opacity", "Normal")
    figures = measure(labels, shares, names).to_dict()
    more = {
        "split": "all",
        "rows": {},
        "class_map": {},
        "unreadable": 0,
        "images": 8,
        "classes": list(names),
    }
    with resources.transaction() as session:
        job, _ = jobs.create(
            session, resources.settings.jobs, owner, kind=Kind.EVALUATE, title="evaluate",
            spec={"detector_id": str(detector.id)}, dataset_id=dataset.id,
        )  # fmt: skip
        claim = jobs.claim(session, job.id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        jobs.succeed(session, job.id, claim.fence, result={})
        session.add(
            Evaluation(
                detector_id=detector.id,
                dataset_id=dataset.id,
                job_id=job.id,
                metrics={**more, **figures},
            )
        )


def only_job(resources: Resources, kind: Kind) -> Job:
    with resources.reading() as session:
        return session.scalars(select(Job).where(Job.kind == kind.value)).one()


# ------------------------------------------------------------------------------------------ list


def test_detectors_are_listed(browser: NewBrowser, ready: Detector) -> None:
    page = browser("auditor").get("/detectors").text
    assert f"/detectors/{ready.id}" in page
    assert PACKAGE in page
    assert "COVID, Lung_Opacity, Normal" in page
    assert USE in page
    assert "/detectors/new" not in page


def test_an_empty_list_says_what_to_do(browser: NewBrowser) -> None:
    page = browser("researcher").get("/detectors").text
    assert "There is no detector yet" in page
    assert "/detectors/new" in page


# ------------------------------------------------------------------------------------------ training


def ticked(page: str) -> list[str]:
    """Return the packages whose boxes are ticked."""
    parts = page.split('name="packages" type="checkbox" value="')[1:]
    return sorted(part.partition('"')[0] for part in parts if "checked" in part.partition(">")[0])


def test_packages_are_offered_and_those_of_the_address_ticked(browser: NewBrowser) -> None:
    page = browser("researcher").get("/detectors/new", params={"package": OTHER}).text
    assert ticked(page) == [OTHER]
    assert PACKAGE in page
    assert "Normal, Pneumonia" in page
    assert browser("auditor").get("/detectors/new").status_code == 403


def test_searching_keeps_what_was_ticked_and_typed(browser: NewBrowser) -> None:
    fields = {"do": "search", "q": "hospital-c", "packages": [PACKAGE], "name": "mine", "seed": "3"}
    answer = browser("researcher").post("/detectors/new", fields)
    assert answer.status_code == 200
    assert ticked(answer.text) == [PACKAGE]
    assert OTHER in answer.text
    assert 'value="mine"' in answer.text
    assert 'value="3"' in answer.text


def test_the_union_of_classes_is_told_before_training(
    browser: NewBrowser, resources: Resources
) -> None:
    fields = {"do": "foresee", "packages": [PACKAGE], "other_packages": OTHER}
    answer = browser("researcher").post("/detectors/new", fields)
    assert answer.status_code == 200
    assert "It would tell apart 4 classes" in answer.text
    assert f"<strong>Normal</strong> from {PACKAGE}, {OTHER}" in answer.text
    with resources.reading() as session:
        assert session.scalars(select(Job)).all() == []


def test_what_does_not_fit_together_is_told_before_training(browser: NewBrowser) -> None:
    fields = {"do": "foresee", "packages": [PACKAGE], "class_map": "Nothing = COVID"}
    answer = browser("researcher").post("/detectors/new", fields)
    assert answer.status_code == 422
    assert "no package or local image has that class" in answer.text
    assert ">Nothing = COVID</textarea>" in answer.text


def test_a_training_is_queued_and_shown_while_it_goes_on(
    browser: NewBrowser, resources: Resources, researcher: Principal
) -> None:
    one = browser("researcher")
    fields = {
        "packages": [PACKAGE, OTHER], "name": "both", "seed": "5", "epochs": "7", "net": "", "local_dataset": "",
        "class_map": "Pneumonia = Lung_Opacity\n\n", "do": "train",
    }  # fmt: skip
    answer = one.post("/detectors/new", fields)
    assert answer.status_code == 303, answer.text
    job = only_job(resources, Kind.TRAIN)
    assert job.spec["packages"] == [PACKAGE, OTHER]
    assert job.spec["class_map"] == {"Pneumonia": "Lung_Opacity"}
    assert (job.spec["seed"], job.spec["epochs"]) == (5, 7)
    page = one.get(answer.headers["Location"])
    assert "queued" in page.text
    assert 'hx-trigger="every 2s"' in page.text
    assert "data-upload" not in page.text  # nothing to try yet

    with resources.transaction() as session:
        claim = jobs.claim(session, job.id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        for done in (1, 2, 3):
            numbers = {"loss": 1.0 / done}
            progress = {"stage": "epochs", "done": done, "total": 7, "note": "", "numbers": numbers}
            jobs.note_progress(session, job.id, claim.fence, progress)
    address = answer.headers["Location"].partition("?")[0]
    part = one.get(address, headers={"HX-Request": "true"}).text
    assert "<!doctype" not in part
    assert "43 %" in part
    assert "Training loss" in part
    with resources.transaction() as session:
        jobs.fail(session, job.id, claim.fence, jobs.Failure("bug", "it broke <b>"))
    part = one.get(address, headers={"HX-Request": "true"}).text
    assert "hx-trigger" not in part
    assert "it broke &lt;b&gt;" in part


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": ""}, "Fill in this field"),
        ({"name": "Not A Slug"}, "field-name"),
        ({"packages": []}, "packages"),
        ({"epochs": "0"}, "field-epochs"),
        ({"other_packages": "hospital-z/cxr@1.0.0"}, "pull or import it first"),
        ({"local_dataset": "nowhere"}, "no dataset"),
        ({"class_map": "no equals sign"}, "a = b"),
    ],
)
def test_a_refused_training_keeps_its_input(
    browser: NewBrowser, changed: dict[str, Any], said: str
) -> None:
    fields = {"packages": [PACKAGE], "name": "mine", "seed": "9", **changed}
    answer = browser("researcher").post("/detectors/new", fields)
    assert answer.status_code in (404, 422), answer.text
    if answer.status_code == 422:
        assert said in answer.text
        assert 'value="9"' in answer.text
        assert ticked(answer.text) == fields["packages"]


def test_a_version_that_was_taken_back_is_used_on_purpose_only(
    browser: NewBrowser, resources: Resources
) -> None:
    with resources.transaction() as session:
        version = session.scalars(select(PackageVersion)).first()
        assert version is not None
        version.state, version.yank_reason = "yanked", "consent withdrawn"
    fields: dict[str, Any] = {"packages": [PACKAGE, OTHER], "name": "mine", "seed": "0"}
    answer = browser("researcher").post("/detectors/new", fields)
    assert answer.status_code == 422
    assert "consent withdrawn" in answer.text
    fields["allow_yanked"] = "yes"
    assert browser("researcher").post("/detectors/new", fields).status_code == 303


# ------------------------------------------------------------------------------------------ one detector


def test_a_ready_detector_can_be_tried_measured_and_downloaded(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    add_dataset(resources, researcher)
    page = browser("researcher").get(f"/detectors/{ready.id}").text
    assert page.count(USE) >= 2
    assert f'data-upload="/api/v1/detectors/{ready.id}/predictions"' in page
    assert f'action="/detectors/{ready.id}/evaluations"' in page
    assert f"/api/v1/detectors/{ready.id}/files/weights.safetensors" in page
    assert "It was not measured" in page
    assert "Remove this detector" in page


def test_an_auditor_only_reads(browser: NewBrowser, ready: Detector) -> None:
    page = browser("auditor").get(f"/detectors/{ready.id}").text
    assert "COVID, Lung_Opacity, Normal" in page
    for words in ("data-upload", "/evaluations", "/files/", "Remove this detector"):
        assert words not in page


def test_measuring_is_queued(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    add_dataset(resources, researcher)
    one = browser("researcher")
    fields = {"dataset": "chests", "split": "all", "class_map": "", "rows": ""}
    answer = one.post(f"/detectors/{ready.id}/evaluations", fields)
    assert answer.status_code == 303
    job = only_job(resources, Kind.EVALUATE)
    page = one.get(answer.headers["Location"]).text
    assert f"/jobs/{job.id}" in page
    assert "the figures appear here" in page

    wrong = one.post(f"/detectors/{ready.id}/evaluations", {**fields, "rows": "site"})
    assert wrong.status_code == 422
    assert ">site</textarea>" in wrong.text
    assert "a = b" in wrong.text


def test_detectors_are_compared_on_the_same_images(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    dataset = add_dataset(resources, researcher)
    elsewhere = add_dataset(resources, researcher, name="elsewhere")
    second = add_detector(resources, researcher, "second")
    third = add_detector(resources, researcher, "third")
    add_evaluation(resources, researcher, second, dataset, right=8)
    add_evaluation(resources, researcher, third, elsewhere)
    add_evaluation(resources, researcher, ready, dataset, right=6)
    page = browser("auditor").get(f"/detectors/{ready.id}").text
    assert "Balanced accuracy on chests" in page
    assert f'<a href="/detectors/{second.id}">second</a>' in page
    assert f"/detectors/{third.id}" not in page
    assert "75.0 %" in page
    assert "100.0 %" in page
    assert "ROC curve of each class" in page
    assert "Confusion matrix" in page


def test_a_detector_is_removed_by_whose_it_is(browser: NewBrowser, ready: Detector) -> None:
    other = browser("researcher", "eve")
    assert "Remove this detector" not in other.get(f"/detectors/{ready.id}").text
    refused = other.post(f"/detectors/{ready.id}/remove")
    assert refused.status_code == 403
    assert "somebody else" in refused.text
    answer = browser("researcher").post(f"/detectors/{ready.id}/remove")
    assert answer.headers["Location"] == "/detectors?done=detector-removed"
    page = browser("researcher").get(f"/detectors/{ready.id}").text
    assert "removed" in page
    assert "data-upload" not in page


# ------------------------------------------------------------------------------------------ one X-ray


def queue_prediction(resources: Resources, owner: Principal, detector: Detector) -> Job:
    image = StoredImage("ab" * 32, "k" * 43, 100, "image/png")
    with resources.transaction() as session:
        return service.predict(
            session, resources.settings.jobs, resources.vault, owner, detector.id, image
        )


def end(resources: Resources, job_id: UUID, result: dict[str, Any] | None) -> None:
    with resources.transaction() as session:
        claim = jobs.claim(session, job_id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        if result is None:
            jobs.fail(
                session, job_id, claim.fence, jobs.Failure("bad-image", "the image is cut off")
            )
        else:
            jobs.succeed(session, job_id, claim.fence, result=result)


def look(one: Browser, detector: Detector, job: Job) -> str:
    answer = one.get(
        f"/detectors/{detector.id}/predictions/{job.id}", headers={"HX-Request": "true"}
    )
    assert answer.status_code == 200
    assert "<!doctype" not in answer.text
    return answer.text


def test_probabilities_appear_when_they_are_there(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    one, job = browser("researcher"), queue_prediction(resources, researcher, ready)
    assert "every 1s" in look(one, ready, job)
    end(resources, job.id, {"probabilities": {"COVID": 0.2, "<b>Normal": 0.7, "Lung_Opacity": 0.1}})
    part = look(one, ready, job)
    assert "hx-trigger" not in part
    assert part.index("&lt;b&gt;Normal") < part.index("COVID") < part.index("Lung_Opacity")
    assert "0.7" in part
    whole = one.get(f"/detectors/{ready.id}/predictions/{job.id}").text
    assert USE in whole


def test_an_image_that_cannot_be_read_is_told(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    job = queue_prediction(resources, researcher, ready)
    end(resources, job.id, None)
    assert "the image is cut off" in look(browser("researcher"), ready, job)


def test_another_job_is_no_prediction(
    browser: NewBrowser, resources: Resources, researcher: Principal, ready: Detector
) -> None:
    _, job = queue_training(resources, researcher, "second")
    one = browser("researcher")
    assert one.get(f"/detectors/{ready.id}/predictions/{job.id}").status_code == 404
    assert browser("auditor").get(f"/detectors/{ready.id}/predictions/{job.id}").status_code == 403
