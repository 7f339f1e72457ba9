"""What tells the four classes of phantoms apart: opacities of a shape and place of their own.

COVID            both lungs, several hazy patches near the outer border, mostly low
Lung Opacity     one lung, one dense region anywhere in it
Normal           nothing
Viral Pneumonia  both lungs, haze, streaks and a net of fine lines around the hila

Severity runs from subtle to plain. Caricatures: they mean nothing clinically. Not here: the chest itself
(`phantom_chest`), who gets which disease (`phantom`).
Each function returns (share of the air that is lost, per pixel; streaks as dots, blurred later with the
vessels). `person` is the same in all images of a patient, `shot` is not: disease moves on a little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ppdd_core.data.phantom_chest import HILA, Chest, Field, bump, cloud, curves, step, wall_at

STREAKS = 150

Disease = Callable[[np.random.Generator, np.random.Generator, Chest], tuple[Field, Field]]


def _severity(person: np.random.Generator, shot: np.random.Generator) -> float:
    grade = 0.36 + 0.64 * person.beta(1.7, 1.3) + 0.05 * shot.standard_normal()
    return float(min(max(grade, 0.3), 1.0))


def _warped(person: np.random.Generator, chest: Chest) -> tuple[Field, Field]:
    """Return the pixel positions, pushed about: round shapes drawn on them get ragged outlines."""
    size = chest.canvas.size
    x = chest.canvas.x + 0.045 * cloud(person, size, 11)
    return x, chest.canvas.y + 0.045 * cloud(person, size, 11)


def healthy(_: np.random.Generator, __: np.random.Generator, chest: Chest) -> tuple[Field, Field]:
    """Return nothing lost, nothing added."""
    nothing = np.zeros_like(chest.canvas.x)
    return nothing, nothing


def patches(
    person: np.random.Generator, shot: np.random.Generator, chest: Chest
) -> tuple[Field, Field]:
    """Return ground glass: several soft patches along the outer border of both lungs, mostly low."""
    body, grade = chest.body, _severity(person, shot)
    x, y = _warped(person, chest)
    clear = np.ones_like(x)
    for side, base in ((-1, body.base_right), (1, body.base_left)):
        for _ in range(int(person.integers(2, 4)) + round(2 * grade)):
            at_y = body.apex + (base - body.apex) * (0.36 + 0.62 * person.beta(1.8, 1.2))
            at_x = side * (wall_at(body, at_y) - person.uniform(0.03, 0.15))
            rx, ry = person.uniform(0.07, 0.15), person.uniform(0.09, 0.19)
            weight = grade * person.uniform(0.25, 0.60)
            at_y += 0.01 * shot.standard_normal()
            clear *= 1 - weight * bump(x - at_x, y - at_y, rx, ry)
    mottled = (1 - clear) * (1 + 0.35 * cloud(person, chest.canvas.size, 24))
    return np.clip(mottled, 0, 0.95), np.zeros_like(x)


def consolidation(
    person: np.random.Generator, shot: np.random.Generator, chest: Chest
) -> tuple[Field, Field]:
    """Return one dense region of one lung, at any height; often cut off straight by a fissure."""
    body, grade = chest.body, _severity(person, shot)
    side, base = (-1, body.base_right) if person.random() < 0.5 else (1, body.base_left)
    at_y = (
        body.apex + (base - body.apex) * person.uniform(0.18, 0.95) + 0.01 * shot.standard_normal()
    )
    at_x = side * person.uniform(0.20, max(0.22, wall_at(body, at_y) - 0.08))
    rx, ry, lean = person.uniform(0.14, 0.25), person.uniform(0.13, 0.23), person.uniform(-0.5, 0.5)
    x, y = _warped(person, chest)
    x, y = x - at_x, y - at_y
    mass = step(bump(x, y, rx, ry, lean) - 0.36, 0.36)
    cut, upward = person.random() < 0.6, 1.0 if person.random() < 0.5 else -1.0
    if cut:
        mass = mass * step(upward * (y + 0.25 * x) + 0.35 * ry, 0.03)
    mass *= 1 + 0.16 * cloud(person, chest.canvas.size, 24)
    return np.clip((0.22 + 0.60 * grade) * mass, 0, 0.95), np.zeros_like(x)


def interstitial(
    person: np.random.Generator, shot: np.random.Generator, chest: Chest
) -> tuple[Field, Field]:
    """Return haze, streaks and a net of fine lines around both hila."""
    canvas, grade = chest.canvas, _severity(person, shot)
    points = max(8, canvas.size // 6)
    side = np.repeat([0, 1], STREAKS // 2)
    away = person.standard_normal((STREAKS, 2)) * [0.13, 0.19]
    away += np.array([[-0.10, 0.03], [0.10, 0.03]])[side]
    angle = np.arctan2(away[:, 1], away[:, 0]) + 0.7 * person.standard_normal(STREAKS)
    length = person.uniform(0.05, 0.17, STREAKS)
    path, _ = curves(person, HILA[side] + away, angle, length, points=points, bend=0.5)
    mass = np.broadcast_to((0.0026 * grade * length / points)[:, None], path.shape[:2])
    dots = canvas.dots(path + 0.006 * shot.standard_normal(2).astype(np.float32), mass)
    x, y = _warped(person, chest)
    rx, ry = 0.17 + 0.05 * grade, 0.24 + 0.06 * grade
    (x0, y0), (x1, y1) = HILA.tolist()
    haze = bump(x - 1.35 * x0, y - y0 - 0.03, rx, ry) + bump(x - 1.35 * x1, y - y1 - 0.03, rx, ry)
    haze *= (0.05 + 0.24 * grade) * (1 + 0.5 * cloud(person, canvas.size, 28))
    return np.clip(haze, 0, 0.9), dots


DISEASES: Mapping[str, Disease] = {
    "COVID": patches,
    "Lung Opacity": consolidation,
    "Normal": healthy,
    "Viral Pneumonia": interstitial,
}
