"""`benchmarks/gpu.sh`, part by part, on the CPU and at toy size: so that it works on the day there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.sh"


def script(results: Path, *parts: str, **changed: str | Path) -> subprocess.CompletedProcess[str]:
    wanted = {
        "TOY": "1", "DEVICE": "cpu", "RESULTS": results, "PYTHON": sys.executable, "DATA": "",
        "PPDD_HOME": results / "home", "LIMIT": "800", **changed,
    }  # fmt: skip
    given = {name: str(value) for name, value in wanted.items()}
    return subprocess.run(
        ["bash", str(SCRIPT), *parts], env={**os.environ, **given}, cwd=results.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_benchmarks_and_tests_run(tmp_path: Path, stand_in: Path) -> None:
    results = tmp_path / "results"
    done = script(results, "step", "teachers", "tests", REFERENCE=stand_in)
    assert done.returncode == 0, done.stderr
    for name in ("step-a", "step-b", "teachers"):
        found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        assert found["against"] == "MTT"
        assert "<svg" in (results / f"{name}.svg").read_text(encoding="utf-8")
    assert "skipped" in (results / "tests.txt").read_text(encoding="utf-8")


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_table_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    results = tmp_path / "results"
    drawn = [
        sys.executable,
        "-m",
        "ppdd_core.cli",
        "phantom",
        "write",
        str(tmp_path / "xrays"),
        "--patients",
        "60",
    ]
    subprocess.run([*drawn, "--size", "32", "--balanced"], check=True, capture_output=True)
    known: dict[str, str | Path] = {"DATA": tmp_path / "xrays", "WHERE": ""}
    short = script(results, "table", LIMIT="1", **known)
    assert short.returncode == 3 and "run the same again" in short.stderr
    done = script(results, "table", **known)
    assert done.returncode == 0, done.stderr
    assert (results / "table" / "report.md").is_file()


@pytest.mark.parametrize(
    ("parts", "changed", "said"),
    [
        ((), {}, "say which parts"),
        (("step",), {"REFERENCE": "nowhere"}, "REFERENCE must be a clone of"),
        (("tabel",), {}, "there is no part tabel"),
        (("step",), {"DEVICE": "abacus"}, "DEVICE must be cuda or cpu"),
        (("table",), {"DATA": "nowhere", "TOY": "0"}, "DATA must be chest X-rays"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, parts: tuple[str, ...], changed: dict[str, str], said: str
) -> None:
    done = script(tmp_path / "results", *parts, **changed)
    assert done.returncode == 2
    assert said in done.stderr
