"""`ppdd bench pipeline`: both sides run whole, at toy size, beside a stand-in for the MTT code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppdd_core.benchmark.ledger import DISTILLATION, TEACHERS
from ppdd_core.benchmark.plan import Plan
from ppdd_core.benchmark.whole import Side, run_reference
from ppdd_core.cli.main import main
from ppdd_core.config import Recipe
from ppdd_core.errors import BenchmarkError, CheckpointError
from ppdd_core.pipeline import Images, Source, load_split, snapshot_steps
from ppdd_core.presets import preset

PLAN = Plan(
    experts=2, epochs=3, iterations=4, syn_steps=2, expert_epochs=1, max_start_epoch=2, lr_img=1.0,
    batch_train=16,
)  # fmt: skip
SETTINGS = {
    "image_size": 8, "net.width": 3, "net.depth": 1, "teacher.teachers": 2, "teacher.epochs": 3,
    "teacher.epoch_images": 16, "distill.iterations": 4, "distill.student_steps": 2,
    "distill.max_start_epoch": 2, "distill.teacher_epochs": 1, "distill.batch_syn": 2,
    "detector.epochs": 2, "detector.seeds": 2,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label, bright in (("dark", 60), ("light", 180)):
        (tmp_path / "xrays" / label).mkdir(parents=True)
        for number in range(30):
            pixels = generator.integers(bright - 50, bright + 50, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "xrays" / label / f"{number}.png")
    return tmp_path / "xrays"


def recipe() -> Recipe:
    return preset("quick", 1).override(SETTINGS)


def images_of(xrays: Path) -> Images:
    return load_split(Source(path=xrays), recipe())


def go(
    images: Images, reference: Path, out: Path, plan: Plan = PLAN,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Side:  # fmt: skip
    side = Side(out)
    run_reference(images, recipe(), plan, reference, side, snapshot_steps(4, 2), CPU, on_progress)
    return side


def command(xrays: Path, out: Path, *more: str) -> list[str]:
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    plan = [
        "--experts", "2", "--epochs", "3", "--iterations", "4", "--syn-steps", "2", "--expert-epochs", "1",
        "--max-start-epoch", "2", "--lr-img", "1", "--batch-train", "16", "--snapshots", "2",
    ]  # fmt: skip
    return [
        "bench", "pipeline", "--data", str(xrays), "--out", str(out), "--preset", "quick", "--ipc", "1",
        "--device", "cpu", "--processes", "1", "--json", *settings, *plan, *more,
    ]  # fmt: skip


@pytest.mark.timeout(600)  # our teachers start a process that imports torch
def test_both_sides_run_and_are_compared(
    xrays: Path, stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(command(xrays, out, "--side", "ours"))
    assert ended.value.code == 0
    half = json.loads(capsys.readouterr().out)
    assert half["sides"]["ours"]["finished"] and not half["sides"]["reference"]["finished"]
    assert "measured" not in half and "extrapolated" not in half
    with pytest.raises(SystemExit) as ended:
        main(command(xrays, out, "--reference", str(stand_in)))
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sides"]["ours"] == half["sides"]["ours"]  # not run again
    reference = found["sides"]["reference"]
    assert reference["teachers"]["epochs"] == 6 and reference["teachers"]["snapshots"] == 8
    assert [point["step"] for point in reference["curve"]] == [2, 4]
    assert (
        found["measured"]["target_balanced_accuracy"] == reference["curve"][-1]["balanced_accuracy"]
    )
    assert found["measured"]["teacher_bytes_ratio"] > 0
    assert found["extrapolated"]["not_run"] is True
    assert "<svg" in (out / "pipeline.svg").read_text(encoding="utf-8")
    assert json.loads((out / "pipeline.json").read_text(encoding="utf-8")) == found


def test_a_stopped_reference_goes_on_with_the_same_result(
    xrays: Path, stand_in: Path, tmp_path: Path
) -> None:
    images = images_of(xrays)
    whole = go(images, stand_in, tmp_path / "whole")

    def stop(at_stage: str, at: int) -> Callable[[str, int, int], None]:
        def on_progress(stage: str, done: int, _: int) -> None:
            if (stage, done) == (at_stage, at):
                raise KeyboardInterrupt

        return on_progress

    for stage, at in ((TEACHERS, 2), (TEACHERS, 4), (DISTILLATION, 3)):
        with pytest.raises(KeyboardInterrupt):
            go(images, stand_in, tmp_path / "parts", on_progress=stop(stage, at))
    parts = go(images, stand_in, tmp_path / "parts")
    assert len(parts.ledger.units(TEACHERS)) == 6 and len(parts.ledger.units(DISTILLATION)) == 4
    for step in (2, 4):
        for one, other in zip(whole.snapshots.read(step), parts.snapshots.read(step), strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_the_snapshots_of_an_expert_differ(xrays: Path, stand_in: Path, tmp_path: Path) -> None:
    side = go(images_of(xrays), stand_in, tmp_path / "out")
    for number in range(2):
        thetas = [side.store.read(number, epoch) for epoch in range(4)]
        assert all(not torch.equal(a, b) for a, b in zip(thetas, thetas[1:], strict=False))


def test_another_scale_needs_another_folder(xrays: Path, stand_in: Path, tmp_path: Path) -> None:
    images = images_of(xrays)
    go(images, stand_in, tmp_path / "out")
    with pytest.raises(CheckpointError, match="another recipe or another scale"):
        go(images, stand_in, tmp_path / "out", replace(PLAN, iterations=5))


def test_a_reference_that_diverges_is_told(xrays: Path, stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="the reference's loss is no number at step"):
        go(images_of(xrays), stand_in, tmp_path / "out", replace(PLAN, lr_img=1e38, lr_lr=1e38))


def test_a_reference_must_be_given(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(xrays, tmp_path / "out"))
    assert ended.value.code == 2
    assert "or run --side ours" in capsys.readouterr().err
