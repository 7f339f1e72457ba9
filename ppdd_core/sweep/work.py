"""Doing one piece of a sweep, in whatever process: the stages of `pipeline`, their results kept as files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppdd_core import __version__, estimate
from ppdd_core.config import Recipe
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.detector.evaluate import FullNetwork, Train
from ppdd_core.errors import CheckpointError
from ppdd_core.package.previews import draw_image
from ppdd_core.pipeline import (
    Images,
    Measured,
    Source,
    StageProgress,
    distil_set,
    evaluate,
    load_split,
    teach,
)
from ppdd_core.processes import usable_cores
from ppdd_core.run_folder import read_json
from ppdd_core.sweep.plan import Piece
from ppdd_core.teachers.store import TrajectoryStore

SHOWN, CELL, GAP, PAPER = 5, 96, 4, 128  # of a contact sheet: images a class, pixels, grey
TICK = 5.0  # seconds between two notes of how long a piece has taken, which survive a kill

OnProgress = Callable[[float, str], None]  # (share of the piece, what is to be said of it)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every process of a sweep must know."""

    source: Source
    out: Path
    on: Measured
    processes: int = 1  # teachers side by side within a piece
    threads: int = 0  # of torch on the CPU; 0 = as it is
    cache_dir: Path | None = None


class Desk:
    """Where one process works: its device, and the images of the seed it works on."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._seed = -1
        self._images: dict[int, Images] = {}  # by size

    def images(self, recipe: Recipe) -> Images:
        """Return the split images of a recipe, loaded once for all pieces of a seed."""
        if recipe.seed != self._seed:
            self._seed, self._images = recipe.seed, {}
        if recipe.image_size not in self._images:
            self._images[recipe.image_size] = load_split(
                self.settings.source, recipe, cache_dir=self.settings.cache_dir
            )
        return self._images[recipe.image_size]


def finished(piece: Piece, out: Path) -> dict[str, Any] | None:
    """Return what a piece came to, None where it is still to be done."""
    path = out / piece.file
    known = read_json(path) if path.exists() else {}
    ours = known.get("of") == piece.of and isinstance(known.get("report"), dict)
    report: dict[str, Any] | None = dict(known["report"]) if ours else None
    if piece.kind == "teachers":  # they count as they lie there, whoever trained them
        store, epochs = TrajectoryStore(out / piece.teachers), piece.recipe.used_epochs
        if any(store.epochs_done(t) < epochs for t in piece.numbers):
            return None
        accuracy = [store.info(t, epochs).accuracy for t in piece.numbers]
        return {**(report or {}), "balanced_accuracy": accuracy}
    return report


def do(piece: Piece, desk: Desk, on_progress: OnProgress) -> None:
    """Compute a piece, going on from what is there of it, and write its file."""
    work = {
        "estimate": _estimate,
        "teachers": _teach,
        "full data": _evaluate_real,
        "real images": _evaluate_real,
        "distillation": _distil,
        "evaluation": _evaluate_set,
    }[piece.kind]
    path = desk.settings.out / piece.file
    clock = _Clock(path.with_name(f".{path.stem}.seconds"))

    def report(progress: StageProgress) -> None:
        clock.tick()
        on_progress(progress.done / max(progress.total, 1), progress.note)

    report_of_piece = {
        **work(piece, desk, report),
        "seconds": round(clock.tick(), 2),
        "commit": commit(),
        "torch": torch.__version__,
        "device": str(desk.device),
    }
    write_atomically(path, json_bytes({"of": piece.of, "report": report_of_piece}))
    clock.file.unlink(missing_ok=True)


class _Clock:
    """Seconds that a piece has taken, over kills: what earlier processes noted counts too."""

    def __init__(self, file: Path) -> None:
        self.file, self._began = file, time.perf_counter()
        self._before, self._noted = 0.0, 0.0
        with contextlib.suppress(OSError, ValueError):
            self._before = float(file.read_text())

    def tick(self) -> float:
        taken = self._before + time.perf_counter() - self._began
        if taken - self._noted > TICK:
            self._noted = taken
            write_atomically(self.file, f"{taken:.2f}".encode())
        return taken


def _estimate(piece: Piece, desk: Desk, _report: Callable[[StageProgress], None]) -> dict[str, Any]:
    """Measure as `ppdd estimate` does, with the threads that a piece of the sweep has."""
    split, threads = desk.images(piece.recipe).split, desk.settings.threads
    before = os.environ.get("OMP_NUM_THREADS")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the processes that measure
    try:
        found = estimate.estimate_run(piece.recipe, split, device=desk.device, processes=1)
    finally:
        if threads:
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
    return {"estimated": found.seconds, "peak_bytes": found.peak_bytes}


def _teach(piece: Piece, desk: Desk, report: Callable[[StageProgress], None]) -> dict[str, Any]:
    teach(
        desk.images(piece.recipe),
        piece.recipe,
        desk.settings.out / piece.teachers,
        device=desk.device,
        processes=desk.settings.processes,
        numbers=iter(piece.numbers),
        on_progress=report,
    )
    return {"side_by_side": _side_by_side(piece, desk)}


def _side_by_side(piece: Piece, desk: Desk) -> int:
    processes = desk.settings.processes or os.cpu_count() or 1
    return min(processes, len(piece.numbers)) if desk.device.type == "cpu" else 1


def _distil(piece: Piece, desk: Desk, report: Callable[[StageProgress], None]) -> dict[str, Any]:
    folder = (desk.settings.out / piece.file).parent

    def draw(step: int, shown: DistilledSet) -> None:
        write_atomically(folder / "sheets" / f"step-{step:06d}.png", contact_sheet(shown))

    images = desk.images(piece.recipe)
    taught = desk.settings.out / piece.teachers
    # nothing is left to train: this looks whether they learned anything
    store = teach(images, piece.recipe, taught, device=desk.device)
    distilled = distil_set(
        images,
        piece.recipe,
        store,
        folder,
        device=desk.device,
        on_snapshot=draw if piece.sheets else lambda *_: None,
        on_progress=report,
    )
    tensors = (distilled.images, distilled.labels)
    return {
        "learning_rate": distilled.learning_rate,
        "images": len(distilled),
        "classes": list(distilled.classes),
        "bytes": sum(one.numel() * one.element_size() for one in tensors),
        **_end_of(folder / "history.jsonl"),
    }


def _end_of(history: Path) -> dict[str, Any]:
    """Return means over the last tenth of the steps."""
    steps = [json.loads(line) for line in history.read_text().splitlines()]
    last = steps[-max(1, len(steps) // 10) :]
    return {
        "matching_loss": round(statistics.fmean(step["loss"] for step in last), 6),
        "pruned": round(statistics.fmean(step["pruned"] for step in last), 6),
        "rollbacks": steps[-1]["rollbacks"],
    }


def contact_sheet(shown: DistilledSet) -> bytes:
    """Return a PNG of the first images of every class: a row per class, nothing written on it."""
    labels_I = shown.labels if shown.labels.ndim == 1 else shown.labels.argmax(1)
    grey_IHW = (shown.grey_IHW().numpy() * 255).round().astype(np.uint8)
    enlarged = max(1, CELL // shown.image_size)
    side = shown.image_size * enlarged
    rows = [(labels_I == label).nonzero().flatten()[:SHOWN] for label in range(len(shown.classes))]
    columns = max(len(row) for row in rows)
    sheet_HW = np.full((len(rows) * (side + GAP) - GAP, columns * (side + GAP) - GAP), PAPER)
    for y, row in enumerate(rows):
        for x, image in enumerate(row.tolist()):
            top, left = y * (side + GAP), x * (side + GAP)
            big_HW = np.kron(grey_IHW[image], np.ones((enlarged, enlarged), dtype=np.uint8))
            sheet_HW[top : top + side, left : left + side] = big_HW
    return draw_image(sheet_HW.astype(np.uint8))


def _evaluate_set(
    piece: Piece, desk: Desk, report: Callable[[StageProgress], None]
) -> dict[str, Any]:
    images, out = desk.images(piece.recipe), desk.settings.out
    distilled = distil_set(  # it is finished: this reads it
        images,
        piece.recipe,
        TrajectoryStore(out / piece.teachers),
        (out / piece.file).parent,
        device=desk.device,
    )
    found = evaluate(
        images,
        piece.recipe,
        [(piece.method, distilled)],
        device=desk.device,
        baselines=(),
        on=desk.settings.on,
        score_validation=desk.settings.on == "test",  # to choose by
        on_progress=report,
    )
    return _figures(found)


def _evaluate_real(
    piece: Piece, desk: Desk, report: Callable[[StageProgress], None]
) -> dict[str, Any]:
    images = desk.images(piece.recipe)
    found = evaluate(
        images,
        piece.recipe,
        [],
        device=desk.device,
        baselines=(piece.method,),
        sizes=(piece.size,) if piece.size else (),
        on=desk.settings.on,
        remembered=functools.partial(_remembered, desk.settings.out / piece.full),
        on_progress=report,
    )
    pixels = images.split.train.pixels_RHW
    count = min(len(pixels), piece.size * len(images.split.train.classes)) or len(pixels)
    return _figures(found) | {"bytes": count * pixels[0].nbytes, "images": count}


def _figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an evaluation that the report is made of: figures of whole networks, none of a class."""
    kept = (
        "method", "architecture", "images_per_class", "seed", "learning_rate", "accuracy", "balanced_accuracy",
        "macro_auroc", "calibration_error", "validation_balanced_accuracy", "epochs",
    )  # fmt: skip
    return {
        "results": [
            {name: entry[name] for name in kept if name in entry} for entry in evaluation["results"]
        ],
        "measured_on": evaluation["images"],
    }


def _remembered(file: Path, train: Train) -> Iterable[FullNetwork]:
    """Return the networks of `file`; where it does not exist, train and keep them."""
    if not file.exists():
        networks = list(train())
        facts = [{"seed": one.seed, "lr": one.lr, "epochs": one.epochs} for one in networks]
        tensors = {f"{number}": one.theta_P.cpu() for number, one in enumerate(networks)}
        write_atomically(file, save(tensors, {"networks": json.dumps(facts)}))
    return _read_networks(file)


def _read_networks(file: Path) -> Iterator[FullNetwork]:
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["networks"])
            for number, one in enumerate(facts):
                theta_P: Tensor = opened.get_tensor(f"{number}")
                yield FullNetwork(one["seed"], one["lr"], theta_P, one["epochs"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); delete it and run again") from None


@functools.cache
def commit() -> str:
    """Return the commit of the code where it is a checkout, else the version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return __version__
    return done.stdout.strip() or __version__


def settings_for(settings: Settings, *, workers: int, device: torch.device) -> Settings:
    """Return the settings of one of several processes on this machine: cores are split between them."""
    if device.type != "cpu":
        return settings
    if workers == 1:
        return dataclasses.replace(settings, processes=0)
    each = max(1, usable_cores() // workers)
    return dataclasses.replace(settings, processes=each, threads=each)
