"""Seconds, peak memory and this machine's convolution peak, on the CPU and on a GPU."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ppdd_core.benchmark.case import Case, Measured


def measure(case: Case, once: Callable[[], object], work: float) -> Measured:
    """Run `once` for warming up and then `case.repeats` times; the peak is that of all of them."""
    device = torch.device(case.device)
    before = _memory(device, begin=True)
    once()
    seconds = []
    for _ in range(case.repeats):
        began = _now(device)
        once()
        seconds.append(_now(device) - began)
    peak = _memory(device) - before
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Measured(tuple(seconds), peak, convolution_peak(case, device), work, name)


def convolution_peak(case: Case, device: torch.device) -> float:
    """Return the GFLOP/s of the network's inner convolution, forwards, at half the image size: the best of ten."""
    side = max(case.image_size // 2, 4)
    x = torch.randn(case.batch, case.width, side, side, device=device)
    weight = torch.randn(case.width, case.width, 3, 3, device=device)
    best = float("inf")
    with torch.no_grad():
        for _ in range(10):
            began = _now(device)
            F.conv2d(x, weight, padding=1)
            best = min(best, _now(device) - began)
    return 2 * 9 * case.width**2 * case.batch * side**2 / best / 1e9


def convolution_work(case: Case) -> float:
    """Return the GFLOP of one mini-batch through the network, forwards and both ways backwards (three passes)."""
    total, channels, side = 0.0, 1, case.image_size
    for _ in range(case.depth):
        total += 2 * 9 * channels * case.width * side**2
        channels, side = case.width, side // 2
    return 3 * total * case.batch / 1e9


def _now(device: torch.device) -> float:
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
