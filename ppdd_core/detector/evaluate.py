"""How good a distilled set is: fresh networks trained on it, against real images, as evaluation.json has it.

The protocol is MTT's (Cazenavette et al. 2022) without its choice on test data: nothing here that chooses (a
step size, the epochs of the full-data network) is given the test images. They are looked at once per finished
network. Choices are made by balanced accuracy on the validation images.

- A distilled set is trained with its own learned step size and the augmentation it was distilled under.
- `random_real` and `k_centre` take as many real images per class, drawn anew for every seed; their step size
  is chosen on a grid with the first seed. k-centre covers the feature space of the full-data network.
- `full_data` trains on all real images, stopped early, with the class handling its config names. It is run
  for the distilled set's own network only.
- On another architecture a distilled set has no step size of its own: it is chosen on the grid plus α.

All methods start from the same initial networks, seed by seed. The spread in the summary is the sample
standard deviation (n - 1) over networks.

Shape suffixes: P flat parameters, I few images, R real images, C H W, D features, K classes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppdd_core.config import BASELINES, Balance, DetectorConfig, NetConfig
from ppdd_core.data.augment import augment, draw
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.data.tensors import (
    labels_tensor,
    measure_normalisation,
    normalise,
    pixels_tensor,
    to_tensor,
)
from ppdd_core.detector.baselines import k_centre, random_real
from ppdd_core.detector.metrics import DIGITS, measure
from ppdd_core.detector.model import BLOCK, predict_pixels
from ppdd_core.errors import BadConfigError, SourceError, TrainingError
from ppdd_core.nets.fit import train_epoch, train_on_set
from ppdd_core.nets.functional import FlatNet
from ppdd_core.seeding import derive
from ppdd_core.teachers.train import RealImages, class_weights, epoch_rows

FORMAT_VERSION = 1
STEP_SIZES = (0.001, 0.003, 0.01, 0.03)
PROJECTED = 512  # most feature dimensions k-centre works in; more are projected at random
VALIDATION_SCORE = "validation_balanced_accuracy"
SUMMARISED = ("accuracy", "balanced_accuracy", "macro_auroc", "calibration_error")

OnProgress = Callable[[int, int, str], None]  # (done, total, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullDataConfig:
    """Training on all real images; the epoch with the best validation score is kept."""

    networks: int = 3  # at most as many as the seeds of the evaluation
    max_epochs: int = 40
    epoch_images: int = 0  # images per epoch; 0 = one pass over all
    patience: int = 8  # epochs without a better score before it stops
    step_sizes: tuple[float, ...] = (0.01,)  # several: chosen on validation with the first seed
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    balance: Balance = "sampler"  # classes as they are, drawn equally, or weighted in the loss
    augment: str = "color_crop_cutout_scale_rotate"

    def __post_init__(self) -> None:
        for name in ("networks", "max_epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise BadConfigError(
                    f"full_data.{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.epoch_images < 0:
            raise BadConfigError(
                f"full_data.epoch_images must be 0 or more, got {self.epoch_images}"
            )
        if not self.step_sizes or min(self.step_sizes) <= 0:
            raise BadConfigError(f"full_data.step_sizes must be above 0, got {self.step_sizes}")


@dataclass(frozen=True, slots=True)
class FullNetwork:
    """A network trained on all real images: its seed, step size, parameters and epochs."""

    seed: int
    lr: float
    theta_P: Tensor
    epochs: int


Train = Callable[[], Iterator[FullNetwork]]


def train_anew(train: Train) -> Iterable[FullNetwork]:
    """Return what `train` trains: nothing is remembered."""
    return train()


def evaluate_sets(
    sets: Sequence[tuple[str, DistilledSet]],
    *,
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    config: DetectorConfig,
    seed: int,
    net: NetConfig | None = None,
    sizes: Sequence[int] = (),
    score_validation: bool = False,
    remembered: Callable[[Train], Iterable[FullNetwork]] = train_anew,
    baselines: Sequence[str] = BASELINES,
    other_nets: Sequence[NetConfig] = (),
    step_sizes: Sequence[float] = STEP_SIZES,
    full_data: FullDataConfig | None = None,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Return evaluation.json: every network's figures on `test`, and their mean and spread.

    `sets` pairs a method name (`distilled`, `mtt_unpruned`) with its set; baselines are run at every number
    of images per class that occurs or is in `sizes`. `net` says what they are trained for where there is no set.
    With `score_validation` every entry also has its balanced accuracy on `validation`, to choose by. `remembered`
    may know the networks on all real images from an earlier evaluation. Sets that do not fit each other or the
    images, or unknown baselines, raise BadConfigError; an empty split SourceError; a network that diverges
    TrainingError.
    """
    full_data = full_data or FullDataConfig()
    main = sets[0][1].net if sets else net
    if main is None:
        raise BadConfigError("there is no distilled set to evaluate")
    _check(sets, train, validation, test, baselines, step_sizes)
    seeds = [seed + number for number in range(config.seeds)]
    nets = [main, *(net for net in dict.fromkeys(other_nets) if net != main)]
    real = measure_normalisation(train)
    sizes = sorted({*sizes, *(images_per_class(one) for _, one in sets)})
    progress = _Progress(
        on_progress, _trainings(sets, nets, len(seeds), sizes, baselines, step_sizes, full_data)
    )
    place = _Place(train, validation, test, device, progress, score_validation)

    results: list[dict[str, Any]] = []
    rows: dict[tuple[str, int, int], np.ndarray] = {}
    full: list[dict[str, Any]] = []
    if "full_data" in baselines or "k_centre" in baselines:
        flat, features = place.net(main), []
        some = seeds[: full_data.networks]
        for one in remembered(lambda: _full_data(place, main, full_data, real, some)):
            theta_P = one.theta_P.to(device)
            if "full_data" in baselines:
                figures = place.on_test(flat, theta_P, real)
                entry = _entry("full_data", main, None, one.seed, one.lr, figures)
                full.append(entry | {"epochs": one.epochs})
            if "k_centre" in baselines:
                features.append(_features(flat, theta_P, train, real, one.seed))
        for number, one_seed in enumerate(seeds if features else ()):
            features_RD = features[number % len(features)]
            for size in sizes:
                rows["k_centre", size, one_seed] = k_centre(
                    features_RD, train.labels_R, size, one_seed
                )
    if "random_real" in baselines:
        for size in sizes:
            for one_seed in seeds:
                rows["random_real", size, one_seed] = random_real(train, size, one_seed)

    for other in nets:
        for method, distilled in sets:
            trial = _distilled(method, distilled, config)
            own = distilled.learning_rate
            choices = (own,) if other == main else (*step_sizes, own)
            results += _trained_on_few(place, other, trial, choices, seeds)
        for method in (name for name in baselines if name != "full_data"):
            for size in sizes:
                trial = _few_real(method, size, rows, train, real, config)
                results += _trained_on_few(place, other, trial, tuple(step_sizes), seeds)
    results += full
    return {
        "format_version": FORMAT_VERSION,
        "split": "test",
        "images": len(test),
        "classes": list(train.classes),
        "protocol": {
            **dataclasses.asdict(config),
            "seed": seed,
            "step_sizes": list(step_sizes),
            "chosen_by": "balanced accuracy on validation",
            "spread": "sample standard deviation over networks",
            "full_data": {
                **dataclasses.asdict(full_data),
                "step_sizes": list(full_data.step_sizes),
            },
        },
        "results": results,
        "summary": summarise(results),
    }


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and sample standard deviation per method, architecture and images per class.

    The spread of a single network, and figures that a network lacks, are None.
    """
    groups: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for entry in results:
        key = (entry["method"], entry["architecture"], entry["images_per_class"])
        groups.setdefault(key, []).append(entry)
    return [
        {
            "method": method,
            "architecture": architecture,
            "images_per_class": per_class,
            "networks": len(entries),
            **{name: _mean_sd([entry[name] for entry in entries]) for name in SUMMARISED},
        }
        for (method, architecture, per_class), entries in groups.items()
    ]


def images_per_class(one: DistilledSet) -> int:
    """Return the images of a set divided by its classes, rounded up."""
    return -(-len(one) // len(one.classes))


# -------------------------------------------------------------------------------- few images


@dataclass(frozen=True, slots=True)
class _Trial:
    """A way to come by few images, and how to train on them."""

    method: str
    per_class: int
    images: Callable[[int], tuple[Tensor, Tensor]]  # seed -> images [I, C, H, W], labels
    normalisation: Normalisation
    config: DetectorConfig


def _distilled(method: str, one: DistilledSet, config: DetectorConfig) -> _Trial:
    return _Trial(
        method,
        images_per_class(one),
        lambda _seed: (one.images, one.labels),
        one.normalisation,
        dataclasses.replace(config, augment=one.augment),
    )


def _few_real(
    method: str,
    size: int,
    rows: dict[tuple[str, int, int], np.ndarray],
    train: LabelledImages,
    normalisation: Normalisation,
    config: DetectorConfig,
) -> _Trial:
    def images(seed: int) -> tuple[Tensor, Tensor]:
        few = train.select(rows[method, size, seed])
        return to_tensor(few, normalisation), labels_tensor(few)

    return _Trial(method, size, images, normalisation, config)


@dataclass(frozen=True, slots=True)
class _Place:
    """The three splits and the device. Only `on_test` touches the test images."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    device: str
    progress: _Progress
    score_validation: bool = False

    def net(self, config: NetConfig) -> FlatNet:
        return FlatNet(
            config, classes=len(self.train.classes), image_size=self.train.pixels_RHW.shape[-1]
        )

    def fresh(self, net: FlatNet, seed: int) -> Tensor:
        return net.initial(derive(seed, "fresh network")).to(self.device)

    def on_validation(self, net: FlatNet, theta_P: Tensor, normalisation: Normalisation) -> float:
        probabilities_RK = predict_pixels(net, theta_P, self.validation.pixels_RHW, normalisation)
        return measure(
            self.validation.labels_R, probabilities_RK, self.validation.classes
        ).balanced_accuracy

    def on_test(
        self, net: FlatNet, theta_P: Tensor, normalisation: Normalisation
    ) -> dict[str, Any]:
        probabilities_RK = predict_pixels(net, theta_P, self.test.pixels_RHW, normalisation)
        figures = measure(self.test.labels_R, probabilities_RK, self.test.classes).to_dict()
        if self.score_validation:
            score = self.on_validation(net, theta_P, normalisation)
            figures[VALIDATION_SCORE] = round(score, DIGITS)
        return figures


def _trained_on_few(
    place: _Place,
    config: NetConfig,
    trial: _Trial,
    choices: tuple[float, ...],
    seeds: Sequence[int],
) -> Iterator[dict[str, Any]]:
    net = place.net(config)

    def trained(seed: int, lr: float) -> Tensor:
        images_ICHW, labels_I = trial.images(seed)
        place.progress(f"{trial.method}, {config.architecture}")
        return train_on_set(
            net,
            place.fresh(net, seed),
            images_ICHW.to(place.device),
            labels_I.to(place.device),
            config=trial.config,
            lr=lr,
            seed=seed,
        )

    def score(lr: float) -> float:
        return place.on_validation(net, trained(seeds[0], lr), trial.normalisation)

    lr = _best(choices, score)
    for seed in seeds:
        figures = place.on_test(net, trained(seed, lr), trial.normalisation)
        yield _entry(trial.method, config, trial.per_class, seed, lr, figures)


def _best(choices: tuple[float, ...], score: Callable[[float], float]) -> float:
    distinct = sorted(set(choices))
    if len(distinct) == 1:
        return distinct[0]
    scores: dict[float, float] = {}
    for lr in distinct:
        try:
            scores[lr] = score(lr)
        except TrainingError:  # this step size diverges: it is no candidate
            continue
    if not scores:
        raise TrainingError(
            f"training diverges at every step size tried: {', '.join(map(str, distinct))}"
        )
    return max(scores, key=lambda lr: scores[lr])


# -------------------------------------------------------------------------------- all images


def _full_data(
    place: _Place,
    config: NetConfig,
    full: FullDataConfig,
    normalisation: Normalisation,
    seeds: Sequence[int],
) -> Iterator[FullNetwork]:
    net = place.net(config)

    def trained(seed: int, lr: float) -> tuple[Tensor, int]:
        place.progress(f"full data, {config.architecture}")
        theta_P = place.fresh(net, seed)
        return _train_until_no_better(place, net, theta_P, full, normalisation, lr=lr, seed=seed)

    lr = _best(
        full.step_sizes,
        lambda lr: place.on_validation(net, trained(seeds[0], lr)[0], normalisation),
    )
    for seed in seeds:
        theta_P, epochs = trained(seed, lr)
        yield FullNetwork(seed, lr, theta_P, epochs)


def _train_until_no_better(
    place: _Place,
    net: FlatNet,
    theta_P: Tensor,
    full: FullDataConfig,
    normalisation: Normalisation,
    *,
    lr: float,
    seed: int,
) -> tuple[Tensor, int]:
    real = RealImages(
        pixels_tensor(place.train), labels_tensor(place.train), net.classes, normalisation
    )
    generator = torch.Generator().manual_seed(derive(seed, "full data"))
    weights_K = class_weights(real).to(theta_P.device) if full.balance == "loss" else None
    velocity_P = torch.zeros_like(theta_P)
    best_P, best_epoch, best_score = theta_P.clone(), 0, -1.0
    for epoch in range(1, full.max_epochs + 1):
        train_epoch(
            net,
            theta_P,
            velocity_P,
            _real_batches(real, full, generator, theta_P.device),
            lr=lr,
            momentum=full.momentum,
            weight_decay=full.weight_decay,
            class_weights_K=weights_K,
        )
        score = place.on_validation(net, theta_P, normalisation)
        if score > best_score:
            best_P, best_epoch, best_score = theta_P.clone(), epoch, score
        elif epoch - best_epoch >= full.patience:
            break
    return best_P, best_epoch


def _real_batches(
    real: RealImages, full: FullDataConfig, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    rows_R = epoch_rows(real.labels_R, full.balance, full.epoch_images, generator)
    for rows_B in rows_R.split(full.batch_size):
        x_BCHW = normalise(real.pixels_RCHW[rows_B].to(device), real.normalisation)
        yield (
            augment(x_BCHW, draw(full.augment, len(rows_B), generator)),
            real.labels_R[rows_B].to(device),
        )


@torch.no_grad()
def _features(
    net: FlatNet, theta_P: Tensor, data: LabelledImages, normalisation: Normalisation, seed: int
) -> np.ndarray:
    """Return what the last layer sees of every image, projected at random where it is very wide; [R, D]."""
    parts = []
    projection_DQ: Tensor | None = None
    for start in range(0, len(data), BLOCK // 4):
        pixels = torch.from_numpy(np.array(data.pixels_RHW[start : start + BLOCK // 4])).unsqueeze(
            1
        )
        features_BD = (
            net.features(theta_P, normalise(pixels, normalisation).to(theta_P.device)).float().cpu()
        )
        if features_BD.shape[1] > PROJECTED:
            if projection_DQ is None:
                generator = torch.Generator().manual_seed(derive(seed, "feature projection"))
                projection_DQ = torch.randn(features_BD.shape[1], PROJECTED, generator=generator)
            features_BD = features_BD @ projection_DQ / PROJECTED**0.5
        parts.append(features_BD.numpy())
    return np.concatenate(parts)


# -------------------------------------------------------------------------------- bookkeeping


class _Progress:
    """Counts trainings; the total is known before the first one."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def __call__(self, what: str) -> None:
        if self._on_progress:
            self._on_progress(self._done, self._total, what)
        self._done += 1


def _trainings(
    sets: Sequence[tuple[str, DistilledSet]],
    nets: Sequence[NetConfig],
    seeds: int,
    sizes: Sequence[int],
    baselines: Sequence[str],
    step_sizes: Sequence[float],
    full: FullDataConfig,
) -> int:
    def of(choices: Sequence[float]) -> int:
        return seeds + (len(set(choices)) if len(set(choices)) > 1 else 0)

    few = len([name for name in baselines if name != "full_data"]) * len(sizes) * of(step_sizes)
    total = of(full.step_sizes) if {"full_data", "k_centre"} & set(baselines) else 0
    for number in range(len(nets)):
        total += few
        total += sum(of((*step_sizes, one.learning_rate)) if number else seeds for _, one in sets)
    return total


def _entry(
    method: str,
    net: NetConfig,
    per_class: int | None,
    seed: int,
    lr: float,
    figures: dict[str, Any],
) -> dict[str, Any]:
    return {
        "method": method,
        "architecture": net.architecture,
        "images_per_class": per_class,
        "seed": seed,
        "learning_rate": lr,
        **figures,
    }


def _mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None}
    sd = round(statistics.stdev(known), DIGITS) if len(known) > 1 else None
    return {"mean": round(statistics.fmean(known), DIGITS), "sd": sd}


def _check(
    sets: Sequence[tuple[str, DistilledSet]],
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    baselines: Sequence[str],
    step_sizes: Sequence[float],
) -> None:
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise BadConfigError(
            f"there is no baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}"
        )
    if not step_sizes or min(step_sizes) <= 0:
        raise BadConfigError(f"step sizes to choose from must be above 0, got {tuple(step_sizes)}")
    for name, split in (("training", train), ("validation", validation), ("test", test)):
        if len(split) == 0:
            raise SourceError(f"the {name} split has no images; use more images or another split")
        if split.classes != train.classes:
            raise BadConfigError(f"the {name} split has other classes than the training split")
    size = train.pixels_RHW.shape[-1]
    for method, one in sets:
        if one.net != sets[0][1].net:
            raise BadConfigError(
                f"{method} was distilled for another network than {sets[0][0]}; evaluate it apart"
            )
        if one.classes != train.classes:
            raise BadConfigError(
                f"{method} has the classes {', '.join(one.classes)}, the images {', '.join(train.classes)}"
            )
        if one.image_size != size:
            raise BadConfigError(
                f"{method} has images of {one.image_size} pixels, the real ones have {size}"
            )
