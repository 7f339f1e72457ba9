"""The recipe: everything that decides a distillation, as frozen values checked when they are made.

A `Recipe` is what the command line overrides, what the manifest records and what a resumed run must
match. Comments give the paper's symbol (Li et al. 2023, Algorithm 1) where it has one.
Named starting points live in `presets`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from ppdd_core.errors import BadConfigError

Architecture = Literal["convnet", "alexnet", "vgg11", "resnet18"]
Balance = Literal["none", "sampler", "loss"]
Init = Literal["noise", "real", "mean"]
Engine = Literal["reverse", "unroll"]
Labels = Literal["hard", "soft"]
Similarity = Literal[
    "signed_ratio", "ratio", "relative_difference", "displacement", "difference", "difference_rank"
]
StoreDtype = Literal["float32", "bfloat16", "float16"]
Snapshot = Literal["last", "mean"]

BASELINES = ("random_real", "k_centre", "full_data")
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise BadConfigError(f"{name} must be {rule}, got {value!r}")


def _choice(name: str, value: str, kind: Any) -> None:
    allowed = typing.get_args(kind)
    _require(value in allowed, name, value, "one of " + ", ".join(allowed))


def check_augment(strategy: str) -> None:
    """Refuse an augmentation strategy with an unknown operation; the empty string means none."""
    unknown = [op for op in strategy.split("_") if op and op not in AUGMENTATIONS]
    _require(
        not unknown,
        "augment",
        strategy,
        "operations joined by _ out of " + ", ".join(AUGMENTATIONS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConfig:
    """The network that teachers and students share."""

    architecture: Architecture = "convnet"
    width: int = 128  # filters of every ConvNet block
    depth: int = 5  # ConvNet blocks: convolution, instance norm, ReLU, 2x2 average pooling

    def __post_init__(self) -> None:
        _choice("net.architecture", self.architecture, Architecture)
        _require(1 <= self.width <= 1024, "net.width", self.width, "from 1 to 1024")
        _require(1 <= self.depth <= 8, "net.depth", self.depth, "from 1 to 8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """How the teacher networks are trained on the real images."""

    teachers: int = 100  # T: independent trajectories
    epochs: int = (
        50  # epochs trained and stored; only max_start_epoch + teacher_epochs are ever used
    )
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augment: str = "color_crop_cutout_scale_rotate"
    balance: Balance = "none"  # class imbalance: as is, classes drawn equally, or weighted loss
    epoch_images: int = (
        0  # images drawn per epoch; 0 = one pass over all (balanced: every class as often)
    )
    snapshot: Snapshot = "last"  # of an epoch: its last parameters, or their mean over its steps
    dtype: StoreDtype = "float32"  # of stored snapshots

    def __post_init__(self) -> None:
        _require(self.teachers >= 1, "teacher.teachers", self.teachers, "at least 1")
        _require(self.epochs >= 1, "teacher.epochs", self.epochs, "at least 1")
        _require(0 < self.lr <= 10, "teacher.lr", self.lr, "in (0, 10]")
        _require(0 <= self.momentum < 1, "teacher.momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.weight_decay < 1, "teacher.weight_decay", self.weight_decay, "in [0, 1)")
        _require(self.batch_size >= 1, "teacher.batch_size", self.batch_size, "at least 1")
        _require(self.epoch_images >= 0, "teacher.epoch_images", self.epoch_images, "0 or more")
        _choice("teacher.balance", self.balance, Balance)
        _choice("teacher.snapshot", self.snapshot, Snapshot)
        _choice("teacher.dtype", self.dtype, StoreDtype)
        check_augment(self.augment)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Algorithm 1: the outer loop over synthetic images and learned step size."""

    images_per_class: int = 10  # IPC
    iterations: int = 5000  # distillation steps (the paper's second use of T)
    student_steps: int = 20  # J: SGD steps on synthetic images
    teacher_epochs: int = 2  # K: teacher epochs the student must reach
    max_start_epoch: int = 10  # I+: start epochs are drawn from [0, I+)
    prune_below: float = 0.1  # sigma: similarity under which a parameter is dropped; 0 = MTT
    similarity: Similarity = "signed_ratio"
    min_keep: float = 0.05  # least share of parameters kept; below it the most similar ones stay
    lr_init: float = 0.01  # alpha_0
    lr_min: float = 1e-6  # bounds of the learned alpha
    lr_max: float = 1.0
    batch_syn: int = 0  # images of one student step; 0 = all of them
    lr_images: float = 1000.0  # step size for the pixels
    lr_lr: float = 1e-5  # step size for alpha
    momentum: float = 0.5  # of both
    labels: Labels = "hard"  # soft: probabilities, learned with the images (as in DATM)
    label_sure: float = 0.9  # soft: probability of an image's own class before the first step
    lr_labels: float = 1.0  # soft: step size for the logits of the labels
    init: Init = "noise"
    mean_of: int = 16  # images averaged for init = mean
    augment: str = "color_crop_cutout_scale_rotate"
    engine: Engine = "reverse"
    max_loss: float = (
        5.0  # a step with a larger matching loss is rolled back (1 = no movement at all)
    )

    def __post_init__(self) -> None:
        def at_least_1(name: str) -> None:
            _require(getattr(self, name) >= 1, f"distill.{name}", getattr(self, name), "at least 1")

        for name in ("images_per_class", "iterations", "student_steps", "teacher_epochs"):
            at_least_1(name)
        for name in ("max_start_epoch", "mean_of"):
            at_least_1(name)
        _require(0 <= self.prune_below < 1, "distill.prune_below", self.prune_below, "in [0, 1)")
        _require(0 < self.min_keep <= 1, "distill.min_keep", self.min_keep, "in (0, 1]")
        _require(
            0 < self.lr_min <= self.lr_init <= self.lr_max <= 100,
            "distill.lr_init",
            self.lr_init,
            f"between lr_min {self.lr_min} and lr_max {self.lr_max}, all in (0, 100]",
        )
        _require(self.batch_syn >= 0, "distill.batch_syn", self.batch_syn, "0 or more")
        _require(0 < self.lr_images < math.inf, "distill.lr_images", self.lr_images, "above 0")
        _require(0 <= self.lr_lr < math.inf, "distill.lr_lr", self.lr_lr, "0 or more")
        _require(0 <= self.momentum < 1, "distill.momentum", self.momentum, "in [0, 1)")
        _require(0 < self.label_sure < 1, "distill.label_sure", self.label_sure, "in (0, 1)")
        _require(0 <= self.lr_labels < math.inf, "distill.lr_labels", self.lr_labels, "0 or more")
        _require(0 < self.max_loss < math.inf, "distill.max_loss", self.max_loss, "above 0")
        _choice("distill.similarity", self.similarity, Similarity)
        _choice("distill.init", self.init, Init)
        _choice("distill.engine", self.engine, Engine)
        _choice("distill.labels", self.labels, Labels)
        check_augment(self.augment)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Training a network on distilled (or few real) images: MTT's evaluation protocol.

    SGD with momentum, one step-size drop by ten half way. MTT uses 1000 epochs; it then picks the best
    checkpoint on test data, which is not done here.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "color_crop_cutout_scale_rotate"
    seeds: int = 3  # networks trained for one result

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "detector.epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "detector.batch_size", self.batch_size, "at least 1")
        _require(0 <= self.momentum < 1, "detector.momentum", self.momentum, "in [0, 1)")
        _require(
            0 <= self.weight_decay < 1, "detector.weight_decay", self.weight_decay, "in [0, 1)"
        )
        _require(self.seeds >= 1, "detector.seeds", self.seeds, "at least 1")
        check_augment(self.augment)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What a package is compared with, by networks trained the same way."""

    baselines: str = "random_real+k_centre+full_data"  # joined by +; empty = none
    step_sizes: str = "0.001+0.003+0.01+0.03"  # tried on validation for few real images
    architectures: str = (
        ""  # other networks to evaluate on, joined by +, e.g. alexnet+vgg11+resnet18
    )
    full_networks: int = 3  # networks trained on all real images; at most detector.seeds
    full_epochs: int = 40  # most epochs of the network trained on all real images
    full_epoch_images: int = 0  # images per such epoch; 0 = one pass over all

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in BASELINES]
        _require(
            not unknown,
            "evaluation.baselines",
            self.baselines,
            "names joined by + out of " + ", ".join(BASELINES),
        )
        _require(
            bool(re.fullmatch(r"\d+(\.\d+)?(\+\d+(\.\d+)?)*", self.step_sizes))
            and min(self.grid) > 0,
            "evaluation.step_sizes",
            self.step_sizes,
            "numbers above 0 joined by +",
        )
        for name in self.other_architectures:
            _choice("evaluation.architectures", name, Architecture)
        _require(
            self.full_networks >= 1, "evaluation.full_networks", self.full_networks, "at least 1"
        )
        _require(self.full_epochs >= 1, "evaluation.full_epochs", self.full_epochs, "at least 1")
        _require(
            self.full_epoch_images >= 0,
            "evaluation.full_epoch_images",
            self.full_epoch_images,
            "0 or more",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the baselines one by one."""
        return tuple(name for name in self.baselines.split("+") if name)

    @property
    def other_architectures(self) -> tuple[Architecture, ...]:
        """Return the other networks one by one."""
        return typing.cast(
            "tuple[Architecture, ...]",
            tuple(name for name in self.architectures.split("+") if name),
        )

    @property
    def grid(self) -> tuple[float, ...]:
        """Return the step sizes one by one."""
        return tuple(float(text) for text in self.step_sizes.split("+"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Thresholds of the privacy verdict, and how much is measured."""

    members: int = 1000  # real training images (and as many held-out ones, if there are) tested
    max_membership_auc: float = 0.60  # upper end of the 95 % interval may not exceed it
    max_tpr_at_1_fpr: float = 0.05  # lower end of the 95 % interval may not exceed it
    near_copy_ssim: float = 0.90  # a distilled image this similar to a real one is a near-copy
    max_near_copies: int = 0
    min_class_size: int = 20  # patients (or images) behind the smallest class

    def __post_init__(self) -> None:
        _require(self.members >= 20, "privacy.members", self.members, "at least 20")
        for name in ("max_membership_auc", "max_tpr_at_1_fpr", "near_copy_ssim"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"privacy.{name}", value, "in [0, 1]")
        _require(
            self.max_near_copies >= 0, "privacy.max_near_copies", self.max_near_copies, "0 or more"
        )
        _require(
            self.min_class_size >= 1, "privacy.min_class_size", self.min_class_size, "at least 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a distillation, seed included."""

    preset: str = "custom"
    seed: int = 0
    image_size: int = 112
    net: NetConfig = field(default_factory=NetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        _require(8 <= self.image_size <= 512, "image_size", self.image_size, "from 8 to 512")
        if self.net.architecture == "convnet":
            _require(
                self.image_size >> self.net.depth >= 1,
                "net.depth",
                self.net.depth,
                f"small enough that {self.image_size} pixels can be halved that often",
            )
        needed = self.distill.max_start_epoch + self.distill.teacher_epochs - 1
        _require(
            needed <= self.teacher.epochs,
            "teacher.epochs",
            self.teacher.epochs,
            f"at least max_start_epoch + teacher_epochs - 1 = {needed}",
        )

    @property
    def used_epochs(self) -> int:
        """Teacher epochs that distillation can ever look at."""
        return self.distill.max_start_epoch + self.distill.teacher_epochs - 1

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recipe:
        """Return the recipe written by `to_dict`; an unknown or ill-typed field raises BadConfigError."""
        return typing.cast("Recipe", _build(cls, value, ""))

    def override(self, settings: Mapping[str, str | int | float]) -> Recipe:
        """Return a copy with dotted fields replaced, as `distill.iterations=500`; text is parsed by type."""
        value = self.to_dict()
        for name, setting in settings.items():
            *groups, leaf = name.split(".")
            place: Any = value
            for group in groups:
                place = place.get(group) if isinstance(place, dict) else None
            if not isinstance(place, dict) or leaf not in place or isinstance(place[leaf], dict):
                raise BadConfigError(
                    f"there is no recipe field {name!r}; `ppdd presets` lists them all"
                )
            place[leaf] = _parse(name, setting, type(place[leaf]))
        return Recipe.from_dict(value)


def _parse(name: str, value: str | int | float, kind: type) -> Any:
    try:
        if kind is int and isinstance(value, float):
            raise ValueError
        return kind(value)
    except ValueError:
        raise BadConfigError(
            f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}"
        ) from None


def _build(cls: type, value: Mapping[str, Any], path: str) -> Any:
    if not isinstance(value, Mapping):
        raise BadConfigError(f"{path or 'the recipe'} must be an object, got {value!r}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise BadConfigError(f"unknown recipe field {path + unknown[0]!r}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, given in value.items():
        kind = hints[name]
        if is_dataclass(kind):
            arguments[name] = _build(typing.cast("type", kind), given, f"{path}{name}.")
            continue
        plain: type = str if typing.get_origin(kind) is Literal else kind
        if plain is float and isinstance(given, int) and not isinstance(given, bool):
            given = float(given)
        if not isinstance(given, plain) or isinstance(given, bool):
            raise BadConfigError(f"{path}{name} must be a {plain.__name__}, got {given!r}")
        arguments[name] = given
    return cls(**arguments)
