"""What a smaller snapshot dtype costs: the error of the teacher's way θ_{i+K} - θ_i, as a share of that way.

    python benchmarks/snapshot_dtype.py runs/evidence/teachers/seed0-DIGEST --teacher-epochs 2

The matching loss is measured in units of that way, so an error of 0.01 puts a floor of 0.0001 under it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from ppdd_core.teachers.store import TrajectoryStore


def main() -> None:
    """Print mean and largest relative error per dtype as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher-epochs", type=int, default=2)
    arguments = parser.parse_args()
    store, ahead = TrajectoryStore(arguments.folder), arguments.teacher_epochs
    errors: dict[str, list[float]] = {"float16": [], "bfloat16": []}
    teachers = [int(folder.name) for folder in arguments.folder.iterdir() if folder.is_dir()]
    for teacher in teachers:
        for epoch in range(store.epochs_done(teacher) - ahead + 1):
            start_P, target_P = store.read(teacher, epoch), store.read(teacher, epoch + ahead)
            way_P = target_P - start_P
            for name, found in errors.items():
                dtype = getattr(torch, name)
                rounded_P = target_P.to(dtype).float() - start_P.to(dtype).float()
                found.append(float((rounded_P - way_P).norm() / way_P.norm()))
    result = {
        name: {"mean": round(statistics.fmean(found), 5), "largest": round(max(found), 5)}
        for name, found in errors.items()
    }
    print(json.dumps({"segments": len(errors["float16"]), **result}, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
