"""What is to be run: which recipes a grid holds, in which order settings apply, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ppdd_core.errors import BadConfigError
from ppdd_core.sweep.grid import Grid, Variant, parse_variant


def grid(**changes: Any) -> Grid:
    return Grid(**({"preset": "quick", "per_class": (1, 5), "seeds": (0, 1)} | changes))


def test_the_grid_is_the_product_and_each_cell_a_whole_recipe() -> None:
    cells = list(grid(sigmas=(0.1, 0.2), similarities=("ratio", "displacement")).cells())
    assert len(cells) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    for cell in cells:
        recipe, row = cell.recipe, cell.configuration
        assert (recipe.seed, recipe.distill.images_per_class) == (cell.seed, cell.per_class)
        assert (recipe.distill.prune_below, recipe.distill.similarity) == (
            row.sigma,
            row.similarity,
        )


def test_what_the_grid_does_not_name_stays_as_the_recipe_has_it() -> None:
    cells = list(grid(settings={"distill.prune_below": "0.3"}, seeds=(4,)).cells())
    assert [(cell.per_class, cell.recipe.distill.prune_below) for cell in cells] == [
        (1, 0.3),
        (5, 0.3),
    ]


def test_nothing_pruned_is_one_cell_whatever_the_similarity() -> None:
    cells = list(
        grid(per_class=(1,), seeds=(0,), sigmas=(0.0, 0.1), similarities=("ratio", "signed_ratio")).cells()
    )  # fmt: skip
    rows = [(cell.configuration.sigma, cell.configuration.similarity) for cell in cells]
    assert rows == [(0.0, ""), (0.1, "ratio"), (0.1, "signed_ratio")]


def test_a_variant_comes_last_and_beside_the_recipe_itself() -> None:
    variants = (parse_variant("few:distill.iterations=7,distill.prune_below=0.4"),)
    cells = list(
        grid(per_class=(1,), seeds=(0,), sigmas=(0.1, 0.2), settings={"distill.iterations": "9"}, variants=variants)
        .cells()
    )  # fmt: skip
    found = [
        (c.configuration.variant, c.recipe.distill.iterations, c.recipe.distill.prune_below)
        for c in cells
    ]
    assert found == [("", 9, 0.1), ("", 9, 0.2), ("few", 7, 0.4)]


def test_a_variant_is_written_in_one_word() -> None:
    variant = parse_variant("soft-1.5: distill.labels = soft,distill.augment=")
    assert variant.name == "soft-1.5"
    assert variant.settings == {"distill.labels": "soft", "distill.augment": ""}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"distill.speed": "3"}}, "no recipe field 'distill.speed'"),
        ({"sigmas": (1.5,)}, r"distill.prune_below must be in \[0, 1\)"),
        ({"similarities": ("cosine",)}, "signed_ratio"),
        ({"per_class": ()}, "--ipc 1"),
        ({"seeds": ()}, "--seeds 1"),
        ({"baselines": ("herding",)}, "no baseline 'herding'"),
        ({"settings": {"seed": "3"}}, "--set sets seed"),
        ({"variants": (Variant("a", {}), Variant("a", {}))}, "two variants are called 'a'"),
        ({"variants": (Variant("a", {"seed": "1"}),)}, "variant 'a' sets seed"),
        ({"variants": (Variant("a", {"net.speed": "1"}),)}, "variant 'a': there is no recipe"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(
    changes: dict[str, Any], said: str
) -> None:
    grid()
    with pytest.raises(BadConfigError, match=said):
        grid(**changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("soft", "write it as NAME:KEY=VALUE"),
        ("soft:", "write it as NAME:KEY=VALUE"),
        ("soft:distill.labels", "write it as NAME:KEY=VALUE"),
        ("../soft:distill.labels=soft", "a name has letters"),
        (":distill.labels=soft", "a name has letters"),
        ("a:net.width=1,net.width=2", "one field two values"),
    ],
)
def test_a_variant_of_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadConfigError, match=said):
        parse_variant(text)
