"""Whole runs, teachers included, of ours and of the public MTT code on the same images: what each takes and reaches.

Ours is a recipe as `ppdd distill` runs it. The reference's is MTT's own: experts of plain SGD over all images, their
parameters kept after every epoch, then J student steps kept in one graph, images and α moved by SGD with momentum.
Its functions are imported and driven (`reference.py`); repaired at the border: snapshots are copies (`p.detach().cpu()`
is none on the CPU), every epoch and step has its seed (not the clock's), snapshots are safetensors (as many bytes as
its pickles hold numbers). Its tests of every epoch and its evaluations are left out; ours are not counted either.

    SIDE/side.json      what it belongs to        SIDE/units.jsonl   seconds of every epoch and step
    SIDE/teachers/      trajectories              SIDE/snapshots/    images on the way, and scores.json
    SIDE/state.safetensors

A side stopped at any moment goes on from its last epoch, or its last checkpoint, with the same result.

Shape suffixes: I synthetic images, R real images, C H W channel height width, P flat network parameters.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppdd_core.benchmark.ledger import DISTILLATION, TEACHERS, Ledger, Unit
from ppdd_core.benchmark.meter import convolution_peak, now
from ppdd_core.benchmark.plan import Plan
from ppdd_core.benchmark.reference import Code
from ppdd_core.benchmark.snapshots import Snapshots
from ppdd_core.config import Recipe
from ppdd_core.data.files import json_digest, write_atomically
from ppdd_core.data.tensors import labels_tensor, normalise, pixels_tensor
from ppdd_core.distill.loop import Run, Segments, distil, first_state, load_state, save_state
from ppdd_core.distill.start import starting_images, synthetic_labels
from ppdd_core.errors import BenchmarkError
from ppdd_core.nets.functional import FlatNet
from ppdd_core.pipeline import Images, StageProgress, start, teach
from ppdd_core.run_folder import belongs
from ppdd_core.seeding import derive
from ppdd_core.teachers.store import Epoch, TrajectoryStore

CHECKPOINT_STEPS = 10
PEAK_BATCH = 32  # images of the convolution that says how fast the machine is just now

OnProgress = Callable[[str, int, int], None]  # (stage, done, of)


@dataclass(frozen=True, slots=True)
class Side:
    """The folder of one side."""

    folder: Path

    @property
    def ledger(self) -> Ledger:
        """Return the seconds of its units."""
        return Ledger(self.folder / "units.jsonl")

    @property
    def store(self) -> TrajectoryStore:
        """Return its trajectories."""
        return TrajectoryStore(self.folder / "teachers")

    @property
    def snapshots(self) -> Snapshots:
        """Return its images on the way."""
        return Snapshots(self.folder / "snapshots")

    @property
    def state(self) -> Path:
        """Return the file that its distillation goes on from."""
        return self.folder / "state.safetensors"

    def tie(self, value: dict[str, Any]) -> str:
        """Tie the folder to what decides its content; CheckpointError where it is tied to something else."""
        digest = json_digest(value)
        belongs(
            self.folder / "side.json",
            digest,
            what="a run of other images, another recipe or another scale",
        )
        return digest


class Watch:
    """Time since the last look, after what was asked of the device is done; and the pace of the machine."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._device = device
        self._peak = convolution_peak(recipe.net.width, recipe.image_size // 2, PEAK_BATCH, device)
        self.restart()

    def restart(self) -> None:
        """Forget what passed."""
        self._then, self._cpu = now(self._device), _cpu_seconds()

    def unit(self, stage: str, *, units: int = 1, at: int = 0) -> Unit:
        """Return what was done since the last call of either."""
        then, cpu = self._then, self._cpu
        self.restart()
        return Unit(stage, self._then - then, units, at, self._peak, self._cpu - cpu)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# ---------------------------------------------------------------------------------------------- ours


def run_ours(
    images: Images,
    recipe: Recipe,
    side: Side,
    marks: frozenset[int],
    device: torch.device,
    processes: int,
    on_progress: OnProgress,
) -> None:
    """Train the recipe's teachers and take its steps, those that the folder does not hold yet."""
    digest = side.tie({**_same(images, recipe), "recipe": recipe.to_dict(), "marks": sorted(marks)})
    _our_teachers(images, recipe, side, device, processes, on_progress)
    train = images.split.train
    run = Run(
        net=FlatNet(recipe.net, classes=len(train.classes), image_size=recipe.image_size),
        segments=Segments(side.store.read, recipe.teacher.teachers),
        labels_I=synthetic_labels(len(train.classes), recipe.distill.images_per_class).to(device),
        config=recipe.distill,
        seed=recipe.seed,
        device=device,
    )
    if side.state.exists():
        state = load_state(side.state, run_digest=digest, device=device)
    else:
        first_ICHW = start(images, recipe)[0].to(device)
        state = first_state(first_ICHW, run.labels_I, run.net.classes, recipe.distill)
    _forget_steps_after(side, state.step)
    watch = Watch(recipe, device)
    for reached, progress in distil(run, state):
        side.ledger.add(watch.unit(DISTILLATION, at=progress.step))
        if progress.step in marks:
            labels = reached.labels(run.labels_I)
            side.snapshots.keep(progress.step, reached.images_ICHW, labels, reached.lr)
        if progress.step % CHECKPOINT_STEPS == 0 or progress.step in marks:
            save_state(side.state, reached, run_digest=digest)
        on_progress(DISTILLATION, progress.step, progress.of)
        watch.restart()


def _our_teachers(
    images: Images,
    recipe: Recipe,
    side: Side,
    device: torch.device,
    processes: int,
    on_progress: OnProgress,
) -> None:
    def epochs() -> int:
        return sum(max(side.store.epochs_done(t), 0) for t in range(recipe.teacher.teachers))

    if epochs() >= recipe.teacher.teachers * recipe.used_epochs:
        return
    watch, known = Watch(recipe, device), epochs()

    def note(done: int) -> None:
        nonlocal known
        if done > known:
            side.ledger.add(watch.unit(TEACHERS, units=done - known))
            known = done

    def report(progress: StageProgress) -> None:
        note(progress.done)
        on_progress(TEACHERS, progress.done, progress.total)

    teach(images, recipe, side.store.folder, device=device, processes=processes, on_progress=report)
    note(epochs())
    side.ledger.add(
        watch.unit(TEACHERS, units=0)
    )  # children's processor time is known once they have ended


# ----------------------------------------------------------------------------------------- reference


def run_reference(
    images: Images,
    recipe: Recipe,
    plan: Plan,
    reference: Path,
    side: Side,
    marks: frozenset[int],
    device: torch.device,
    on_progress: OnProgress,
) -> None:
    """Train the plan's experts and take its steps, those that the folder does not hold yet.

    Of the recipe, network, image size, images per class, augmentation and seed are the reference's too. A matching
    loss that is no number raises BenchmarkError: the reference knows no way back.
    """
    side.tie({**_same(images, recipe), "plan": dataclasses.asdict(plan), "marks": sorted(marks)})
    code = Code(reference)
    _experts(images, recipe, plan, code, side, device, on_progress)
    for step in _steps(images, recipe, plan, code, side, marks, device):
        on_progress(DISTILLATION, step, plan.iterations)


def _experts(
    images: Images,
    recipe: Recipe,
    plan: Plan,
    code: Code,
    side: Side,
    device: torch.device,
    on_progress: OnProgress,
) -> None:
    train, store = images.split.train, side.store
    if all(store.epochs_done(number) >= plan.epochs for number in range(plan.experts)):
        return
    images_RCHW = normalise(pixels_tensor(train), images.normalisation)
    labels_R = labels_tensor(train)
    watch = Watch(recipe, device)
    for number in range(plan.experts):
        done = store.epochs_done(number)
        torch.manual_seed(derive(recipe.seed, "expert", number))
        net = code.network(recipe.net, classes=len(train.classes), image_size=recipe.image_size)
        net = net.to(device)
        if done >= 0:
            vector_to_parameters(store.read(number, done).to(device), net.parameters())
        epoch = code.expert(
            net, images_RCHW, labels_R, lr=plan.lr_teacher, batch_size=plan.batch_train,
            augment=recipe.teacher.augment, device=str(device),
        )  # fmt: skip
        for at in range(done + 1, plan.epochs + 1):
            torch.manual_seed(derive(recipe.seed, "expert", number, at))
            watch.restart()
            if at > 0:
                epoch()
            theta_P = parameters_to_vector(net.parameters()).detach()
            store.write(
                number, at, theta_P, dtype="float32", epoch_info=Epoch(math.nan, math.nan), velocity_P=None
            )  # fmt: skip
            if at > 0:
                side.ledger.add(watch.unit(TEACHERS, at=number))
            on_progress(TEACHERS, number * plan.epochs + at, plan.experts * plan.epochs)


def _steps(
    images: Images,
    recipe: Recipe,
    plan: Plan,
    code: Code,
    side: Side,
    marks: frozenset[int],
    device: torch.device,
) -> Iterator[int]:
    train = images.split.train
    net = code.network(recipe.net, classes=len(train.classes), image_size=recipe.image_size)
    student = code.student(net.to(device))
    labels_I = synthetic_labels(len(train.classes), recipe.distill.images_per_class).to(device)
    images_ICHW, lr, momentum, step = _reference_state(images, recipe, plan, side, device)
    optimizers = [
        torch.optim.SGD([images_ICHW], lr=plan.lr_img, momentum=0.5),
        torch.optim.SGD([lr], lr=plan.lr_lr, momentum=0.5),
    ]
    for optimizer, moved, velocity in zip(optimizers, (images_ICHW, lr), momentum, strict=False):
        optimizer.state[moved]["momentum_buffer"] = velocity
    _forget_steps_after(side, step)
    watch = Watch(recipe, device)
    while step < plan.iterations:
        generator = torch.Generator().manual_seed(derive(recipe.seed, "reference step", step))
        torch.manual_seed(derive(recipe.seed, "reference augmentation", step))
        watch.restart()
        expert = int(torch.randint(plan.experts, (), generator=generator))
        begin = int(torch.randint(plan.max_start_epoch, (), generator=generator))
        loss = code.matching_loss(
            student,
            side.store.read(expert, begin).to(device),
            side.store.read(expert, begin + plan.expert_epochs).to(device),
            images_ICHW,
            labels_I,
            lr,
            _batches(len(labels_I), plan, generator, device),
            recipe.distill.augment,
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        finite = math.isfinite(float(loss.detach()))
        step += 1
        unit = watch.unit(DISTILLATION, at=step)
        if not finite:
            raise BenchmarkError(
                f"the reference's loss is no number at step {step}; give it a smaller --lr-img or --lr-lr"
            )
        side.ledger.add(unit)
        if step in marks:
            side.snapshots.keep(step, images_ICHW, labels_I, float(lr.detach()))
        if step % CHECKPOINT_STEPS == 0 or step in marks:
            _save_reference_state(side, images_ICHW, lr, optimizers, step)
        yield step


def _batches(
    images: int, plan: Plan, generator: torch.Generator, device: torch.device
) -> list[Tensor]:
    """Return the rows of J mini-batches: permutations in pieces, taken from the end, as the reference takes them."""
    waiting: list[Tensor] = []
    rows: list[Tensor] = []
    while len(rows) < plan.syn_steps:
        if not waiting:
            order_I = torch.randperm(images, generator=generator)
            waiting = list(order_I.split(plan.batch_syn or images))
        rows.append(waiting.pop().to(device))
    return rows


def _reference_state(
    images: Images, recipe: Recipe, plan: Plan, side: Side, device: torch.device
) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """Return images, α, their velocities (none at the start) and the steps taken."""
    if side.state.exists():
        kept = {name: tensor.to(device) for name, tensor in load_file(side.state).items()}
        velocities = [kept["velocity"], kept["velocity of lr"]]
        step = int(kept["step"])
        return (
            kept["images"].requires_grad_(True),
            kept["lr"].requires_grad_(True),
            velocities,
            step,
        )
    train = images.split.train
    first_ICHW, _ = starting_images(
        plan.init,
        synthetic_labels(len(train.classes), recipe.distill.images_per_class),
        pixels_tensor(train),
        labels_tensor(train),
        images.normalisation,
        names=train.classes,
        mean_of=1,
        generator=torch.Generator().manual_seed(derive(recipe.seed, "reference start")),
    )
    lr = torch.tensor(plan.lr_teacher, device=device)
    return first_ICHW.to(device).requires_grad_(True), lr.requires_grad_(True), [], 0


def _save_reference_state(
    side: Side, images_ICHW: Tensor, lr: Tensor, optimizers: list[torch.optim.SGD], step: int
) -> None:
    of_images, of_lr = (
        optimizer.state[moved]["momentum_buffer"]
        for optimizer, moved in zip(optimizers, (images_ICHW, lr), strict=True)
    )
    kept = {
        "images": images_ICHW, "lr": lr, "velocity": of_images, "velocity of lr": of_lr,
        "step": torch.tensor(step),
    }  # fmt: skip
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    write_atomically(side.state, save(stored))


# --------------------------------------------------------------------------------------------- shared


def _same(images: Images, recipe: Recipe) -> dict[str, Any]:
    """Return what both sides depend on."""
    return {
        "images": images.split.train.fingerprint,
        "validation": images.split.validation.fingerprint,
        "image_size": recipe.image_size,
        "net": dataclasses.asdict(recipe.net),
        "images_per_class": recipe.distill.images_per_class,
        "augment": [recipe.teacher.augment, recipe.distill.augment],
        "detector": dataclasses.asdict(recipe.detector),
        "seed": recipe.seed,
    }


def _forget_steps_after(side: Side, step: int) -> None:
    """Forget the seconds of steps that are taken again after a kill."""
    side.ledger.keep(lambda unit: unit.stage != DISTILLATION or unit.at <= step)
