"""Where the program starts: Ctrl-C is answered before anything that takes time is imported.

Loading the commands takes up to a second; a signal in that second ends here, with one line and no traceback.
What a signal does once a command runs is in `main`.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # as in `console`, which is not loaded yet


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"stopped before anything was done\n")
    os._exit(INTERRUPTED)


def main() -> None:
    """Load the program and run it; signals that the caller ignores stay ignored."""
    answered = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    for number in answered:
        signal.signal(number, _leave)
    try:
        from ppdd_core.cli.main import main as run

        run()
    finally:  # the command is over, whatever it was: nothing is left to be said about it
        for number in answered:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
