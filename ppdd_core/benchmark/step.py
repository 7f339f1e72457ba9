"""One distillation step, ours: loss and gradients of the synthetic images and of α."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ppdd_core.benchmark.case import Case, Measured
from ppdd_core.benchmark.meter import convolution_work, measure
from ppdd_core.config import NetConfig
from ppdd_core.data.augment import draw
from ppdd_core.distill.matching import keep_mask
from ppdd_core.distill.student import ENGINES, Step
from ppdd_core.nets.functional import FlatNet

LR = 0.01


def run(case: Case) -> Measured:
    """Measure our engine; σ = 0, as the reference knows no pruning."""
    device = torch.device(case.device)
    net = net_of(case)
    start_P, target_P, images_ICHW, labels_I = inputs(case, net)
    labels_IK = F.one_hot(labels_I, case.classes).to(images_ICHW.dtype)
    generator = torch.Generator().manual_seed(1)
    mask = partial(keep_mask, similarity="signed_ratio", prune_below=0.0, min_keep=0.05)

    def once() -> None:
        plan = tuple(
            Step(rows_B.to(device), draw(case.augment, len(rows_B), generator))
            for rows_B in batches(case, generator)
        )
        found = ENGINES[case.engine](
            net, start_P, target_P, images_ICHW, labels_IK, start_P.new_tensor(LR), plan, mask
        )  # fmt: skip
        if case.keep:
            keep_gradient(Path(case.keep), found.grad_images_ICHW, found.grad_lr)

    return measure(case, once, convolution_work(case) * case.student_steps)


def net_of(case: Case) -> FlatNet:
    """Return the network that both sides train."""
    return FlatNet(
        NetConfig(width=case.width, depth=case.depth), classes=case.classes, image_size=case.image_size
    )  # fmt: skip


def inputs(case: Case, net: FlatNet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return start_P, target_P, images_ICHW and labels_I, the same for both sides."""
    wanted = {"device": case.device, "dtype": getattr(torch, case.dtype)}
    count, size = case.images or case.batch, case.image_size
    generator = torch.Generator().manual_seed(0)
    start_P = net.initial(0).to(**wanted)
    target_P = start_P + 0.05 * net.initial(1).to(**wanted)
    images_ICHW = torch.randn(count, 1, size, size, generator=generator).to(**wanted)
    labels_I = torch.arange(count, device=case.device) % case.classes
    return start_P, target_P, images_ICHW, labels_I


def batches(case: Case, generator: torch.Generator) -> list[Tensor]:
    """Return the rows of J mini-batches: permutations of all images in pieces, none of them small."""
    count = case.images or case.batch
    rows: list[Tensor] = []
    while len(rows) < case.student_steps:
        order = torch.randperm(count, generator=generator)
        rows += list(order[: count // case.batch * case.batch].split(case.batch))
    return rows[: case.student_steps]


def keep_gradient(path: Path, grad_images_ICHW: Tensor, grad_lr: Tensor) -> None:
    """Leave the gradients for whoever compares the sides."""
    save_file(
        {"images": grad_images_ICHW.detach().cpu().contiguous(), "lr": grad_lr.detach().cpu().reshape(1)},
        path,
    )  # fmt: skip
