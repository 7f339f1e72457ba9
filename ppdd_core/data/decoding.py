"""Many images at once, in child processes: a file that crashes, hangs or hoards harms only itself.

`decode_all` is the parent's side, `serve` what a child runs. What decoding means is in `images.py`.
Measured on 112 x 112 JPEGs: threads gain nothing (the time is Python's, under its lock), processes scale.

A child reads requests on stdin and answers on stdout; both are framed by a fixed header. A request is a batch of small
files: one at a time, handing them over took longer than decoding them. The child reads all of a batch before it answers
the first, so that neither side ever waits for the other to read.
"""

from __future__ import annotations

import logging
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ppdd_core.data.images import Decoded, decode, decode_in_silence
from ppdd_core.data.names import shown
from ppdd_core.errors import BadImageError
from ppdd_core.processes import usable_cores

SECONDS_PER_IMAGE = 60
MEMORY_BYTES = 4 * 2**30  # address space of a child
MAX_CHILDREN = 16
BUFFER = 2**20  # bytes of a pipe read or written at once
IMAGES_PER_CHILD = 48  # below this a second child starts for nothing (0.3 s each)

BATCH_IMAGES, BATCH_BYTES = 32, 2**20  # a batch ends with the image that reaches either

_BATCH = struct.Struct("<I")  # images
_REQUEST = struct.Struct("<QI")  # bytes of data, bytes of name
_ANSWER = struct.Struct("<BI")  # 1 decoded or 0 refused, bytes that follow
_FACTS = struct.Struct("<IIBd")  # width, height, bits, extreme; then 256 counts, then the pixels
_COUNTS = 256 * 4

Outcome = Decoded | BadImageError


def decode_all(
    names: Sequence[str],
    read: Callable[[str], bytes],
    *,
    image_size: int,
    processes: int | None = None,
) -> Generator[tuple[int, Outcome], None, None]:
    """Yield (position in `names`, outcome) for every name, in the order they finish.

    `read` is called from several threads and may raise BadImageError. `processes` children decode (all
    usable cores unless told otherwise); 0 decodes in this process, for callers that are a limited
    child themselves. Memory stays flat: a few images per child are in flight. An error of `read` other
    than BadImageError ends the iteration.
    """
    if processes == 0:
        for at, name in enumerate(names):
            try:
                yield at, decode(read(name), name=name, image_size=image_size)
            except BadImageError as fault:
                yield at, fault
        return
    count = max(
        1, min(processes or min(MAX_CHILDREN, usable_cores()), -(-len(names) // IMAGES_PER_CHILD))
    )
    children = [_Child(image_size) for _ in range(count)]
    results: queue.SimpleQueue[list[tuple[int, Outcome]] | BaseException] = queue.SimpleQueue()
    room = threading.Semaphore(2 * count)
    positions = iter(range(len(names)))
    lock, stopping = threading.Lock(), threading.Event()

    def take() -> int | None:
        with lock:
            return next(positions, None)

    def work(child: _Child) -> None:
        while True:
            room.acquire()
            if stopping.is_set():
                return
            try:
                if not (batch := _next_batch(take, names, read)):
                    return
                results.put(child.decode_batch(names, batch))
            except BaseException as fault:  # handed to the caller's thread, which raises it
                results.put(fault)
                return

    threads = [threading.Thread(target=work, args=(child,), daemon=True) for child in children]
    try:
        for thread in threads:
            thread.start()
        left = len(names)
        while left:
            outcomes = results.get()
            room.release()
            if isinstance(outcomes, BaseException):
                raise outcomes
            left -= len(outcomes)
            yield from outcomes
    finally:
        stopping.set()
        room.release(count)
        for child in children:
            child.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _next_batch(
    take: Callable[[], int | None], names: Sequence[str], read: Callable[[str], bytes]
) -> list[tuple[int, bytes | BadImageError]]:
    """Return the next positions with what is to be decoded, or why it cannot be read."""
    batch: list[tuple[int, bytes | BadImageError]] = []
    size = 0
    while len(batch) < BATCH_IMAGES and size < BATCH_BYTES:
        if (at := take()) is None:
            break
        try:
            data = read(names[at])
        except BadImageError as fault:
            batch.append((at, fault))
        else:
            size += len(data)
            batch.append((at, data))
    return batch


class _Child:
    """One decoding process; started on first use, and again after a file has killed it."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._closed = threading.Lock(), False

    def decode_batch(
        self, names: Sequence[str], batch: Sequence[tuple[int, bytes | BadImageError]]
    ) -> list[tuple[int, Outcome]]:
        """Return an outcome for each; where an image kills the child, another one goes on behind it."""
        found: list[tuple[int, Outcome]] = [
            (at, data) for at, data in batch if isinstance(data, BadImageError)
        ]
        waiting = [(at, data) for at, data in batch if not isinstance(data, BadImageError)]
        while waiting:
            process = self._running()
            done = self._ask(process, [(names[at], data) for at, data in waiting])
            found += [(at, outcome) for (at, _), outcome in zip(waiting, done, strict=False)]
            waiting = waiting[len(done) :]
            if waiting:
                (at, _), *waiting = waiting
                fault = BadImageError(f"{shown(names[at])} {self._obituary(process)}")
                found.append((at, fault))
        return found

    def _ask(
        self, process: subprocess.Popen[bytes], images: Sequence[tuple[str, bytes]]
    ) -> list[Outcome]:
        """Return the outcomes of as many images, from the first on, as the child lived for."""
        assert process.stdin is not None
        assert process.stdout is not None
        found: list[Outcome] = []
        try:
            parts = [_BATCH.pack(len(images))]
            for name, data in images:
                label = name.encode(errors="replace")
                parts += [_REQUEST.pack(len(data), len(label)), label, data]
            process.stdin.write(b"".join(parts))
            process.stdin.flush()
            while len(found) < len(images):
                answer = process.stdout.read(_ANSWER.size)
                if len(answer) < _ANSWER.size:
                    break
                good, size = _ANSWER.unpack(answer)
                payload = process.stdout.read(size)
                if len(payload) < size:
                    break
                found.append(_unpack(good, payload, self._image_size))
        except (BrokenPipeError, ValueError):  # ValueError: closed by `close` in another thread
            pass
        return found

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with self._lock:
            self._closed, process, self._process = True, self._process, None
        if process is not None:
            process.kill()
            _reap(process)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise BadImageError("decoding was stopped")
            if self._process is None:
                self._process = _start(self._image_size)
            return self._process

    def _obituary(self, process: subprocess.Popen[bytes]) -> str:
        with self._lock:
            if self._process is process:
                self._process = None
        process.kill()
        code = _reap(process)
        if code == -signal.SIGALRM:
            return f"took longer than {SECONDS_PER_IMAGE} s to decode"
        if code < 0 and code != -signal.SIGKILL:
            return f"crashed the decoder ({signal.Signals(-code).name})"
        return "ended the decoder (out of memory, or killed from outside)"


def _start(image_size: int) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"from ppdd_core.data.decoding import serve; serve({image_size:d})"
    # BLAS threads would each reserve address space, and there is nothing for them to do
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(  # noqa: S603 - our own interpreter, our own code
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=BUFFER,
        env={**os.environ, **single, "PYTHONPATH": path},
    )


def _reap(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # unwritten bytes for a process that is gone
                pipe.close()
    return code


def serve(image_size: int) -> None:
    """Decode requests from stdin until it closes; what a child process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold patient images
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with suppress(ValueError, OSError):  # macOS knows the limit and refuses it
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(header := requests.read(_BATCH.size)) == _BATCH.size:
        (count,) = _BATCH.unpack(header)
        images = []
        for _ in range(count):
            data_size, name_size = _REQUEST.unpack(requests.read(_REQUEST.size))
            name = requests.read(name_size).decode()
            images.append((name, requests.read(data_size)))
        for name, data in images:
            signal.alarm(SECONDS_PER_IMAGE)  # kills this process even inside a decoder's C code
            try:
                decoded = decode_in_silence(data, name=name, image_size=image_size)
                _answer(answers, 1, _pack(decoded))
            except BadImageError as fault:
                _answer(answers, 0, str(fault).encode(errors="replace"))
            signal.alarm(0)


def _answer(answers: BinaryIO, good: int, payload: bytes) -> None:
    answers.write(_ANSWER.pack(good, len(payload)) + payload)
    answers.flush()


def _pack(image: Decoded) -> bytes:
    facts = _FACTS.pack(image.width, image.height, image.bits, image.extreme)
    return facts + image.counts.tobytes() + image.pixels_SS.tobytes()


def _unpack(good: int, payload: bytes, image_size: int) -> Outcome:
    if not good:
        return BadImageError(payload.decode(errors="replace"))
    width, height, bits, extreme = _FACTS.unpack_from(payload)
    counts = np.frombuffer(payload, dtype=np.uint32, count=256, offset=_FACTS.size)
    pixels = np.frombuffer(payload, dtype=np.uint8, offset=_FACTS.size + _COUNTS)
    return Decoded(pixels.reshape(image_size, image_size), counts, width, height, bits, extreme)
