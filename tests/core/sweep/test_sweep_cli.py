"""`ppdd sweep` at the keyboard: refusals in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program import ppdd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ipc", "1", "--set", "distill.speed=3"], "no recipe field 'distill.speed'"),
        (["--ipc", "1", "--preset", "huge"], "no preset 'huge'"),
        (["--ipc", "0"], "distill.images_per_class must be at least 1"),
        (["--ipc", "1", "--sigma", "2"], "distill.prune_below must be in [0, 1)"),
        (["--ipc", "1", "--on", "train"], "--on must be test or validation, got 'train'"),
        (["--ipc", "1", "--variant", "soft"], "write it as NAME:KEY=VALUE"),
        (
            ["--ipc", "1", "--variant", "a:net.width=2", "--variant", "a:net.width=3"],
            "two variants are called 'a'",
        ),
        (["--ipc", "1", "--where", "hospital"], "--where 'hospital': write it as COLUMN=VALUE"),
        (["--ipc", "1", "--baseline", "herding"], "no baseline 'herding'"),
        (["--ipc", "1", "--device", "tpu"], "auto, cpu or cuda"),
        ([], "Missing option '--ipc'"),
    ],
)
def test_wrong_usage_is_code_2_and_says_what(
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ppdd("sweep", "--data", tmp_path, "--out", tmp_path / "run", *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ppdd("sweep", "--data", tmp_path / "none.zip", "--out", tmp_path / "run", "--ipc", 1)
    assert code == 1
    assert "none.zip" in capsys.readouterr().err
