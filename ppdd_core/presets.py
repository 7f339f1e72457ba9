"""Named starting points for a recipe. Each number that the paper leaves unsaid has its reason here.

`docs/results/` holds what the presets reach and what they cost.
"""

from __future__ import annotations

from collections.abc import Callable

from ppdd_core.config import (
    DetectorConfig,
    DistillConfig,
    EvaluationConfig,
    NetConfig,
    PrivacyConfig,
    Recipe,
    TeacherConfig,
)
from ppdd_core.errors import BadConfigError


def quick(images_per_class: int) -> Recipe:
    """Minutes on two CPU cores: 32 px, a small network, few short teachers on class-balanced epochs.

    Early epochs only where there are few images per class: they are the ones that so few images can follow (as in
    DATM). Half of the images per student step cost half and lost nothing on validation.
    """
    return Recipe(
        preset="quick",
        image_size=32,
        net=NetConfig(width=32, depth=3),
        teacher=TeacherConfig(
            teachers=4, epochs=7, lr=0.01, batch_size=64, balance="sampler", epoch_images=2000
        ),
        distill=DistillConfig(
            images_per_class=images_per_class,
            iterations=200 if images_per_class <= 2 else 150,
            student_steps=10,
            teacher_epochs=2,
            max_start_epoch=4 if images_per_class <= 2 else 6,
            lr_init=0.01,
            lr_images=50.0 if images_per_class <= 2 else 100.0,
            lr_lr=0.05,
            batch_syn=10,
        ),
        detector=DetectorConfig(epochs=150, seeds=3),
        evaluation=EvaluationConfig(
            baselines="random_real+full_data",
            step_sizes="0.003+0.01+0.03",
            full_networks=1,
            full_epochs=10,
            full_epoch_images=2000,
        ),
        privacy=PrivacyConfig(members=600),
    )


def small(images_per_class: int) -> Recipe:
    """About an hour on two CPU cores, minutes on a GPU: 64 px, the paper's scheme at half size.

    Teachers with momentum, whose snapshots are means of their epochs, come in 10,000 images to where plain SGD comes in
    30,000 or more. Images start as means of 24 real ones: noise needs more than twice the steps. What that leaves of
    them is in the privacy report, like everything else; `distill.init=noise` touches none. All of this was chosen on
    validation images (docs/results/log.md).
    """
    return Recipe(
        preset="small",
        image_size=64,
        net=NetConfig(width=64, depth=4),
        teacher=TeacherConfig(
            teachers=3,
            epochs=11,
            lr=0.003,
            momentum=0.9,
            batch_size=64,
            balance="sampler",
            epoch_images=2000,
            snapshot="mean",
        ),
        distill=DistillConfig(
            images_per_class=images_per_class,
            iterations=200,
            student_steps=16,
            teacher_epochs=2,
            max_start_epoch=5 if images_per_class <= 2 else 10,
            lr_init=0.01,
            lr_images=1000.0,
            lr_lr=0.05,
            batch_syn=10,
            init="mean",
            mean_of=24,
        ),
        detector=DetectorConfig(epochs=200, seeds=3),
    )


def paper(images_per_class: int) -> Recipe:
    """The paper's experiment: 112 px, ConvNet of width 128 and depth 5, T = 100, 50 epochs, σ = 0.1.

    Unsaid in the paper and chosen here: J = 20, K = 2, I+ = 10, α₀ = 0.01, pixel step 1000 and momentum 0.5 are MTT's
    own for ConvNetD5 on 128-pixel images; its α step 1e-6 at α = 0.01 is 0.01 in log space. `batch_syn` 20 keeps a
    P100's 16 GB (J times batch_syn stayed below about 400 there). Teachers as in MTT's buffer.py: step 0.01, batch 256,
    no momentum, classes as they are. Real images as a start, as line 1 of Algorithm 1 has it (the privacy report
    then says what that leaks; the other presets start from noise).
    """
    return Recipe(
        preset="paper",
        image_size=112,
        net=NetConfig(width=128, depth=5),
        teacher=TeacherConfig(teachers=100, epochs=50, lr=0.01, batch_size=256),
        distill=DistillConfig(
            images_per_class=images_per_class,
            iterations=5000,
            student_steps=20,
            teacher_epochs=2,
            max_start_epoch=10,
            prune_below=0.1,
            lr_init=0.01,
            lr_images=1000.0,
            lr_lr=0.01,
            batch_syn=20,
            init="real",
        ),
        detector=DetectorConfig(epochs=1000, seeds=5),
    )


def fast(images_per_class: int) -> Recipe:
    """The paper's size at about a fifteenth of its arithmetic: few teachers, only epochs that are used.

    100 teachers of 50 epochs are ten times the cost of the distillation and only I+ + K - 1 = 11 of the epochs can ever
    be drawn: 10 teachers of 11 epochs are 2 % of that. Class-balanced epochs, because balanced accuracy is
    what the teachers lack most (see docs/results). 2000 instead of 5000 steps.
    """
    return Recipe(
        preset="fast",
        image_size=112,
        net=NetConfig(width=128, depth=5),
        teacher=TeacherConfig(
            teachers=10, epochs=11, lr=0.03, batch_size=64, balance="sampler", epoch_images=9600
        ),
        distill=DistillConfig(
            images_per_class=images_per_class,
            iterations=2000,
            student_steps=20,
            teacher_epochs=2,
            max_start_epoch=10,
            lr_init=0.02,
            lr_images=1000.0,
            lr_lr=0.02,
            batch_syn=20,
        ),
        detector=DetectorConfig(epochs=1000, seeds=3),
    )


PRESETS: dict[str, Callable[[int], Recipe]] = {
    "quick": quick,
    "small": small,
    "paper": paper,
    "fast": fast,
}


def preset(name: str, images_per_class: int) -> Recipe:
    """Return the recipe of a preset; an unknown name raises BadConfigError."""
    if name not in PRESETS:
        raise BadConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name](images_per_class)
