"""Every table of the node under one name: importing this module imports all models."""

from __future__ import annotations

import services.audit.models
import services.auth.models
import services.catalogue.models
import services.datasets.models
import services.detectors.models
import services.jobs.models
import services.kit.holds  # noqa: F401 - all of these: for the tables they define
from services.kit.db import Base

METADATA = Base.metadata
