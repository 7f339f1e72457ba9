"""Room in the cache of decoded images: what nobody uses goes, the longest unused first; what is used stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ppdd_core.data.cache_folder import make_room
from ppdd_core.data.dataset import LabelledImages, load_images
from ppdd_core.data.phantom import write_phantoms

Load = Callable[[int], LabelledImages]
HOLD = """
import sys
from pathlib import Path
from ppdd_core.data.dataset import load_images
path, cache, size = sys.argv[1:]
images, _ = load_images(Path(path), image_size=int(size), cache_dir=Path(cache), processes=0)
part = images.pixels_RHW[1:3, 2:]
del images
print("held", flush=True)
sys.stdin.read()
"""
LOAD_ALWAYS = """
import sys, time
from pathlib import Path
from ppdd_core.data.dataset import load_images
path, cache, size = sys.argv[1:]
until, prints = time.monotonic() + 3, set()
while time.monotonic() < until:
    images, _ = load_images(Path(path), image_size=int(size), cache_dir=Path(cache), processes=0)
    prints.add(images.fingerprint)
    assert images.pixels_RHW.sum() > 0
    del images
    time.sleep(0.02)
print(len(prints), flush=True)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "source", images=8, image_size=32, seed=0)
    return tmp_path / "source"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load(source: Path, cache: Path) -> Load:
    """Load the images at another size: an entry each."""
    return lambda size: load_images(source, image_size=size, cache_dir=cache, processes=0)[0]


def sizes(cache: Path) -> list[int]:
    """Return the image sizes of the entries."""
    pixels = (cache / "images").glob("?" * 64 + "/pixels.npy")
    return sorted(np.load(path, mmap_mode="r").shape[1] for path in pixels)


def bytes_of(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "images").glob("?" * 64 + "/*"))


def used_at(cache: Path, size: int, moment: float) -> None:
    for path in (cache / "images").glob("?" * 64 + "/pixels.npy"):
        if np.load(path, mmap_mode="r").shape[1] == size:
            os.utime(path.parent, (moment, moment))


@contextmanager
def holding(source: Path, cache: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has the images of one entry."""
    command = [sys.executable, "-c", HOLD, str(source), str(cache), str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_what_was_unused_for_longest_goes_first(load: Load, cache: Path) -> None:
    for size in (8, 16, 24, 32):
        load(size)
    for size, moment in ((8, 4e9), (16, 2e9), (24, 1e9), (32, 3e9)):
        used_at(cache, size, moment)
    gc.collect()
    before = bytes_of(cache)
    removed = make_room(cache, most_bytes=before - 1)
    assert (sizes(cache), bytes_of(cache)) == ([8, 16, 32], before - removed)
    make_room(cache, most_bytes=4 * 8 * 8 + 4000)
    assert sizes(cache) == [8]
    assert make_room(cache, most_bytes=10**9) == 0


def test_opening_is_using(load: Load, cache: Path) -> None:
    for size in (8, 16):
        load(size)
        used_at(cache, size, 1e9 + size)
    load(8)
    gc.collect()
    make_room(cache, most_bytes=bytes_of(cache) - 1)
    assert sizes(cache) == [8]


def test_what_went_is_made_anew_and_leaves_nothing(load: Load, cache: Path) -> None:
    first = load(8).fingerprint
    gc.collect()
    assert make_room(cache, most_bytes=0) > 0
    assert [path.name for path in (cache / "images").rglob("*")] == ["seen"]
    assert load(8).fingerprint == first
    assert sizes(cache) == [8]


def test_a_full_disk_counts_too(load: Load, cache: Path) -> None:
    load(8)
    gc.collect()
    assert make_room(cache, most_bytes=10**9, keep_free=1) == 0
    assert make_room(cache, most_bytes=10**9, keep_free=10**18) > 0
    assert sizes(cache) == []


def test_images_in_use_stay_until_the_last_view_of_them_is_let_go(load: Load, cache: Path) -> None:
    part = load(8).pixels_RHW[1:, ::2].T
    gc.collect()
    assert make_room(cache, most_bytes=0) == 0
    assert part.max() > 0
    del part
    gc.collect()
    assert make_room(cache, most_bytes=0) > 0


def test_images_that_another_process_uses_stay_until_it_ends_however(
    source: Path, load: Load, cache: Path
) -> None:
    load(16)
    gc.collect()
    with holding(source, cache, 8) as one, holding(source, cache, 8) as other:
        make_room(cache, most_bytes=0)
        assert sizes(cache) == [8]
        one.kill()
        one.wait()
        make_room(cache, most_bytes=0)
        assert sizes(cache) == [8]
        other.kill()
        other.wait()
        make_room(cache, most_bytes=0)
        assert sizes(cache) == []


def test_loading_and_removing_at_once_harm_nobody(source: Path, cache: Path) -> None:
    command = [sys.executable, "-c", LOAD_ALWAYS, str(source), str(cache), "8"]
    loaders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    removed, until = 0, time.monotonic() + 20
    while any(loader.poll() is None for loader in loaders):
        assert time.monotonic() < until, "the loaders hang"
        removed += bool(make_room(cache, most_bytes=0))
    for loader in loaders:
        said, error = loader.communicate()
        assert (loader.returncode, said) == (0, "1\n"), error
    assert removed > 3, "else nothing was tried"
    assert [path for path in (cache / "images").iterdir() if path.name.startswith("build")] == []


def test_making_room_where_nothing_was_ever_kept_is_nothing(tmp_path: Path) -> None:
    assert make_room(tmp_path / "nowhere", most_bytes=0) == 0


def test_a_process_that_makes_room_loads_no_array_library() -> None:
    code = "import sys, ppdd_core.data.cache_folder; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
