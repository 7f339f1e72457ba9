"""`ppdd demo`: what is refused before anything is drawn or started. The demo itself: tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdd_core.data.phantom import CLASSES, write_phantoms
from tests.program import ppdd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--ipc", 0], 2, "distill.images_per_class must be at least 1"),
        (["--seed", -1], 2, "seed must be from 0"),
        (["--data", "x-rays"], 2, "--data needs --elsewhere"),
        (["--where", "hospital=a"], 2, "rows of --data"),
        (["--elsewhere", "hospital=b"], 2, "rows of --data"),
    ],
)
def test_demo_refuses_before_anything_is_drawn(
    arguments: list[object],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ppdd("demo", "--out", tmp_path / "demo", *arguments) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_demo_of_another_seed_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo.json").write_text('{"seed": 0, "ipc": 1}')
    assert ppdd("demo", "--out", tmp_path, "--seed", 1) == 1
    assert "holds a demo with --seed 0" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir() if file.name != "home"] == ["demo.json"]


def test_demo_refuses_a_hospital_b_that_shares_images_with_a(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    write_phantoms(
        images, images=120, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    own = ["--data", images, "--elsewhere", "split=test"]
    assert ppdd("demo", "--out", tmp_path / "demo", *own) == 2
    assert "are A's too" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
