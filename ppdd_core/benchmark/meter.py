"""Seconds, peak memory and this machine's convolution peak, on the CPU and on a GPU."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ppdd_core.benchmark.case import Case, Measured

LEAST_CHANNELS = 64  # with fewer, convolutions are bound by memory: no peak of anything
GPU_BATCH = 256


def measure(case: Case, once: Callable[[], object], work: float, images: int = 0) -> Measured:
    """Run `once` for warming up and then `case.repeats` times; the peak is that of all of them."""
    device = torch.device(case.device)
    before = _memory(device, begin=True)
    once()
    seconds = []
    for _ in range(case.repeats):
        began = now(device)
        once()
        seconds.append(now(device) - began)
    peak = _memory(device) - before
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Measured(
        tuple(seconds),
        peak,
        convolution_peak(case.width, case.image_size // 2, case.batch, device),
        work,
        name,
        images,
    )


def convolution_peak(width: int, side: int, batch: int, device: torch.device) -> float:
    """Return the GFLOP/s of a 3x3 convolution, forwards, on this many threads: the best of ten.

    Of at least 64 channels, and on a GPU of at least 256 images: smaller ones keep it waiting.
    """
    channels, side = max(width, LEAST_CHANNELS), max(side, 4)
    batch = max(batch, GPU_BATCH) if device.type == "cuda" else batch
    x = torch.randn(batch, channels, side, side, device=device)
    weight = torch.randn(channels, channels, 3, 3, device=device)
    best = float("inf")
    with torch.no_grad():
        for _ in range(10):
            began = now(device)
            F.conv2d(x, weight, padding=1)
            best = min(best, now(device) - began)
    return 2 * 9 * channels**2 * batch * side**2 / best / 1e9


def convolution_work(case: Case) -> float:
    """Return the GFLOP of one mini-batch through the network, forwards and both ways backwards (three passes)."""
    total, channels, side = 0.0, 1, case.image_size
    for _ in range(case.depth):
        total += 2 * 9 * channels * case.width * side**2
        channels, side = case.width, side // 2
    return 3 * total * case.batch / 1e9


def epoch_work(case: Case, images: int) -> float:
    """Return the GFLOP of so many images through the network, forwards and both ways backwards."""
    return convolution_work(case) / case.batch * images


def now(device: torch.device) -> float:
    """Return a time in seconds, after the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device, *, begin: bool = False) -> int:
    """Return the bytes at most so far: of the process on the CPU, of torch's allocator on a GPU."""
    if device.type == "cuda":
        if begin:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device)
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
