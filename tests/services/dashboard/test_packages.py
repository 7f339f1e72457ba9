"""Pages of packages: what they show to whom, what a steward decides on them, and that text stays text."""

from __future__ import annotations

from io import BytesIO
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import select

from services.audit.models import AuditEvent
from services.catalogue.models import Origin, PackageVersion
from services.dashboard.pages import packages as pages
from services.jobs import pictures
from services.jobs import service as jobs
from services.jobs.models import Kind
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.catalogue.conftest import Add
from tests.services.catalogue.conftest import add as add
from tests.services.dashboard.conftest import NewBrowser
from tests.services.detectors.making import person
from tests.services.packages import give_key, package_files

OURS = "/packages/hospital-a/cxr/1.0.0"
THEIRS = "/packages/hospital-b/cxr/1.0.0"
API = "/api/v1/packages/hospital-a/cxr/versions/1.0.0"
REASON = "the figure comes from one phantom patient"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


@pytest.fixture(autouse=True)
def _own_key(settings: Settings) -> None:
    give_key(settings)


def events(resources: Resources, action: str) -> list[AuditEvent]:
    with resources.reading() as session:
        return list(session.scalars(select(AuditEvent).where(AuditEvent.action == action)))


def with_job(resources: Resources, version: PackageVersion, neighbours: int) -> UUID:
    """Let a job have made the version, which kept that many nearest real images."""
    png = BytesIO()
    Image.new("L", (16, 16)).save(png, "PNG")
    with resources.transaction() as session:
        owner = person(resources, "maker")
        job, _ = jobs.create(
            session, resources.settings.jobs, owner, kind=Kind.DISTILL, title="distil", spec={}
        )
        claim = jobs.claim(session, job.id, worker="test", settings=resources.settings.jobs)
        assert claim is not None
        some = [
            pictures.Picture(pictures.Shows.NEIGHBOUR, number, png.getvalue(), "COVID")
            for number in range(neighbours)
        ]
        pictures.add(session, job.id, claim.fence, some)
        session.get_one(PackageVersion, version.id).job_id = job.id
        return job.id


# ------------------------------------------------------------------------------------------ lists


def test_a_list_says_what_a_package_is(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-a"))
    add(package_files("hospital-b"), Origin.PULLED)
    page = browser("auditor").get("/packages").text
    for words in (
        "hospital-a/cxr 1.0.0",
        "hospital-b/cxr 1.0.0",
        "Hospital B",
        "draft",
        "held",
        "passed",
        "COVID",
    ):
        assert words in page, words
    assert "2 per class, 16 px" in page


@pytest.mark.parametrize(
    "query", ["q=hospital-b", "q=Hospital B", "state=held", "origin=pulled", "class=Pneumonia"]
)
def test_a_list_is_narrowed(browser: NewBrowser, add: Add, query: str) -> None:
    add(package_files("hospital-a"))
    add(package_files("hospital-b", classes=("Pneumonia", "Normal")), Origin.PULLED)
    page = browser("researcher").get(f"/packages?state=&{query}").text
    assert "hospital-b/cxr" in page
    assert "hospital-a/cxr" not in page


def test_a_list_goes_on_with_its_filters(
    browser: NewBrowser, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(package_files("hospital-a"))
    add(package_files("hospital-b"), Origin.PULLED)
    monkeypatch.setattr(pages, "PAGE", 1)
    one = browser("researcher")
    page = one.get("/packages?q=cxr").text
    following = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "q=cxr" in following
    assert "hospital-a/cxr" in one.get(following).text


def test_an_empty_list_says_what_to_do(browser: NewBrowser) -> None:
    one = browser("researcher")
    assert "There is no package here yet" in one.get("/packages").text
    assert "No package is like that" in one.get("/packages?q=x").text
    assert "/pulls/new" in one.get("/packages").text
    assert "/pulls/new" not in browser("auditor").get("/packages").text


def test_versions_of_a_package_are_listed(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-a"))
    add(package_files("hospital-a", version="1.1.0"))
    page = browser("researcher").get("/packages/hospital-a/cxr").text
    assert page.index("1.1.0") < page.index(">1.0.0<")
    assert browser("researcher").get("/packages/hospital-a/nothing").status_code == 404


# ------------------------------------------------------------------------------------------ one version


def test_a_version_is_shown_whole(browser: NewBrowser, add: Add) -> None:
    version = add(package_files("hospital-a", curves=True))
    answer = browser("auditor").get(OURS)
    assert answer.status_code == 200
    page = answer.text
    for number in range(6):  # two of each class
        assert f'src="{API}/files/previews/image-000{number}.png"' in page
    assert page.count("<h3>COVID</h3>") == 1
    for words in (
        "this package", "75.0 %", "65.0 % – 85.0 %", "Balanced accuracy, convnet",  # how good
        "ROC curve of each class", "Confusion matrix",
        "Membership inference: AUC", "Does not show:", "Verdict: passed", "within",  # how private
        "general research use", "CC-BY-NC-4.0", "2099-12-31",  # usage
        "distill.prune_below", "σ", "load_package(", version.key, "1,230 or more",
        f"{API}/archive", f"{API}/files/README.md",
    ):  # fmt: skip
        assert words in page, words


def test_an_older_evaluation_says_that_curves_were_not_recorded(
    browser: NewBrowser, add: Add
) -> None:
    add(package_files("hospital-a"))
    page = browser("researcher").get(OURS).text
    assert "ROC curves were not recorded" in page
    assert "A confusion matrix was not recorded" in page


def test_images_of_a_class_are_paged(
    browser: NewBrowser, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(package_files("hospital-a"))
    monkeypatch.setattr(pages, "MANY", 1)
    monkeypatch.setattr(pages, "FEW", 1)
    one = browser("researcher")
    assert f"{OURS}/images?class=Lung_Opacity" in one.get(OURS).text
    page = one.get(f"{OURS}/images?class=Lung_Opacity").text
    assert "image-0002.png" in page
    assert "start=1" in page
    assert "image-0003.png" in one.get(f"{OURS}/images?class=Lung_Opacity&start=1").text
    assert one.get(f"{OURS}/images?class=Nothing").status_code == 404
    assert "image-0000.png" in one.get(f"{OURS}/images").text  # the first class


def test_what_is_not_there_is_not_found(browser: NewBrowser) -> None:
    assert browser("steward").get(OURS).status_code == 404
    assert browser("steward").post(f"{OURS}/release").status_code == 404


def test_pictures_on_a_page_are_no_downloads(
    browser: NewBrowser, add: Add, resources: Resources
) -> None:
    add(package_files("hospital-a"))
    one = browser("researcher")
    assert one.get(f"{API}/files/previews/image-0000.png").status_code == 200
    assert events(resources, "package.download") == []
    one.get(f"{API}/files/README.md")
    assert len(events(resources, "package.download")) == 1


# ------------------------------------------------------------------------------------------ real images


def test_the_nearest_real_image_stands_beside_each_for_who_may_see_it(
    browser: NewBrowser, add: Add, resources: Resources
) -> None:
    job_id = with_job(resources, add(package_files("hospital-a")), 3)
    page = browser("researcher").get(OURS).text
    for number in range(3):
        assert f"/api/v1/jobs/{job_id}/pictures/neighbour/{number}" in page
    assert f"/pictures/neighbour/{3}" not in page
    assert "is a patient" in page
    assert [one.subject for one in events(resources, "job.view")] == [str(job_id)]


def test_an_auditor_sees_no_real_image(browser: NewBrowser, add: Add, resources: Resources) -> None:
    with_job(resources, add(package_files("hospital-a")), 3)
    page = browser("auditor").get(OURS).text
    assert "/pictures/" not in page
    assert "Your role may not see real images" in page
    assert events(resources, "job.view") == []


def test_of_a_package_from_elsewhere_no_real_image_is_here(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-b"), Origin.PULLED)
    page = browser("admin").get(THEIRS).text
    assert "never leave it" in page
    assert "SSIM 0.300 to the nearest real one" in page
    assert "/pictures/" not in page


# ------------------------------------------------------------------------------------------ deciding


def test_a_steward_releases_a_draft_that_passes(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-a"))
    assert f'action="{OURS}/release"' not in browser("researcher").get(OURS).text
    one = browser("steward")
    assert f'action="{OURS}/release"' in one.get(OURS).text
    answer = one.post(f"{OURS}/release")
    assert (answer.status_code, answer.headers["Location"]) == (
        303,
        f"{OURS}?done=package-released",
    )
    page = one.get(answer.headers["Location"]).text
    assert "hospitals that have a token" in page
    assert f'action="{OURS}/release"' not in page
    assert f'action="{OURS}/yank"' in page


def test_a_failed_verdict_needs_a_reason_that_everybody_reads(
    browser: NewBrowser, add: Add
) -> None:
    add(package_files("hospital-a", auc=0.7))
    one = browser("steward")
    page = one.get(OURS).text
    assert "The gate does not let it pass" in page
    assert "membership inference may reach an AUC" in page

    refused = one.post(f"{OURS}/release")
    assert refused.status_code == 409
    assert "may not be released" in refused.text

    short = one.post(f"{OURS}/release", {"override_reason": "so what"})
    assert short.status_code == 422
    assert ">so what</textarea>" in short.text
    assert "#field-override-reason" in short.text

    assert one.post(f"{OURS}/release", {"override_reason": REASON}).status_code == 303
    page = browser("auditor").get(OURS).text
    assert REASON in page
    assert "steward" in page
    assert "although its privacy verdict is failed" in page


def test_a_released_version_is_taken_back_with_a_reason(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-a"))
    one = browser("steward")
    early = one.post(f"{OURS}/yank", {"reason": "two patients withdrew"})
    assert early.status_code == 409
    assert "only a released version" in early.text
    one.post(f"{OURS}/release")
    assert one.post(f"{OURS}/yank", {"reason": ""}).status_code == 422
    answer = one.post(f"{OURS}/yank", {"reason": "two patients withdrew"})
    assert answer.headers["Location"] == f"{OURS}?done=package-yanked"
    page = browser("researcher").get(OURS).text
    assert "This version was taken back" in page
    assert "two patients withdrew" in page
    assert "/detectors/new?package" not in page


def test_another_hospitals_version_is_not_ours_to_decide(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-b"), Origin.PULLED)
    one = browser("steward")
    assert 'id="decide"' not in one.get(THEIRS).text
    answer = one.post(f"{THEIRS}/release")
    assert answer.status_code == 409
    assert "only hospital-b can release it" in answer.text


# ------------------------------------------------------------------------------------------ hostile text


def test_names_of_others_stay_text(browser: NewBrowser, add: Add) -> None:
    files = package_files(
        "hospital-b", site_name=HOSTILE, licence=HOSTILE, classes=(HOSTILE, "Normal"), curves=True
    )
    add(files, Origin.PULLED)
    one = browser("researcher")
    pages_with_it = [
        one.get("/packages"),
        one.get("/packages/hospital-b/cxr"),
        one.get(THEIRS),
        one.get(f"{THEIRS}/images", params={"class": HOSTILE}),
        one.get("/packages", params={"q": HOSTILE, "class": HOSTILE}),
        one.get("/detectors/new", params={"package": "hospital-b/cxr@1.0.0"}),
        one.get("/detectors/new", params={"package": HOSTILE}),
    ]
    for answer in pages_with_it:
        assert answer.status_code == 200
        assert "&lt;img src=x" in answer.text, answer.url
        assert "<img src=x" not in answer.text, answer.url
        assert "<script>alert" not in answer.text, answer.url
