"""Lock files: every package pinned and hashed, torch only where it belongs, no host of anybody's machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "requirements.lock": (),
    "requirements-worker.lock": ("worker", "dicom"),
    "requirements-dev.lock": ("worker", "dicom", "dev"),
}
HOST = re.compile(
    r"://|--(extra-)?index-url|--find-links|--trusted-host|@ file|\b[\w-]+\.(org|com|net|io|internal)\b"
)


def text(name: str) -> str:
    """Return a lock file's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def pins(lock: str) -> list[tuple[Requirement, int]]:
    """Return every requirement of a lock file with the number of its hashes."""
    entries = re.split(r"\n(?=\S)", lock.replace("\\\n", " "))
    return [
        (Requirement(entry.split("--hash")[0].split("#")[0].strip()), entry.count("--hash=sha256:"))
        for entry in entries
        if entry.strip() and not entry.startswith("#")
    ]


def project() -> dict[str, list[str]]:
    """Return the dependencies of pyproject.toml by extra; the base ones under the empty name."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": read["dependencies"], **read["optional-dependencies"]}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_names_no_host(name: str) -> None:
    assert HOST.findall(text(name)) == []


@pytest.mark.parametrize(
    "line", ["--index-url x", "torch @ file:///x", "    # from files.example.org"]
)
def test_the_search_for_hosts_notices(line: str) -> None:
    assert HOST.search(line)


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    loose = [
        str(requirement)
        for requirement, hashes in pins(text(name))
        if not hashes or [s.operator for s in requirement.specifier] != ["=="]
    ]
    assert loose == []


@pytest.mark.parametrize(("name", "extras"), EXTRAS.items())
def test_a_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    locked: dict[str, list[str]] = {}
    for requirement, _ in pins(text(name)):
        version = next(iter(requirement.specifier)).version
        locked.setdefault(canonicalize_name(requirement.name), []).append(version)
    asked = project()
    for line in [entry for group in ("", *extras) for entry in asked[group]]:
        wanted = Requirement(line)
        versions = locked.get(canonicalize_name(wanted.name))
        assert versions, f"{wanted.name} is missing from {name}: run `make lock`"
        assert all(wanted.specifier.contains(v) for v in versions), f"{wanted} against {versions}"


def test_the_base_needs_no_torch() -> None:
    assert not {r.name for r, _ in pins(text("requirements.lock"))} & {
        "torch",
        "torchvision",
        "scipy",
    }


def test_larger_locks_agree_with_smaller_ones() -> None:
    # without markers: what only Windows needs for itself, a development tool may need everywhere
    base, worker, dev = ({f"{r.name}{r.specifier}" for r, _ in pins(text(name))} for name in EXTRAS)
    assert base <= worker <= dev


def test_files_that_record_hosts_are_not_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "uv.lock", "pylock*.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout == ""
