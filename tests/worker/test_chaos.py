"""A small chaos: a whole node on real servers, its processes killed at random, messages given out again too early."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.chaos import disturbed, judged, running


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.e2e
def test_jobs_survive_the_kill_of_anything(tmp_path: Path) -> None:
    options = Namespace(
        jobs=3, per_job=1.5, every=6.0, workers=2, seed=1, minutes=15.0, visibility=2
    )
    with running(tmp_path, options) as node:
        found = judged(node, disturbed(node, options))
    wrong = ("lost", "completed_twice", "stuck", "failed", "other_bytes")
    assert found["succeeded"] == options.jobs and node.faults.total() > 0
    assert {name: found[name] for name in wrong} == dict.fromkeys(wrong, 0)
