"""One measurement in a process of its own: `python -m ppdd_core.benchmark.child CASE THREADS` prints it as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys

import torch

from ppdd_core.benchmark import reference, step, teachers
from ppdd_core.benchmark.case import Case, Measured
from ppdd_core.errors import PpddError


def main() -> None:
    """Measure what the first argument says; a refusal of ours is one line on stderr."""
    case = Case.from_json(sys.argv[1])
    if threads := int(sys.argv[2]):
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        found = _run(case)
    except PpddError as err:
        sys.exit(str(err))
    sys.stdout.write(json.dumps(dataclasses.asdict(found)))


def _run(case: Case) -> Measured:
    if case.what == "teachers":
        return teachers.run(case)
    return reference.run_step(case) if case.side == "reference" else step.run(case)


if __name__ == "__main__":
    main()
