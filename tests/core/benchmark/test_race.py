"""What two runs say about each other, and the files they come from."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from ppdd_core.benchmark.ledger import DISTILLATION, TEACHERS, Ledger, Unit, each, total
from ppdd_core.benchmark.plan import Plan
from ppdd_core.benchmark.plot import Group, bars
from ppdd_core.benchmark.race import Course, course, extrapolated, measured
from ppdd_core.errors import BadConfigError, CheckpointError


def run(scores: dict[int, list[float]], *, steps: int = 4, per_step: float = 1.0) -> Course:
    """Return a finished run: two teachers' epochs of 10 s, then `steps` steps; 4 snapshots of 50 bytes."""
    return course(
        [Unit(TEACHERS, 10.0), Unit(TEACHERS, 10.0)],
        [Unit(DISTILLATION, per_step, 1, at) for at in range(1, steps + 1)],
        scores,
        epochs_wanted=2,
        steps_wanted=steps,
        snapshots=4,
        teacher_bytes=200,
    )


def test_a_snapshot_comes_after_its_teachers_and_its_steps() -> None:
    assert [(p.step, p.seconds) for p in run({2: [0.5], 4: [0.6]}).curve] == [(2, 22.0), (4, 24.0)]


def test_ours_is_timed_until_it_reaches_the_references_last_figure() -> None:
    ours = run({1: [0.5, 0.6], 2: [0.7, 0.7], 3: [0.6], 4: [0.8]})
    reference = run({20: [0.7], 40: [0.65]}, steps=40, per_step=4.0)
    found = measured(ours, reference)
    assert found["target_balanced_accuracy"] == 0.65
    assert (found["ours_first_seconds"], found["ours_stays_seconds"]) == (22.0, 24.0)
    assert found["reference_seconds"] == 180.0 and found["reference_first_seconds"] == 100.0
    assert found["time_ratio"] == pytest.approx(22 / 180, abs=1e-4)
    assert found["time_ratio_to_its_first"] == 0.22


def test_what_was_never_reached_has_no_ratio() -> None:
    found = measured(run({4: [0.4]}), run({4: [0.5]}))
    assert found["time_ratio"] is None and found["ours_first_seconds"] is None


def test_the_defaults_are_extrapolated_by_count_and_say_so() -> None:
    reference = run({4: [0.5]}, per_step=2.0)
    found = extrapolated(run({4: [0.5]}), reference, Plan(experts=1, epochs=11, iterations=4))
    assert found["not_run"] is True
    assert found["reference_seconds"] == 100 * 50 * 10.0 + 5000 * 2.0
    assert found["reference_teacher_bytes"] == 50 * 100 * 51
    assert found["time_ratio"] == pytest.approx(24 / 60_000, abs=1e-5)
    assert found["share_that_was_run"] == {"experts": 1, "epochs": 11, "iterations": 4}


def test_half_a_run_is_not_finished() -> None:
    assert run({4: [0.5]}).finished
    assert not run({2: [0.5]}).finished
    assert not run({}).finished


def test_a_ledger_forgets_what_a_kill_cut_short(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "units.jsonl")
    for at in (1, 2, 3):
        ledger.add(Unit(DISTILLATION, 2.0, 1, at))
    ledger.add(Unit(TEACHERS, 6.0, 3))
    path = tmp_path / "units.jsonl"
    path.write_text(path.read_text() + '{"stage": "distil')
    assert [unit.at for unit in ledger.units(DISTILLATION)] == [1, 2, 3]
    ledger.keep(lambda unit: unit.at <= 2)
    assert total(ledger.units(DISTILLATION)) == 4.0 and total(ledger.units(DISTILLATION), 1) == 2.0
    assert each(ledger.units(TEACHERS)) == 2.0
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match="is damaged; delete its folder"):
        ledger.units(TEACHERS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"experts": 0}, "--experts must be at least 1"),
        ({"lr_img": 0.0}, "--lr-img must be above 0"),
        ({"epochs": 10}, "--epochs must be at least 11"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(BadConfigError, match=said):
        Plan(**changed)  # type: ignore[arg-type]


def test_bars_are_as_long_as_their_values_say() -> None:
    text = bars("a < b", [Group("time", [("ours", 0.5, "0.5"), ("MTT", 1.0, "1")])], "note")
    root = ElementTree.fromstring(text)
    lengths = [float(one.get("width", "")) for one in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert lengths[1] == pytest.approx(lengths[2] / 2, abs=0.1)
    assert "a &lt; b" in text and "note" in text
