"""The same node, package and detector as the tests of the routes have; jobs are done in this process."""

from __future__ import annotations

from tests.services.conftest import bell as bell
from tests.services.conftest import resources as resources
from tests.services.conftest import settings as settings
from tests.services.detectors.conftest import held as held
from tests.services.detectors.conftest import ready as ready
from tests.services.detectors.conftest import researcher as researcher
