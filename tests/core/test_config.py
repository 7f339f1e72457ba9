from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdd_core.config import (
    AUGMENTATIONS,
    DetectorConfig,
    DistillConfig,
    EvaluationConfig,
    NetConfig,
    PrivacyConfig,
    Recipe,
    Similarity,
    TeacherConfig,
    check_augment,
)
from ppdd_core.errors import BadConfigError

BAD = [
    (Recipe, "seed", -1),
    (Recipe, "seed", 2**31),
    (Recipe, "image_size", 7),
    (Recipe, "image_size", 513),
    (NetConfig, "architecture", "resnet999"),
    (NetConfig, "width", 0),
    (NetConfig, "depth", 9),
    (TeacherConfig, "teachers", 0),
    (TeacherConfig, "epochs", 0),
    (TeacherConfig, "lr", 0.0),
    (TeacherConfig, "lr", float("nan")),
    (TeacherConfig, "momentum", 1.0),
    (TeacherConfig, "weight_decay", -0.1),
    (TeacherConfig, "batch_size", 0),
    (TeacherConfig, "augment", "color_blur"),
    (TeacherConfig, "balance", "some"),
    (TeacherConfig, "epoch_images", -1),
    (TeacherConfig, "dtype", "int8"),
    (DistillConfig, "images_per_class", 0),
    (DistillConfig, "iterations", 0),
    (DistillConfig, "student_steps", 0),
    (DistillConfig, "teacher_epochs", 0),
    (DistillConfig, "max_start_epoch", 0),
    (DistillConfig, "prune_below", 1.0),
    (DistillConfig, "prune_below", -0.1),
    (DistillConfig, "similarity", "cosine"),
    (DistillConfig, "min_keep", 0.0),
    (DistillConfig, "lr_init", 2.0),
    (DistillConfig, "lr_init", float("nan")),
    (DistillConfig, "batch_syn", -1),
    (DistillConfig, "lr_images", 0.0),
    (DistillConfig, "lr_lr", -1e-9),
    (DistillConfig, "momentum", 1.0),
    (DistillConfig, "init", "blank"),
    (DistillConfig, "mean_of", 0),
    (DistillConfig, "augment", "spin"),
    (DistillConfig, "engine", "tesla"),
    (DistillConfig, "labels", "fuzzy"),
    (TeacherConfig, "snapshot", "best"),
    (DistillConfig, "label_sure", 1.0),
    (DistillConfig, "lr_labels", -1.0),
    (DistillConfig, "max_loss", 0.0),
    (DetectorConfig, "epochs", 0),
    (DetectorConfig, "batch_size", 0),
    (DetectorConfig, "momentum", -0.1),
    (DetectorConfig, "weight_decay", 1.0),
    (DetectorConfig, "augment", "spin"),
    (DetectorConfig, "seeds", 0),
    (EvaluationConfig, "step_sizes", "0.01+"),
    (EvaluationConfig, "step_sizes", "0.01+0"),
    (EvaluationConfig, "full_networks", 0),
    (EvaluationConfig, "architectures", "lenet"),
    (DistillConfig, "lr_images", float("inf")),
    (DistillConfig, "lr_lr", float("inf")),
    (DistillConfig, "max_loss", float("inf")),
    (EvaluationConfig, "baselines", "random_real+mtt"),
    (EvaluationConfig, "full_epochs", 0),
    (EvaluationConfig, "full_epoch_images", -1),
    (PrivacyConfig, "members", 19),
    (PrivacyConfig, "max_membership_auc", 1.1),
    (PrivacyConfig, "max_tpr_at_1_fpr", -0.1),
    (PrivacyConfig, "near_copy_ssim", 2.0),
    (PrivacyConfig, "max_near_copies", -1),
    (PrivacyConfig, "min_class_size", 0),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"), BAD, ids=[f"{k.__name__}.{f}={v}" for k, f, v in BAD]
)
def test_a_value_that_cannot_work_is_refused_by_name(kind: type, field: str, value: object) -> None:
    with pytest.raises(BadConfigError, match=field.split("_")[0]) as refusal:
        kind(**{field: value})
    assert str(value) in str(refusal.value)


def test_every_field_is_tried_with_a_bad_value() -> None:
    tried = {(kind, field) for kind, field, _ in BAD}
    free = {(Recipe, "preset"), (DistillConfig, "lr_min"), (DistillConfig, "lr_max")}
    groups = [k for k in typing.get_type_hints(Recipe).values() if dataclasses.is_dataclass(k)]
    assert len(groups) >= 5
    for kind in (Recipe, *groups):
        for field in dataclasses.fields(kind):
            nested = dataclasses.is_dataclass(typing.get_type_hints(kind)[field.name])
            assert nested or (kind, field.name) in tried | free


def test_the_learned_step_size_must_start_inside_its_bounds() -> None:
    DistillConfig(lr_min=0.01, lr_init=0.01, lr_max=0.01)
    for bounds in ({"lr_min": 0.1}, {"lr_max": 0.001}, {"lr_min": 0.0}, {"lr_max": 1000.0}):
        with pytest.raises(BadConfigError, match="lr_init"):
            DistillConfig(**typing.cast("dict[str, Any]", bounds))


def test_a_network_deeper_than_its_images_is_refused() -> None:
    with pytest.raises(BadConfigError, match=r"net\.depth.*halved"):
        Recipe(image_size=16, net=NetConfig(depth=5))
    Recipe(image_size=16, net=NetConfig(depth=4))
    Recipe(image_size=16, net=NetConfig(architecture="resnet18", depth=5))


def test_teachers_must_be_trained_as_long_as_students_look() -> None:
    distill = DistillConfig(max_start_epoch=4, teacher_epochs=3)
    with pytest.raises(BadConfigError, match=r"teacher\.epochs.*= 6"):
        Recipe(teacher=TeacherConfig(epochs=5), distill=distill)
    assert Recipe(teacher=TeacherConfig(epochs=6), distill=distill).used_epochs == 6


def test_a_recipe_cannot_be_changed_once_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 3  # type: ignore[misc]


def test_augmentations_are_any_known_operations_or_none() -> None:
    check_augment("")
    check_augment("_".join(AUGMENTATIONS))
    with pytest.raises(BadConfigError, match="blur"):
        check_augment("color_blur")


recipes = st.builds(
    Recipe,
    preset=st.text(max_size=8),
    seed=st.integers(0, 2**31 - 1),
    image_size=st.integers(32, 512),
    net=st.builds(NetConfig, width=st.integers(1, 1024), depth=st.integers(1, 5)),
    distill=st.builds(
        DistillConfig,
        prune_below=st.floats(0, 1, exclude_max=True),
        similarity=st.sampled_from(typing.get_args(Similarity)),
        lr_init=st.floats(1e-6, 1.0),
    ),
    privacy=st.builds(PrivacyConfig, max_membership_auc=st.floats(0, 1)),
)


@given(recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict(), allow_nan=False))) == recipe


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"seeds": 1}, "unknown recipe field 'seeds'"),
        ({"teacher": {"sigma": 0.1}}, r"unknown recipe field 'teacher\.sigma'"),
        ({"seed": "7"}, "seed must be a int"),
        ({"seed": 1.5}, "seed must be a int"),
        ({"seed": True}, "seed"),
        ({"distill": {"prune_below": "0.1"}}, r"distill\.prune_below must be a float"),
        ({"distill": {"init": 3}}, r"distill\.init must be a str"),
        ({"distill": []}, r"distill\.? must be an object"),
        ({"distill": {"init": "blank"}}, "one of noise, real, mean"),
    ],
)
def test_a_recipe_written_by_somebody_else_is_checked(value: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfigError, match=message):
        Recipe.from_dict(value)


def test_whole_numbers_serve_where_numbers_are_asked_for() -> None:
    momentum = Recipe.from_dict({"teacher": {"momentum": 0}}).teacher.momentum
    assert momentum == 0.0
    assert isinstance(momentum, float)


def test_overrides_are_dotted_names_parsed_by_type() -> None:
    recipe = Recipe().override(
        {
            "seed": "7",
            "distill.iterations": "500",
            "distill.prune_below": "0",
            "distill.init": "real",
        }
    )
    assert (recipe.seed, recipe.distill.iterations) == (7, 500)
    assert (recipe.distill.prune_below, recipe.distill.init) == (0.0, "real")
    assert Recipe().override({}) == Recipe()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("distill.iteration", "5", "no recipe field 'distill.iteration'"),
        ("distill", "5", "no recipe field 'distill'"),
        ("seed.x", "5", "no recipe field"),
        ("distill.iterations", "many", "distill.iterations must be a whole number"),
        ("distill.iterations", "1.5", "distill.iterations must be a whole number"),
        ("distill.iterations", 1.5, "distill.iterations must be a whole number"),
        ("distill.prune_below", "some", "distill.prune_below must be a number"),
        ("distill.prune_below", "2", r"prune_below must be in \[0, 1\)"),
        ("distill.prune_below", "nan", r"prune_below must be in \[0, 1\)"),
    ],
)
def test_an_override_that_cannot_work_is_refused(
    name: str, value: str | float, message: str
) -> None:
    with pytest.raises(BadConfigError, match=message):
        Recipe().override({name: value})
