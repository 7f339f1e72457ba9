"""Nearest real images: the shortcut finds what a full comparison finds."""

import numpy as np
import pytest
import torch

from ppdd_core.privacy.initialisation import residual_correlation, source_likeness, source_ranks
from ppdd_core.privacy.neighbours import (
    EXACT_COST,
    Nearest,
    nearer_share,
    nearest,
    nearest_features,
    rank,
)
from ppdd_core.privacy.similarity import likeness


def chests(count: int, seed: int) -> np.ndarray:
    """Smooth grey images that share a common shape, as chests do; uint8 [count, 16, 16]."""
    rng = np.random.default_rng(seed)
    line = np.linspace(-1, 1, 16)
    common = np.exp(-3 * ((np.abs(line)[None] - 0.5) ** 2 + 0.5 * line[:, None] ** 2))
    own = rng.normal(0, 1, (count, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    return ((0.55 * common + 0.12 * own + 0.2).clip(0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("cost", [0, EXACT_COST])
def test_a_near_copy_is_found_among_thousands(cost: int) -> None:
    real = chests(5000, 0)  # more than one block
    rows = np.array([3, 2500, 4999])
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    copies = 0.7 * torch.from_numpy(real[rows] / 255).float() + 0.1 + 0.02 * noise
    found = nearest(copies, real, rank(copies, real), cost=cost)
    assert found.row_I.tolist() == rows.tolist()
    assert found.similarity_I.min() > 0.8


def test_nearest_is_the_best_of_all_pairs_where_they_are_affordable() -> None:
    real, queries = chests(300, 1), torch.from_numpy(chests(20, 2) / 255).float()
    found = nearest(queries, real, rank(queries, real))
    similarity_IR = torch.stack(
        [likeness(q[None], torch.from_numpy(real / 255).float()) for q in queries]
    )
    assert found.row_I.tolist() == similarity_IR.argmax(1).tolist()
    assert found.similarity_I == pytest.approx(similarity_IR.amax(1).numpy())


def test_candidates_come_close_to_the_best_where_not_all_pairs_are_affordable() -> None:
    real, queries = chests(300, 1), torch.from_numpy(chests(20, 2) / 255).float()
    ranking = rank(queries, real)
    exact, found = nearest(queries, real, ranking), nearest(queries, real, ranking, cost=0)
    assert (found.row_I == exact.row_I).mean() >= 0.8
    assert (found.similarity_I <= exact.similarity_I + 1e-6).all()


def test_a_ranking_can_be_narrowed_to_some_rows() -> None:
    real, queries = chests(50, 3), torch.from_numpy(chests(4, 4) / 255).float()
    rows = np.array([40, 7, 21])
    part, alone = rank(queries, real).among(rows), rank(queries, real[rows])
    assert torch.allclose(part.correlation_IR, alone.correlation_IR, atol=1e-6)
    assert torch.allclose(part.structure_IR, alone.structure_IR, atol=1e-6)


def test_ties_count_half() -> None:
    rows = np.zeros(3, dtype=np.int64)
    to_train, to_others = (Nearest(np.array(s), rows) for s in ([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]))
    assert nearer_share(to_train, to_others) == 0.5


def test_features_are_standardised_before_their_directions_are_compared() -> None:
    features = torch.tensor([[110.0, 0.2]])
    real = torch.tensor(
        [[-120.0, 0.1], [120.0, 0.1], [90.0, 0.2]]
    )  # raw, the second is nearest too
    centre, spread = torch.tensor([100.0, 0.1]), torch.tensor([10.0, 0.1])
    found = nearest_features(
        features, real, centre, spread
    )  # (1, 1) with (-22, 0), (2, 0), (-1, 1)
    assert found.row_I.tolist() == [1]
    assert found.similarity_I == pytest.approx([2**-0.5])
    without = nearest_features(features, real[[0, 2]], centre, spread)
    assert without.row_I.tolist() == [1]
    assert without.similarity_I == pytest.approx([0.0], abs=1e-6)


def test_an_unchanged_source_has_rank_one_and_noise_has_none_to_speak_of() -> None:
    real = chests(400, 5)
    sources = tuple((row,) for row in range(20))
    same = torch.from_numpy(real[:20] / 255).float()
    noise = torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(0))
    assert source_ranks(rank(same, real), sources).tolist() == [1] * 20
    assert np.median(source_ranks(rank(noise, real), sources)) > 40
    assert source_likeness(same, real, sources).min() > 0.999


def test_of_several_sources_the_best_counts() -> None:
    real = chests(50, 6)
    image = torch.from_numpy(real[9:10] / 255).float()
    assert source_ranks(rank(image, real), ((4, 9, 30),)).tolist() == [1]
    assert source_likeness(image, real, ((4, 9, 30),))[0] > 0.999


def test_residual_correlation_is_one_for_an_unmoved_image_and_zero_for_another() -> None:
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(2, 1, 32, 32, generator=generator)
    final = torch.stack([3 * initial[0] + 1, torch.randn(1, 32, 32, generator=generator)])
    first, second = residual_correlation(final, initial)
    assert abs(first - 1) < 1e-5
    assert abs(second) < 0.15
