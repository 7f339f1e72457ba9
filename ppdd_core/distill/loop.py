"""The outer loop of Algorithm 1: improve images and step size until students follow the teachers.

Yields `Progress` values, prints nothing. Every step draws its randomness from (seed, step), so the state is
small (images, α, their velocities, the step) and a resumed run gives the same bytes as an undisturbed one.

With soft labels, the logits of the labels are learned like the pixels. α is learned in log space: it stays positive,
and `lr_lr` is a relative step size (MTT's 1e-6 on α itself at α = 0.01 is 0.01 here). A step whose loss or gradient is
not finite, or whose loss exceeds `max_loss`, is not taken: the state goes back to the last good one, velocities are
dropped, α is halved.

Shape suffixes: I synthetic images, B one mini-batch, C H W channel height width, K classes, P flat network parameters.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppdd_core.config import DistillConfig
from ppdd_core.data.augment import draw
from ppdd_core.data.files import write_atomically
from ppdd_core.distill.matching import keep_mask
from ppdd_core.distill.student import ENGINES, Matched, Step
from ppdd_core.errors import CheckpointError, TrainingError
from ppdd_core.nets.functional import FlatNet
from ppdd_core.seeding import derive

ROLLBACKS_IN_A_ROW = 20  # after that many refused steps in a row the run ends with advice


@dataclass(frozen=True, slots=True)
class State:
    """All that the next step depends on."""

    step: int
    images_ICHW: Tensor
    log_lr: float
    velocity_ICHW: Tensor
    velocity_lr: float
    good_ICHW: Tensor  # the newest images at which a sound loss was measured
    logits_IK: Tensor | None = None  # of the labels, where they are soft
    velocity_IK: Tensor | None = None
    good_IK: Tensor | None = None
    rollbacks: int = 0
    refused_in_a_row: int = 0

    @property
    def lr(self) -> float:
        """Return α."""
        return math.exp(self.log_lr)

    def labels(self, labels_I: Tensor) -> Tensor:
        """Return the labels as a set has them: class numbers [I], or the learned probabilities [I, K]."""
        return labels_I if self.logits_IK is None else self.logits_IK.softmax(1)

    def labels_IK(self, labels_I: Tensor, classes: int) -> Tensor:
        """Return the labels as probabilities: the classes' own where they are hard."""
        labels = self.labels(labels_I)
        if labels.ndim == 2:
            return labels
        return F.one_hot(labels, classes).to(self.images_ICHW.dtype)


@dataclass(frozen=True, slots=True)
class Progress:
    """One outer step, for people: bars, plots, logs."""

    step: int
    of: int
    loss: float  # matching loss: 1 = the student has not moved towards the teacher, 0 = it arrived
    lr: float  # α
    pruned: float  # share of parameters left out
    rollbacks: int
    seconds_per_step: float
    eta_seconds: float


@dataclass(frozen=True, slots=True)
class Segments:
    """Where teacher segments come from: `read(teacher, epoch)` returns theta_P on the CPU."""

    read: Callable[[int, int], Tensor]
    teachers: int


@dataclass(frozen=True, slots=True)
class Run:
    """One distillation: fixed inputs of every step."""

    net: FlatNet
    segments: Segments
    labels_I: Tensor
    config: DistillConfig
    seed: int
    device: torch.device
    mask: Callable[[Tensor, Tensor, Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        mask = partial(
            keep_mask,
            similarity=self.config.similarity,
            prune_below=self.config.prune_below,
            min_keep=self.config.min_keep,
        )
        object.__setattr__(self, "mask", mask)


def first_state(
    images_ICHW: Tensor, labels_I: Tensor, classes: int, config: DistillConfig
) -> State:
    """Return the state before the first step."""
    logits_IK = None
    if config.labels == "soft":
        sure = config.label_sure
        hot_IK = F.one_hot(labels_I, classes).to(images_ICHW.dtype)
        logits_IK = (hot_IK * sure + (1 - hot_IK) * (1 - sure) / (classes - 1)).log()
    return State(
        step=0,
        images_ICHW=images_ICHW,
        log_lr=math.log(config.lr_init),
        velocity_ICHW=torch.zeros_like(images_ICHW),
        velocity_lr=0.0,
        good_ICHW=images_ICHW,
        logits_IK=logits_IK,
        velocity_IK=None if logits_IK is None else torch.zeros_like(logits_IK),
        good_IK=logits_IK,
    )


def distil(run: Run, state: State) -> Iterator[tuple[State, Progress]]:
    """Take the steps from `state.step` to `config.iterations`; yields the new state after each.

    Too many refused steps in a row raise TrainingError.
    """
    config, taken, began = run.config, 0, time.perf_counter()
    while state.step < config.iterations:
        matched = match_once(run, state)
        state = take_step(state, matched, config)
        if state.refused_in_a_row >= ROLLBACKS_IN_A_ROW:
            raise TrainingError(
                f"distillation diverges: {ROLLBACKS_IN_A_ROW} steps in a row were refused before step {state.step} "
                f"(last matching loss {float(matched.loss):.3g}, step size {state.lr:.3g}); use a smaller "
                "distill.lr_images or distill.lr_init, or smoother teachers"
            )
        taken += 1
        pace = (time.perf_counter() - began) / taken
        yield (
            state,
            Progress(
                step=state.step,
                of=config.iterations,
                loss=float(matched.loss),
                lr=state.lr,
                pruned=1 - float(matched.kept),
                rollbacks=state.rollbacks,
                seconds_per_step=pace,
                eta_seconds=pace * (config.iterations - state.step),
            ),
        )


def match_once(run: Run, state: State) -> Matched:
    """Draw a teacher segment, run the student on it and return loss and gradients at `state`."""
    config = run.config
    generator = torch.Generator().manual_seed(
        derive(run.seed, "distill", state.step, state.rollbacks)
    )
    teacher = int(torch.randint(run.segments.teachers, (), generator=generator))
    start_epoch = int(torch.randint(config.max_start_epoch, (), generator=generator))
    return ENGINES[config.engine](
        run.net,
        run.segments.read(teacher, start_epoch).to(run.device),
        run.segments.read(teacher, start_epoch + config.teacher_epochs).to(run.device),
        state.images_ICHW,
        state.labels_IK(run.labels_I, run.net.classes),
        torch.tensor(state.lr, device=run.device),
        student_steps(len(run.labels_I), config, generator, run.device),
        run.mask,
    )


def student_steps(
    images: int, config: DistillConfig, generator: torch.Generator, device: torch.device
) -> tuple[Step, ...]:
    """Return J steps: fresh permutations of the images cut into batches, each with its augmentation."""
    batch = min(config.batch_syn or images, images)
    waiting: list[Tensor] = []
    steps = []
    for _ in range(config.student_steps):
        if not waiting:
            waiting = list(torch.randperm(images, generator=generator).split(batch))
        rows_B = waiting.pop(0)
        steps.append(Step(rows_B.to(device), draw(config.augment, len(rows_B), generator)))
    return tuple(steps)


def take_step(state: State, matched: Matched, config: DistillConfig) -> State:
    """Return the state after one momentum-SGD step, or after refusing it."""
    loss, grad_log_lr = float(matched.loss), float(matched.grad_lr) * state.lr
    sound = math.isfinite(loss) and math.isfinite(grad_log_lr) and loss <= config.max_loss
    sound = sound and bool(torch.isfinite(matched.grad_labels_IK).all())
    velocity_ICHW = config.momentum * state.velocity_ICHW + matched.grad_images_ICHW
    images_ICHW = state.images_ICHW - config.lr_images * velocity_ICHW
    if not sound or not bool(torch.isfinite(images_ICHW).all()):
        return replace(
            state,
            images_ICHW=state.good_ICHW,
            log_lr=max(state.log_lr - math.log(2), math.log(config.lr_min)),
            velocity_ICHW=torch.zeros_like(state.velocity_ICHW),
            logits_IK=state.good_IK,
            velocity_IK=None if state.good_IK is None else torch.zeros_like(state.good_IK),
            velocity_lr=0.0,
            rollbacks=state.rollbacks + 1,
            refused_in_a_row=state.refused_in_a_row + 1,
        )
    velocity_lr = config.momentum * state.velocity_lr + grad_log_lr
    log_lr = state.log_lr - config.lr_lr * velocity_lr
    logits_IK, velocity_IK = state.logits_IK, state.velocity_IK
    if logits_IK is not None and velocity_IK is not None:
        velocity_IK = config.momentum * velocity_IK + _in_logits(
            matched.grad_labels_IK, logits_IK.softmax(1)
        )
        logits_IK = logits_IK - config.lr_labels * velocity_IK
    return State(
        step=state.step + 1,
        images_ICHW=images_ICHW,
        logits_IK=logits_IK,
        velocity_IK=velocity_IK,
        good_IK=state.logits_IK,
        log_lr=min(max(log_lr, math.log(config.lr_min)), math.log(config.lr_max)),
        velocity_ICHW=velocity_ICHW,
        velocity_lr=velocity_lr,
        good_ICHW=state.images_ICHW,
        rollbacks=state.rollbacks,
    )


def _in_logits(grad_labels_IK: Tensor, labels_IK: Tensor) -> Tensor:
    """Return the gradient in the logits whose softmax the labels are."""
    return labels_IK * (grad_labels_IK - (labels_IK * grad_labels_IK).sum(1, keepdim=True))


def save_state(path: Path, state: State, *, run_digest: str) -> None:
    """Write a checkpoint in one move; `run_digest` ties it to recipe and data."""
    numbers = {
        "step": state.step,
        "log_lr": state.log_lr.hex(),
        "velocity_lr": state.velocity_lr.hex(),
        "rollbacks": state.rollbacks,
        "refused_in_a_row": state.refused_in_a_row,
        "run": run_digest,
    }
    tensors = {
        "images": state.images_ICHW.cpu(),
        "velocity": state.velocity_ICHW.cpu(),
        "good": state.good_ICHW.cpu().clone(),  # may be the images themselves
    }
    of_labels = {
        "logits": state.logits_IK,
        "label velocity": state.velocity_IK,
        "good logits": state.good_IK,
    }
    tensors |= {name: one.cpu().clone() for name, one in of_labels.items() if one is not None}
    write_atomically(path, save(tensors, {"state": json.dumps(numbers)}))


def load_state(path: Path, *, run_digest: str, device: torch.device) -> State:
    """Read a checkpoint; one that is damaged or of another run raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as opened:
            numbers = json.loads((opened.metadata() or {})["state"])
            tensors = {name: opened.get_tensor(name).to(device) for name in opened.keys()}  # noqa: SIM118 - no dict
            images, velocity, good = (tensors[name] for name in ("images", "velocity", "good"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete it to distil from the start"
        ) from None
    if numbers["run"] != run_digest:
        raise CheckpointError(
            f"{path} belongs to another recipe or other images; use another --out, or the same recipe"
        )
    return State(
        step=numbers["step"],
        images_ICHW=images,
        log_lr=float.fromhex(numbers["log_lr"]),
        velocity_ICHW=velocity,
        velocity_lr=float.fromhex(numbers["velocity_lr"]),
        good_ICHW=good,
        rollbacks=numbers["rollbacks"],
        refused_in_a_row=numbers["refused_in_a_row"],
        logits_IK=tensors.get("logits"),
        velocity_IK=tensors.get("label velocity"),
        good_IK=tensors.get("good logits"),
    )
