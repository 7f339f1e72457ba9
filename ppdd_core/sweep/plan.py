"""The pieces of a sweep: what can be computed, killed and found again by itself, and what each one waits for.

Every piece is one file in the sweep's folder, named for people and tied by a digest to all that decides it. So the
same command goes on after a kill at any moment, and a larger grid in the same folder computes only what is new.

    teachers/SEED-DIGEST/           trajectories, shared by every cell whose teachers agree
    cells/NAME-DIGEST/              state.safetensors, history.jsonl, sheets/, cell.json, evaluation-….json
    real/NAME-DIGEST.json           networks trained on real images: few of them, and all
    estimates/NAME-DIGEST.json      what `ppdd estimate` said before

Torch is needed for the images only; the plan itself is values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from ppdd_core.config import Recipe
from ppdd_core.data.files import json_digest
from ppdd_core.pipeline import Images, Measured, distillation_digest, teachers_digest
from ppdd_core.sweep.grid import PLAIN, Cell, Configuration, Grid, baseline_recipe

Kind = Literal["estimate", "teachers", "full data", "real images", "distillation", "evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One file to be made; `file` is its name within the sweep's folder, `of` the digest of what decides it."""

    kind: Kind
    title: str
    file: str
    of: str
    recipe: Recipe
    weight: float  # roughly the work in it
    needs: tuple[str, ...] = ()  # files of other pieces
    teachers: str = ""  # folder of the trajectories
    numbers: tuple[int, ...] = ()  # of the teachers to train
    method: str = ""  # of the evaluation: what it is of
    size: int = 0  # of real images per class
    full: str = ""  # file of the networks trained on all real images
    sheets: bool = False  # whether contact sheets are drawn on the way


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Where a cell's results lie."""

    cell: Cell
    distillation: Piece
    evaluation: Piece
    teachers: tuple[Piece, ...]
    estimate: str  # file, or nothing


@dataclass(frozen=True, slots=True)
class RealPlan:
    """Where the result of a network on real images lies. `variant` differs where a variant needed its own."""

    method: str
    per_class: int | None  # None: all
    seed: int
    variant: str
    piece: Piece


@dataclass(frozen=True, slots=True)
class Plan:
    """Every piece in the order in which it is best done, and what the report is made of."""

    pieces: tuple[Piece, ...]
    cells: tuple[CellPlan, ...]
    real: tuple[RealPlan, ...]


def plan(
    grid: Grid,
    images_of: Callable[[Recipe], Images],
    *,
    on: Measured,
    parts: int = 1,
    estimates: bool = True,
) -> Plan:
    """Return the pieces of `grid`. `parts` divides the teachers of one seed, to be trained side by side."""
    cells = list(grid.cells())
    pieces: dict[str, Piece] = {}
    found: list[CellPlan] = []
    distilled: dict[str, Piece] = {}
    real: dict[str, RealPlan] = {}
    for seed in dict.fromkeys(cell.seed for cell in cells):
        of_seed = [cell for cell in cells if cell.seed == seed]
        taught = _teachers(of_seed, images_of, parts)
        for cell in of_seed:
            images = images_of(cell.recipe)
            estimate = _estimate(cell, images) if estimates else None
            teachers = taught[teachers_digest(images, cell.recipe)]
            distillation = _distillation(cell, images, teachers, grid.seeds[0] == seed)
            # a variant that changes only what comes after has the images of the recipe itself
            distillation = distilled.setdefault(distillation.of, distillation)
            evaluation = _evaluation(distillation, cell, images, on)
            ordered = [estimate] if estimate else []
            for piece in (*ordered, *teachers, distillation, evaluation):
                pieces.setdefault(piece.file, piece)
            found.append(
                CellPlan(
                    cell, distillation, evaluation, teachers, estimate.file if estimate else ""
                )
            )
            for one in _real(cell, images, on):
                pieces.setdefault(one.piece.file, one.piece)
                real.setdefault(one.piece.file, one)
    first = sorted(pieces.values(), key=lambda piece: piece.kind != "estimate")
    return Plan(tuple(first), tuple(found), tuple(real.values()))


def label(cell: Cell) -> str:
    """Return what a cell is called in a list: IPC 5, σ 0.1, seed 0."""
    return f"IPC {cell.per_class}, {row_label(cell.configuration)}, seed {cell.seed}"


def row_label(row: Configuration, *, similarity: bool = False) -> str:
    """Return what a row is called: σ 0.1, or the variant's name before it."""
    name = f"σ {row.sigma:g}" if row.sigma else "σ 0 (MTT)"
    if similarity and row.similarity:
        name += f" {row.similarity}"
    return name if row.variant == PLAIN else f"{row.variant}, {name}"


def _teachers(
    cells: list[Cell], images_of: Callable[[Recipe], Images], parts: int
) -> dict[str, tuple[Piece, ...]]:
    """Return the pieces that train each set of teachers, for the cell that needs the most of them."""
    groups: dict[str, list[Recipe]] = {}
    for cell in cells:
        groups.setdefault(teachers_digest(images_of(cell.recipe), cell.recipe), []).append(
            cell.recipe
        )
    taught = {}
    for digest, recipes in groups.items():
        longest = max(recipes, key=lambda recipe: recipe.used_epochs)
        count = max(recipe.teacher.teachers for recipe in recipes)
        recipe = replace(longest, teacher=replace(longest.teacher, teachers=count))
        folder = f"teachers/seed{recipe.seed}-{digest[:12]}"
        shares = [tuple(range(count))[part::parts] for part in range(min(parts, count))]
        taught[digest] = tuple(
            Piece(
                kind="teachers",
                title=f"teachers, seed {recipe.seed}"
                + (f", part {number + 1} of {len(shares)}" if len(shares) > 1 else ""),
                file=f"{folder}/part-{number + 1}-of-{len(shares)}.json",
                of=json_digest(
                    {"teachers": digest, "numbers": share, "epochs": recipe.used_epochs}
                ),
                recipe=recipe,
                weight=len(share) * recipe.used_epochs * (recipe.teacher.epoch_images or 10_000),
                teachers=folder,
                numbers=share,
            )
            for number, share in enumerate(shares)
        )
    return taught


def _distillation(cell: Cell, images: Images, teachers: tuple[Piece, ...], sheets: bool) -> Piece:
    digest, recipe = distillation_digest(images, cell.recipe), cell.recipe
    distill = recipe.distill
    classes = len(images.split.train.classes)
    batch = min(distill.batch_syn or 10**6, distill.images_per_class * classes)
    row = cell.configuration
    name = (
        "-".join(
            [
                f"seed{cell.seed}",
                f"ipc{cell.per_class}",
                row.variant,
                f"sigma{row.sigma:g}",
                row.similarity,
            ]
        )
        .replace("--", "-")
        .strip("-")
    )
    return Piece(
        kind="distillation",
        title=f"distil {label(cell)}",
        file=f"cells/{name}-{digest[:12]}/cell.json",
        of=digest,
        recipe=recipe,
        weight=4 * distill.iterations * distill.student_steps * batch,
        needs=tuple(piece.file for piece in teachers),
        teachers=teachers[0].teachers,
        sheets=sheets,
    )


def _evaluation(distillation: Piece, cell: Cell, images: Images, on: Measured) -> Piece:
    recipe = cell.recipe
    digest = json_digest({"set": distillation.of, **_what_measures(recipe, images, on)})
    classes = len(images.split.train.classes)
    networks = recipe.detector.seeds * (1 + len(recipe.evaluation.other_architectures))
    return Piece(
        kind="evaluation",
        title=f"evaluate {label(cell)}",
        file=f"{PurePosixPath(distillation.file).parent}/evaluation-{on}-{digest[:12]}.json",
        of=digest,
        recipe=recipe,
        weight=networks * recipe.detector.epochs * cell.per_class * classes,
        needs=(distillation.file,),
        teachers=distillation.teachers,
        method="distilled" if recipe.distill.prune_below else "mtt_unpruned",
    )


def _real(cell: Cell, images: Images, on: Measured) -> list[RealPlan]:
    """Return the networks on real images beside this cell: the plain variant's, unless its own must differ."""
    recipe, names = baseline_recipe(cell.recipe), cell.recipe.evaluation.names
    facts = {**_what_measures(recipe, images, on), "train": images.split.train.fingerprint}
    found = []
    full: Piece | None = None
    if "full_data" in names or "k_centre" in names:
        evaluation = recipe.evaluation
        digest = json_digest({**facts, "method": "full data"})
        networks = min(evaluation.full_networks, recipe.detector.seeds)
        each = evaluation.full_epoch_images or len(images.split.train)
        full = Piece(
            kind="full data",
            title=f"all real images, seed {cell.seed}",
            file=f"real/seed{cell.seed}-all-{on}-{digest[:12]}.json",
            of=digest,
            recipe=recipe,
            weight=networks * evaluation.full_epochs * each / 2,
            method="full_data",
            full=f"real/seed{cell.seed}-all-{_full_digest(recipe, images)[:12]}.safetensors",
        )
        found.append(RealPlan("full_data", None, cell.seed, cell.configuration.variant, full))
    for name in (name for name in names if name != "full_data"):
        digest = json_digest({**facts, "method": name, "size": cell.per_class})
        needs = (full.file,) if full and name == "k_centre" else ()
        classes = len(images.split.train.classes)
        networks = recipe.detector.seeds + len(recipe.evaluation.grid)
        networks *= 1 + len(recipe.evaluation.other_architectures)
        piece = Piece(
            kind="real images",
            title=f"{name.replace('_', ' ')} images, IPC {cell.per_class}, seed {cell.seed}",
            file=f"real/seed{cell.seed}-{name}-ipc{cell.per_class}-{on}-{digest[:12]}.json",
            of=digest,
            recipe=recipe,
            weight=networks * recipe.detector.epochs * cell.per_class * classes,
            needs=needs,
            method=name,
            size=cell.per_class,
            full=full.full if full and name == "k_centre" else "",
        )
        found.append(RealPlan(name, cell.per_class, cell.seed, cell.configuration.variant, piece))
    return found


def _estimate(cell: Cell, images: Images) -> Piece:
    value = replace(cell.recipe, seed=0).to_dict()
    value["distill"] |= {"prune_below": 0.0, "similarity": ""}  # cost next to nothing
    classes = len(images.split.train.classes)
    digest = json_digest({"recipe": value, "images": len(images.split.train), "classes": classes})
    name = f"ipc{cell.per_class}" + (
        f"-{cell.configuration.variant}" if cell.configuration.variant else ""
    )
    return Piece(
        kind="estimate",
        title=f"estimate, IPC {cell.per_class}",
        file=f"estimates/{name}-{digest[:12]}.json",
        of=digest,
        recipe=cell.recipe,
        weight=1,
    )


def _what_measures(recipe: Recipe, images: Images, on: Measured) -> dict[str, Any]:
    """Return what networks and their figures depend on, beside the images they are trained on."""
    bare = baseline_recipe(recipe).to_dict()
    # which baselines run beside it changes no figure of a method
    bare["evaluation"]["baselines"] = ""
    return {
        "recipe": bare,
        "on": on,
        "train": images.split.train.fingerprint,
        "validation": images.split.validation.fingerprint,
        "test": images.split.test.fingerprint if on == "test" else "",
    }


def _full_digest(recipe: Recipe, images: Images) -> str:
    """Return what decides the networks on all real images; on which split they are measured does not."""
    evaluation = recipe.evaluation
    return json_digest(
        {
            "train": images.split.train.fingerprint,
            "validation": images.split.validation.fingerprint,
            "seed": recipe.seed,
            "size": recipe.image_size,
            "net": recipe.to_dict()["net"],
            "full": [
                min(evaluation.full_networks, recipe.detector.seeds),
                evaluation.full_epochs,
                evaluation.full_epoch_images,
            ],
        }
    )
