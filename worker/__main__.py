"""`python -m worker`: one worker of the node, for one GPU or for the CPU. Settings are in the environment."""

from __future__ import annotations

import sys

from ppdd_core.errors import PpddError
from services.kit import logging
from services.kit.db import connect
from services.kit.migrate import require_head
from services.settings import Settings, load_settings
from worker.app import run_worker
from worker.device import take_place


def main() -> int:
    """Run until stopped; 1 where the node is not set up for it, with one line that says why."""
    try:
        settings = load_settings()
        logging.configure(settings.log)
        _require_schema(settings)
        with take_place(settings) as place:
            return run_worker(settings, place)
    except PpddError as err:
        sys.stderr.write(f"{err}\n")
        return 1


def _require_schema(settings: Settings) -> None:
    engine = connect(settings)
    try:
        require_head(engine)
    finally:
        engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
