"""Vessel trees of a synthetic eye: where the branches run and how wide they are.

The unit is the radius of the field of view, and the origin its centre: a place is a complex number, column + 1j * row,
with rows counted downwards. Only ``Branch.placed`` converts to pixels, so that a seed gives the same eye at every size.
"""

from __future__ import annotations

import cmath
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import interpolate, ndimage

ARTERY = 1
VEIN = 2

FINEST = 0.0016
"""Radius at which growth ends; half a pixel in a field of view 625 pixels wide."""

_STEP = 0.011
_CELLS = 72
_REACH = 1.15
"""Half the width of the square in which vessels claim their territory."""

_TRUNK_RADIUS = {ARTERY: 0.0126, VEIN: 0.0166}
"""At the optic disc; 6.7 and 8.9 pixels wide in a photograph like DRIVE's."""


@dataclass(frozen=True)
class Branch:
    """One vessel, from where it leaves its parent (or the optic disc) to its end.

    Attributes:
        kind: ``ARTERY`` (1) or ``VEIN`` (2).
        points: (N, 2), float64, (row, column) of the centreline in pixels, (0, 0) being the centre of the first
            pixel. Neighbours are joined by straight lines. The first point lies on the parent's centreline; the last
            may lie just outside the field of view.
        radius: (N,), float64, half the width at each point in pixels, at least 0.5, never growing along the branch.
            It drops where a branch leaves, by Murray's law: the cube of the radius before equals the sum of the cubes
            of the two after.
        level: 0 if it leaves the optic disc, n + 1 if it leaves a branch of level n.
        parent: index, in the same sequence, of the branch that it leaves; None for level 0.
    """

    kind: int
    points: np.ndarray
    radius: np.ndarray
    level: int
    parent: int | None

    def placed(self, centre: tuple[float, float], scale: float, mirror: float = 1.0) -> Branch:
        """The same branch in pixels, with ``scale`` pixels per unit and the origin at ``centre`` (row, column).

        A ``mirror`` of -1 swaps left and right.
        """
        points = self.points * (scale, scale * mirror) + np.asarray(centre)
        return replace(self, points=points, radius=self.radius * scale)


@dataclass(frozen=True)
class Anatomy:
    """Where the landmarks lie. The optic disc is on the left, as in a left eye.

    Attributes:
        disc: centre of the optic disc.
        fovea: centre of the macula.
        disc_radius: mean radius of the optic disc.
    """

    disc: complex
    fovea: complex
    disc_radius: float


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Landmarks at the distances found in healthy eyes, in a field of view of about 45 degrees.

    Five of six photographs are centred between the macula and the disc, the others nearer the disc.
    """
    column = rng.uniform(-0.66, -0.45) if rng.random() < 5 / 6 else rng.uniform(-0.3, -0.1)
    disc = complex(column, rng.uniform(-0.09, 0.07))
    below = rng.uniform(0.0, 0.1)
    return Anatomy(disc, disc + complex(rng.uniform(0.66, 0.74), below), float(rng.uniform(0.135, 0.165)))


def grow_vessels(anatomy: Anatomy, rng: np.random.Generator) -> list[Branch]:
    """Arteries and veins of one eye, parents before their children, in radii of the field of view.

    Strategy: four pairs of trunks follow guide lines from the disc, above and below, temporal (around the macula) and
    nasal. Buds along them grow in order of calibre. A growing tip wanders, keeps away from existing vessels (more from
    its own kind, which it never crosses) and heads for the fovea or the periphery.
    """
    territory = _Territory()
    branches: list[Branch] = []
    waiting: list[tuple[float, int, _Bud]] = []
    ticket = itertools.count()

    def add(centreline: np.ndarray, bud: _Bud) -> None:
        if len(centreline) < 4:
            return
        radius, buds = _calibre(centreline, bud, len(branches), anatomy, rng)
        for new in buds:
            heapq.heappush(waiting, (-new.radius, next(ticket), new))
        points = np.stack([centreline.imag, centreline.real], axis=1)[: len(radius)]
        branches.append(Branch(bud.kind, points, radius, bud.level, bud.parent))
        territory.claim(centreline[: len(radius)], bud.kind)

    for kind, centreline, radius in _trunks(anatomy, rng):
        add(centreline, _Bud(centreline[0], 0.0, radius, kind, 0, None))
    for kind in (ARTERY, VEIN):
        for _ in range(int(rng.integers(2, 5))):
            angle = float(rng.uniform(-math.pi, math.pi))
            start = anatomy.disc + cmath.rect(anatomy.disc_radius * rng.uniform(0.3, 0.8), angle)
            bud = _Bud(start, angle, float(rng.uniform(0.003, 0.0052)), kind, 0, None)
            heapq.heappush(waiting, (-bud.radius, next(ticket), bud))
    while waiting:
        bud = heapq.heappop(waiting)[2]
        add(_wander(bud, territory, anatomy, rng), bud)
    return branches


@dataclass(frozen=True)
class _Bud:
    place: complex
    heading: float
    radius: float
    kind: int
    level: int
    parent: int | None


class _Territory:
    """Which cells of a coarse grid hold a vessel of each kind, and in which direction they get more crowded."""

    def __init__(self) -> None:
        self._held = {kind: np.zeros((_CELLS, _CELLS)) for kind in (ARTERY, VEIN)}
        self._slope: dict[int, np.ndarray] = {}

    @staticmethod
    def _cell(place: complex) -> tuple[int, int]:
        row = int((place.imag + _REACH) * (_CELLS / (2 * _REACH)))
        column = int((place.real + _REACH) * (_CELLS / (2 * _REACH)))
        return min(max(row, 0), _CELLS - 1), min(max(column, 0), _CELLS - 1)

    def claim(self, centreline: np.ndarray, kind: int) -> None:
        held = self._held[kind]
        for place in centreline.tolist():
            held[self._cell(place)] = 1.0
        self._slope.clear()

    def is_held(self, place: complex, kind: int) -> bool:
        return bool(self._held[kind][self._cell(place)])

    def slope(self, kind: int) -> np.ndarray:
        """Gradient of the crowding for a vessel of this kind, (cells, cells), complex."""
        if kind not in self._slope:
            crowd = self._held[kind] + 0.45 * self._held[ARTERY + VEIN - kind]
            rows, columns = np.gradient(ndimage.gaussian_filter(crowd, 2.2))
            self._slope[kind] = columns + 1j * rows
        return self._slope[kind]

    def uphill(self, place: complex, slope: np.ndarray) -> complex:
        return complex(slope[self._cell(place)])


def _trunks(anatomy: Anatomy, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray, float]]:
    """Kind, centreline and radius at the disc of the eight trunks that cross the disc's rim."""
    axis = anatomy.fovea - anatomy.disc
    axis /= abs(axis)
    entry = anatomy.disc - axis * anatomy.disc_radius * rng.uniform(0.1, 0.35)
    for side in (-1, 1):
        height = rng.uniform(0.46, 0.62)
        steepness = rng.uniform(0.75, 1.15)
        fall = rng.uniform(0.25, 0.75)
        spread = rng.uniform(0.02, 0.075) * rng.choice([-1, 1])
        for kind in (ARTERY, VEIN):
            off = spread if kind == ARTERY else -spread
            own = height + off
            guide = np.array([
                (rng.normal(0, 0.008), 0.0),
                (off * 0.4 + rng.normal(0, 0.012), side * anatomy.disc_radius * rng.uniform(0.9, 1.1)),
                (0.17 / steepness + rng.normal(0, 0.015), side * own * 0.62),
                (0.42 + rng.normal(0, 0.02), side * own * 0.95),
                (0.78, side * own * rng.uniform(0.98, 1.05)),
                (1.15, side * own * (1 - 0.35 * fall)),
                (1.55, side * own * (1 - 0.8 * fall)),
                (1.95, side * own * (1 - fall)),
            ])  # fmt: skip
            yield kind, _guided(guide, entry, axis, rng), _TRUNK_RADIUS[kind] * float(rng.uniform(0.85, 1.08))
    for side in (-1, 1):
        lean = rng.uniform(0.2, 0.75)
        spread = rng.uniform(0.05, 0.16) * rng.choice([-1, 1])
        for kind in (ARTERY, VEIN):
            angle = lean + (spread if kind == ARTERY else -spread)
            reach = np.array([0.02, anatomy.disc_radius, 0.4, 0.75, 1.1, 1.5])
            bent = angle + 0.25 * rng.normal() * reach
            guide = np.stack([-reach * np.sin(bent), side * reach * np.cos(bent)], axis=1)
            yield kind, _guided(guide, entry, axis, rng), _TRUNK_RADIUS[kind] * float(rng.uniform(0.5, 0.72))


def _guided(guide: np.ndarray, origin: complex, axis: complex, rng: np.random.Generator) -> np.ndarray:
    """A smooth, winding line in even steps from ``origin`` along guide points (towards the fovea, across)."""
    places = guide[:, 0] + 1j * guide[:, 1]
    knots = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(places)))])
    along = np.arange(0.0, knots[-1], _STEP)
    line = interpolate.PchipInterpolator(knots, guide)(along)
    path = ndimage.gaussian_filter1d(line[:, 0] + 1j * line[:, 1], 13.0, mode="nearest")
    direction = np.gradient(path)
    direction /= np.abs(direction)
    winding = np.zeros(len(along))
    for wavelength, amplitude in ((0.6, 0.022), (0.28, 0.012), (0.13, 0.0035)):
        nodes = rng.normal(0.0, amplitude, int(knots[-1] / wavelength * 2) + 4)
        winding += interpolate.CubicSpline(np.arange(len(nodes)) * wavelength / 2, nodes)(along)
    path = path + 1j * direction * winding * np.clip(along / 0.25, 0.0, 1.0)
    path = ndimage.gaussian_filter1d(path, 4.0, mode="nearest")
    path += (places[0] - path[0]) * np.exp(-along / 0.1)
    return _inside(origin + path * axis)


def _inside(places: np.ndarray) -> np.ndarray:
    """The places up to and including the first outside the field of view."""
    outside = np.flatnonzero(np.abs(places) > 1.0)
    return places[: outside[0] + 1] if len(outside) else places


def _wander(bud: _Bud, territory: _Territory, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    place, heading = bud.place, bud.heading
    slope = territory.slope(bud.kind)
    to_fovea = abs(place - anatomy.fovea)
    inward = to_fovea < 0.62 and (cmath.rect(1, heading) * (anatomy.fovea - place).conjugate()).real > 0
    bare = float(rng.uniform(0.07, 0.13))
    budget = (0.26 if inward else 0.16) + 75 * bud.radius
    jolts = rng.normal(0.0, 0.075, int(budget / _STEP * rng.lognormal(0.0, 0.35))).tolist()
    swerve = 0.0
    visited = [place]
    for step, jolt in enumerate(jolts):
        away = place - anatomy.disc
        outward = away / (abs(away) + 1e-9) + 0.5 * (place - anatomy.fovea)
        wish = anatomy.fovea - place if inward else outward
        direction = cmath.rect(1.0, heading)
        pull = (direction.conjugate() * wish / (abs(wish) + 1e-9)).imag
        push = -(direction.conjugate() * territory.uphill(place + 3 * _STEP * direction, slope)).imag
        swerve = 0.8 * swerve + jolt
        heading += 0.045 * pull + 1.1 * push + 0.55 * swerve
        ahead = place + _STEP * cmath.rect(1.0, heading)
        if step > 6 and territory.is_held(ahead + 2 * _STEP * cmath.rect(1.0, heading), bud.kind):
            break
        place = ahead
        visited.append(place)
        if abs(place) > 1.0 or abs(place - anatomy.fovea) < bare:
            break
    return np.array(visited)


def _calibre(
    centreline: np.ndarray, bud: _Bud, index: int, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[np.ndarray, list[_Bud]]:
    """Radius along the branch, until it gets too fine, and the buds of the branches that leave it."""
    tangent = np.gradient(centreline)
    ends_inside = abs(centreline[-1]) <= 1.0
    radius = bud.radius
    radii: list[float] = []
    buds: list[tuple[int, _Bud]] = []
    side = 1 if rng.random() < 0.5 else -1

    def wait() -> float:
        spacing = (0.05 + 5.0 * radius) * rng.gamma(3.0, 1 / 3)
        return max(spacing, 2 * _STEP)

    due = wait() + (anatomy.disc_radius if bud.level == 0 else 0.02)
    for number in range(len(centreline)):
        radius *= 1 - 0.22 * _STEP
        due -= _STEP
        if due <= 0 and number < len(centreline) - 3:
            large = rng.random() < 0.22
            ratio = float(rng.uniform(0.6, 0.92) if large else rng.uniform(0.2, 0.55))
            facing = cmath.phase(complex(tangent[number])) + side * math.pi / 2
            towards = anatomy.fovea - complex(centreline[number])
            if abs(towards) < 0.75 and (cmath.rect(1.0, facing).conjugate() * towards).real > 0:
                ratio = min(ratio, 0.5)  # only fine vessels supply the macula
            before, radius = radius, radius / (1 + ratio**3) ** (1 / 3)
            small = radius * ratio
            if small > 1.05 * FINEST:
                turn = side * _leaving_angle(before, small, radius) * float(rng.uniform(0.8, 1.2))
                heading = cmath.phase(complex(tangent[number])) + turn
                leaving = _Bud(complex(centreline[number]), heading, small, bud.kind, bud.level + 1, index)
                buds.append((number, leaving))
            side = -side if rng.random() < 0.7 else side
            due = wait()
        radii.append(radius)
        if radius < FINEST:
            break
    result = np.array(radii)
    if not ends_inside:
        return result, [leaving for _, leaving in buds]
    to_end = np.arange(len(result))[::-1] / max(min(30, len(result) - 1), 1)
    narrowing = 0.35 + 0.65 * np.sqrt(np.clip(to_end, 0.0, 1.0))
    narrowed = [replace(leaving, radius=leaving.radius * float(narrowing[number])) for number, leaving in buds]
    result = np.maximum(np.minimum(result, FINEST), result * narrowing)
    return result, [leaving for leaving in narrowed if leaving.radius > FINEST]


def _leaving_angle(before: float, leaving: float, staying: float) -> float:
    """Angle between a vessel and the branch that leaves it, in radians, after Murray (1926), doi:10.1085/jgp.9.6.835.

    Fine side branches of the retina leave at less than a right angle, hence the limit.
    """
    cosine = (before**4 + leaving**4 - staying**4) / (2 * before**2 * leaving**2)
    return min(math.acos(min(max(cosine, -1.0), 1.0)), 1.15)


def visible_branches(branches: Sequence[Branch], scale: float) -> list[Branch]:
    """The branches visible in a photograph, with their parents' indices updated.

    Vessels much finer than a pixel are left out; slightly finer ones are drawn one pixel wide, as observers do.
    Children are never wider than their parent where they leave it, so no branch loses its parent.

    Args:
        branches: in pixels.
        scale: radius of the field of view in pixels.
    """
    finest = min(max(0.0019 * scale, 0.28), 0.5)
    kept: list[Branch] = []
    renumbered: dict[int, int] = {}
    for number, branch in enumerate(branches):
        count = int(np.count_nonzero(branch.radius >= finest))
        if count < 2:
            continue
        renumbered[number] = len(kept)
        parent = None if branch.parent is None else renumbered[branch.parent]
        radius = np.maximum(branch.radius[:count], 0.5)
        kept.append(replace(branch, points=branch.points[:count], radius=radius, parent=parent))
    return kept


def redrawn_branches(branches: Sequence[Branch], scale: float, rng: np.random.Generator) -> list[Branch]:
    """The branches as another observer might draw them: borders shifted, ends cut short, some fine ones missed.

    Args:
        branches: in pixels.
        scale: radius of the field of view in pixels.
        rng: draws what this observer does.
    """
    drawn: list[Branch] = []
    half_missed = max(0.0028 * scale, 0.42) * float(rng.uniform(0.85, 1.15))
    slip = max(scale / 268, 0.6)
    generosity = float(rng.uniform(0.95, 1.12))
    for branch in branches:
        seen = 1 / (1 + np.exp(-(branch.radius - half_missed) / (0.18 * half_missed)))
        missing = np.flatnonzero(seen < rng.uniform(0.0, 1.0))
        count = int(missing[0]) if len(missing) else len(branch.points)
        if count < 4:
            continue
        noise = ndimage.gaussian_filter1d(rng.normal(size=(count, 3)), 4.0, axis=0, mode="nearest")
        noise /= noise.std() + 1e-9
        points = branch.points[:count] + 0.35 * slip * noise[:, :2]
        radius = np.maximum(branch.radius[:count] * generosity + 0.22 * slip * noise[:, 2], 0.5)
        drawn.append(replace(branch, points=points, radius=radius, parent=None))
    return drawn
