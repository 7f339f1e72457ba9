"""What holds for every test: one thread per process, plain output of a fixed width, no GPU unless there is one."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.servers import moto as moto
from tests.servers import postgres as postgres
from tests.servers import postgres_url as postgres_url
from tests.servers import rclone as rclone
from tests.servers import redis as redis
from tests.servers import redis_url as redis_url
from tests.servers import s3 as s3

# Before torch and rich look. On tensors this small a second thread costs more than it gives.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(variable, None)
os.environ.update(NO_COLOR="1", TERM="dumb", COLUMNS="120")

# A shared machine may pause for longer than any deadline.
settings.register_profile("ppdd", deadline=None, database=None, print_blob=True)
settings.load_profile("ppdd")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, so that no process has one left when the others have ended; skip `gpu` without one.

    torch is only asked where there are tests marked `gpu`.
    """
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not _cuda():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
