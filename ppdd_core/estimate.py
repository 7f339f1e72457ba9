"""What a run will take, from a short measurement on this device: seconds, peak memory, disk, package size.

Measured in fresh child processes, so that a peak is the work's own: one does what a teacher does (a few batches),
one what the run itself does (student steps through the real engine, a few epochs of a detector). The rest is
multiplication.

Memory on the CPU is the larger of two moments, plus the real images: teachers side by side, each a process with its
own torch, beside the run that waits for them; or the run alone, with what the privacy report takes as float32. Pages of
libraries that processes share are counted for each, so it is an upper figure. On a GPU it is the GPU's memory.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ppdd_core.config import EvaluationConfig, Recipe
from ppdd_core.data.dataset import Split
from ppdd_core.distill.loop import Run, Segments, first_state, match_once
from ppdd_core.distill.start import synthetic_labels
from ppdd_core.nets.fit import train_epoch, train_on_set
from ppdd_core.nets.functional import FlatNet

PREVIEW_BYTES = 1.2  # per pixel, PNG of noise-like images, contact sheet included

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds by stage, and bytes."""

    seconds: dict[str, float]
    peak_bytes: int
    disk_bytes: int
    package_bytes: int

    @property
    def total_seconds(self) -> float:
        """Return the seconds of all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """What one teacher and one run were seen to take on a device."""

    teacher: _Teacher
    student: _Student
    cpu: bool


@dataclass(frozen=True, slots=True)
class _Teacher:
    image: float  # seconds per image of a teacher's epoch, one process
    baseline_bytes: int  # of a process that has imported torch and does nothing
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Student:
    step: float  # seconds per student step, forwards and backwards
    detector_epoch: float  # seconds per epoch on the synthetic images
    peak_bytes: int
    parameters: int


def estimate_run(
    recipe: Recipe, split: Split, *, device: torch.device, processes: int = 0
) -> Estimate:
    """Return what a run with `recipe` on `split` will take on this machine.

    `processes` teachers are trained side by side on the CPU; 0 = one per core.
    """
    measured = measure(recipe, len(split.train.classes), device)
    return multiplied(measured, recipe, split, processes=processes)


def measure(recipe: Recipe, classes: int, device: torch.device) -> Measured:
    """Do what a teacher and a run do, each for a moment in a process of its own."""
    return Measured(
        _in_child(_measure_teacher, recipe, classes, str(device)),
        _in_child(_measure_student, recipe, classes, str(device)),
        device.type == "cpu",
    )


def multiplied(measured: Measured, recipe: Recipe, split: Split, *, processes: int = 0) -> Estimate:
    """Return what a run of `recipe` on `split` will take if it goes on as `measured`: see `estimate_run`."""
    one, student, cpu = measured.teacher, measured.student, measured.cpu
    classes = len(split.train.classes)
    teacher, distill, detector = recipe.teacher, recipe.distill, recipe.detector
    epoch_images = teacher.epoch_images or len(split.train)
    side_by_side = min(processes or os.cpu_count() or 1, teacher.teachers) if cpu else 1
    rounds = -(-teacher.teachers // side_by_side)
    few, full = trainings(recipe.evaluation, detector.seeds)
    full_images = (
        recipe.evaluation.full_epoch_images or len(split.train)
    ) * recipe.evaluation.full_epochs
    seconds = {
        "teachers": one.image * epoch_images * recipe.used_epochs * rounds,
        "distillation": student.step * distill.student_steps * distill.iterations,
        "evaluation": student.detector_epoch * detector.epochs * few
        + one.image * full_images * full,
        "privacy": student.detector_epoch * detector.epochs * detector.seeds,
    }
    snapshot = student.parameters * (4 if teacher.dtype == "float32" else 2)
    pixels_each = recipe.image_size**2
    package = (
        round(distill.images_per_class * classes * pixels_each * (4 + 2 * PREVIEW_BYTES)) + 200_000
    )
    teaching = one.baseline_bytes + side_by_side * one.peak_bytes if cpu else one.peak_bytes
    compared = min(recipe.privacy.members, len(split.train)) + min(
        recipe.privacy.members, len(split.validation)
    )
    real = (len(split.train) + len(split.validation) + len(split.test)) * pixels_each
    return Estimate(
        seconds=seconds,
        peak_bytes=max(teaching, student.peak_bytes + 4 * compared * pixels_each) + real,
        disk_bytes=snapshot * teacher.teachers * (recipe.used_epochs + 1) + real + 2 * package,
        package_bytes=package,
    )


def trainings(evaluation: EvaluationConfig, seeds: int) -> tuple[int, int]:
    """Return how many networks the evaluation trains: on few images, and on all real ones.

    Few real images cost one training more per step size tried, where there is a choice. Networks on all images
    are shared by `full_data` and `k_centre`.
    """
    choices = len(set(evaluation.grid))
    tried = choices if choices > 1 else 0
    few_real = len({"random_real", "k_centre"} & set(evaluation.names))
    full = min(seeds, evaluation.full_networks)
    return (
        seeds + few_real * (seeds + tried),
        full if {"full_data", "k_centre"} & set(evaluation.names) else 0,
    )


def _in_child(work: Callable[[Recipe, int, str], T], recipe: Recipe, classes: int, on: str) -> T:
    """Return what `work` measures in a fresh process, which Ctrl-C ends without a word of its own."""
    context = torch.multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(1, mp_context=context)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits it
    try:
        try:
            future = executor.submit(work, recipe, classes, on)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        result = future.result()
        executor.shutdown()
    except BaseException:
        for child in list((executor._processes or {}).values()):  # no public way to stop them
            child.terminate()
        executor.shutdown(cancel_futures=True)
        raise
    return result


def _measure_teacher(recipe: Recipe, classes: int, device_name: str) -> _Teacher:
    baseline, device, size = _peak_bytes("cpu"), torch.device(device_name), recipe.image_size
    if device.type == "cpu":
        torch.set_num_threads(1)  # as teachers are trained
    net = FlatNet(recipe.net, classes=classes, image_size=size)
    batch = min(recipe.teacher.batch_size, 256)
    x_BCHW = torch.randn(batch, 1, size, size, device=device)
    labels_B = torch.arange(batch, device=device) % classes
    theta_P = net.initial(0).to(device)
    velocity_P = torch.zeros_like(theta_P)
    seconds = _seconds(
        lambda: train_epoch(net, theta_P, velocity_P, [(x_BCHW, labels_B)], lr=1e-4), device
    )
    return _Teacher(seconds / batch, baseline, _peak_bytes(device.type))


def _measure_student(recipe: Recipe, classes: int, device_name: str) -> _Student:
    device, size = torch.device(device_name), recipe.image_size
    net = FlatNet(recipe.net, classes=classes, image_size=size)
    start_P = net.initial(0).to(device)
    labels_I = synthetic_labels(classes, recipe.distill.images_per_class).to(device)
    images_ICHW = torch.randn(len(labels_I), 1, size, size, device=device)

    short = replace(recipe.distill, student_steps=3)
    read = [start_P.cpu(), start_P.cpu() * 1.01]
    run = Run(net, Segments(lambda _, epoch: read[min(epoch, 1)], 1), labels_I, short, 0, device)
    state = first_state(images_ICHW, labels_I, classes, short)
    step = _seconds(lambda: match_once(run, state), device) / short.student_steps

    few = replace(recipe.detector, epochs=4)
    detector_epoch = (
        _seconds(
            lambda: train_on_set(net, start_P, images_ICHW, labels_I, config=few, lr=1e-3, seed=0),
            device,
        )
        / few.epochs
    )
    return _Student(step, detector_epoch, _peak_bytes(device.type), net.parameters)


def _peak_bytes(device_type: str) -> int:
    """Return the most memory this process has held: on the GPU, or in RAM."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:  # Linux counts what the parent held in `ru_maxrss` of a new process; this line it does not
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the second call: the first one warms up."""
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - began
    return taken
