"""Images per second of our ingest, cold, against the bare decode of the same files, in turns. Torch-free.

Ours is all that happens when a dataset is registered: listing, reading, hashing, decoding in guarded children, the
cache on disk, the findings. `python -m ppdd_core.benchmark.ingest` does it once, in a fresh process, as JSON on
stdin says.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdd_core.data.dataset import load_images
from ppdd_core.data.images import MAX_SIDE
from ppdd_core.data.sources import list_images, open_source
from ppdd_core.errors import BadConfigError, BenchmarkError, PpddError


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of each round of one side, for so many images: on the clock, and of a core, children's included."""

    name: str
    images: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """Return the median of the rounds."""
        return self.images / statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name, "images_per_second": round(self.images_per_second, 1),
            "seconds": [round(one, 3) for one in self.seconds],
            "cpu_seconds": [round(one, 3) for one in self.cpu_seconds],
        }  # fmt: skip


def measure_ingest(
    data: Path,
    where: Mapping[str, str],
    *,
    size: int,
    rounds: int,
    cores: int,
    on_round: Callable[[int, int], None],
) -> tuple[Pace, Pace]:
    """Return ours and the bare decode, measured `rounds` times in turns; the first to begin changes every round.

    Raises as `load_images` does, and BenchmarkError where a process fails or a file cannot be decoded: all files that
    are counted must be readable.
    """
    if not 1 <= size <= MAX_SIDE:
        raise BadConfigError(f"--size must lie in 1..{MAX_SIDE}, got {size}")
    with open_source(data) as (source, manifest):
        listing = list_images(source, manifest=manifest, where=dict(where) or None)
    root = data.parent if data.suffix.lower() == ".csv" else data
    names = [entry.name for entry in listing.entries]
    ours: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    sides: list[Callable[[], None]] = [
        lambda: ours.append(_ours(data, where, size, len(names))),
        lambda: bare.append(_bare(root, names, size, cores)),
    ]
    for turn in range(rounds):
        for place in range(2):
            sides[(turn + place) % 2]()
            on_round(2 * turn + place + 1, 2 * rounds)
    return _pace("ours", len(names), ours), _pace("bare decode", len(names), bare)


def _pace(name: str, images: int, rounds: Sequence[tuple[float, float]]) -> Pace:
    return Pace(name, images, tuple(one for one, _ in rounds), tuple(cpu for _, cpu in rounds))


def median_ratio(ours: Pace, bare: Pace) -> float:
    """Return the median over rounds of our images per second as a share of the bare decode's."""
    return statistics.median(b / a for a, b in zip(ours.seconds, bare.seconds, strict=True))


def cpu_ratio(ours: Pace, bare: Pace) -> float:
    """Return the same in images per second of a core: what other work on the machine changes least."""
    return statistics.median(b / a for a, b in zip(ours.cpu_seconds, bare.cpu_seconds, strict=True))


def _ours(data: Path, where: Mapping[str, str], size: int, images: int) -> tuple[float, float]:
    asked = {"data": str(data), "where": dict(where), "size": size}
    done = subprocess.run(
        [sys.executable, "-m", "ppdd_core.benchmark.ingest"],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"our ingest failed; it said: {_last(done.stderr)}")
    found = json.loads(done.stdout)
    _all_decoded("our ingest", found["images"], images)
    return float(found["seconds"]), float(found["cpu_seconds"])


def _bare(root: Path, names: list[str], size: int, cores: int) -> tuple[float, float]:
    began, cpu = time.perf_counter(), _of_children()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "ppdd_core.benchmark.bare"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(cores)
    ]  # fmt: skip
    for number, child in enumerate(running):
        assert child.stdin is not None
        share = {"path": str(root), "names": names[number::cores], "size": size}
        child.stdin.write(json.dumps(share))
        child.stdin.close()
        child.stdin = None
    done, failed = 0, ""
    for child in running:
        out, said = child.communicate()
        if child.returncode:
            failed = failed or _last(said)
        else:
            done += int(out)
    seconds, cpu = time.perf_counter() - began, _of_children() - cpu
    if failed:
        raise BenchmarkError(f"the bare decode failed; it said: {failed}")
    _all_decoded("the bare decode", done, len(names))
    return seconds, cpu


def _of_children() -> float:
    """Return the seconds of a core that ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _all_decoded(side: str, done: int, wanted: int) -> None:
    if done != wanted:
        raise BenchmarkError(
            f"{side} decoded {done:,} of {wanted:,} images; only sources without damaged files can be compared"
        )


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["nothing"])[-1]


def main() -> None:
    """Ingest once into a cache that is thrown away; a refusal of ours is one line on stderr."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            data, _ = load_images(
                Path(asked["data"]), image_size=asked["size"], where=asked["where"] or None,
                cache_dir=Path(folder),
            )  # fmt: skip
        except PpddError as err:
            sys.exit(str(err))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu + _of_children()
    found = {"seconds": seconds, "cpu_seconds": cpu, "images": len(data)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
