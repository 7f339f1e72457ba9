"""A node that has the key its pretended packages are signed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from services.catalogue.models import Origin, PackageVersion
from services.kit.resources import Resources
from services.settings import Settings
from tests.services.packages import add_package, give_key


@pytest.fixture(autouse=True)
def _own_key(settings: Settings) -> None:
    give_key(settings)


Add = Callable[..., PackageVersion]


@pytest.fixture
def add(resources: Resources, tmp_path: Path) -> Add:
    """Put a package into the catalogue: `add(package_files(…))`."""

    def put(files: Mapping[str, bytes], origin: Origin = Origin.MADE) -> PackageVersion:
        return add_package(resources, tmp_path, files, origin)

    return put
