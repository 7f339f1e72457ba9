"""`ppdd bench ingest`: our ingest beside the bare decode of the same files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppdd_core.benchmark.ingest import Pace, cpu_ratio, measure_ingest, median_ratio
from ppdd_core.cli.main import main
from ppdd_core.errors import BadConfigError, BenchmarkError


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        (tmp_path / "xrays" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((9, 9), 40 * number + 10, dtype=np.uint8)
            pixels[:4] = 250
            Image.fromarray(pixels).save(tmp_path / "xrays" / label / f"{number}.png")
    return tmp_path / "xrays"


def zipped(folder: Path) -> Path:
    path = folder.parent / "xrays.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def test_both_sides_are_counted_and_drawn(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "bars.svg"
    with pytest.raises(SystemExit) as ended:
        main([
            "bench", "ingest", "--data", str(zipped(xrays)), "--size", "8", "--rounds", "1", "--json",
            "--plot", str(plot),
        ])  # fmt: skip
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 6 and [one["name"] for one in found["results"]] == [
        "ours",
        "bare decode",
    ]
    assert all(one["images_per_second"] > 0 for one in found["results"])
    assert found["ratio"] > 0 and "bare decode" in plot.read_text(encoding="utf-8")


def test_a_source_with_a_damaged_file_is_not_compared(xrays: Path) -> None:
    (xrays / "a" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(
        BenchmarkError, match=r"our ingest decoded 5 of 6 images; only sources without"
    ):
        measure_ingest(xrays, {}, size=8, rounds=1, cores=1, on_round=lambda *_: None)


def test_an_absurd_size_is_refused(xrays: Path) -> None:
    with pytest.raises(BadConfigError, match="--size must lie in"):
        measure_ingest(xrays, {}, size=0, rounds=1, cores=1, on_round=lambda *_: None)


def test_the_ratio_is_of_rounds_side_by_side() -> None:
    ours = Pace("ours", 10, (2.0, 4.0, 40.0), (4.0, 4.0, 4.0))
    bare = Pace("bare decode", 10, (1.0, 4.0, 10.0), (3.0, 3.0, 2.0))
    assert median_ratio(ours, bare) == 0.5
    assert cpu_ratio(ours, bare) == 0.75
