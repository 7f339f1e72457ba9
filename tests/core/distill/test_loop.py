"""The outer loop: it learns, it refuses bad steps, it resumes to the same bytes."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppdd_core.config import DistillConfig, NetConfig
from ppdd_core.distill.loop import (
    ROLLBACKS_IN_A_ROW,
    Run,
    Segments,
    State,
    distil,
    first_state,
    load_state,
    save_state,
    student_steps,
    take_step,
)
from ppdd_core.distill.start import synthetic_labels
from ppdd_core.distill.student import Matched
from ppdd_core.errors import CheckpointError, TrainingError
from ppdd_core.nets.functional import FlatNet

CONFIG = DistillConfig(
    images_per_class=2,
    iterations=6,
    student_steps=3,
    teacher_epochs=1,
    max_start_epoch=2,
    lr_init=0.05,
    lr_images=10.0,
    lr_lr=0.1,
    batch_syn=3,
)
SOFT = dataclasses.replace(CONFIG, labels="soft", lr_labels=5.0)


def make_run(config: DistillConfig = CONFIG) -> Run:
    net = FlatNet(NetConfig(width=4, depth=2), classes=2, image_size=8)
    path_P = [net.initial(0)]
    for _ in range(3):
        path_P.append(path_P[-1] + 0.02 * net.initial(1))
    return Run(
        net,
        Segments(lambda _teacher, epoch: path_P[epoch], 1),
        synthetic_labels(2, config.images_per_class),
        config,
        0,
        torch.device("cpu"),
    )


def start(config: DistillConfig = CONFIG) -> State:
    generator = torch.Generator().manual_seed(0)
    labels_I = synthetic_labels(2, config.images_per_class)
    return first_state(
        torch.randn(len(labels_I), 1, 8, 8, generator=generator), labels_I, 2, config
    )


def finish(run: Run, state: State) -> State:
    for reached, _ in distil(run, state):
        state = reached
    return state


def test_the_matching_loss_falls() -> None:
    config = dataclasses.replace(CONFIG, iterations=60, max_start_epoch=1, augment="")
    losses = [progress.loss for _, progress in distil(make_run(config), start(config))]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("config", [CONFIG, SOFT], ids=["hard", "soft"])
def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path, config: DistillConfig) -> None:
    undisturbed = finish(make_run(config), start(config))
    run, file = make_run(config), tmp_path / "state.safetensors"
    for state, _ in distil(run, start(config)):
        if state.step == 3:
            save_state(file, state, run_digest="d")
            break
    resumed = finish(run, load_state(file, run_digest="d", device=torch.device("cpu")))
    assert torch.equal(resumed.images_ICHW, undisturbed.images_ICHW)
    assert torch.equal(labels_of(resumed), labels_of(undisturbed))
    assert resumed.log_lr == undisturbed.log_lr


def labels_of(state: State) -> Tensor:
    return state.labels_IK(synthetic_labels(2, CONFIG.images_per_class), 2)


def test_soft_labels_begin_sure_of_their_class_and_are_learned() -> None:
    hard = labels_of(start())
    begun, done = start(SOFT), finish(make_run(SOFT), start(SOFT))
    torch.testing.assert_close(labels_of(begun), hard * 0.8 + 0.1)
    assert float((labels_of(done) - labels_of(begun)).abs().max()) > 0.001
    torch.testing.assert_close(labels_of(done).sum(1), torch.ones(4))
    assert torch.equal(labels_of(finish(make_run(), start())), hard)


def test_learned_labels_lower_the_matching_loss() -> None:
    """Images and α stand still: what falls is due to the labels."""
    still = dataclasses.replace(
        SOFT, lr_images=1e-12, lr_lr=0.0, iterations=80, max_start_epoch=1, augment="", lr_labels=20.0
    )  # fmt: skip
    losses = [progress.loss for _, progress in distil(make_run(still), start(still))]
    assert sum(losses[-10:]) < 0.99 * sum(losses[:10])


def test_a_checkpoint_keeps_every_field(tmp_path: Path) -> None:
    state = dataclasses.replace(
        start(SOFT),
        step=4,
        log_lr=-3.3,
        velocity_lr=0.1,
        rollbacks=2,
        refused_in_a_row=1,
        velocity_ICHW=torch.rand(4, 1, 8, 8),
        good_ICHW=torch.rand(4, 1, 8, 8),
        velocity_IK=torch.rand(4, 2),
        good_IK=torch.rand(4, 2),
    )
    save_state(tmp_path / "s", state, run_digest="d")
    found = load_state(tmp_path / "s", run_digest="d", device=torch.device("cpu"))
    for field in dataclasses.fields(State):
        expected, read = getattr(state, field.name), getattr(found, field.name)
        assert torch.equal(expected, read) if isinstance(expected, Tensor) else expected == read


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"not safetensors at all, but long enough"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "s").write_bytes(damage)
    with pytest.raises(CheckpointError, match="delete it"):
        load_state(tmp_path / "s", run_digest="d", device=torch.device("cpu"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s", start(), run_digest="one")
    with pytest.raises(CheckpointError, match="another recipe"):
        load_state(tmp_path / "s", run_digest="two", device=torch.device("cpu"))


def matched(
    *, loss: float = 0.5, grad: float = 1.0, grad_label: float = 1.0, grad_lr: float = 1.0
) -> Matched:
    grad_labels_IK = torch.tensor([[grad_label, 0.0]]).expand(4, 2)
    return Matched(
        torch.tensor(loss), torch.full((4, 1, 8, 8), grad), grad_labels_IK, torch.tensor(grad_lr), torch.tensor(1.0)
    )  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(matched(loss=math.nan), id="loss is NaN"),
        pytest.param(matched(loss=1e9), id="loss explodes"),
        pytest.param(matched(grad=math.inf), id="image gradient is infinite"),
        pytest.param(matched(grad_label=math.nan), id="label gradient is NaN"),
        pytest.param(matched(grad_lr=math.nan), id="step-size gradient is NaN"),
    ],
)
def test_a_bad_step_goes_back_to_the_last_good_images_and_labels(bad: Matched) -> None:
    good = take_step(start(SOFT), matched(), SOFT)
    after = take_step(good, bad, SOFT)
    # before the step that led to the bad one
    assert torch.equal(after.images_ICHW, start(SOFT).images_ICHW)
    assert torch.equal(labels_of(after), labels_of(start(SOFT)))
    assert not torch.equal(labels_of(good), labels_of(start(SOFT)))
    assert after.lr == pytest.approx(good.lr / 2)
    assert not after.velocity_ICHW.any()
    assert (after.step, after.rollbacks) == (good.step, 1)


def test_alpha_stays_positive_and_bounded() -> None:
    state = start()
    for _ in range(50):
        state = take_step(state, matched(grad_lr=1e6), CONFIG)
    assert state.lr == pytest.approx(CONFIG.lr_min)
    for _ in range(50):
        state = take_step(state, matched(grad_lr=-1e9), CONFIG)
    assert state.lr == pytest.approx(CONFIG.lr_max)


def test_a_run_that_only_diverges_ends_with_advice() -> None:
    config = dataclasses.replace(CONFIG, max_loss=1e-9)
    with pytest.raises(TrainingError, match="smaller distill"):
        finish(make_run(config), start(config))


def test_a_divergence_that_passes_is_survived() -> None:
    config = dataclasses.replace(CONFIG, lr_init=1.0, max_loss=1.2, iterations=8)
    done = finish(make_run(config), start(config))
    assert 0 < done.rollbacks < ROLLBACKS_IN_A_ROW
    assert torch.isfinite(done.images_ICHW).all()


def test_every_image_is_seen_once_before_any_is_seen_twice() -> None:
    config = dataclasses.replace(CONFIG, student_steps=5, batch_syn=4)
    plan = student_steps(10, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert [len(step.rows_B) for step in plan] == [4, 4, 2, 4, 4]
    assert torch.cat([step.rows_B for step in plan[:3]]).sort().values.tolist() == list(range(10))
