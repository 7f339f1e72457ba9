"""The estimate: a number for every stage, larger for larger recipes."""

import numpy as np
import pytest
import torch

from ppdd_core.config import EvaluationConfig, Recipe
from ppdd_core.data.dataset import LabelledImages, Split, labelled_images
from ppdd_core.estimate import Estimate, Measured, measure, multiplied, trainings
from ppdd_core.presets import preset


def split() -> Split:
    def part(images: int) -> LabelledImages:
        names = [str(number) for number in range(images)]
        return labelled_images(
            np.zeros((images, 16, 16), dtype=np.uint8),
            np.arange(images) % 2,
            classes=["a", "b"],
            patients=names,
            digests=names,
            splits=[""] * images,
        )

    return Split(part(40), part(10), part(10))


def recipe(**changes: float) -> Recipe:
    small = {"image_size": 16, "net.width": 4, "net.depth": 2, "detector.epochs": 5}
    return preset("quick", 2).override({**small, **changes})


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The small recipe's, measured once."""
    return measure(recipe(), 2, torch.device("cpu"))


@pytest.fixture(scope="module")
def one(measured: Measured) -> Estimate:
    return multiplied(measured, recipe(), split(), processes=1)


def test_every_stage_has_its_time_and_everything_its_size(one: Estimate) -> None:
    assert [*one.seconds] == ["teachers", "distillation", "evaluation", "privacy"]
    assert all(seconds > 0 for seconds in one.seconds.values())
    assert one.total_seconds == sum(one.seconds.values())
    assert one.peak_bytes > 10 * 2**20
    assert 200_000 < one.package_bytes < one.disk_bytes


def test_more_work_is_estimated_longer_and_more_teachers_larger(
    measured: Measured, one: Estimate
) -> None:
    larger = recipe(**{"distill.iterations": 20_000, "teacher.teachers": 400})
    more = multiplied(measured, larger, split(), processes=4)
    assert more.seconds["distillation"] > 20 * one.seconds["distillation"]
    assert more.disk_bytes > 5 * one.disk_bytes
    # each of four teachers side by side is a process with a torch of its own
    assert more.peak_bytes - one.peak_bytes > 3 * 50 * 2**20


@pytest.mark.parametrize(
    ("baselines", "step_sizes", "full_networks", "expected"),
    [
        ("random_real+k_centre+full_data", "0.001+0.003+0.01+0.03", 3, (3 + 2 * (3 + 4), 3)),
        ("random_real", "0.01", 3, (3 + 3, 0)),
        ("random_real+full_data", "0.01+0.03", 1, (3 + 3 + 2, 1)),
        ("k_centre", "0.01", 2, (3 + 3, 2)),
        ("full_data", "0.01+0.03", 5, (3, 3)),
        ("", "0.01", 3, (3, 0)),
    ],
)
def test_as_many_networks_as_the_evaluation_trains(
    baselines: str, step_sizes: str, full_networks: int, expected: tuple[int, int]
) -> None:
    config = EvaluationConfig(
        baselines=baselines, step_sizes=step_sizes, full_networks=full_networks
    )
    assert trainings(config, seeds=3) == expected
