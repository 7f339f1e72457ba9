"""The presets, field by field, for forms and for people who write settings."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from ppdd_core import presets
from ppdd_core.config import Recipe
from services.jobs.submit import OWN_FIELDS


def offers(images_per_class: int) -> list[dict[str, Any]]:
    """Return every preset: its name, what it is for, its recipe, and the fields that `settings` may replace."""
    return [_offer(name, images_per_class) for name in presets.PRESETS]


def _offer(name: str, images_per_class: int) -> dict[str, Any]:
    recipe = presets.preset(name, images_per_class)
    said = (presets.PRESETS[name].__doc__ or "").split("\n\n")[0]
    return {
        "name": name,
        "summary": " ".join(said.split()),
        "recipe": recipe.to_dict(),
        "fields": [
            {"name": field, "type": kind.__name__, "default": default, "choices": choices}
            for field, kind, default, choices in _fields(recipe, Recipe, "")
            if field not in OWN_FIELDS
        ],
    }


def _fields(
    value: Any, of: type, prefix: str
) -> typing.Iterator[tuple[str, type, int | float | str, list[str] | None]]:
    hints = typing.get_type_hints(of)
    for one in dataclasses.fields(of):
        kind, inner = hints[one.name], getattr(value, one.name)
        if dataclasses.is_dataclass(kind):
            yield from _fields(inner, typing.cast("type", kind), f"{prefix}{one.name}.")
        elif typing.get_origin(kind) is Literal:
            yield f"{prefix}{one.name}", str, inner, list(typing.get_args(kind))
        else:
            yield f"{prefix}{one.name}", kind, inner, None
