"""Doing the pieces of a sweep in an order that their needs allow: here one by one, or by several processes.

A piece that fails is remembered with its reason, and so are those that wait for it; the others go on. Processes end
with their parent, however that ends: a sweep that is started again never works beside its ghosts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ppdd_core.errors import PpddError
from ppdd_core.processes import end_with_parent
from ppdd_core.sweep.plan import Piece
from ppdd_core.sweep.work import Desk, Settings, do, finished

EVERY = 0.5  # seconds between two words of a process about its piece
GRACE = 30.0  # seconds in which a process told to stop saves its state
NO_MEMORY = (
    "the GPU has too little memory for it; use fewer images per student step (distill.batch_syn)"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a sweep is: the share of the work done, pieces, and what runs now."""

    share: float
    done: int
    total: int
    failed: int
    running: tuple[str, ...]
    finished: str = ""  # the piece that was finished just now, and how


OnStanding = Callable[[Standing], None]


@dataclass(slots=True)
class _Ledger:
    """Which pieces are done, failed and still to do."""

    pieces: Sequence[Piece]
    on_standing: OnStanding
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    todo: list[Piece] = field(default_factory=list)
    running: dict[str, tuple[Piece, float, str]] = field(default_factory=dict)

    def ready(self) -> Piece | None:
        """Return the next piece whose needs are met, after taking out those whose needs failed."""
        for piece in list(self.todo):
            broken = next((need for need in piece.needs if need in self.failed), None)
            if broken is not None:
                self.todo.remove(piece)
                before = next(one.title for one in self.pieces if one.file == broken)
                reason = self.failed[broken]
                self.failed[piece.file] = reason if ": " in reason else f"{before}: {reason}"
            elif all(need in self.done for need in piece.needs):
                return piece
        return None

    def start(self, piece: Piece) -> None:
        self.todo.remove(piece)
        self.running[piece.file] = (piece, 0.0, "")
        self.say()

    def progress(self, piece: Piece, share: float, note: str) -> None:
        self.running[piece.file] = (piece, min(share, 1.0), note)
        self.say()

    def end(self, piece: Piece, failure: str | None) -> None:
        del self.running[piece.file]
        if failure is None:
            self.done.add(piece.file)
        else:
            self.failed[piece.file] = failure
        self.say(f"{piece.title}: {failure or 'done'}")

    def say(self, finished: str = "") -> None:
        all_of_it = sum(piece.weight for piece in self.pieces) or 1.0
        ended = self.done | set(self.failed)
        so_far = sum(piece.weight for piece in self.pieces if piece.file in ended)
        so_far += sum(piece.weight * share for piece, share, _ in self.running.values())
        running = tuple(
            f"{piece.title} {share:.0%} {note}".rstrip()
            for piece, share, note in self.running.values()
        )
        self.on_standing(
            Standing(
                so_far / all_of_it,
                len(self.done),
                len(self.pieces),
                len(self.failed),
                running,
                finished,
            )
        )


def run(
    pieces: Sequence[Piece],
    settings: Settings,
    *,
    device: torch.device,
    processes: int = 1,
    desk: Desk | None = None,
    on_standing: OnStanding = lambda _: None,
) -> dict[str, str]:
    """Do every piece that is not there yet; return the reasons of those that failed, by file.

    With several `processes` on GPUs, each gets the next one of the devices that are visible.
    """
    ledger = _Ledger(pieces, on_standing)
    for piece in pieces:
        if finished(piece, settings.out) is None:
            ledger.todo.append(piece)
        else:
            ledger.done.add(piece.file)
    ledger.say()
    here = desk or Desk(settings, device)
    # estimates come first, and measure an idle machine: they are never shared out
    while (one := ledger.ready()) is not None and (processes == 1 or one.kind == "estimate"):
        _do_here(ledger, one, here)
    if ledger.todo:
        with _crew(settings, device, processes) as workers:
            _share_out(ledger, workers)
    return ledger.failed


def _do_here(ledger: _Ledger, piece: Piece, desk: Desk) -> None:
    ledger.start(piece)
    failure = _attempt(piece, desk, lambda share, note: ledger.progress(piece, share, note))
    ledger.end(piece, failure)


def _attempt(piece: Piece, desk: Desk, report: Callable[[float, str], None]) -> str | None:
    """Do a piece; return what went wrong where that is no bug."""
    try:
        do(piece, desk, report)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return NO_MEMORY
    except PpddError as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------- processes


@dataclass(slots=True)
class _Worker:
    """A process that does pieces, and our end of the line to it."""

    number: int
    settings: Settings
    device: str
    process: Any = None
    line: Any = None
    piece: Piece | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.settings, self.device))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process.start()  # signals wait until it answers them itself
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, piece: Piece) -> None:
        self.piece = piece
        with contextlib.suppress(BrokenPipeError):  # it is gone: that is heard of next
            self.line.send(piece)


@contextlib.contextmanager
def _crew(settings: Settings, device: torch.device, count: int) -> Iterator[list[_Worker]]:
    """Start `count` processes; on leaving they are told to stop, and then made to."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    names = [f"cuda:{number % gpus}" if gpus else "cpu" for number in range(count)]
    workers = [_Worker(number, settings, name) for number, name in enumerate(names)]
    try:
        for worker in workers:
            worker.start()
        yield workers
    finally:
        alive = [one for one in workers if one.process is not None and one.process.is_alive()]
        for one in alive:
            one.process.terminate()
        until = time.monotonic() + GRACE
        for one in alive:
            one.process.join(max(0.0, until - time.monotonic()))
            if one.process.is_alive():
                one.process.kill()
                one.process.join()


def _share_out(ledger: _Ledger, workers: list[_Worker]) -> None:
    while True:
        for worker in workers:
            piece = ledger.ready() if worker.piece is None else None
            if piece is not None:
                ledger.start(piece)
                worker.give(piece)
        busy = {worker.line: worker for worker in workers if worker.piece is not None}
        if not busy:
            return
        for line in wait(list(busy)):
            _hear(ledger, busy[line])


def _hear(ledger: _Ledger, worker: _Worker) -> None:
    """Take one message of a process; one that is gone fails its piece and is replaced."""
    piece = worker.piece
    assert piece is not None
    try:
        kind, *said = worker.line.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        worker.piece = None
        killed = code is not None and code < 0
        ledger.end(
            piece,
            f"its process was killed (signal {-code}), probably for want of memory"
            if killed
            else f"its process ended with code {code}; what it said is above",
        )
        worker.start()
        return
    if kind == "progress":
        ledger.progress(piece, *said)
    else:
        worker.piece = None
        ledger.end(piece, *said)


def _work(line: Connection, settings: Settings, device_name: str) -> None:
    """Do the pieces that come along `line`, until the parent ends or says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the parent decides
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    end_with_parent()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        device = torch.device("cuda")
    desk = Desk(settings, device)
    try:
        while True:
            piece = line.recv()
            line.send(("end", _attempt(piece, desk, _throttled(line))))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return


def _throttled(line: Connection) -> Callable[[float, str], None]:
    last = 0.0

    def report(share: float, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            line.send(("progress", share, note))

    return report


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
