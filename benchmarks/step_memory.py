"""Peak memory and time of one distillation step: both engines, several J, each in a process of its own.

    python benchmarks/step_memory.py --size 64 --width 64 --depth 4 --batch 20 --steps 5 --steps 40

The peak is the process's own, with what it had before the step (interpreter, torch, inputs) subtracted. Alternates
the cases over `--rounds` and reports the best time and the largest peak of each; ratios are side by side.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any


def main() -> None:
    """Measure every case in child processes and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, action="append", default=[])
    parser.add_argument("--engine", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measure(**json.loads(arguments.case))))  # noqa: T201 - read by the parent
        return
    shape = {name: getattr(arguments, name) for name in ("size", "width", "depth", "batch")}
    cases = [
        {"engine": engine, "steps": steps, **shape}
        for engine in arguments.engine or ["reverse"]
        for steps in arguments.steps or [5, 40]
    ]
    rows: list[dict[str, Any]] = [dict(case, seconds=[], peak_mib=[]) for case in cases]
    for _ in range(arguments.rounds):
        for case, row in zip(cases, rows, strict=True):
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
            measured = json.loads(done.stdout)
            row["seconds"].append(measured["seconds"])
            row["peak_mib"].append(measured["peak_mib"])
    result = [dict(row, seconds=min(row["seconds"]), peak_mib=max(row["peak_mib"])) for row in rows]
    first = result[0]
    for row in result:
        row["peak_ratio"] = round(row["peak_mib"] / first["peak_mib"], 3)
        row["time_per_student_step"] = round(row["seconds"] / row["steps"], 4)
    print(json.dumps(result, indent=2))  # noqa: T201 - the result


def _measure(
    *, engine: str, steps: int, size: int, width: int, depth: int, batch: int
) -> dict[str, float]:
    import torch

    from ppdd_core.config import NetConfig
    from ppdd_core.data.augment import draw
    from ppdd_core.distill.matching import keep_mask
    from ppdd_core.distill.student import ENGINES, Step
    from ppdd_core.nets.functional import FlatNet

    net = FlatNet(NetConfig(width=width, depth=depth), classes=4, image_size=size)
    start_P = net.initial(0)
    target_P = start_P + 0.05 * net.initial(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, size, size, generator=generator)
    plan = tuple(
        Step(
            torch.randperm(batch, generator=generator),
            draw("color_crop_cutout_scale_rotate", batch, generator),
        )
        for _ in range(steps)
    )
    mask = partial(keep_mask, similarity="signed_ratio", prune_below=0.1, min_keep=0.05)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    ENGINES[engine](
        net, start_P, target_P, images, torch.arange(batch) % 4, torch.tensor(0.01), plan, mask
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": round(seconds, 3), "peak_mib": round(peak / 1024, 1)}


if __name__ == "__main__":
    main()
