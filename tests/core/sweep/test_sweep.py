"""A whole sweep at toy size: what is in it, and that no interruption, process or order changes a figure."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppdd_core.errors import CheckpointError, Interrupted, SourceError
from ppdd_core.package.previews import read_image
from ppdd_core.pipeline import Source, evaluate, load_split
from ppdd_core.presets import preset
from ppdd_core.sweep.grid import parse_variant
from ppdd_core.sweep.run import Standing
from tests.core.sweep.conftest import BASELINES, TOY, Ground, figures, toy_grid
from tests.core.sweep.reading import Page
from tests.program import ppdd


def row(value: dict[str, object], label: str, per_class: int | None = 1) -> dict[str, object]:
    table = value["figures"]["table"]  # type: ignore[index]
    (found,) = (r for r in table if (r["label"], r["images_per_class"]) == (label, per_class))
    return dict(found)


def titles(seen: list[Standing]) -> list[str]:
    return [standing.finished for standing in seen if standing.finished]


def test_every_method_is_in_the_table_with_all_networks_of_all_seeds(ground: Ground) -> None:
    rows = ground.value["figures"]["table"]
    assert [(r["label"], r["images_per_class"], r["networks"]) for r in rows] == [
        ("distilled, σ 0 (MTT)", 1, 4),
        ("distilled, σ 0.1", 1, 4),
        ("best on validation", 1, 4),
        ("random real images", 1, 4),
        ("k-centre real images", 1, 4),
        ("all real images", None, 2),
    ]
    whole = rows[-1]["balanced_accuracy"]["mean"]
    for one in rows:
        assert one["balanced_accuracy"]["sd"] is not None
        assert one["share_of_all_real"] == pytest.approx(
            one["balanced_accuracy"]["mean"] / whole, abs=1e-4
        )
    assert rows[0]["bytes"] == 4 * (16 * 16 * 4 + 8)  # float32 pixels, int64 labels
    assert rows[3]["bytes"] == 4 * 16 * 16
    assert [c["result"]["pruned"] > 0 for c in ground.value["figures"]["cells"]] == [
        False,
        True,
    ] * 2


def test_means_are_those_of_the_evaluations(ground: Ground) -> None:
    files = ground.whole.glob("cells/*-sigma0.1-*/evaluation-test-*.json")
    reports = [json.loads(file.read_bytes())["report"] for file in files]
    values = [entry["accuracy"] for report in reports for entry in report["results"]]
    assert len(values) == 4
    accuracy = row(ground.value, "distilled, σ 0.1")["accuracy"]
    assert accuracy == {
        "mean": pytest.approx(np.mean(values), abs=1e-6),
        "sd": pytest.approx(np.std(values, ddof=1), abs=1e-6),
    }


def test_the_best_is_chosen_by_validation_for_every_seed(ground: Ground) -> None:
    found = ground.value["figures"]
    assert [(one["images_per_class"], one["seed"]) for one in found["chosen"]] == [(1, 0), (1, 1)]
    accuracies = []
    for one in found["chosen"]:
        assert one["validation"][one["chosen"]] == max(one["validation"].values())
        sigma = "sigma0-" if "MTT" in one["chosen"] else "sigma0.1-"
        (file,) = ground.whole.glob(f"cells/seed{one['seed']}-*{sigma}*/evaluation-test-*.json")
        results = json.loads(file.read_bytes())["report"]["results"]
        assert one["validation"][one["chosen"]] == pytest.approx(
            np.mean([entry["validation_balanced_accuracy"] for entry in results]), abs=1e-6
        )
        accuracies += [entry["accuracy"] for entry in results]
    best = row(ground.value, "best on validation")["accuracy"]
    assert best == {
        "mean": pytest.approx(np.mean(accuracies), abs=1e-6),
        "sd": pytest.approx(np.std(accuracies, ddof=1), abs=1e-6),
    }


def test_the_report_says_it_in_html_and_in_markdown(ground: Ground) -> None:
    page = Page((ground.whole / "report.html").read_text())
    markdown = (ground.whole / "report.md").read_text()
    assert page.headings == [
        "Sweep: distilled against real images",
        "Table 1",
        "Accuracy against bytes",
        "What validation chose",
        "On the way",
        "Every distillation",
        "Distilled images on the way",
    ]
    assert page.tags.isdisjoint({"script", "link"})
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    accuracy, balanced, auroc, share = page.tables[:4]
    for table in (accuracy, balanced, auroc):
        assert table[0] == ["trained on", "IPC 1"]
        assert [line[0] for line in table[1:]][-1] == "all real images"
    found = row(ground.value, "distilled, σ 0.1")["balanced_accuracy"]
    text = f"{found['mean']:.3f} ± {found['sd']:.3f}"  # type: ignore[index]
    assert balanced[2] == ["distilled, σ 0.1", text]
    assert text in markdown
    assert share[1][1].endswith("%")
    assert len(page.tables[5]) == 1 + 4  # every distillation, one row a cell
    assert "60 test images" in re.sub(r"\d+ test", "60 test", page.text)
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (ground.whole / name).is_file()
    assert markdown.count("figures/") == 3 + 2 * 4  # three plots, four steps of two distillations


def test_contact_sheets_show_every_class_of_one_seed(ground: Ground) -> None:
    (folder,) = ground.whole.glob("cells/seed0-*sigma0.1-*/sheets")
    assert [file.name for file in sorted(folder.iterdir())] == [
        f"step-{step:06d}.png" for step in (0, 2, 4, 6, 8, 10, 12)
    ]
    sheet = read_image((folder / "step-000012.png").read_bytes(), name="sheet")
    assert sheet.shape == (4 * 96 + 3 * 4, 96)  # 16 pixels are drawn six times as large
    assert not list(ground.whole.glob("cells/seed1-*/sheets"))


def test_run_again_nothing_is_computed_and_the_report_is_the_same(
    ground: Ground, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(ground.whole, tmp_path / "again"))
    seen: list[Standing] = []
    value = ground.sweep(again, on_standing=seen.append)
    assert titles(seen) == []
    assert value == ground.value
    for name in ("report.json", "report.md", "report.html"):
        assert (again / name).read_bytes() == (ground.whole / name).read_bytes()


def test_stopped_anywhere_it_goes_on_to_the_same_figures(ground: Ground, tmp_path: Path) -> None:
    out, chance = ground.with_its_teachers(tmp_path / "run"), random.Random(5)
    stops = 0
    while True:
        left = chance.randrange(1, 30)

        def stop(_: Standing) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        try:
            value = ground.sweep(out, on_standing=stop)
            break
        except Interrupted:
            stops += 1
            assert (out / "report.html").exists()  # what is there so far
    assert stops >= 3
    assert figures(value) == figures(ground.value)


def test_killed_at_a_random_piece_it_goes_on_to_the_same_figures(
    ground: Ground, tmp_path: Path
) -> None:
    out = ground.with_its_teachers(tmp_path / "run")
    when = random.randrange(1, 8)
    command = [
        sys.executable, "-m", "ppdd_core.cli", "sweep", "--data", str(ground.images), "--out", str(out),
        "--ipc", "1", "--sigma", "0", "--sigma", "0.1", "--seeds", "2", "--device", "cpu", "--no-calibrate",
        *(f"--baseline={name}" for name in BASELINES),
        *(f"--set={name}={value}" for name, value in TOY.items()),
    ]  # fmt: skip
    environment = {**os.environ, "PPDD_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = [next(process.stderr) for _ in range(when)]
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    value = ground.sweep(out)
    assert figures(value) == figures(ground.value)


def test_several_processes_give_the_same_figures_and_one_that_dies_fails_its_piece_alone(
    ground: Ground, tmp_path: Path
) -> None:
    out = ground.with_its_teachers(tmp_path / "run")
    killed: list[int] = []
    seen: list[Standing] = []

    def kill_one(standing: Standing) -> None:
        seen.append(standing)
        if not killed and any("distil" in text for text in standing.running):
            (first, *_) = multiprocessing.active_children()
            killed.append(first.pid or 0)
            first.kill()

    value = ground.sweep(out, processes=2, on_standing=kill_one)
    assert max(len(standing.running) for standing in seen) == 2
    assert seen[-1].share == pytest.approx(1)
    why = {cell["why"] for cell in value["figures"]["cells"]} | {
        one["why"] for line in value["figures"]["table"] for one in line["without"]
    }
    assert any("was killed (signal 9)" in str(one) for one in why)
    assert sum(cell["why"] is None for cell in value["figures"]["cells"]) >= 2
    assert not multiprocessing.active_children()
    again = ground.sweep(out, processes=1)
    assert figures(again) == figures(ground.value)


def test_a_larger_grid_in_the_same_folder_computes_only_what_is_new(
    ground: Ground, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    seen: list[Standing] = []
    larger = toy_grid(per_class=(1, 2), seeds=(0,), sigmas=(0.1,))
    value = ground.sweep(out, larger, on_standing=seen.append)
    assert titles(seen) == [
        "distil IPC 2, σ 0.1, seed 0: done",
        "evaluate IPC 2, σ 0.1, seed 0: done",
        "random real images, IPC 2, seed 0: done",
        "k centre images, IPC 2, seed 0: done",
    ]
    assert row(value, "distilled, σ 0.1")["networks"] == 2
    assert row(value, "distilled, σ 0.1", 2)["networks"] == 2


def test_a_variant_that_trains_its_detectors_otherwise_has_baselines_of_its_own(
    ground: Ground, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    seen: list[Standing] = []
    variant = parse_variant("long:detector.epochs=4")
    grid = toy_grid(seeds=(0,), sigmas=(0.1,), variants=(variant,), baselines=("random_real",))
    value = ground.sweep(out, grid, on_standing=seen.append, processes=1)
    assert titles(seen) == [  # the same images are not distilled twice
        "evaluate IPC 1, long, σ 0.1, seed 0: done",
        "random real images, IPC 1, seed 0: done",
    ]
    assert row(value, "random real images, long") != row(value, "random real images")


def test_a_cell_that_fails_is_in_the_table_with_its_reason_and_stops_nothing(
    ground: Ground, tmp_path: Path
) -> None:
    out = ground.with_its_teachers(tmp_path / "run")
    grid = toy_grid(
        seeds=(0,), sigmas=(0.1,), baselines=(),
        variants=(parse_variant("bad:distill.max_loss=0.0001"), parse_variant("longer:distill.iterations=14")),
    )  # fmt: skip
    value = ground.sweep(out, grid)
    bad = row(value, "distilled, bad, σ 0.1")
    assert bad["networks"] == 0
    assert "distillation diverges" in str(bad["without"])
    assert row(value, "distilled, longer, σ 0.1")["networks"] == 2
    page = Page((out / "report.html").read_text())
    assert page.tables[0][2] == ["distilled, bad, σ 0.1", "failed"]
    assert any(
        "distillation diverges" in cell for table in page.tables for line in table for cell in line
    )
    again = ground.sweep(out, grid)  # it is tried again, and fails again
    assert figures_of_table(again) == figures_of_table(value)


def figures_of_table(value: dict[str, object]) -> object:
    return value["figures"]["table"]  # type: ignore[index]


@pytest.mark.slow
def test_teachers_that_fail_fail_their_cells_and_no_others(ground: Ground, tmp_path: Path) -> None:
    grid = toy_grid(
        seeds=(0,), sigmas=(0.1,), baselines=("random_real",),
        variants=(parse_variant("wild:teacher.lr=10"),),
    )  # fmt: skip
    value = ground.sweep(ground.with_its_teachers(tmp_path / "run"), grid)
    assert "learned nothing" in str(row(value, "distilled, wild, σ 0.1")["without"])
    assert row(value, "distilled, σ 0.1")["networks"] == 2
    assert [r["label"] for r in value["figures"]["table"]].count("random real images") == 1


def test_on_validation_the_test_images_are_not_looked_at(ground: Ground, tmp_path: Path) -> None:
    recipe = preset("quick", 1).override(TOY)
    images = load_split(Source(path=ground.images), recipe, cache_dir=ground.cache)
    without = dataclasses.replace(
        images,
        split=dataclasses.replace(images.split, test=images.split.test.select(np.array([], int))),
    )
    device = torch.device("cpu")
    found = evaluate(
        without, recipe, [], device=device, baselines=("random_real",), sizes=(1,), on="validation"
    )
    assert (found["split"], found["images"]) == ("validation", len(images.split.validation))
    with pytest.raises(SourceError, match="test split has no images"):
        evaluate(without, recipe, [], device=device, baselines=("random_real",), sizes=(1,))

    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    value = ground.sweep(out, toy_grid(seeds=(0,)), on="validation")
    assert value["figures"]["images_measured"] == [len(images.split.validation)]
    assert value["figures"]["chosen"] == []  # a choice reported on what it was made by says nothing
    assert "no test image was looked at" in (out / "report.md").read_text()
    cell = row(value, "distilled, σ 0.1")
    expected = row(ground.value, "distilled, σ 0.1")
    assert cell["balanced_accuracy"] != expected["balanced_accuracy"]


def test_estimates_stand_beside_what_it_took(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppdd_core import estimate

    said = estimate.Estimate({"teachers": 3.0, "distillation": 0.5}, 1, 1, 1)
    monkeypatch.setattr(estimate, "estimate_run", lambda *_args, **_named: said)
    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    value = ground.sweep(out, calibrate=True)
    for cell in value["figures"]["cells"]:
        assert cell["estimated_seconds"] == 0.5
    table = Page((out / "report.html").read_text()).tables[6]
    taken = [cell["result"]["seconds"] for cell in value["figures"]["cells"]]
    assert table[1][:3] == ["distillation, IPC 1", "4", "0.5"]
    assert float(table[1][4]) == pytest.approx(np.mean(taken) / 0.5, abs=0.01)
    assert table[2][0] == "teachers"


def test_other_networks_have_a_table_of_their_own(ground: Ground, tmp_path: Path) -> None:
    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    for file in out.glob("cells/*/evaluation-test-*.json"):
        kept = json.loads(file.read_bytes())
        kept["report"]["results"] += [
            {
                **entry,
                "architecture": "alexnet",
                "balanced_accuracy": 0.25 * (1 + entry["seed"] % 2),
            }
            for entry in kept["report"]["results"]
        ]
        file.write_text(json.dumps(kept))
    value = ground.sweep(out)
    rows = {(r["label"], r["architecture"]): r for r in value["figures"]["table"]}
    assert rows["distilled, σ 0.1", "alexnet"]["networks"] == 4
    assert rows["distilled, σ 0.1", "alexnet"]["balanced_accuracy"]["mean"] == 0.375
    assert rows["distilled, σ 0.1", "convnet"] == row(ground.value, "distilled, σ 0.1")
    assert (
        value["figures"]["chosen"] == ground.value["figures"]["chosen"]
    )  # by its own network alone
    page = Page((out / "report.html").read_text())
    assert "Other networks" in page.headings
    (table,) = (table for table in page.tables if table[0][-2:] == ["convnet", "alexnet"])
    lines = {line[0]: line[1:] for line in table[1:]}
    assert lines["distilled, σ 0.1"][0] == "1"
    assert lines["distilled, σ 0.1"][2] == "0.375 ± 0.144"
    assert lines["all real images"][2] == ""


def test_what_is_there_is_reported_while_another_process_works(
    ground: Ground, tmp_path: Path
) -> None:
    out = ground.with_its_teachers(tmp_path / "run")

    def look(standing: Standing) -> None:
        if standing.done == 4 and standing.finished:
            with pytest.raises(CheckpointError, match="another process works"):
                ground.sweep(out)
            value = ground.sweep(out, compute=False)
            assert row(value, "distilled, σ 0 (MTT)")["networks"] == 2
            assert row(value, "distilled, σ 0.1")["networks"] == 0
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="same command"):
        ground.sweep(out, on_standing=look)
    with pytest.raises(CheckpointError, match="no sweep in"):
        ground.sweep(tmp_path / "nothing", compute=False)


def test_at_the_keyboard_a_failed_cell_is_said_and_the_exit_code_says_so_too(
    ground: Ground,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))

    out = Path(shutil.copytree(ground.whole, tmp_path / "run"))
    arguments = [
        "sweep", "--data", ground.images, "--out", out, "--ipc", 1, "--sigma", 0.1, "--seeds", 1, "--device", "cpu",
        "--no-calibrate", "--baseline", "full_data", "--report", tmp_path / "report",
        *(f"--set={name}={value}" for name, value in TOY.items()),
    ]  # fmt: skip
    assert ppdd(*arguments) == 0
    printed = capsys.readouterr()
    assert "all real images" in printed.out
    assert "report.html" in printed.out
    assert printed.err == ""  # nothing was left to do
    assert (tmp_path / "report/report.html").exists()

    bad = ["--variant", "bad:distill.max_loss=0.0001", "--json"]
    assert ppdd(*arguments, *bad) == 1
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert [cell["label"] for cell in value["figures"]["cells"] if cell["why"]] == [
        "distilled, bad, σ 0.1"
    ]
    assert "1 of the grid's cells failed: distillation diverges" in printed.err
    assert str(tmp_path) not in value["command"]
    words = shlex.split(value["command"])
    assert words[:4] == ["ppdd", "sweep", "--data", "images"]
    assert "bad:distill.max_loss=0.0001" in words
    assert f"distill.iterations={TOY['distill.iterations']}" in words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_ctrl_c_ends_every_process(ground: Ground, tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable, "-m", "ppdd_core.cli", "sweep", "--data", str(ground.images), "--out", str(tmp_path / "run"),
        "--ipc", "1", "--seeds", "2", "--device", "cpu", "--no-calibrate", "--processes", "2",
        *(f"--set={name}={value}" for name, value in (TOY | {"distill.iterations": "100000"}).items()),
    ]  # fmt: skip
    environment = {**os.environ, "PPDD_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: any((tmp_path / "run").glob("cells/*/state.safetensors")))
    assert len(members(process.pid)) >= 3
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: everybody hears it
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Run the same command again" in said
    wait_for(lambda: not members(process.pid))


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def members(session: int) -> list[int]:
    """Return the processes of a session that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[3]) == session and after[0] != "Z":
            found.append(int(stat.parent.name))
    return found
