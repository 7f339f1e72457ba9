"""`ppdd bench step` and `teachers` at the keyboard: ours alone, beside another side, and what they say when one fails.

The other side here is a stand-in. That ours agrees with the real one is measured and in docs/results.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppdd_core.benchmark.case import Case
from ppdd_core.benchmark.compare import Contestant, compare, same_gradient
from ppdd_core.cli.main import main
from ppdd_core.errors import BadConfigError, BenchmarkError
from tests.core.benchmark.stand_in import NETWORKS

TINY = [
    "--size", "8", "--width", "3", "--depth", "1", "--batch", "4", "--repeats", "1", "--rounds", "1",
    "--json",
]  # fmt: skip


def code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    return ended.value.code


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert code(*arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_step_alone_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "step", *TINY, "--steps", "2")
    (one,) = found["results"]
    assert one["name"] == "ours" and one["seconds"] > 0 and one["ratio"]["time"] == 1.0
    assert "relative_difference_of_gradients" not in found
    assert one["gflops"] > 0 and one["convolution_peak_gflops"] > 0
    assert one["share_of_convolution_peak"] >= 0


def test_a_step_beside_the_other_side_has_its_gradients(
    capsys: pytest.CaptureFixture[str], stand_in: Path
) -> None:
    found = run(capsys, "step", *TINY, "--steps", "3", "--reference", str(stand_in))
    assert [one["name"] for one in found["results"]] == ["ours", "MTT"]
    assert found["against"] == "MTT" and found["results"][1]["ratio"]["time"] == 1.0
    assert found["relative_difference_of_gradients"] < 1e-12


def test_a_side_that_computes_something_else_is_noticed(stand_in: Path, tmp_path: Path) -> None:
    wrong = NETWORKS.replace("nn.ReLU()", "nn.LeakyReLU(0.5)")
    (stand_in / "networks.py").write_text(wrong, encoding="utf-8")
    case = Case("step", "ppdd", image_size=8, depth=1, width=3, batch=4, student_steps=2)
    other = replace(case, side="reference", reference=str(stand_in))
    found = same_gradient([Contestant("MTT", other), Contestant("ours", case)], str(tmp_path))
    assert found["MTT"] == 0 and found["ours"] > 1e-3


def test_teachers_are_counted_in_images_a_second_and_drawn(
    capsys: pytest.CaptureFixture[str],
    stand_in: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    plot = tmp_path / "bars.svg"
    found = run(
        capsys, "teachers", *TINY, "--images", "8", "--reference", str(stand_in), "--plot", str(plot)
    )  # fmt: skip
    assert all("share_of_convolution_peak" in one for one in found["results"])
    drawn = plot.read_text(encoding="utf-8")
    assert "images per second, as a share of that of MTT" in drawn and "peak memory" in drawn
    assert [one["name"] for one in found["results"]] == ["ours", "MTT"]
    assert all(one["images_per_second"] > 0 for one in found["results"])


def test_a_folder_without_the_code_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert code("step", "--reference", str(tmp_path)) == 2
    assert "has no networks.py; give a clone of" in capsys.readouterr().err


def test_a_network_without_pixels_left_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("step", "--size", "8", "--depth", "4") == 2
    assert "--depth 4 halves images of 8 pixels to nothing" in capsys.readouterr().err


def test_a_side_that_fails_says_what_it_said(stand_in: Path) -> None:
    (stand_in / "networks.py").write_text("raise RuntimeError('broken')", encoding="utf-8")
    case = Case("step", "reference", image_size=8, depth=1, width=2, reference=str(stand_in))
    with pytest.raises(BenchmarkError, match="MTT could not be measured; it said: .*broken"):
        compare([Contestant("MTT", case)], 1)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(BadConfigError, match="side must be one of ppdd, reference"):
        Case("step", "nobody")


def test_an_unknown_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("step", "--engine", "tesla") == 2
    assert "--engine must be one of" in capsys.readouterr().err
