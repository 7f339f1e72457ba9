"""One drawn chest X-ray: a healthy chest, tubes and letters, and the film that records it.

Everything is attenuation along the beam: body plus bones minus the tissue that lung air replaces. What a
disease adds comes in from outside (`phantom_disease`); nothing here knows a class. Not here: patients,
datasets, files (`phantom`).

Coordinates: x to the image's right, y down, from -1 to 1 over the image before the patient's pose; the
heart points to the image's right. Shape suffixes: H W pixels, N points, M lines.
Lengths are in patient units (half an image side) unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # float32; one value per pixel [H, W], or per point [N]
Path = NDArray[Any]  # [M, N, 2] points of lines

TRUNKS, TWIGS = 30, 90  # vessels of both lungs
HILA = np.array(
    [[-0.17, 0.02], [0.19, -0.02]]
)  # where vessels enter the lungs, image left and right
LINE_WIDTH = 0.006  # blur of vessels and streaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What makes one hospital's images differ from another's: people, machine, habits."""

    contrast: float  # of the grey window; larger is a harder film
    gamma: float  # above 1 darkens the middle greys
    noise: float  # photon noise in the log exposure, at no attenuation
    blur: float  # focal spot and detector, as a share of the image side
    zoom: float  # patient size on the film, 1 = average
    habitus: float  # soft tissue, 1 = average
    heart: float  # heart size, 1 = average
    lines: float  # chance of each kind of tube, wire or lead
    border: float  # chance that the collimator shows as black edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A patient's shape; the same in all images of that patient."""

    wide: float  # rib cage, 1 = average
    habitus: float
    apex: float  # y of the lung tops
    height: float  # from the lung tops to the deep outer angles
    taper: float  # how pointed the tops are
    base_right: float  # y of the domes; the patient's right is the image's left
    base_left: float
    dome: float  # how round the domes are
    heart: float
    heart_out: float  # how far the heart reaches to the image's right
    knob: float  # aortic arch
    hilum: float  # brightness of the vessels
    ribs: float  # distance between ribs
    rib_phase: float
    rib_tilt: float
    rib_bright: float
    clavicle: float  # y of the inner ends
    bone: float
    breast: float  # about 0 in men
    breast_y: float
    blade: float  # shoulder blades over the lungs
    curve: float  # of the spine
    gas: float  # stomach bubble, shown above 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How the patient stood for one image, and how it was exposed."""

    scale: float
    turn: float  # in the image plane, radians
    oblique: float  # about the body axis: one lung looks wider
    shift_x: float
    shift_y: float
    breath: float  # domes down, or up (below 0)
    contrast: float
    gamma: float
    low: float  # grey levels of the darkest and brightest tissue
    high: float
    tilt_x: float  # uneven exposure over the film
    tilt_y: float
    border: tuple[float, float, float, float] | None  # black edges: left, right, top, bottom


def meet(rng: np.random.Generator, site: Site) -> Body:
    """Return a new patient of that site."""

    def around(mean: float, spread: float) -> float:
        return mean + spread * max(-2.2, min(2.2, rng.standard_normal()))

    woman = rng.random() < 0.5
    tall, base = around(1.0, 0.05), around(0.42, 0.045)
    return Body(
        wide=around(1.0, 0.05) * (0.97 if woman else 1.02),
        habitus=site.habitus * around(1.0, 0.08),
        apex=-0.68 * tall,
        height=1.20 * tall,
        taper=around(2.3, 0.25),
        base_right=base,
        base_left=base + around(0.05, 0.02),
        dome=around(0.20, 0.03),
        heart=site.heart * around(1.0, 0.11),
        heart_out=around(0.30, 0.03),
        knob=around(0.060, 0.018),
        hilum=around(1.0, 0.25),
        ribs=around(0.137, 0.010),
        rib_phase=float(rng.random()),
        rib_tilt=around(0.27, 0.05),
        rib_bright=around(1.0, 0.22),
        clavicle=around(-0.50, 0.04),
        bone=around(1.0, 0.15),
        breast=abs(around(0.14, 0.07)) if woman else abs(around(0.0, 0.015)),
        breast_y=around(0.36, 0.06),
        blade=abs(around(0.08, 0.05)),
        curve=around(0.0, 0.02),
        gas=float(rng.random()),
    )


def expose(person: np.random.Generator, shot: np.random.Generator, site: Site) -> Pose:
    """Return the pose of one image: partly the patient's habit, partly this moment's."""

    def around(mean: float, lasting: float, passing: float) -> float:
        step = lasting * person.standard_normal() + passing * shot.standard_normal()
        limit = 2.0 * (lasting + passing)
        return float(mean + max(-limit, min(limit, step)))

    edges = 0.1 * person.random(4)
    shows = person.random() < site.border
    return Pose(
        scale=site.zoom * around(1.10, 0.045, 0.02),
        turn=around(0.0, 0.025, 0.02),
        oblique=around(0.0, 0.03, 0.02),
        shift_x=around(0.0, 0.03, 0.025),
        shift_y=around(0.05, 0.035, 0.025),
        breath=around(0.0, 0.02, 0.02),
        contrast=site.contrast * around(1.0, 0.06, 0.05),
        gamma=site.gamma * around(1.0, 0.08, 0.06),
        low=around(0.09, 0.03, 0.02),
        high=around(0.99, 0.025, 0.02),
        tilt_x=around(0.0, 0.02, 0.02),
        tilt_y=around(0.0, 0.03, 0.02),
        border=(float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3]))
        if shows
        else None,
    )


# ---------------------------------------------------------------------------------------- pixels and shapes


@lru_cache(maxsize=8)
def _film_coordinates(size: int) -> tuple[Field, Field]:
    at = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    return at[None, :], at[:, None]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Every pixel's place in patient coordinates under one pose; draws points and lines."""

    size: int
    pose: Pose
    pixel: float  # side of a pixel
    x: Field
    y: Field
    side: Field  # |x|

    @classmethod
    def under(cls, pose: Pose, size: int) -> Canvas:
        """Return the canvas [size, size] under a pose."""
        column, row = _film_coordinates(size)
        cos, sin = float(np.cos(pose.turn)) / pose.scale, float(np.sin(pose.turn)) / pose.scale
        u, v = column - pose.shift_x, row - pose.shift_y
        x, y = u * cos + v * sin, v * cos - u * sin
        return cls(size, pose, 2 / size / pose.scale, x, y, np.abs(x))

    def edge(self, width: float) -> float:
        """Return an edge's half-width: as asked, but no finer than the pixels."""
        return max(width, 0.9 * self.pixel)

    def dots(self, path_MN2: Path, mass_MN: Path) -> Field:
        """Return points spread over their four nearest pixels; they add up to `mass` per unit area."""
        size, pose = self.size, self.pose
        cos, sin = float(np.cos(pose.turn)) * pose.scale, float(np.sin(pose.turn)) * pose.scale
        x_N, y_N = path_MN2[..., 0].ravel(), path_MN2[..., 1].ravel()
        column_N = (cos * x_N - sin * y_N + (pose.shift_x + 1)) * (size / 2) - 0.5
        row_N = (sin * x_N + cos * y_N + (pose.shift_y + 1)) * (size / 2) - 0.5
        inside_N = (column_N > 0) & (column_N < size - 1) & (row_N > 0) & (row_N < size - 1)
        column_N, row_N, mass_N = column_N[inside_N], row_N[inside_N], mass_MN.ravel()[inside_N]
        at_N = column_N.astype(np.int64), row_N.astype(np.int64)
        right_N, below_N = column_N - at_N[0], row_N - at_N[1]
        first_N = at_N[1] * size + at_N[0]
        upper_N, lower_N = mass_N * (1 - below_N), mass_N * below_N
        index = np.concatenate([first_N, first_N + 1, first_N + size, first_N + size + 1])
        weight = np.concatenate(
            [upper_N * (1 - right_N), upper_N * right_N, lower_N * (1 - right_N), lower_N * right_N]
        )
        total = np.bincount(index, weight, minlength=size * size).reshape(size, size)
        return (total / self.pixel**2).astype(np.float32)

    def spread(self, dots: Field, width: float) -> Field:
        """Return dots blurred to lines of about that width, at least half a pixel of it."""
        return blur(dots, max(width / self.pixel, 0.5))

    def blob(self, x: float, y: float, rx: float, ry: float, lean: float = 0.0) -> Field:
        """Return a smooth bump: 1 in the middle, 0 from 1.5 radii outwards."""
        return bump(self.x - x, self.y - y, rx, ry, lean)


def blur(field: Field, sigma: float) -> Field:
    """Return the field [H, W] under a Gaussian of `sigma` pixels; beyond the border it goes on as it ends."""
    reach = max(1, int(2.5 * sigma + 0.5))
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for _ in range(2):  # rows, then columns
        high, wide = field.shape
        padded = np.empty((high + 2 * reach, wide), dtype=np.float32)
        padded[:reach], padded[reach : reach + high], padded[reach + high :] = (
            field[0],
            field,
            field[-1],
        )
        out: Field = padded[reach : reach + high] * float(weights[0])
        for off in range(1, reach + 1):
            pair = (
                padded[reach - off : reach - off + high] + padded[reach + off : reach + off + high]
            )
            out += pair * float(weights[off])
        field = np.ascontiguousarray(out.T)
    return field


def bump(dx: Field, dy: Field, rx: float, ry: float, lean: float = 0.0) -> Field:
    """Return a smooth bump over offsets from its middle: 1 there, 0 from 1.5 radii outwards."""
    if lean:
        dx = dx + lean * dy
    out = dx * dx
    out *= -0.44 / rx**2
    out -= dy * dy * (0.44 / ry**2)
    out += 1
    np.maximum(out, 0, out=out)
    out *= out
    return out


def step(distance: Field, width: float | Field) -> Field:
    """Return 0 to 1 over distances from -width to +width, smooth at both ends: an anti-aliased edge."""
    t = distance * (0.5 / width)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    out = -2 * t
    out += 3
    out *= t
    out *= t
    return out


def hill(y: Field, at: float, above: float, below: float) -> Field:
    """Return exp(-((y - at) / s)²), s = `above` over the top and `below` under it."""
    off = y - at
    off = np.maximum(off * (1 / below), off * (-1 / above))
    off *= -off
    out: Field = np.exp(off, out=off)
    return out


@lru_cache(maxsize=16)
def _bumps(size: int, cells: int) -> Field:
    at = np.linspace(0.5, cells - 1.5, size)[:, None] - np.arange(cells)[None, :]
    return (np.clip(1 - np.abs(at) / 1.5, 0, 1) ** 2 * 1.6).astype(np.float32)


def cloud(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Return a smooth random texture [size, size]: mean 0, about -1 to 1, `cells` bumps across."""
    knots = rng.standard_normal((cells, cells), dtype=np.float32)
    basis = _bumps(size, cells)
    out: Field = basis @ knots @ basis.T
    return out


def curves(
    rng: np.random.Generator,
    start_M2: Path,
    angle_M: Path,
    length_M: Path,
    *,
    points: int,
    bend: float,
) -> tuple[Path, Path]:
    """Return bent lines [M, N, 2] and their directions [M, N]; `points` does not change what is drawn."""
    t = ((np.arange(points) + 0.5) / points).astype(np.float32)
    bends = rng.standard_normal((3, len(angle_M), 1), dtype=np.float32)
    turn_MN = bend * (bends[0] * t + 0.35 * bends[1] * np.sin(7 * t + 3 * bends[2]))
    heading_MN = angle_M.astype(np.float32)[:, None] + turn_MN
    stride = (length_M / points).astype(np.float32)[:, None]
    path = np.stack(
        [np.cumsum(np.cos(heading_MN) * stride, 1), np.cumsum(np.sin(heading_MN) * stride, 1)], -1
    )
    return start_M2.astype(np.float32)[:, None, :] + path, heading_MN


# -------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True, slots=True)
class Chest:
    """A healthy chest on a canvas: what disease and vessels need to find their place.

    `lung` is 0 to 1 where lung is seen; `air` is the attenuation that its air takes away.
    """

    canvas: Canvas
    body: Body
    outer: Field  # |x| of the inner chest wall
    under: Field  # how far above the dome, below 0 under it
    middle: Field  # heart and great vessels, 0 to 1
    lung: Field
    air: Field


def wall_at(body: Body, y: float) -> float:
    """Return |x| of the inner chest wall at height y."""
    t = min(max((y - body.apex) / body.height, 0.0), 1.0)
    return float(0.74 * body.wide * np.sqrt(1 - (1 - t) ** body.taper))


def _wall(canvas: Canvas, body: Body) -> Field:
    t = (canvas.y - body.apex) * (1 / body.height)
    np.clip(t, 0, 1, out=t)
    round_ = np.sqrt(1 - (1 - t) ** np.float32(body.taper))
    oblique = 0.74 * body.wide * canvas.pose.oblique
    out: Field = round_ * np.where(
        canvas.x > 0, 0.74 * body.wide + oblique, 0.74 * body.wide - oblique
    )
    return out.astype(np.float32, copy=False)


def open_chest(canvas: Canvas, body: Body) -> Chest:
    """Return the chest of a healthy patient."""
    x, y, side, breath = canvas.x, canvas.y, canvas.side, canvas.pose.breath
    edge = canvas.edge(0.014)
    outer = _wall(canvas, body)
    off = (side - 0.38) * (1 / 0.38)
    off *= off
    off *= np.where(side > 0.38, 1.0 + 0.8 * off, np.float32(0.55))
    under = np.where(
        x < 0, np.float32(body.base_right + breath), np.float32(body.base_left + breath)
    )
    under += body.dome * off
    under -= y
    middle = _heart(canvas, body)
    depth = outer - side
    field = step(depth, edge) * step(under, edge)
    lung = field * (1 - middle)
    thick = 0.40 + 0.60 * step(depth - 0.08, 0.11)
    thick *= 0.76 + 0.24 * step(y - (body.apex + 0.25), 0.3)
    air = thick * (lung + 0.14 * (field - lung))
    return Chest(canvas, body, outer, under, middle, lung, 0.70 * air)


def _heart(canvas: Canvas, body: Body) -> Field:
    """Return heart, great vessels and spine as one silhouette, 1 inside."""
    y, x = canvas.y, canvas.x - body.curve * canvas.y
    low = 0.5 * (body.base_left + body.base_right) + canvas.pose.breath - 0.06
    big = body.heart
    to_left = 0.085 + body.knob * hill(y, -0.27, 0.085, 0.11)
    to_left += 0.035 * hill(y, -0.08, 0.10, 0.14)
    to_left += body.heart_out * big * hill(y, low, 0.25 * big, 0.26)
    to_right = 0.085 + 0.018 * hill(y, -0.30, 0.25, 0.25)
    to_right += 0.105 * big * hill(y, low - 0.06, 0.21 * big, 0.30)
    edge = canvas.edge(0.018)
    return step(to_left - x, edge) * step(x + to_right, edge)


def soft_tissue(chest: Chest) -> Field:
    """Return the attenuation of skin, muscle, organs, as if there were no air in the lungs."""
    canvas, body = chest.canvas, chest.body
    x, y, side = canvas.x, canvas.y, canvas.side
    edge = canvas.edge(0.02)
    flank = (0.60 + 0.27 * body.habitus) * body.wide + 0.55 * step(-0.40 - y, 0.34)
    flank += 0.05 * body.habitus * step(y - 0.45, 0.4)
    neck = side * (1 / 0.25)
    neck *= neck
    top = 0.27 * side * side - 0.86 - 0.95 * np.exp(-neck * neck)
    inside = step(flank - side, edge) * step(y - top, edge)
    round_ = np.minimum(side / flank, 1)
    round_ *= round_
    thick = np.sqrt(1 - round_ * round_)
    thick *= 0.80 + 0.20 * step(y + 0.55, 0.30)
    tissue: Field = (0.62 + 0.38 * body.habitus) * thick
    away = x - (body.curve * y + 0.01)
    tissue += 0.16 * np.exp(away * away * (-1 / 0.025))
    below = step(-chest.under, canvas.edge(0.016))
    tissue += 0.21 * np.maximum(below, chest.middle * 0.9)
    tissue += 0.04 * below * (x < 0)
    if body.gas > 0.45:
        bubble = canvas.blob(0.28 + 0.1 * body.gas, body.base_left + 0.17, 0.10, 0.055)
        tissue -= 0.34 * below * bubble
    if body.breast > 0.02:
        tissue += _breasts(canvas, body)
    windpipe = step(0.040 - np.abs(away), 0.022) * step(-0.20 - y, 0.06)
    tissue -= 0.20 * windpipe
    tissue *= inside
    return tissue


def _breasts(canvas: Canvas, body: Body) -> Field:
    size = 0.8 + 1.3 * body.breast
    across = (canvas.side - 0.47 * body.wide) * (1 / (0.36 * size))
    down = (canvas.y - body.breast_y) * (1 / (0.31 * size))
    reach = across * across + down * down * np.where(down < 0, np.float32(1.5), np.float32(1.0))
    thick: Field = np.sqrt(np.maximum(1 - np.sqrt(reach), 0))
    thick *= body.breast * (1 + 0.35 * np.maximum(down, 0))
    return thick


def bones(chest: Chest) -> Field:
    """Return ribs, collar bones, shoulders and spine."""
    return chest.body.bone * (_ribs(chest) + _shoulders(chest.canvas, chest.body) + _spine(chest))


def _ribs(chest: Chest) -> Field:
    """Return all ribs at once: tilted rings round the chest, periodic in y ± tilt · cos(angle)."""
    canvas, body = chest.canvas, chest.body
    wall = np.maximum(chest.outer + 0.02, 0.05)
    sine = np.minimum(canvas.side / wall, 1)
    cosine = np.sqrt(1.001 - sine * sine)
    steep = np.minimum(body.rib_tilt * sine / (cosine * wall), 5)
    blur = np.sqrt(1 + steep * steep)
    blur *= 0.8 * max(canvas.pixel, 0.006) / body.ribs
    tilt = body.rib_tilt * cosine
    total = np.zeros_like(canvas.x)
    for sign, half, bright in ((-1, 0.19, 0.16), (1, 0.22, 0.085)):  # back, then front
        level = (canvas.y - sign * tilt - body.apex) * (1 / body.ribs)
        level += body.rib_phase
        off = level - np.rint(level)
        off *= 1 / half
        profile = step(1 - np.abs(off), blur * (1 / half))
        profile *= 0.60 + 0.12 * off + 0.40 * off * off
        profile *= step(sine - 0.50, 0.25) if sign > 0 else step(canvas.side - 0.07, 0.05)
        profile *= (level > (0.9 if sign < 0 else -0.6)) & (level < 9.6 + 2 * body.rib_phase)
        total += bright * profile
    total *= step(wall - canvas.side, canvas.edge(0.012))
    total *= np.minimum(0.55 + 0.30 / (cosine + 0.25), 1.30)  # seen edge on, a ring is deeper
    total *= body.rib_bright
    return total


def _shoulders(canvas: Canvas, body: Body) -> Field:
    x, y, side = canvas.x, canvas.y, canvas.side
    edge = canvas.edge(0.008)
    along = (side - 0.09) * (1 / 0.75)
    off = (
        y
        - (body.clavicle - 0.16 * along)
        + 0.05 * along * (1 - along)
        + 0.5 * canvas.pose.oblique * x
    )
    off *= 1 / 0.034
    collar = step(1 - np.abs(off), edge / 0.034) * (0.6 + 0.4 * off * off)
    collar *= step(side - 0.09, 0.02) * step(0.84 - side, 0.02)
    head = step(0.16**2 - (side - 0.97) ** 2 - (y + 0.60) ** 2, 0.3 * edge)
    blade = (side - 0.64 * body.wide - 0.20 * (y + 0.35)) * (1 / 0.13)
    plate = step(blade, 0.12) * step(y + 0.66, 0.06) * step(-0.02 - y - 0.2 * blade, 0.10)
    out: Field = 0.17 * collar + 0.2 * head + body.blade * plate
    return out


def _spine(chest: Chest) -> Field:
    canvas, body = chest.canvas, chest.body
    off = np.abs(canvas.x - body.curve * canvas.y)
    wave = np.sin((canvas.y - body.apex) * (2 * np.pi / (1.02 * body.ribs)))
    column = step(0.068 - off, canvas.edge(0.012))
    discs = 0.075 + 0.035 * np.clip(wave * 2.2, -1, 1)
    column *= discs + 0.04 * ((wave > 0.3) & (off > 0.04))
    return column


def vessel_dots(rng: np.random.Generator, canvas: Canvas, body: Body) -> Field:
    """Return the vessels of both lungs as dots: branches out of the hila, thinner outwards."""
    points = max(12, canvas.size // 3)
    side = np.repeat([0, 1], TRUNKS // 2)
    spread = np.tile(np.linspace(-1.35, 1.45, TRUNKS // 2), 2) + 0.09 * rng.standard_normal(TRUNKS)
    start = HILA[side] + 0.035 * rng.standard_normal((TRUNKS, 2))
    length = rng.uniform(0.30, 0.62, TRUNKS)
    angle = np.where(side == 0, np.pi - spread, spread)
    trunk, heading = curves(rng, start, angle, length, points=points, bend=0.35)
    of = np.repeat(np.arange(TRUNKS), TWIGS // TRUNKS)
    at = (rng.uniform(0.2, 0.75, TWIGS) * points).astype(int)
    turn = rng.choice([-1.0, 1.0], TWIGS) * rng.uniform(0.3, 0.8, TWIGS)
    short = length[of] * rng.uniform(0.25, 0.5, TWIGS)
    bright = body.hilum * rng.uniform(0.5, 1.0, TRUNKS)
    twig, _ = curves(
        rng, trunk[of, at], heading[of, at] + turn, short, points=points // 2, bend=0.3
    )
    trunk_mass = 0.0034 * (bright * length / points)[:, None] * np.linspace(1.0, 0.22, points)
    twig_mass = np.broadcast_to(0.0008 * (short / (points // 2))[:, None], twig.shape[:2])
    return canvas.dots(
        np.concatenate([trunk.reshape(1, -1, 2), twig.reshape(1, -1, 2)], 1),
        np.concatenate([trunk_mass.ravel(), twig_mass.ravel()]),
    )


def hila(canvas: Canvas, body: Body) -> Field:
    """Return the bright roots of the lungs."""
    (x0, y0), (x1, y1) = HILA.tolist()
    return (
        0.09
        * body.hilum
        * (canvas.blob(x0, y0, 0.06, 0.10, -0.3) + canvas.blob(x1, y1, 0.06, 0.10, 0.3))
    )


# ---------------------------------------------------------------------------------- tubes, letters, the film

_Corners = Sequence[tuple[float, float]]
_LETTERS: Mapping[str, Sequence[_Corners]] = {
    "R": (
        ((0, 1), (0, 0)),
        ((0, 0), (0.35, 0), (0.6, 0.1), (0.6, 0.4), (0.35, 0.5), (0, 0.5)),
        ((0.3, 0.5), (0.65, 1)),
    ),
    "L": (((0, 0), (0, 1)), ((0, 1), (0.6, 1))),
}


def _line(corners: _Corners, pixel: float) -> tuple[Path, Path]:
    """Return points [N, 2] along a line with rounded corners, and the length each stands for [N]."""
    knots = np.array(corners)
    along = np.linspace(0, len(knots) - 1, 6 * len(knots))
    path = np.stack(
        [np.interp(along, np.arange(len(knots)), knots[:, axis]) for axis in (0, 1)], -1
    )
    if len(knots) > 2:
        path[1:-1] = (path[:-2] + path[1:-1] + path[2:]) / 3
    legs = np.diff(path, axis=0)
    reach = np.concatenate([[0.0], np.cumsum(np.sqrt((legs * legs).sum(1)))])
    count = max(2, int(2 * reach[-1] / pixel))
    at = (np.arange(count) + 0.5) * (reach[-1] / count)
    even = np.stack([np.interp(at, reach, path[:, axis]) for axis in (0, 1)], -1)
    return even, np.full(count, reach[-1] / count)


def _draw_lines(canvas: Canvas, lines: Sequence[_Corners], width: float) -> Field:
    """Return lines of height 1 and that width."""
    points, lengths = zip(*(_line(corners, canvas.pixel) for corners in lines), strict=True)
    return canvas.spread(
        canvas.dots(np.concatenate(points), width * np.concatenate(lengths)), 0.4 * width
    )


def devices(rng: np.random.Generator, canvas: Canvas, site: Site) -> Field:
    """Return tubes, wires, leads and the side marker."""
    shown = rng.random(5) < site.lines * np.array([1.0, 1.0, 1.0, 1.0, 0.4])
    a, b, c, d, e, f = (0.02 * rng.standard_normal(6)).tolist()
    total = _marker(rng, canvas)
    if shown[0]:  # breathing tube
        tube = [(0.02 + a, -1.2), (0.015, -0.7), (0.01, -0.36 + b)]
        total += 0.20 * _draw_lines(canvas, [tube], 0.022)
    if shown[1]:  # venous line
        tube = [(c - 0.22, -1.1), (-0.24, -0.8), (-0.13, -0.5), (-0.09, -0.2), (-0.08, d)]
        total += 0.30 * _draw_lines(canvas, [tube], 0.013)
    if shown[2]:  # stomach tube
        tube = [(0.03, -1.2), (0.03 + e, 0.0), (0.06, 0.45), (0.25, 0.72)]
        total += 0.26 * _draw_lines(canvas, [tube], 0.016)
    if shown[3]:  # leads
        at = [(-0.58, -0.35), (0.55, -0.32), (0.48 + f, 0.35)]
        total += 0.25 * _draw_lines(
            canvas, [[(x, y), (0.6 * x, y + 0.25), (0.8 * x + a, 1.2)] for x, y in at], 0.010
        )
        for x, y in at:
            total += 0.4 * step(0.033**2 - (canvas.x - x) ** 2 - (canvas.y - y) ** 2, 0.0012)
    if shown[4]:  # pacemaker
        dx = np.maximum(np.abs(canvas.x - 0.50) - 0.05, 0)
        dy = np.maximum(np.abs(canvas.y + 0.36) - 0.03, 0)
        total += 0.7 * step(0.045 - np.sqrt(dx * dx + dy * dy), canvas.edge(0.01))
        wire = [(0.46, -0.36), (0.2, -0.42), (-0.06, -0.2), (-0.05, 0.15), (0.14, 0.3 + b)]
        total += 0.32 * _draw_lines(canvas, [wire], 0.014)
    return total


def _marker(rng: np.random.Generator, canvas: Canvas) -> Field:
    letter, shown = ("R" if rng.random() < 0.6 else "L"), rng.random() < 0.6
    height, x, y = rng.uniform(0.07, 0.11), rng.uniform(0.74, 0.82), rng.uniform(-0.84, -0.45)
    if not shown:
        return np.zeros_like(canvas.x)
    x = -x if letter == "R" else x
    strokes = [[(x + height * a, y + height * b) for a, b in line] for line in _LETTERS[letter]]
    return 0.9 * np.minimum(_draw_lines(canvas, strokes, 0.016), 1.1)


def film(rng: np.random.Generator, tissue: Field, canvas: Canvas, site: Site) -> NDArray[np.uint8]:
    """Return the picture [H, W]: blur, photon noise (more where less light arrives), grey window, collimator."""
    size, pose = canvas.size, canvas.pose
    column, row = _film_coordinates(size)
    if site.blur * size > 0.35:
        tissue = blur(tissue, site.blur * size)
    tissue = tissue + (pose.tilt_x * column + pose.tilt_y * row)
    inner = tissue[size // 8 : -(size // 8) : 2, size // 8 : -(size // 8) : 2]
    levels = np.sort(inner, axis=None)
    low, high = float(levels[int(0.03 * levels.size)]), float(levels[int(0.97 * levels.size)])
    grain = rng.standard_normal((size, size), dtype=np.float32)
    if size > 128:
        grain = blur(grain, size / 380)
        grain *= 1 / float(grain.std())
    grain *= np.exp(0.7 * tissue)
    tissue += site.noise * (size / 128) ** 0.25 * grain
    grey = (tissue - low) * ((pose.high - pose.low) / max(high - low, 0.1)) + pose.low
    grey = (grey - 0.5) * pose.contrast + 0.5
    np.clip(grey, 0, 1.6, out=grey)
    grey **= np.float32(pose.gamma)
    over = np.maximum(grey - 0.75, 0)  # the film's shoulder: bright tissue keeps some structure
    grey -= over
    grey += over / (1 + 2.2 * over)
    np.minimum(grey, 1, out=grey)
    if pose.border:
        left, right, up, down = (2 * edge for edge in pose.border)
        grey *= (column > left - 1) & (column < 1 - right)
        grey *= (row > up - 1) & (row < 1 - down)
    grey *= 255
    pixels_HW: NDArray[np.uint8] = np.rint(grey).astype(np.uint8)
    return pixels_HW
