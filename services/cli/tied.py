"""`python -m services.cli.tied PARENT COMMAND…`: become COMMAND, and die with the process PARENT, however that ends.

For the workers of `ppdd node up`: killed without a chance to clean up, it leaves nothing running that nobody watches.
Linux only; elsewhere the command runs untied.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we were tied to it
        return
    os.execv(command[0], command)  # noqa: S606 - no shell, and the command is our own


if __name__ == "__main__":
    main(sys.argv[1:])
