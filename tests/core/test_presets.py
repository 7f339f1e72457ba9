"""Presets: valid at every size, and the paper's is the paper's."""

import pytest

from ppdd_core.config import Recipe
from ppdd_core.errors import BadConfigError
from ppdd_core.presets import PRESETS, preset


@pytest.mark.parametrize("name", [*PRESETS])
@pytest.mark.parametrize("images_per_class", [1, 2, 3, 5, 10, 20, 50])
def test_every_preset_is_a_recipe_that_survives_json(name: str, images_per_class: int) -> None:
    recipe = preset(name, images_per_class)
    assert recipe.preset == name
    assert recipe.distill.images_per_class == images_per_class
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_paper_preset_has_the_numbers_of_the_paper() -> None:
    recipe = preset("paper", 10)
    assert (recipe.image_size, recipe.net.width, recipe.net.depth) == (112, 128, 5)
    assert (recipe.teacher.teachers, recipe.teacher.epochs) == (100, 50)
    assert recipe.distill.prune_below == 0.1


@pytest.mark.parametrize("name", ["quick", "fast"])
def test_presets_that_start_from_noise_touch_no_real_image(name: str) -> None:
    assert preset(name, 5).distill.init == "noise"


def test_small_starts_from_no_single_real_image() -> None:
    started = preset("small", 5).distill
    assert started.init == "mean"
    assert started.mean_of >= 24


def test_fast_trains_a_fiftieth_of_the_papers_teacher_epochs() -> None:
    paper, fast = preset("paper", 10), preset("fast", 10)
    ours = fast.teacher.teachers * fast.used_epochs
    assert ours * 40 <= paper.teacher.teachers * paper.teacher.epochs


def test_an_unknown_preset_is_refused_with_the_names() -> None:
    with pytest.raises(BadConfigError, match="quick, small, paper, fast"):
        preset("slow", 1)
