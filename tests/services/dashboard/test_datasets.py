from __future__ import annotations

import pytest
from sqlalchemy import func, select

from services.audit.models import AuditEvent
from services.datasets.models import SourceDataset
from services.jobs.models import Job
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.dashboard.conftest import NewBrowser
from tests.services.dashboard.work import HOSTILE, add_dataset, add_job, as_caller


def views(resources: Resources) -> int:
    with resources.sessions() as session:
        seen = select(func.count()).where(AuditEvent.action == "dataset.view")
        return session.scalars(seen.select_from(AuditEvent)).one()


def test_the_list_shows_state_classes_and_counts(browser: NewBrowser, resources: Resources) -> None:
    one = browser("researcher")
    assert one.user_id
    assert "There is no source dataset yet" in one.get("/datasets").text
    add_dataset(resources, one.user_id)
    add_dataset(resources, one.user_id, "old", state="faulty")
    page = one.get("/datasets").text
    for said in ("Chests", "ready", "COVID 800", "1,234", "faulty", "Add a dataset"):
        assert said in page
    assert "Chests" not in one.get("/datasets?state=faulty").text
    assert "Add a dataset" not in browser("auditor").get("/datasets").text


def test_a_dataset_is_registered_and_checked_at_once(
    browser: NewBrowser, resources: Resources, settings: Settings
) -> None:
    (settings.data_roots[0] / "chest 2024").mkdir()
    one = browser("researcher")
    page = one.get("/datasets/new?root=0&path=chest 2024").text
    assert "chest 2024" in page
    assert 'value="chest-2024"' in page
    place = {"path": "chest 2024", "root": "0"}
    fields = {**place, "name": "chest-2024", "rows": "hospital = a", "check": "yes"}
    answer = one.post("/datasets/new", fields)
    assert answer.status_code == 303
    with resources.sessions() as session:
        row = session.scalars(select(SourceDataset)).one()
        assert (row.name, row.rows) == ("chest-2024", {"hospital": "a"})
        assert session.scalars(select(Job.kind)).all() == ["check"]
    assert answer.headers["Location"].startswith(f"/datasets/{row.id}?")
    assert "It is being checked." in one.get(answer.headers["Location"]).text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        pytest.param("name", "Chest X", "field-name", id="a name of other letters"),
        pytest.param("path", "nowhere", "no data root holds", id="nothing there"),
        pytest.param("path", "../../etc", "..", id="a way out"),
        pytest.param("rows", "hospital", "column = value", id="no condition"),
    ],
)
def test_what_cannot_be_registered_is_shown_again(
    browser: NewBrowser, resources: Resources, field: str, value: str, said: str
) -> None:
    fields = {"path": "xrays", "name": "xrays", "title": "Kept & shown", field: value}
    answer = browser("researcher").post("/datasets/new", fields)
    assert answer.status_code == 422
    assert said in answer.text
    assert 'value="Kept &amp; shown"' in answer.text
    with resources.sessions() as session:
        assert session.scalars(select(SourceDataset)).all() == []


def test_a_dataset_says_what_its_check_found(browser: NewBrowser, resources: Resources) -> None:
    one = browser("researcher")
    assert one.user_id
    dataset_id = add_dataset(resources, one.user_id)
    add_job(resources, as_caller(one), dataset_id=dataset_id, title="Check of spring")
    page = one.get(f"/datasets/{dataset_id}").text
    for said in (
        "1,234",
        "321",
        "7 images are copies of others.",
        "Remove the copies.",
        "warning",
        "299 to 2048 px, median 1024",
        "is cut off",
        "Images per class",
        "Patients per split",
        "Grey levels",
        "Check of spring",
        "/distil?dataset=chests",
        f"/api/v1/datasets/{dataset_id}/thumbnails/COVID/0",
        "Remove the dataset",
    ):
        assert said in page, said


def test_images_are_for_who_may_see_them_and_looking_is_audited(
    browser: NewBrowser, resources: Resources
) -> None:
    one = browser("researcher")
    assert one.user_id
    dataset_id = add_dataset(resources, one.user_id)
    page = browser("auditor").get(f"/datasets/{dataset_id}").text
    assert "/thumbnails/" not in page
    assert "Your role may not see real images." in page
    assert views(resources) == 0
    one.get(f"/datasets/{dataset_id}")
    assert views(resources) == 1


def test_a_dataset_is_checked_again(browser: NewBrowser, resources: Resources) -> None:
    one = browser("researcher")
    assert one.user_id
    dataset_id = add_dataset(resources, one.user_id)
    wrong = one.post(f"/datasets/{dataset_id}/check", {"image_size": "7"})
    assert wrong.status_code == 422
    assert 'id="field-image-size"' in wrong.text
    assert 'aria-invalid="true"' in wrong.text
    assert one.post(f"/datasets/{dataset_id}/check", {"image_size": "64"}).status_code == 303
    with resources.sessions() as session:
        assert session.scalars(select(Job.spec)).one()["image_size"] == 64


def test_only_owner_and_steward_remove_a_dataset(browser: NewBrowser, resources: Resources) -> None:
    owner, other = browser("researcher"), browser("researcher", username="eve")
    assert owner.user_id
    dataset_id = add_dataset(resources, owner.user_id)
    assert "Remove the dataset" not in other.get(f"/datasets/{dataset_id}").text
    assert other.post(f"/datasets/{dataset_id}/remove").status_code == 403
    assert "Remove the dataset" in browser("steward").get(f"/datasets/{dataset_id}").text
    assert owner.post(f"/datasets/{dataset_id}/remove").status_code == 303
    assert "It was removed." in owner.get(f"/datasets/{dataset_id}").text


def test_a_dataset_with_jobs_is_not_removed_and_why_is_said(
    browser: NewBrowser, resources: Resources
) -> None:
    one = browser("researcher")
    assert one.user_id
    dataset_id = add_dataset(resources, one.user_id)
    add_job(resources, as_caller(one), dataset_id=dataset_id)
    answer = one.post(f"/datasets/{dataset_id}/remove")
    assert answer.status_code == 409
    assert "cancel them first" in answer.text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_text(browser: NewBrowser, resources: Resources, text: str) -> None:
    one = browser("researcher")
    assert one.user_id
    found = {"classes": {text: 3}, "images": 3, "refusal": None, "findings": [
        {"code": "x", "severity": text, "message": text, "advice": text, "count": 1}
    ]}  # fmt: skip
    dataset_id = add_dataset(resources, one.user_id, title=text, rows={text: text}, findings=found)
    job = add_job(resources, as_caller(one), dataset_id=dataset_id, title=text)
    for path in ("/datasets", f"/datasets/{dataset_id}", "/jobs", f"/jobs/{job.id}", "/distil"):
        page = one.get(path).text
        assert text not in page, path
        assert "alert(1)" in page, path
