"""Few real images: as many of every class, drawn at random or spread out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ppdd_core.data.dataset import LabelledImages
from ppdd_core.detector.baselines import k_centre, random_real
from ppdd_core.errors import BadConfigError, SourceError

Images = Callable[..., LabelledImages]


def test_random_real_takes_as_many_of_every_class_and_none_twice(images: Images) -> None:
    train = images([30, 8, 12])
    rows = random_real(train, 5, seed=3)
    assert np.bincount(train.labels_R[rows]).tolist() == [5, 5, 5]
    assert len(set(rows.tolist())) == 15


def test_random_real_is_decided_by_its_seed(images: Images) -> None:
    train = images([30, 30, 30])
    assert np.array_equal(random_real(train, 5, seed=3), random_real(train, 5, seed=3))
    assert not np.array_equal(random_real(train, 5, seed=3), random_real(train, 5, seed=4))


def test_a_class_with_fewer_images_gives_all_it_has(images: Images) -> None:
    train = images([30, 3, 12])
    rows = random_real(train, 5, seed=0)
    assert np.bincount(train.labels_R[rows]).tolist() == [5, 3, 5]
    features_RD = train.pixels_RHW.reshape(len(train), -1)
    assert np.bincount(train.labels_R[k_centre(features_RD, train.labels_R, 5, 0)]).tolist() == [
        5,
        3,
        5,
    ]


def test_k_centre_starts_in_the_middle_and_goes_to_the_far_ends() -> None:
    line_RD = np.array([[0.0], [4.9], [5.0], [5.1], [10.0], [100.0], [101.0], [130.0]])
    labels_R = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    assert k_centre(line_RD, labels_R, 1, seed=0).tolist() == [2, 6]
    assert k_centre(line_RD, labels_R, 3, seed=0).tolist() == [0, 2, 4, 5, 6, 7]


def test_k_centre_never_takes_an_image_twice_even_among_equal_ones() -> None:
    rows = k_centre(np.zeros((6, 2)), np.zeros(6, dtype=np.int64), 4, seed=0)
    assert len(set(rows.tolist())) == 4


def test_an_empty_class_is_refused_by_name(images: Images) -> None:
    with pytest.raises(SourceError, match="class Normal has no training images"):
        random_real(images([3, 0, 3]), 1, seed=0)


def test_no_images_per_class_is_refused(images: Images) -> None:
    with pytest.raises(BadConfigError, match="at least 1, got 0"):
        random_real(images([3, 3, 3]), 0, seed=0)


def test_features_of_other_images_are_refused() -> None:
    with pytest.raises(BadConfigError, match="do not belong to 2 labels"):
        k_centre(np.zeros((3, 2)), np.zeros(2, dtype=np.int64), 1, seed=0)
