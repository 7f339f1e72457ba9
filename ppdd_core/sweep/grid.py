"""What a sweep is to run: images per class × σ × similarity × variants × seeds, each cell a whole recipe. Torch-free.

A recipe is built in this order: preset, `--set`, the grid's own σ and similarity, the variant. What the grid does not
name stays as the recipe has it. Equal recipes are one cell: with σ = 0 nothing is pruned, whatever the similarity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ppdd_core.config import BASELINES, Recipe
from ppdd_core.errors import BadConfigError
from ppdd_core.presets import preset

PLAIN = ""  # the name of the variant that changes nothing
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")


@dataclass(frozen=True, slots=True)
class Variant:
    """A named change of the recipe, run beside the recipe itself."""

    name: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """A row of the table: how images were distilled, whatever their number and the seed."""

    variant: str
    sigma: float
    similarity: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One distillation."""

    per_class: int
    seed: int
    configuration: Configuration
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What the user asked for; BadConfigError for what cannot be."""

    preset: str
    per_class: tuple[int, ...]
    seeds: tuple[int, ...]
    sigmas: tuple[float, ...] = ()  # none: the recipe's own
    similarities: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    baselines: tuple[str, ...] | None = None  # None: the recipe's own

    def __post_init__(self) -> None:
        """Build every recipe once, so that a wrong field is said now."""
        if not self.per_class:
            raise BadConfigError("a sweep needs at least one number of images per class: --ipc 1")
        if not self.seeds:
            raise BadConfigError("a sweep needs at least one seed: --seeds 1")
        names = [one.name for one in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadConfigError(
                f"two variants are called {twice[0]!r}; give each a name of its own"
            )
        taken = {"seed", "distill.images_per_class"}
        for where, given in (
            ("--set", self.settings),
            *((f"variant {one.name!r}", one.settings) for one in self.variants),
        ):
            for name in sorted(taken & set(given)):
                raise BadConfigError(
                    f"{where} sets {name}, which a sweep runs through; use --ipc or --seeds"
                )
        unknown = [name for name in self.baselines or () if name not in BASELINES]
        if unknown:
            raise BadConfigError(
                f"there is no baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}"
            )
        list(self.cells())

    def cells(self) -> Iterator[Cell]:
        """Yield the cells seed by seed, each recipe once per variant."""
        for seed in dict.fromkeys(self.seeds):
            for per_class in dict.fromkeys(self.per_class):
                yield from self._cells_at(seed, per_class)

    def _cells_at(self, seed: int, per_class: int) -> Iterator[Cell]:
        for variant in (Variant(PLAIN, {}), *self.variants):
            seen = set()
            for sigma in self.sigmas or (None,):
                for similarity in self.similarities or (None,):
                    recipe = self._recipe(seed, per_class, sigma, similarity, variant)
                    distill = recipe.distill
                    pruned = (
                        distill.prune_below,
                        distill.similarity if distill.prune_below else "",
                    )
                    if pruned not in seen:
                        seen.add(pruned)
                        yield Cell(per_class, seed, Configuration(variant.name, *pruned), recipe)

    def _recipe(
        self,
        seed: int,
        per_class: int,
        sigma: float | None,
        similarity: str | None,
        variant: Variant,
    ) -> Recipe:
        chosen: dict[str, str | int | float] = {**self.settings, "seed": seed}
        if sigma is not None:
            chosen["distill.prune_below"] = sigma
        if similarity is not None:
            chosen["distill.similarity"] = similarity
        if self.baselines is not None:
            chosen["evaluation.baselines"] = "+".join(self.baselines)
        try:
            return preset(self.preset, per_class).override({**chosen, **variant.settings})
        except BadConfigError as error:
            if variant.name == PLAIN:
                raise
            raise BadConfigError(f"variant {variant.name!r}: {error}") from None


def parse_variant(text: str) -> Variant:
    """Return the variant written as NAME:KEY=VALUE,KEY=VALUE; BadConfigError for other forms."""
    name, colon, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    if not colon or not all(equals and key.strip() for key, equals, _ in pairs):
        raise BadConfigError(f"--variant {text!r}: write it as NAME:KEY=VALUE,KEY=VALUE")
    if not _NAME.fullmatch(name):
        raise BadConfigError(
            f"--variant {text!r}: a name has letters, digits and . _ + -, at most 40 of them"
        )
    settings = {key.strip(): value.strip() for key, _, value in pairs}
    if len(settings) < len(pairs):
        raise BadConfigError(f"--variant {text!r} gives one field two values")
    return Variant(name, settings)


def baseline_recipe(recipe: Recipe) -> Recipe:
    """Return the part of a recipe on which networks trained on real images depend, all else at its default."""
    bare = Recipe(seed=recipe.seed)
    return dataclasses.replace(
        bare,
        image_size=recipe.image_size,
        net=recipe.net,
        detector=recipe.detector,
        evaluation=recipe.evaluation,
        privacy=recipe.privacy,
    )
