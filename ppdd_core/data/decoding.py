"""Many images at once, in child processes: a file that crashes, hangs or hoards harms only itself.

`decode_all` is the parent's side, `serve` what a child runs. What decoding means is in `images.py`.
Measured on 112 x 112 JPEGs: threads gain nothing (the time is Python's, under its lock), processes scale.

A child reads requests on stdin and answers on stdout; both are framed by a fixed header.
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

from ppdd_core.data.images import Decoded, decode
from ppdd_core.data.names import shown
from ppdd_core.errors import BadImageError

SECONDS_PER_IMAGE = 60
MEMORY_BYTES = 4 * 2**30  # address space of a child
MAX_CHILDREN = 16
IMAGES_PER_CHILD = 48  # below this a second child starts for nothing (0.3 s each)

_REQUEST = struct.Struct("<QI")  # bytes of data, bytes of name
_ANSWER = struct.Struct("<BI")  # 1 decoded or 0 refused, bytes that follow
_FACTS = struct.Struct("<IIBd")  # width, height, bits, extreme

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
            yield (
                at,
                _attempt(
                    name, read, lambda name, data: decode(data, name=name, image_size=image_size)
                ),
            )
        return
    count = max(1, min(processes or _usable_cores(), -(-len(names) // IMAGES_PER_CHILD)))
    children = [_Child(image_size) for _ in range(count)]
    results: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
    room = threading.Semaphore(4 * count)
    positions = iter(range(len(names)))
    lock, stopping = threading.Lock(), threading.Event()

    def work(child: _Child) -> None:
        while True:
            room.acquire()
            with lock:
                at = next(positions, None)
            if at is None or stopping.is_set():
                return
            try:
                results.put((at, _attempt(names[at], read, child.decode)))
            except BaseException as fault:  # handed to the caller's thread, which raises it
                results.put((at, fault))
                return

    threads = [threading.Thread(target=work, args=(child,), daemon=True) for child in children]
    try:
        for thread in threads:
            thread.start()
        for _ in names:
            at, outcome = results.get()
            room.release()
            if isinstance(outcome, BaseException) and not isinstance(outcome, BadImageError):
                raise outcome
            yield at, outcome
    finally:
        stopping.set()
        room.release(count)
        for child in children:
            child.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(MAX_CHILDREN, len(os.sched_getaffinity(0)))
    return min(MAX_CHILDREN, os.cpu_count() or 1)


def _attempt(
    name: str, read: Callable[[str], bytes], decode_one: Callable[[str, bytes], Decoded]
) -> Outcome:
    try:
        return decode_one(name, read(name))
    except BadImageError as fault:
        return fault


class _Child:
    """One decoding process; started on first use, and again after a file has killed it."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._closed = threading.Lock(), False

    def decode(self, name: str, data: bytes) -> Decoded:
        """Return the image, or raise BadImageError with the reason, death of the child included."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        label = name.encode(errors="replace")
        try:
            process.stdin.write(_REQUEST.pack(len(data), len(label)) + label)
            process.stdin.write(data)
            process.stdin.flush()
            answer = process.stdout.read(_ANSWER.size)
            if len(answer) == _ANSWER.size:
                good, size = _ANSWER.unpack(answer)
                payload = process.stdout.read(size)
                if len(payload) == size:
                    return _unpack(good, payload, self._image_size)
        except (BrokenPipeError, ValueError):  # ValueError: closed by `close` in another thread
            pass
        raise BadImageError(f"{shown(name)} {self._obituary(process)}")

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
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        data_size, name_size = _REQUEST.unpack(header)
        name = requests.read(name_size).decode()
        data = requests.read(data_size)
        signal.alarm(SECONDS_PER_IMAGE)  # kills this process even inside a decoder's C code
        try:
            _answer(answers, 1, _pack(decode(data, name=name, image_size=image_size)))
        except BadImageError as fault:
            _answer(answers, 0, str(fault).encode(errors="replace"))
        signal.alarm(0)


def _answer(answers: BinaryIO, good: int, payload: bytes) -> None:
    answers.write(_ANSWER.pack(good, len(payload)) + payload)
    answers.flush()


def _pack(image: Decoded) -> bytes:
    facts = _FACTS.pack(image.width, image.height, image.bits, image.extreme)
    return facts + image.pixels_SS.tobytes()


def _unpack(good: int, payload: bytes, image_size: int) -> Decoded:
    if not good:
        raise BadImageError(payload.decode(errors="replace"))
    width, height, bits, extreme = _FACTS.unpack_from(payload)
    pixels = np.frombuffer(payload, dtype=np.uint8, offset=_FACTS.size)
    return Decoded(pixels.reshape(image_size, image_size), width, height, bits, extreme)
