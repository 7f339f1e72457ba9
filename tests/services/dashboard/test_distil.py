from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from services.jobs import offers
from services.jobs import service as jobs
from services.jobs.models import Job
from services.kit.resources import Resources
from tests.services.dashboard.conftest import Browser, NewBrowser
from tests.services.dashboard.work import add_dataset, claimed
from tests.services.packages import add_package, give_key, package_files

HTMX = {"HX-Request": "true"}
FIGURES = {
    "seconds": {"teachers": 60.0, "distillation": 3600.0, "evaluation": 5.0, "privacy": 5.0},
    "total_seconds": 3670.0,
    "peak_bytes": 2_000_000_000,
    "disk_bytes": 5_000_000,
    "package_bytes": 300_000,
    "device": "cpu",
}


def fields(dataset: UUID, **more: Any) -> dict[str, Any]:
    return {
        "dataset": str(dataset), "preset": "quick", "images_per_class": "2", "seed": "7", "test_rows": "",
        "package.name": "chests", "package.version": "1.0.0", "package.licence": "CC-BY-NC-4.0",
        "package.purposes": ["DUO:0000006", "DUO:0000019"], "package.expires": "2099-12-31", **more,
    }  # fmt: skip


@pytest.fixture
def one(browser: NewBrowser) -> Browser:
    return browser("researcher")


@pytest.fixture
def dataset(resources: Resources, one: Browser) -> UUID:
    assert one.user_id
    return add_dataset(resources, one.user_id)


def made(resources: Resources) -> list[Job]:
    with resources.sessions() as session:
        return list(session.scalars(select(Job).order_by(Job.id)))


def test_the_form_has_every_field_of_the_recipe_with_the_presets_value(
    one: Browser, dataset: UUID
) -> None:
    page = one.get("/distil?dataset=chests&preset=small").text
    (small,) = (offer for offer in offers.offers(10) if offer["name"] == "small")
    for field in small["fields"]:
        (tag,) = re.findall(rf'<(?:input|select)[^>]*name="settings\.{field["name"]}"[^>]*>', page)
        if not field["choices"]:
            assert f'placeholder="{field["default"]}"' in tag
    for said in (
        "Minutes on two processor cores",
        "publication required",
        'value="1.0.0"',
        f'value="{dataset}" selected',
    ):
        assert said in page


def test_without_a_checked_dataset_it_says_what_to_do(one: Browser) -> None:
    assert "There is no dataset that was checked" in one.get("/distil").text


def test_a_distillation_is_started_as_the_api_takes_it(
    one: Browser, resources: Resources, dataset: UUID
) -> None:
    settings = {
        "settings.distill.iterations": "50",
        "settings.teacher.lr": "0.02",
        "settings.distill.init": "mean",
        "settings.net.width": "",
    }
    answer = one.post("/distil", fields(dataset, test_rows="hospital = b", **settings))
    (job,) = made(resources)
    assert answer.headers["Location"].startswith(f"/jobs/{job.id}")
    assert job.spec["settings"] == {
        "distill.iterations": 50,
        "teacher.lr": 0.02,
        "distill.init": "mean",
    }
    assert (job.spec["seed"], job.spec["images_per_class"]) == (7, 2)
    assert job.spec["test_rows"] == {"hospital": "b"}
    assert job.spec["package"]["purposes"] == ["DUO:0000006", "DUO:0000019"]
    assert job.spec["package"]["expires"] == "2099-12-31"


@pytest.mark.parametrize(
    ("name", "value", "status", "field"),
    [
        pytest.param("images_per_class", "0", 422, "images_per_class", id="no images"),
        pytest.param("settings.teacher.epochs", "x", 422, "settings.teacher.epochs", id="no number"),
        pytest.param("settings.net.width", "-3", 422, "settings.net.width", id="out of range"),
        pytest.param("package.version", "one", 422, "package.version", id="no version"),
        pytest.param("package.expires", "soon", 422, "package.expires", id="no date"),
        pytest.param("package.purposes", [], 422, "package.purposes", id="no purpose"),
        pytest.param("test_rows", "hospital", 422, "test_rows", id="no condition"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_shown_again_at_its_field(
    one: Browser, resources: Resources, dataset: UUID, name: str, value: Any, status: int, field: str
) -> None:  # fmt: skip
    given = fields(dataset, **{"package.licence": "Ours & only ours", name: value})
    answer = one.post("/distil", given)
    assert answer.status_code == status
    assert f">{field}</a>:" in answer.text
    assert 'value="Ours &amp; only ours"' in answer.text
    assert made(resources) == []
    part = one.post("/distil/check", given, headers=HTMX)
    assert (part.status_code, f">{field}</a>:" in part.text) == (200, True)
    assert "<!doctype" not in part.text


def test_what_is_typed_is_checked_and_nothing_made(
    one: Browser, resources: Resources, dataset: UUID
) -> None:
    part = one.post("/distil/check", fields(dataset), headers=HTMX)
    assert "This can be started as it is." in part.text
    assert made(resources) == []


def test_a_version_that_is_there_or_made_is_refused_and_the_next_one_proposed(
    one: Browser, resources: Resources, dataset: UUID, tmp_path: Any
) -> None:
    give_key(resources.settings)
    add_package(resources, tmp_path, package_files("hospital-a", "chests"))
    part = one.post("/distil/check", fields(dataset), headers=HTMX).text
    assert ">package.version</a>:" in part
    assert "in the catalogue" in part
    assert 'value="1.1.0"' in one.get("/distil?dataset=chests").text
    assert one.post("/distil", fields(dataset, **{"package.version": "1.1.0"})).status_code == 303
    assert 'value="1.2.0"' in one.get("/distil?dataset=chests").text
    again = one.post("/distil", fields(dataset, **{"package.version": "1.1.0"}))
    assert (again.status_code, ">package.version</a>:" in again.text) == (409, True)


def test_an_estimate_is_asked_followed_and_shown(
    one: Browser, resources: Resources, dataset: UUID
) -> None:
    part = one.post("/distil/estimate", fields(dataset), headers=HTMX)
    (job,) = made(resources)
    assert job.kind == "estimate"
    assert f'hx-get="/distil/estimate/{job.id}"' in part.text
    fence = claimed(resources, job)
    assert "every 2s" in one.get(f"/distil/estimate/{job.id}", headers=HTMX).text
    with resources.sessions.begin() as session:
        jobs.succeed(session, job.id, fence, result=FIGURES)
    part = one.get(f"/distil/estimate/{job.id}", headers=HTMX)
    assert "every 2s" not in part.text
    for said in ("1 h 01 min", "2.0 GB", "5.0 MB", "300.0 kB"):
        assert said in part.text
    assert "1 h 01 min" in one.get(f"/jobs/{job.id}").text


def test_an_estimate_without_scripts_keeps_the_form(
    one: Browser, resources: Resources, dataset: UUID
) -> None:
    answer = one.post("/distil/estimate", fields(dataset, **{"package.name": "kept-name"}))
    assert answer.status_code == 200
    assert 'value="kept-name"' in answer.text
    assert f"/jobs/{made(resources)[0].id}" in answer.text
    wrong = one.post("/distil/estimate", fields(dataset, images_per_class="0"), headers=HTMX)
    assert ">images_per_class</a>:" in wrong.text


def test_a_job_is_asked_again_with_its_own_settings(
    one: Browser, resources: Resources, dataset: UUID
) -> None:
    one.post("/distil", fields(dataset, **{"settings.distill.iterations": "50"}))
    page = one.get(f"/distil?again={made(resources)[0].id}").text
    assert re.search(r'name="settings\.distill\.iterations"[^>]*value="50"', page)
    assert re.search(r'value="DUO:0000019" checked', page)
    assert 'value="2"' in page


def test_who_may_not_start_jobs_has_no_form(browser: NewBrowser) -> None:
    auditor = browser("auditor")
    assert auditor.get("/distil").status_code == 403
    assert auditor.post("/distil/check").status_code == 403
