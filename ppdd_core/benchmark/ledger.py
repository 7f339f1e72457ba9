"""What one side of a whole run leaves in its folder: the seconds of every unit of work, in the order it was done.

One line of JSON per unit, so that a side may be stopped at any moment and go on: what was begun and not finished counts
for nothing, on either side. Torch-free.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppdd_core.data.files import write_atomically
from ppdd_core.errors import CheckpointError

TEACHERS, DISTILLATION = "teachers", "distillation"


@dataclass(frozen=True, slots=True)
class Unit:
    """One or more epochs of teachers, or one step of distillation, that took so long together."""

    stage: str  # TEACHERS or DISTILLATION
    seconds: float  # on the clock
    units: int = 1  # 0: what belongs to no single one, such as the end of processes
    at: int = 0  # steps taken with it; teachers: which one
    convolution: float = 0.0  # GFLOP/s of a convolution in the same process, just before
    cpu: float = 0.0  # seconds of a core, of this process and of children that have ended


class Ledger:
    """The units of one side, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def units(self, stage: str) -> list[Unit]:
        """Return the finished units of a stage; a line cut short by a kill is none, a damaged file CheckpointError."""
        return [unit for unit in self._read() if unit.stage == stage]

    def add(self, unit: Unit) -> None:
        """Note a finished unit."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(unit)) + "\n")

    def keep(self, wanted: Callable[[Unit], bool]) -> None:
        """Forget units that will be done again: those not `wanted`."""
        lines = [json.dumps(dataclasses.asdict(unit)) for unit in self._read() if wanted(unit)]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())

    def _read(self) -> list[Unit]:
        if not self._path.exists():
            return []
        whole = self._path.read_text(encoding="utf-8").rpartition("\n")[0]
        try:
            return [Unit(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{self._path} is damaged; delete its folder and run again"
            ) from None


def total(units: Sequence[Unit], until: int | None = None) -> float:
    """Return the seconds of all units, or of those up to step `until`."""
    return sum(unit.seconds for unit in units if until is None or unit.at <= until)


def total_cpu(units: Sequence[Unit], until: int | None = None) -> float:
    """Return the same in seconds of a core: what other work on the machine changes least."""
    return sum(unit.cpu for unit in units if until is None or unit.at <= until)


def each(units: Sequence[Unit]) -> float:
    """Return the median seconds of one unit; 0 where there is none."""
    counted = [unit.seconds / unit.units for unit in units if unit.units]
    return statistics.median(counted) if counted else 0.0


def each_cpu(units: Sequence[Unit]) -> float:
    """Return the mean seconds of a core for one unit; 0 where there is none."""
    return total_cpu(units) / max(sum(unit.units for unit in units), 1)
