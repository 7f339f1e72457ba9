"""No committed file names a place that exists on one machine only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"(?<![\w./-])/(work|farm|root|home/\w+|Users/\w+)/\w")


def committed() -> list[Path]:
    """Return the text files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]


def test_no_committed_file_names_a_private_place() -> None:
    found = {
        str(path.relative_to(ROOT)): hits
        for path in committed()
        if (hits := PLACE.findall(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("folder", ["work", "root", "home/ann"])
def test_the_search_notices(folder: str) -> None:
    assert PLACE.search(f'open("/{folder}/data")')
