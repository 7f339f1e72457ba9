"""The sides of a comparison in turns, each measurement in fresh processes; medians, spread and ratios. Torch-free."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ppdd_core.benchmark.case import Case, Measured
from ppdd_core.errors import BenchmarkError

OnRound = Callable[[int, int], None]  # (measurements done, in all)


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is measured under one name: so many processes of so many threads each (0 = all there are) at once."""

    name: str
    case: Case
    processes: int = 1
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What all rounds of one contestant gave."""

    name: str
    seconds: float  # median of one repeat
    spread: float  # half the distance between its quartiles
    peak_bytes: int  # largest of a round, of all its processes
    gflops: float  # GFLOP/s of first order, of all its processes
    images_per_second: float  # teachers: of all its processes
    convolution_peak: float  # GFLOP/s, of all its processes
    device: str
    repeats: int

    def to_dict(self, what: str) -> dict[str, Any]:
        """Return it for JSON."""
        rate = {
            "gflops": round(self.gflops, 3),
            "convolution_peak_gflops": round(self.convolution_peak, 1),
            "share_of_convolution_peak": round(self.gflops / self.convolution_peak, 3),
        }
        if what == "teachers":
            rate["images_per_second"] = round(self.images_per_second, 1)
        return {
            "name": self.name, "seconds": round(self.seconds, 4), "spread": round(self.spread, 4),
            "peak_mib": round(self.peak_bytes / 2**20, 1), **rate, "device": self.device, "repeats": self.repeats,
        }  # fmt: skip


def compare(
    contestants: Sequence[Contestant], rounds: int, on_round: OnRound | None = None
) -> list[Standing]:
    """Measure everybody `rounds` times, in turns, so that what else the machine does meets all alike.

    Raises BenchmarkError with what a process said last where one fails.
    """
    found: dict[str, list[list[Measured]]] = {one.name: [] for one in contestants}
    for turn in range(rounds):
        for place, one in enumerate(contestants):
            found[one.name].append(_measured(one))
            if on_round is not None:
                on_round(turn * len(contestants) + place + 1, rounds * len(contestants))
    return [_standing(one, found[one.name]) for one in contestants]


def ratios(standings: Sequence[Standing], against: str) -> Mapping[str, dict[str, float]]:
    """Return each one's time, peak memory and throughput as shares of `against`'s."""
    base = next(one for one in standings if one.name == against)
    return {
        one.name: {
            "time": round(one.seconds / base.seconds, 3),
            "peak_memory": round(one.peak_bytes / max(base.peak_bytes, 1), 3),
            "throughput": round(one.gflops / base.gflops, 3),
        }
        for one in standings
    }


def _measured(one: Contestant) -> list[Measured]:
    command = [
        sys.executable, "-m", "ppdd_core.benchmark.child", one.case.to_json(), str(one.threads)
    ]  # fmt: skip
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(one.processes)
    ]
    results = []
    for child in running:
        out, said = child.communicate()
        if child.returncode:
            for other in running:
                other.kill()
            last = (said.strip().splitlines() or ["nothing"])[-1]
            raise BenchmarkError(f"{one.name} could not be measured; it said: {last}")
        results.append(Measured.from_json(out))
    return results


def _standing(one: Contestant, rounds: Sequence[Sequence[Measured]]) -> Standing:
    seconds = sorted(second for some in rounds for found in some for second in found.seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    first = rounds[0][0]
    middle = statistics.median(seconds)
    return Standing(
        name=one.name,
        seconds=middle,
        spread=(high - low) / 2,
        peak_bytes=max(sum(found.peak_bytes for found in some) for some in rounds),
        gflops=one.processes * first.work / middle,
        images_per_second=one.processes * first.images / middle,
        convolution_peak=max(sum(found.convolution_peak for found in some) for some in rounds),
        device=first.device,
        repeats=len(seconds),
    )


def same_gradient(contestants: Sequence[Contestant], folder: str) -> dict[str, float]:
    """Return how far each contestant's gradients are from the first one's, relatively, on the same images.

    Without augmentation, as the sides draw differently, and in float64: in float32 a unit within rounding of its kink
    may fall on either side, which says nothing about who is right. Largest of the images' and α's.
    """
    from ppdd_core.benchmark.agreement import difference

    kept = {}
    for place, one in enumerate(contestants):
        path = f"{folder}/{place}.safetensors"
        exact = replace(one.case, augment="", repeats=0, dtype="float64", keep=path)
        _measured(replace(one, processes=1, case=exact))
        kept[one.name] = path
    first = next(iter(kept.values()))
    return {name: difference(first, path) for name, path in kept.items()}
