"""Teachers: T networks trained independently on the real images, their parameters kept after each epoch.

Only the epochs that distillation can use are trained. Each (teacher, epoch) draws its randomness from the
run seed, so a killed run goes on from the last whole epoch with the same result as an undisturbed one. On the CPU every
teacher is trained by one thread in a process of its own: results then do not depend on how many run side by side.

Shape suffixes: P flat network parameters, R real images, B mini-batch, C H W channel height width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ppdd_core.config import NetConfig, TeacherConfig
from ppdd_core.data.augment import augment, draw
from ppdd_core.data.distilled import Normalisation
from ppdd_core.data.tensors import normalise
from ppdd_core.errors import TeacherKilledError, TrainingError
from ppdd_core.nets.fit import predict, train_epoch
from ppdd_core.nets.functional import FlatNet
from ppdd_core.processes import end_with_parent
from ppdd_core.seeding import derive
from ppdd_core.teachers.store import Epoch, TrajectoryStore

OnTeachers = Callable[[int, int, float], None]  # (epochs done, epochs in all, newest accuracy)


@dataclass(frozen=True, slots=True)
class RealImages:
    """The training images of one source as tensors: pixels uint8 [R, 1, H, W], labels int64 [R]."""

    pixels_RCHW: Tensor
    labels_R: Tensor
    classes: int
    normalisation: Normalisation

    def to(self, device: torch.device) -> RealImages:
        """Return the same images on another device."""
        return RealImages(
            self.pixels_RCHW.to(device), self.labels_R.to(device), self.classes, self.normalisation
        )

    def share_memory(self) -> None:
        """Move the tensors to shared memory, so that child processes read them without a copy."""
        self.pixels_RCHW.share_memory_()
        self.labels_R.share_memory_()


def train_teachers(
    real: RealImages,
    watched: RealImages,
    store: TrajectoryStore,
    *,
    net: NetConfig,
    config: TeacherConfig,
    epochs: int,
    seed: int,
    device: torch.device,
    processes: int = 0,
    numbers: Iterable[int] | None = None,
    on_progress: OnTeachers | None = None,
) -> None:
    """Train what `store` does not hold yet: `config.teachers` trajectories of `epochs` epochs each.

    `watched` are images of other patients on which each epoch's accuracy is measured (never trained on).
    `processes` = 0 takes one per core. A teacher that learned nothing raises TrainingError (see `check_learned`), and
    one whose process is killed TeacherKilledError. `numbers` chooses teachers: the next one is asked for when there is
    room for it, so that several machines can share them out as they go; nothing is checked then.
    """
    missing = [t for t in range(config.teachers) if store.epochs_done(t) < epochs]
    todo = iter(missing if numbers is None else numbers)
    if device.type == "cpu" and (missing or numbers is not None):
        real.share_memory()
        watched.share_memory()
        workers = min(processes or os.cpu_count() or 1, max(len(missing), 1))
        context = torch.multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_child, initargs=(real, watched)
        )
        try:
            waiting: set[Future[None]] = set()
            while True:
                for teacher in islice(todo, workers - len(waiting)):
                    waiting.add(
                        executor.submit(_train_in_child, teacher, store, net, config, epochs, seed)
                    )
                if not waiting:
                    break
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                _report(store, config.teachers, epochs, on_progress)
            executor.shutdown()
        except BrokenProcessPool:
            raise TeacherKilledError(
                "a teacher's process was killed, probably for want of memory; run the same command again to go on "
                "from the last whole epoch, with --processes 1 if it happens again"
            ) from None
        except BaseException:
            children = list((executor._processes or {}).values())  # no public way to stop them
            for child in children:
                child.terminate()
            executor.shutdown(cancel_futures=True)
            raise
    else:
        real, watched = real.to(device), watched.to(device)
        for teacher in todo:
            for _ in train_one(teacher, real, watched, store, net, config, epochs, seed, device):
                _report(store, config.teachers, epochs, on_progress)
    if numbers is None:
        check_learned(store, config.teachers, epochs, watched)


_shared: tuple[RealImages, RealImages]  # a child's images, handed over once when it starts


def _start_child(real: RealImages, watched: RealImages) -> None:
    global _shared
    torch.set_num_threads(1)
    _shared = (real, watched)
    end_with_parent()


def _train_in_child(
    teacher: int,
    store: TrajectoryStore,
    net: NetConfig,
    config: TeacherConfig,
    epochs: int,
    seed: int,
) -> None:
    for _ in train_one(teacher, *_shared, store, net, config, epochs, seed, torch.device("cpu")):
        pass


def train_one(
    teacher: int,
    real: RealImages,
    watched: RealImages,
    store: TrajectoryStore,
    net_config: NetConfig,
    config: TeacherConfig,
    epochs: int,
    seed: int,
    device: torch.device,
) -> Iterator[int]:
    """Train one teacher from where the store left off; yields each epoch once it is stored."""
    net = FlatNet(net_config, classes=real.classes, image_size=real.pixels_RCHW.shape[-1])
    done = store.epochs_done(teacher)
    averaged = config.snapshot == "mean"
    exact = config.dtype == "float32" and not averaged
    state = store.read_state(teacher, done, exact=exact, momentum=bool(config.momentum))

    def keep(epoch: int, snapshot_P: Tensor, loss: float) -> None:
        store.write(
            teacher,
            epoch,
            snapshot_P,
            dtype=config.dtype,
            epoch_info=Epoch(loss, _accuracy(net, snapshot_P, watched)),
            velocity_P=velocity_P if config.momentum else None,
            exact_P=theta_P if averaged else None,
        )

    if state is None:
        done, theta_P = 0, net.initial(derive(seed, "teacher", teacher, "initial")).to(device)
        velocity_P = torch.zeros_like(theta_P)
        keep(0, theta_P, float("nan"))
        yield 0
    else:
        theta_P = state[0].to(device)
        velocity_P = torch.zeros_like(theta_P) if state[1] is None else state[1].to(device)
    weights_K = class_weights(real).to(device) if config.balance == "loss" else None
    mean_P = torch.zeros_like(theta_P) if averaged else None
    for epoch in range(done + 1, epochs + 1):
        generator = torch.Generator().manual_seed(derive(seed, "teacher", teacher, "epoch", epoch))
        loss = train_epoch(
            net,
            theta_P,
            velocity_P,
            _batches(real, config, generator),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            class_weights_K=weights_K,
            mean_P=mean_P,
        )
        keep(epoch, theta_P if mean_P is None else mean_P, loss)
        yield epoch


def _batches(
    real: RealImages, config: TeacherConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    rows_R = epoch_rows(real.labels_R.cpu(), config.balance, config.epoch_images, generator)
    for rows_B in rows_R.to(real.labels_R.device).split(config.batch_size):
        drawn = draw(config.augment, len(rows_B), generator)
        yield (
            augment(normalise(real.pixels_RCHW[rows_B], real.normalisation), drawn),
            real.labels_R[rows_B],
        )


def epoch_rows(
    labels_R: Tensor, balance: str, epoch_images: int, generator: torch.Generator
) -> Tensor:
    """Return the rows one epoch looks at, in order.

    Without balancing a random permutation (its first `epoch_images` where that is given). With the balanced
    sampler every class gives equally many, drawn without repetition until a class is used up, then again.
    """
    total = epoch_images or len(labels_R)
    if balance != "sampler":
        return torch.randperm(len(labels_R), generator=generator)[:total]
    classes = labels_R.unique()
    per_class = -(-total // len(classes))
    chosen = []
    for label in classes:
        rows = (labels_R == label).nonzero().flatten()
        rounds = -(-per_class // len(rows))
        order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(rounds)])
        chosen.append(rows[order[:per_class]])
    rows_R = torch.cat(chosen)
    return rows_R[torch.randperm(len(rows_R), generator=generator)]


def class_weights(real: RealImages) -> Tensor:
    """Return loss weights inversely proportional to class size, mean 1 over the images, [K]."""
    counts_K = torch.bincount(real.labels_R.cpu(), minlength=real.classes).float()
    return counts_K.sum() / (real.classes * counts_K.clamp(min=1))


@torch.no_grad()
def _accuracy(net: FlatNet, theta_P: Tensor, watched: RealImages) -> float:
    """Return the balanced accuracy on the watched images."""
    images_RCHW = normalise(watched.pixels_RCHW, watched.normalisation)
    hit_R = predict(net, theta_P, images_RCHW).argmax(1) == watched.labels_R
    recall = [hit_R[watched.labels_R == k].float().mean() for k in watched.labels_R.unique()]
    return float(torch.stack(recall).mean())


def _report(
    store: TrajectoryStore, teachers: int, epochs: int, on_progress: OnTeachers | None
) -> None:
    if on_progress is None:
        return
    done = [store.epochs_done(t) for t in range(teachers)]
    newest = max(range(teachers), key=lambda t: (done[t] < epochs, done[t]))
    accuracy = store.info(newest, done[newest]).accuracy if done[newest] >= 0 else float("nan")
    on_progress(sum(max(d, 0) for d in done), teachers * epochs, accuracy)


def check_learned(store: TrajectoryStore, teachers: int, epochs: int, watched: RealImages) -> None:
    """Refuse trajectories that teach nothing: a teacher no better than guessing makes a worthless package."""
    chance = 1 / len(watched.labels_R.unique())
    best = [max(store.info(t, e).accuracy for e in range(1, epochs + 1)) for t in range(teachers)]
    failed = [t for t in range(teachers) if best[t] < chance * 1.1]
    if len(failed) * 2 > teachers:
        raise TrainingError(
            f"{len(failed)} of {teachers} teachers learned nothing (balanced accuracy {max(best):.2f}, guessing gives "
            f"{chance:.2f}); raise teacher.lr or teacher.epochs, or look at the images with `ppdd dataset check`"
        )
