"""Who is where when: both sides' balanced accuracy against their seconds, and what follows. Numbers in, numbers out.

What was run and what was extrapolated are never one figure: `measured` holds only the former, `extrapolated` counts
units that were not run and multiplies them with the seconds of those that were. Torch-free.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdd_core.benchmark.ledger import Unit, each, each_cpu, total, total_cpu
from ppdd_core.benchmark.plan import FULL, Plan


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot: seconds of work before it, and what networks trained on it reach."""

    step: int
    seconds: float
    scores: tuple[float, ...]
    cpu_seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Return the mean balanced accuracy."""
        return statistics.fmean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        sd = round(statistics.stdev(self.scores), 4) if len(self.scores) > 1 else None
        return {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "balanced_accuracy": round(self.mean, 4),
            "sd": sd,
            "networks": len(self.scores),
        }


@dataclass(frozen=True, slots=True)
class Course:
    """What a side has done so far."""

    teachers: Sequence[Unit]
    steps: Sequence[Unit]
    curve: tuple[Point, ...]
    epochs_wanted: int  # of all teachers together
    steps_wanted: int
    snapshots: int  # parameter vectors kept
    teacher_bytes: int  # on disk

    @property
    def finished(self) -> bool:
        """Tell whether everything was done and every snapshot scored."""
        done = sum(unit.units for unit in self.teachers) >= self.epochs_wanted
        taken = len(self.steps) >= self.steps_wanted
        return done and taken and bool(self.curve) and self.curve[-1].step == self.steps_wanted

    @property
    def seconds(self) -> float:
        """Return the seconds of all work."""
        return total(self.teachers) + total(self.steps)

    @property
    def cpu_seconds(self) -> float:
        """Return the seconds of a core of all work."""
        return total_cpu(self.teachers) + total_cpu(self.steps)

    def first_at(self, target: float) -> Point | None:
        """Return the first snapshot that reaches `target`."""
        return next((point for point in self.curve if point.mean >= target), None)

    def stays_at(self, target: float) -> Point | None:
        """Return the first snapshot from which on all reach `target`."""
        found: Point | None = None
        for point in reversed(self.curve):
            if point.mean < target:
                break
            found = point
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        peaks = [unit.convolution for unit in (*self.teachers, *self.steps)]
        return {
            "finished": self.finished,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "teachers": {
                "seconds": round(total(self.teachers), 1),
                "cpu_seconds": round(total_cpu(self.teachers), 1),
                "epochs": sum(unit.units for unit in self.teachers),
                "seconds_per_epoch": round(each(self.teachers), 4),
                "snapshots": self.snapshots,
                "bytes": self.teacher_bytes,
            },
            "distillation": {
                "seconds": round(total(self.steps), 1),
                "cpu_seconds": round(total_cpu(self.steps), 1),
                "steps": len(self.steps),
                "seconds_per_step": round(each(self.steps), 4),
            },
            "convolution_gflops": [round(min(peaks), 1), round(max(peaks), 1)] if peaks else [],
            "curve": [point.to_dict() for point in self.curve],
        }


def course(
    teachers: Sequence[Unit],
    steps: Sequence[Unit],
    scores: Mapping[int, Sequence[float]],
    *,
    epochs_wanted: int,
    steps_wanted: int,
    snapshots: int,
    teacher_bytes: int,
) -> Course:
    """Return a side's course; a snapshot's seconds are the teachers' and those of the steps up to it."""
    before, cpu_before = total(teachers), total_cpu(teachers)
    curve = tuple(
        Point(
            step,
            before + total(steps, step),
            tuple(scores[step]),
            cpu_before + total_cpu(steps, step),
        )
        for step in sorted(scores)
    )
    return Course(teachers, steps, curve, epochs_wanted, steps_wanted, snapshots, teacher_bytes)


def measured(ours: Course, reference: Course) -> dict[str, Any]:
    """Return what both runs say, as they were run: seconds to the reference's last figure, and bytes of teachers."""
    target = reference.curve[-1].mean
    first, stays, itself = ours.first_at(target), ours.stays_at(target), reference.first_at(target)
    found: dict[str, Any] = {
        "target_balanced_accuracy": round(target, 4),
        "reference_seconds": round(reference.seconds, 1),
        "reference_first_seconds": round(itself.seconds, 1) if itself else None,
        "ours_first_seconds": round(first.seconds, 1) if first else None,
        "ours_stays_seconds": round(stays.seconds, 1) if stays else None,
        "teacher_bytes_ratio": round(ours.teacher_bytes / reference.teacher_bytes, 4),
    }
    for name, point in (("time_ratio", first), ("time_ratio_stays", stays)):
        found[name] = round(point.seconds / reference.seconds, 4) if point else None
    if first and reference.cpu_seconds:
        found["cpu_time_ratio"] = round(first.cpu_seconds / reference.cpu_seconds, 4)
    found["time_ratio_to_its_first"] = (
        round(first.seconds / itself.seconds, 4) if first and itself else None
    )
    return found


def extrapolated(ours: Course | None, reference: Course, plan: Plan) -> dict[str, Any]:
    """Return what the reference's defaults would take: its counts times the unit times measured here. Not run."""
    epochs, steps = FULL["experts"] * FULL["epochs"], FULL["iterations"]
    seconds = epochs * each(reference.teachers) + steps * each(reference.steps)
    vector = reference.teacher_bytes / max(reference.snapshots, 1)
    size = round(vector * FULL["experts"] * (FULL["epochs"] + 1))
    found: dict[str, Any] = {
        "not_run": True,
        "counts": dict(FULL),
        "expert_epoch_seconds": round(each(reference.teachers), 4),
        "step_seconds": round(each(reference.steps), 4),
        "reference_seconds": round(seconds, 1),
        "reference_teacher_bytes": size,
        "share_that_was_run": {
            "experts": plan.experts, "epochs": plan.epochs, "iterations": plan.iterations,
        },
    }  # fmt: skip
    cpu = epochs * each_cpu(reference.teachers) + steps * each_cpu(reference.steps)
    found["reference_cpu_seconds"] = round(cpu, 1)
    if ours is not None and ours.finished:
        found["cpu_time_ratio"] = round(ours.cpu_seconds / cpu, 5) if cpu else None
        found["ours_seconds"] = round(ours.seconds, 1)
        found["time_ratio"] = round(ours.seconds / seconds, 5) if seconds else None
        found["teacher_bytes_ratio"] = round(ours.teacher_bytes / size, 5) if size else None
    return found
