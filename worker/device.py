"""Which device a worker computes on: one worker per GPU, or the CPU; and the name that says so.

Run as a program it prints the CUDA devices that torch sees, because torch must not enter the Celery process.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ppdd_core.errors import BadConfigError
from services.settings import Settings

DRIVER = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia"), Path("/dev/dxg"))
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's name, the device it leaves visible to its jobs (empty: all there are), and that in words."""

    name: str
    visible: str
    text: str


@contextmanager
def take_place(settings: Settings) -> Iterator[Place]:
    """Yield a device that no other worker of this machine and node has, and keep it until the end.

    BadConfigError where a GPU is asked for and there is none, or every GPU has its worker.
    """
    host = socket.gethostname()
    settings.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for place in _places(settings, host):
        with (settings.work_dir / f".{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield place
            return
    raise BadConfigError(
        "every GPU has its worker already; give this one another by CUDA_VISIBLE_DEVICES, or PPDD_WORKER__DEVICE=cpu"
    )


def same_kind(one: str, other: str) -> bool:
    """Return whether two workers, by name, compute alike: both on a GPU, or both on a CPU."""
    return any(one.startswith(kind) and other.startswith(kind) for kind in ("gpu", "cpu"))


def _places(settings: Settings, host: str) -> Iterator[Place]:
    if settings.worker.kinds == "pull":
        yield from _numbered("pull", host, "nothing: it fetches packages")
        return
    gpus = [] if settings.worker.device == "cpu" else _gpus()
    if gpus:
        named = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else []
        for number, text in enumerate(gpus):
            entry = named[number].strip() if number < len(named) else str(number)
            yield Place(f"gpu{entry.removeprefix('GPU-')[:12]}@{host}", entry, text)
    elif settings.worker.device == "cuda":
        raise BadConfigError(
            "PPDD_WORKER__DEVICE=cuda, but torch sees no CUDA device; check the driver, or set it to cpu"
        )
    else:
        yield from _numbered("cpu", host, f"CPU, {len(os.sched_getaffinity(0))} cores")


def _numbered(name: str, host: str, text: str) -> Iterator[Place]:
    yield Place(f"{name}@{host}", "", text)
    for number in count(2):
        yield Place(f"{name}{number}@{host}", "", text)


def _gpus() -> list[str]:
    """Return the names of the CUDA devices, asked in a process of its own where there is a driver at all."""
    if not any(path.exists() for path in DRIVER):
        return []
    asked = subprocess.run(
        [sys.executable, "-m", "worker.device"], capture_output=True, timeout=120, check=False
    )
    return [str(name) for name in json.loads(asked.stdout)] if asked.returncode == 0 else []


def _print_gpus() -> None:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    sys.stdout.write(json.dumps(names))


if __name__ == "__main__":
    _print_gpus()
