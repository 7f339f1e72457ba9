"""Teachers: copies of parameters, the same bytes after a kill, balanced epochs, a check that they learned."""

import math
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppdd_core.config import NetConfig, TeacherConfig
from ppdd_core.data.distilled import Normalisation
from ppdd_core.errors import CheckpointError, TrainingError
from ppdd_core.teachers.store import Epoch, TrajectoryStore
from ppdd_core.teachers.train import (
    RealImages,
    check_learned,
    class_weights,
    epoch_rows,
    train_one,
    train_teachers,
)

NET = NetConfig(width=4, depth=2)
CPU = torch.device("cpu")


def bright_and_dark(images: int = 40) -> RealImages:
    generator = torch.Generator().manual_seed(0)
    labels_R = torch.arange(images) % 2
    noise = torch.randint(0, 100, (images, 1, 8, 8), generator=generator)
    ramp = torch.arange(8).view(1, 1, 1, 8) * 10
    pixels = noise + torch.where(labels_R.view(-1, 1, 1, 1) == 1, ramp, 70 - ramp)
    return RealImages(pixels.to(torch.uint8), labels_R, 2, Normalisation(0.35, 0.15))


def config(**changes: object) -> TeacherConfig:
    values: dict[str, object] = {
        "teachers": 2,
        "epochs": 3,
        "lr": 0.1,
        "batch_size": 8,
        "augment": "",
    }
    return TeacherConfig(**(values | changes))  # type: ignore[arg-type]


def train(folder: Path, settings: TeacherConfig, *, epochs: int = 3) -> TrajectoryStore:
    store, real = TrajectoryStore(folder), bright_and_dark()
    for teacher in range(settings.teachers):
        for _ in train_one(teacher, real, real, store, NET, settings, epochs, 5, CPU):
            pass
    return store


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
    }


def test_every_epoch_is_a_copy_of_its_own(tmp_path: Path) -> None:
    """MTT's buffer.py keeps views on the CPU: there every snapshot equals the last."""
    store = train(tmp_path, config(teachers=1))
    thetas = [store.read(0, epoch) for epoch in range(4)]
    moved = [float((b - a).norm()) for a, b in zip(thetas, thetas[1:], strict=False)]
    assert min(moved) > 0


def test_teachers_start_from_different_parameters_and_learn(tmp_path: Path) -> None:
    store = train(tmp_path, config())
    assert not torch.equal(store.read(0, 0), store.read(1, 0))
    assert store.info(0, 3).accuracy > 0.9
    assert store.info(0, 3).loss < store.info(0, 1).loss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dtype": "bfloat16"},
        {"momentum": 0.9, "snapshot": "mean"},
        {"snapshot": "mean", "dtype": "float16"},
    ],
)
def test_training_goes_on_to_the_same_bytes(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = config(teachers=1, **changes)
    train(tmp_path / "undisturbed", settings)
    store, real = TrajectoryStore(tmp_path / "stopped"), bright_and_dark()
    for epoch in train_one(0, real, real, store, NET, settings, 3, 5, CPU):
        if epoch == 1:
            break
    train(tmp_path / "stopped", settings)
    assert content(tmp_path / "stopped") == content(tmp_path / "undisturbed")


def test_child_processes_write_what_one_process_writes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train(tmp_path / "one", config())
    real, heard = bright_and_dark(), []
    train_teachers(
        real, real, TrajectoryStore(tmp_path / "many"), net=NET, config=config(), epochs=3, seed=5, device=CPU,
        processes=2, on_progress=lambda done, of, accuracy: heard.append((done, of, accuracy)),
    )  # fmt: skip
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert heard[-1][:2] == (6, 6)


def test_an_error_in_a_child_is_raised_here_and_no_child_stays(tmp_path: Path) -> None:
    real = bright_and_dark()
    with pytest.raises(TrainingError, match="not finite"):
        train_teachers(
            real, real, TrajectoryStore(tmp_path), net=NET, config=config(lr=10.0, weight_decay=0.9, momentum=0.99),
            epochs=40, seed=5, device=CPU, processes=1,
        )  # fmt: skip
    assert not multiprocessing.active_children()


def test_a_killed_child_is_explained(tmp_path: Path) -> None:
    real = bright_and_dark()

    def kill(_done: int, _of: int, _accuracy: float) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(TrainingError, match="killed, probably for want of memory"):
        train_teachers(
            real, real, TrajectoryStore(tmp_path), net=NET, config=config(), epochs=2000, seed=5, device=CPU,
            processes=1, on_progress=kill,
        )  # fmt: skip


def test_more_epochs_continue_the_same_trajectory(tmp_path: Path) -> None:
    train(tmp_path / "long", config(teachers=1), epochs=3)
    train(tmp_path / "grown", config(teachers=1), epochs=1)
    train(tmp_path / "grown", config(teachers=1), epochs=3)
    assert content(tmp_path / "grown") == content(tmp_path / "long")


def test_a_damaged_epoch_is_named(tmp_path: Path) -> None:
    store = train(tmp_path, config(teachers=1))
    (tmp_path / "000" / "epoch-002.safetensors").write_bytes(b"half")
    for read in (store.read, store.info):
        with pytest.raises(CheckpointError, match=r"epoch-002.*delete it"):
            read(0, 2)


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.9}, {"dtype": "float16"}, {"snapshot": "mean"}]
)
def test_a_deleted_epoch_is_trained_anew(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = config(teachers=1, **changes)
    train(tmp_path, settings)
    before = content(tmp_path)
    (tmp_path / "000" / "epoch-002.safetensors").unlink()
    train(tmp_path, settings)
    assert content(tmp_path) == before


def test_a_smaller_dtype_is_stored_and_read_back_as_float32(tmp_path: Path) -> None:
    theta_P = torch.randn(100)
    store = TrajectoryStore(tmp_path)
    store.write(0, 0, theta_P, dtype="bfloat16", epoch_info=Epoch(0.5, 0.5), velocity_P=None)
    assert torch.equal(store.read(0, 0), theta_P.bfloat16().float())
    state = store.read_state(0, 0, exact=False, momentum=False)
    assert state is not None
    assert torch.equal(state[0], theta_P)  # training goes on from the exact values


def test_teachers_that_guess_are_refused(tmp_path: Path) -> None:
    store, real = TrajectoryStore(tmp_path), bright_and_dark()
    for epoch in range(3):
        store.write(
            0, epoch, torch.zeros(3), dtype="float32", epoch_info=Epoch(0.7, 0.5), velocity_P=None
        )
    with pytest.raises(TrainingError, match="learned nothing"):
        check_learned(store, 1, 2, real)


def test_a_balanced_epoch_shows_every_class_as_often() -> None:
    labels_R = torch.tensor([0] * 30 + [1] * 6 + [2] * 3)
    rows = epoch_rows(labels_R, "sampler", 27, torch.Generator().manual_seed(0))
    drawn = Counter(labels_R[rows].tolist())
    assert drawn == {0: 9, 1: 9, 2: 9}
    assert (
        max(Counter(rows[labels_R[rows] == 1].tolist()).values()) == 2
    )  # all six before any twice
    assert len(set(rows[labels_R[rows] == 0].tolist())) == 9


def test_an_unbalanced_epoch_is_a_permutation() -> None:
    rows = epoch_rows(
        torch.zeros(20, dtype=torch.long), "none", 0, torch.Generator().manual_seed(0)
    )
    assert sorted(rows.tolist()) == list(range(20))


def test_class_weights_make_every_class_weigh_the_same() -> None:
    real = RealImages(
        torch.zeros(8, 1, 2, 2, dtype=torch.uint8),
        torch.tensor([0] * 6 + [1] * 2),
        2,
        Normalisation(0, 1),
    )
    weights = class_weights(real)
    assert math.isclose(6 * weights[0], 2 * weights[1])
    assert math.isclose(float(6 * weights[0] + 2 * weights[1]) / 8, 1)


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    train(tmp_path, config(teachers=1, momentum=0.9))
    names = sorted(f.name for f in (tmp_path / "000").iterdir())
    assert names == [*(f"epoch-{e:03d}.safetensors" for e in range(4)), "momentum-003.safetensors"]


def test_chosen_teachers_are_those_of_a_whole_run(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train(tmp_path / "whole", config(teachers=3))
    real, store = bright_and_dark(), TrajectoryStore(tmp_path / "chosen")
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in (2, 0):
            asked.append(len([t for t in range(3) if store.epochs_done(t) == 3]))
            yield number

    train_teachers(
        real, real, store, net=NET, config=config(teachers=3), epochs=3, seed=5, device=CPU,
        processes=1, numbers=numbers(),
    )  # fmt: skip
    whole, chosen = content(tmp_path / "whole"), content(tmp_path / "chosen")
    assert chosen == {name: data for name, data in whole.items() if not name.startswith("001/")}
    assert asked == [0, 1]  # the second is asked for once there is room


def test_a_packed_trajectory_is_the_same_elsewhere(tmp_path: Path) -> None:
    store = train(tmp_path / "here", config())
    store.pack(1, 3, tmp_path / "one.zip")
    store.pack(1, 3, tmp_path / "two.zip")
    there = TrajectoryStore(tmp_path / "there")
    there.unpack(1, 3, tmp_path / "one.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert content(tmp_path / "there") == {
        name: data for name, data in content(tmp_path / "here").items() if name.startswith("001/")
    }
    assert there.epochs_done(1) == 3


@pytest.mark.parametrize("data", [b"", b"no archive"])
def test_what_is_no_trajectory_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file.zip").write_bytes(data)
    with pytest.raises(CheckpointError, match="no trajectory of 3 epochs"):
        TrajectoryStore(tmp_path / "there").unpack(0, 3, tmp_path / "file.zip")
