"""Epochs of teacher training, ours and the reference's: images per second, with augmentation.

The images are random numbers: what is on them does not change how long they take.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ppdd_core.benchmark import reference
from ppdd_core.benchmark.case import Case, Measured
from ppdd_core.benchmark.meter import epoch_work, measure
from ppdd_core.benchmark.step import LR
from ppdd_core.config import NetConfig, TeacherConfig
from ppdd_core.data.distilled import Normalisation
from ppdd_core.data.tensors import normalise
from ppdd_core.teachers.store import TrajectoryStore
from ppdd_core.teachers.train import RealImages, train_one

WATCHED = 8  # images whose accuracy is measured after each epoch: next to nothing, here


def run(case: Case) -> Measured:
    """Measure epochs of one teacher in this process, with as many threads as torch was given."""
    real = random_images(case)
    if case.side == "reference":
        images_RCHW = normalise(real.pixels_RCHW, real.normalisation).to(case.device)
        return reference.run_teachers(case, images_RCHW, real.labels_R.to(case.device))
    device = torch.device(case.device)
    few = RealImages(
        real.pixels_RCHW[:WATCHED], real.labels_R[:WATCHED], real.classes, real.normalisation
    )
    config = TeacherConfig(
        teachers=1, epochs=case.repeats + 1, lr=LR, batch_size=case.batch, augment=case.augment
    )
    net = NetConfig(width=case.width, depth=case.depth)
    with tempfile.TemporaryDirectory() as folder:
        epochs = train_one(
            0, real.to(device), few.to(device), TrajectoryStore(Path(folder)), net, config, config.epochs, 0, device
        )  # fmt: skip
        next(epochs)  # the first parameters
        count = len(real.labels_R)
        return measure(case, lambda: next(epochs), epoch_work(case, count), count)


def random_images(case: Case) -> RealImages:
    """Return as many grey images as the case says, of classes in turn."""
    count, size = case.images or 4 * case.batch, case.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % case.classes
    return RealImages(pixels, labels, case.classes, Normalisation(0.5, 0.25))
