"""Train a detector: distilled sets of one or several hospitals, and local real images if there are any.

What several sets need:

- **Classes** are joined by name; `class_map` renames (`{"COVID-19": "COVID"}`). Two names that differ only in
  case, spaces or punctuation are refused until they are mapped, or kept apart on purpose (`{"Covid": "Covid"}`).
- **Pixels**: every set is brought back to grey levels in [0, 1] and normalised again with one normalisation,
  pooled over the sets. With one set nothing changes.
- **Step size**: every set's batches are stepped with its own α and a momentum of their own, set after set in
  every epoch, otherwise by MTT's evaluation protocol (`nets.fit.train_on_set`, which one set equals exactly).
- **Image size** must be the same: a resized distilled image is no longer what was distilled.

Local images join in with one class-balanced batch per epoch. They stay what they are: a detector trained with
them is not made of shareable data only.

Shape suffixes: P flat parameters, I distilled images, R real images, B mini-batch, C H W, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.augment import augment, draw
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.data.tensors import normalise
from ppdd_core.detector.joining import join_classes, refuse_repeated, refuse_sizes
from ppdd_core.detector.model import Detector, Source, rename
from ppdd_core.errors import BadConfigError
from ppdd_core.nets.fit import train_epoch
from ppdd_core.nets.functional import FlatNet
from ppdd_core.seeding import derive
from ppdd_core.teachers.train import epoch_rows

LOCAL = "local images"
MAX_SEED = 2**31 - 1  # as in a recipe
LOCAL_STEP = 0.01  # MTT's step size for teachers, which are trained on real images too


def train_detector(
    sets: Sequence[DistilledSet],
    *,
    net: NetConfig,
    config: DetectorConfig,
    seed: int,
    local: LabelledImages | None = None,
    local_step: float = LOCAL_STEP,
    class_map: Mapping[str, str] | None = None,
    names: Sequence[tuple[str, str, str]] = (),
    device: str = "cpu",
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Detector:
    """Return a detector trained on all `sets`, and on `local` images with the step size `local_step`.

    `names` says where each set comes from, as (name, version, digest), for the detector's record. The network
    need not be the one a set was distilled for; its α is used all the same. Sets that do not fit together, one
    digest twice and a seed outside 0 to MAX_SEED raise BadConfigError; training that diverges raises TrainingError.
    `on_progress` is told epochs done, epochs in all, and the epoch's loss, mean over the sources.
    """
    class_map = class_map or {}
    names = names or [(f"set {number + 1}", "", "") for number in range(len(sets))]
    if not 0 <= seed <= MAX_SEED:
        raise BadConfigError(f"seed must be from 0 to {MAX_SEED}, got {seed}")
    classes = _join_classes(sets, local, class_map)
    _check(sets, local, local_step, names)
    normalisation = _pool([one.normalisation for one in sets])
    flat = FlatNet(net, classes=len(classes), image_size=sets[0].image_size)
    lessons = [
        _lesson(one, normalisation, classes, class_map, config, seed, number, device)
        for number, one in enumerate(sets)
    ]
    if local is not None:
        lessons.append(
            _local_lesson(
                local, normalisation, classes, class_map, local_step, config, seed, device
            )
        )
    theta_P = flat.initial(derive(seed, "fresh network")).to(device)
    velocities = [torch.zeros_like(theta_P) for _ in lessons]
    half = config.epochs // 2 + 1
    for epoch in range(config.epochs):
        if epoch == half:
            for velocity_P in velocities:
                velocity_P.zero_()
        loss = 0.0
        for lesson, velocity_P in zip(lessons, velocities, strict=True):
            loss += train_epoch(
                flat,
                theta_P,
                velocity_P,
                lesson.batches(),
                lr=lesson.lr if epoch < half else lesson.lr / 10,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        if on_progress:
            on_progress(epoch + 1, config.epochs, loss / len(lessons))
    sources = [
        Source(name, version, digest, len(one), one.classes, one.learning_rate)
        for (name, version, digest), one in zip(names, sets, strict=True)
    ]
    if local is not None:
        sources.append(Source(LOCAL, "", local.fingerprint, len(local), local.classes, local_step))
    return Detector(
        theta_P=theta_P.cpu(),
        net=net,
        classes=classes,
        image_size=sets[0].image_size,
        normalisation=normalisation,
        sources=tuple(sources),
        class_map=tuple(sorted((old, new) for old, new in class_map.items() if old != new)),
        config=config,
        seed=seed,
    )


# -------------------------------------------------------------------------------- lessons


@dataclass(frozen=True, slots=True)
class _Lesson:
    """One source's batches of an epoch, and the step size they are taken with."""

    lr: float
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]


def _lesson(
    one: DistilledSet,
    normalisation: Normalisation,
    classes: tuple[str, ...],
    class_map: Mapping[str, str],
    config: DetectorConfig,
    seed: int,
    number: int,
    device: str,
) -> _Lesson:
    images_ICHW = _renormalise(one.images.float(), one.normalisation, normalisation).to(device)
    labels_I = _joined_labels(one.labels, rename(one.classes, class_map), classes).to(device)
    purpose = ("train on set",) if number == 0 else ("train on set", number)
    generator = torch.Generator().manual_seed(derive(seed, *purpose))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order_I = torch.randperm(len(images_ICHW), generator=generator).to(device)
        for rows_B in order_I.split(config.batch_size):
            drawn = draw(one.augment, len(rows_B), generator)
            yield augment(images_ICHW[rows_B], drawn), labels_I[rows_B]

    return _Lesson(one.learning_rate, batches)


def _local_lesson(
    local: LabelledImages,
    normalisation: Normalisation,
    classes: tuple[str, ...],
    class_map: Mapping[str, str],
    local_step: float,
    config: DetectorConfig,
    seed: int,
    device: str,
) -> _Lesson:
    local_labels_R = torch.from_numpy(np.array(local.labels_R, dtype=np.int64))
    labels_R = _joined_labels(local_labels_R, rename(local.classes, class_map), classes)
    generator = torch.Generator().manual_seed(derive(seed, LOCAL))
    size = min(config.batch_size, len(local))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        rows_B = epoch_rows(labels_R, "sampler", size, generator)[:size]
        pixels_BCHW = torch.from_numpy(np.array(local.pixels_RHW[rows_B.numpy()])).unsqueeze(1)
        x_BCHW = normalise(pixels_BCHW.to(device), normalisation)
        yield augment(x_BCHW, draw(config.augment, size, generator)), labels_R[rows_B].to(device)

    return _Lesson(local_step, batches)


def _renormalise(images_ICHW: Tensor, own: Normalisation, common: Normalisation) -> Tensor:
    """Return images on the common scale; distilled pixels may lie outside [0, 1] and are not clipped."""
    if own == common:
        return images_ICHW
    return (images_ICHW * own.std + own.mean - common.mean) / common.std


def _pool(parts: Sequence[Normalisation]) -> Normalisation:
    """Return mean and standard deviation of all pixels together, every set counting the same."""
    if all(part == parts[0] for part in parts):
        return parts[0]
    mean = math.fsum(part.mean for part in parts) / len(parts)
    square = math.fsum(part.std**2 + part.mean**2 for part in parts) / len(parts)
    return Normalisation(mean=mean, std=math.sqrt(square - mean**2))


def _joined_labels(labels_I: Tensor, names: tuple[str, ...], classes: tuple[str, ...]) -> Tensor:
    """Return class numbers, or for soft labels probabilities, in terms of the joined classes."""
    number_K = torch.tensor([classes.index(name) for name in names])
    if labels_I.ndim == 1:
        return number_K[labels_I.long()]
    together_KK = F.one_hot(number_K, len(classes)).float()
    return labels_I.float() @ together_KK


# -------------------------------------------------------------------------------- checks


def _join_classes(
    sets: Sequence[DistilledSet], local: LabelledImages | None, class_map: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the joined classes, sorted."""
    if not sets:
        raise BadConfigError("a detector needs at least one package")
    offered = {name for one in sets for name in one.classes} | set(local.classes if local else ())
    return join_classes(offered, class_map)


def _check(
    sets: Sequence[DistilledSet],
    local: LabelledImages | None,
    local_step: float,
    names: Sequence[tuple[str, str, str]],
) -> None:
    if len(names) != len(sets):
        raise BadConfigError(f"{len(sets)} sets need as many names, got {len(names)}")
    refuse_repeated(names)
    refuse_sizes([one.image_size for one in sets], names)
    size = sets[0].image_size
    for (name, _, _), one in zip(names, sets, strict=True):
        if one.images.shape[1] != 1:
            raise BadConfigError(
                f"{name} has {one.images.shape[1]} colour channels; detectors read grey images"
            )
        if not (math.isfinite(one.learning_rate) and one.learning_rate > 0):
            raise BadConfigError(
                f"{name} has the step size {one.learning_rate}; it must be a number above 0"
            )
        if one.labels.ndim == 1 and not 0 <= int(one.labels.min()) <= int(one.labels.max()) < len(
            one.classes
        ):
            raise BadConfigError(f"{name} has labels outside its {len(one.classes)} classes")
    if local is not None:
        if len(local) == 0:
            raise BadConfigError(
                "there are no local images to train on; check the filters, or leave --local out"
            )
        if local.pixels_RHW.shape[-1] != size:
            raise BadConfigError(
                f"local images must have {size} pixels, got {local.pixels_RHW.shape[-1]}"
            )
        if not 0 < local_step <= 10:
            raise BadConfigError(
                f"the step size of local images must be in (0, 10], got {local_step}"
            )
