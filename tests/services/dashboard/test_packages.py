"""Pages of packages: what they show to whom, what a steward decides on them, and that text stays text."""

from __future__ import annotations

import pytest

from services.catalogue.models import Origin, VersionState
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.catalogue.conftest import Add
from tests.services.catalogue.conftest import add as add
from tests.services.dashboard.conftest import NewBrowser
from tests.services.packages import give_key, package_files

OURS = "/packages/hospital-a/cxr/1.0.0"


@pytest.fixture(autouse=True)
def _own_key(settings: Settings) -> None:
    give_key(settings)


def test_smoke(browser: NewBrowser, add: Add) -> None:
    add(package_files("hospital-a"))
    one = browser("steward")
    for path in ("/packages", "/packages/hospital-a/cxr", OURS, OURS + "/images?class=COVID", "/pulls", "/pulls/new", "/detectors", "/detectors/new"):
        answer = one.get(path)
        assert answer.status_code == 200, (path, answer.text)
