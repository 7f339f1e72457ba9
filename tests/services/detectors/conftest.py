"""A node that holds a package of another hospital, its researcher, and a detector that is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.auth.principal import Principal
from services.catalogue.models import Origin, PackageVersion
from services.detectors.models import Detector
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.detectors.making import add_detector, person
from tests.services.packages import add_package, give_key, package_files


@pytest.fixture
def held(settings: Settings, resources: Resources, tmp_path: Path) -> PackageVersion:
    """Hold hospital-b/cxr@1.0.0, as after a pull."""
    give_key(settings)
    return add_package(resources, tmp_path, package_files("hospital-b"), Origin.PULLED)


@pytest.fixture
def researcher(resources: Resources) -> Principal:
    """Return the user whom `login("researcher")` logs in."""
    return person(resources, "researcher")


@pytest.fixture
def ready(held: PackageVersion, resources: Resources, researcher: Principal) -> Detector:
    """Return a trained detector of the researcher."""
    del held  # it is what the detector names
    return add_detector(resources, researcher)
