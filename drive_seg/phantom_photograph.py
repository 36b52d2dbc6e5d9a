"""From the branches of a synthetic eye to pixels: annotations and a photograph.

Light reflected by the retina is modelled as a colour times ``exp(-density)``: vessels, pigment and the macula add
density (as in the Beer-Lambert law), so that they keep their contrast in dim light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from drive_seg.phantom_vessels import ARTERY, VEIN, Branch

_COLOURS = np.array([
    (0.84, 0.42, 0.21),
    (0.86, 0.37, 0.27),
    (0.84, 0.29, 0.17),
    (0.64, 0.31, 0.12),
])  # fmt: skip
"""Retinas from light to strong pigmentation, through different cameras: red, green, blue from 0 to 1."""

_VESSEL_DENSITY = {ARTERY: (0.12, 0.52, 0.46), VEIN: (0.25, 0.68, 0.58)}
"""Density in red, green and blue along the middle of a vessel of medium width."""


@dataclass(frozen=True)
class View:
    """How the eye fills the picture.

    Attributes:
        shape: height and width in pixels.
        centre: centre of the field of view, (row, column) in pixels.
        radius: radius of the field of view in pixels.
        disc, fovea: their centres, (row, column) in pixels.
        disc_radius: mean radius of the optic disc in pixels.
    """

    shape: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    disc: tuple[float, float]
    fovea: tuple[float, float]
    disc_radius: float

    def distance(self, place: tuple[float, float]) -> np.ndarray:
        """Distance from ``place``, (H, W), float32, pixels."""
        rows, columns = self.offsets(place)
        return np.sqrt(rows**2 + columns**2)

    def offsets(self, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Offsets below and to the right of ``place``, (H, 1) and (1, W), float32, pixels."""
        rows = np.arange(self.shape[0], dtype=np.float32)[:, None] - np.float32(place[0])
        return rows, np.arange(self.shape[1], dtype=np.float32)[None] - np.float32(place[1])


@dataclass(frozen=True)
class Drawing:
    """The nearest branch at each pixel close to a vessel, for the vessels of one kind.

    Attributes:
        depth: (H, W), float32, pixels from the pixel's centre to the border of the vessel, negative inside; zero counts
            as inside, and pixels far from any vessel are infinite.
        radius: (H, W), float32, radius of that branch there, in pixels; 1 where there is none.
        rank: (H, W), float32, rank of that branch; 0 where there is none.
    """

    depth: np.ndarray
    radius: np.ndarray
    rank: np.ndarray


def draw(branches: Sequence[Branch], ranks: Sequence[float], shape: tuple[int, int]) -> Drawing:
    """Exact distances to the borders of tapering vessels, up to two pixels outside them.

    Strategy: every piece of centreline is a capsule whose radius changes linearly. Distances are computed in a square
    window around it, for all windows of a branch at once; each pixel keeps the capsule in which it lies deepest.
    """
    height, width = shape
    depth = np.full(height * width, np.inf, dtype=np.float32)
    radius = np.ones(height * width, dtype=np.float32)
    rank = np.zeros(height * width, dtype=np.float32)
    for branch, own_rank in zip(branches, ranks, strict=True):
        start, piece = branch.points[:-1], np.diff(branch.points, axis=0)
        length = np.hypot(piece[:, 0], piece[:, 1])
        side = int(np.ceil(2 * branch.radius.max() + length.max())) + 4
        corner = np.floor(start + piece / 2 - (side - 1) / 2).astype(np.int64)
        rows = corner[:, :1] + np.arange(side)
        columns = corner[:, 1:] + np.arange(side)
        down = (rows - start[:, :1]).astype(np.float32)[:, :, None]
        right = (columns - start[:, 1:]).astype(np.float32)[:, None, :]
        unit = (piece / np.maximum(length, 1e-9)[:, None]).astype(np.float32)[:, :, None, None]
        reach = length.astype(np.float32)[:, None, None]
        along = np.clip(down * unit[:, 0] + right * unit[:, 1], 0.0, reach)
        away = np.sqrt((down - along * unit[:, 0]) ** 2 + (right - along * unit[:, 1]) ** 2)
        first = branch.radius[:-1].astype(np.float32)[:, None, None]
        change = (np.diff(branch.radius) / np.maximum(length, 1e-9)).astype(np.float32)[:, None, None]
        here = first + along * change
        border = away - here
        in_rows = (rows >= 0) & (rows < height)
        in_columns = (columns >= 0) & (columns < width)
        wanted = (border < 2.0) & in_rows[:, :, None] & in_columns[:, None, :]
        pixels = (rows[:, :, None] * width + columns[:, None, :])[wanted]
        border, here = border[wanted], here[wanted]
        nearer = border < depth[pixels]
        pixels, border, here = pixels[nearer], border[nearer], here[nearer]
        deepest_last = np.argsort(-border, kind="stable")
        pixels = pixels[deepest_last]
        depth[pixels] = border[deepest_last]
        radius[pixels] = here[deepest_last]
        rank[pixels] = own_rank
    return Drawing(depth.reshape(shape), radius.reshape(shape), rank.reshape(shape))


def photograph(
    view: View, drawings: dict[int, Drawing], artery_on_top: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A photograph, (H, W, 3), uint8, of the vessels in ``drawings`` and everything around them.

    Args:
        view: where things lie.
        drawings: by kind, ``ARTERY`` and ``VEIN``.
        artery_on_top: (H, W), bool, where an artery is on top.
        rng: draws the look of this eye and its camera.
    """
    weights = rng.dirichlet(np.full(len(_COLOURS), 0.8))
    colour = weights @ _COLOURS * rng.uniform(0.88, 1.08)
    light = np.multiply.outer(colour.astype(np.float32), _illumination(view, rng))
    _shine_through(light, view, rng)
    _add_disc(light, view, rng)
    _add_vessels(light, view, drawings, artery_on_top, rng)
    return _exposed(light, view, rng)


def smooth_noise(shape: tuple[int, int], cells: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and standard deviation about 1, ``cells`` bumps along the shorter side, (H, W), float32.

    Cubic B-splines on a coarse grid. Written out as sums, because matrix products round differently between
    processors, and the same seed must give the same pixels.
    """
    pitch = min(shape) / cells
    rows, columns = (np.arange(size) / pitch for size in shape)
    grid = 2.1 * rng.standard_normal((int(rows[-1]) + 4, int(columns[-1]) + 4), dtype=np.float32)
    tall = sum(weight[:, None] * grid[knot] for knot, weight in _spline_weights(rows))
    return sum(weight * np.take(tall, knot, axis=1) for knot, weight in _spline_weights(columns))


def _spline_weights(places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The four knots nearest to every place and their float32 weights in a cubic B-spline with knots 1 apart."""
    first = places.astype(np.int64)
    part = places - first
    for number, weight in enumerate((
        (1 - part) ** 3 / 6,
        2 / 3 - part**2 + part**3 / 2,
        2 / 3 - (1 - part) ** 2 + (1 - part) ** 3 / 2,
        part**3 / 6,
    )):  # fmt: skip
        yield first + number, weight.astype(np.float32)


def _illumination(view: View, rng: np.random.Generator) -> np.ndarray:
    """Light, (H, W): brightest off the centre, dimmer towards the rim and darkest along it, slightly uneven."""
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35) * view.radius
    bright = (view.centre[0] + shift * np.sin(angle), view.centre[1] + shift * np.cos(angle))
    away = view.distance(bright) / view.radius
    falloff = rng.uniform(0.14, 0.36)
    rim = np.clip(1 - view.distance(view.centre) / view.radius, 0, None)
    shade = 1 - rng.uniform(0.1, 0.3) * np.exp(-rim / 0.06)
    return (1.06 - falloff * away**2) * shade * np.exp(0.07 * smooth_noise(view.shape, 2.5, rng))


def _shine_through(light: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Vary ``light`` (3, H, W) by pigment, choroid, nerve fibres around the disc (brighter) and macula (darker)."""
    shape, radius = view.shape, view.radius
    mottling = sum(
        amplitude * smooth_noise(shape, cells, rng)
        for cells, amplitude in ((5, 0.035), (11, 0.03), (24, 0.022), (55, 0.022), (120, 0.022))
    ) * rng.uniform(0.6, 1.2)

    streaks = smooth_noise(shape, 22, rng) + 0.6 * smooth_noise(shape, 40, rng)
    patches = np.clip(0.6 + 0.5 * smooth_noise(shape, 4, rng), 0, 1.3)
    to_fovea = view.distance(view.fovea) / radius
    choroid = (
        float(rng.choice([0.02, 0.06, 0.11], p=[0.4, 0.4, 0.2])) * patches * (1 - np.exp(-((to_fovea / 0.4) ** 2)))
    )
    choroid = choroid * (np.exp(-((streaks / 0.5) ** 2)) - 0.5)

    down, right = view.offsets(view.disc)
    to_disc = np.sqrt(down**2 + right**2) / radius
    angle = np.arctan2(down, right)
    fan = rng.standard_normal(180, dtype=np.float32)
    fan = np.concatenate([fan, fan[:2]])
    spoke = (angle + np.pi) * (180 / (2 * np.pi))
    whole = spoke.astype(np.int32)
    striation = fan[whole] + (spoke - whole) * (fan[whole + 1] - fan[whole])
    fibres = np.exp(-((to_disc / 0.5) ** 2)) * (0.4 + 0.6 * np.sin(angle) ** 2) * (1 + 0.22 * striation)
    fibres = fibres * rng.uniform(0.06, 0.2)

    macula = rng.uniform(0.22, 0.5) * np.exp(-((to_fovea / rng.uniform(0.11, 0.16)) ** 2))
    macula += rng.uniform(0.08, 0.2) * np.exp(-((to_fovea / 0.36) ** 2))
    pit = rng.uniform(0.0, 0.25) * np.exp(-((to_fovea / 0.016) ** 2))

    macula -= pit
    for channel, shares in enumerate(((0.6, 0.7, 0.35, 0.45), (1.0, 1.0, 1.0, 1.0), (0.9, 0.4, 1.3, 0.75))):
        density = shares[0] * mottling - shares[1] * choroid - shares[2] * fibres + shares[3] * macula
        light[channel] *= np.exp(-density)


def _add_disc(light: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Paint the optic disc and its cup into ``light`` (3, H, W), with a glow and perhaps a crescent around it."""
    reach = 3.5 * view.disc_radius
    window = tuple(
        slice(max(int(place - reach), 0), min(int(place + reach) + 1, size))
        for place, size in zip(view.disc, view.shape, strict=True)
    )
    down, right = view.offsets(view.disc)
    down, right = down[window[0]] / view.disc_radius, right[:, window[1]] / view.disc_radius
    nasal = -1.0 if view.fovea[1] > view.disc[1] else 1.0
    tall = rng.uniform(1.0, 1.1)
    ragged = 1 + 0.025 * smooth_noise((down.shape[0], right.shape[1]), 7, rng)
    away = np.sqrt((down / tall) ** 2 + (right * tall) ** 2) * ragged
    disc = 1 / (1 + np.exp(np.clip((away - 1) / rng.uniform(0.035, 0.07), -30, 30)))
    glow = rng.uniform(0.1, 0.25) * np.exp(-np.clip(away - 1, 0, None) / 0.35)

    cup_size = rng.uniform(0.3, 0.6)
    cup_away = np.sqrt(down**2 + (right + nasal * rng.uniform(0.05, 0.2)) ** 2) / cup_size
    cup = rng.uniform(0.6, 1.0) / (1 + np.exp(np.clip((cup_away - 1) / 0.17, -30, 30)))
    mix = np.clip(cup + 0.22 * np.clip(0.5 - 0.35 * nasal * right, 0, 1), 0, 1)
    dimming = np.clip(light[0].mean() / 0.62, 0.85, 1.02) ** np.array([0.6, 1.0, 1.3])
    rim_colour = np.array([0.97, 0.575, 0.30]) * rng.uniform(0.94, 1.05, 3) * dimming
    cup_colour = np.array([1.0, 0.85, 0.54]) * rng.uniform(0.95, 1.04, 3) * dimming

    temporal = np.clip(-nasal * right / (away + 1e-3), 0, 1)
    crescent = float(rng.choice([0.0, 0.25])) * temporal * np.exp(-(((away - 1.06) / 0.07) ** 2))
    for channel in range(3):
        retina = light[channel][window] * (1 + glow - crescent)
        rim, centre = float(rim_colour[channel]), float(cup_colour[channel])
        light[channel][window] = retina + disc * (rim + mix * (centre - rim) - retina)


def _add_vessels(
    light: np.ndarray, view: View, drawings: dict[int, Drawing], artery_on_top: np.ndarray, rng: np.random.Generator
) -> None:
    """Dim ``light`` (3, H, W) by blood, less along the middle of vessels, above all arteries, whose wall reflects."""
    contrast = rng.uniform(0.78, 1.15)
    unevenness = np.exp(0.12 * smooth_noise(view.shape, 14, rng))
    reflex = {ARTERY: rng.uniform(0.22, 0.5), VEIN: rng.uniform(0.02, 0.12)}
    for kind, drawing in drawings.items():
        rows, columns = np.nonzero(drawing.depth < 0.5)
        border, radius = drawing.depth[rows, columns], drawing.radius[rows, columns]
        covered = np.clip(0.5 - border, 0, 1)
        across = np.clip((border + radius) / radius, 0, 1)
        profile = np.sqrt(1 - 0.8 * across**2)
        wide = np.clip((radius - 1.0) / 1.5, 0, 1)
        profile *= 1 - reflex[kind] * wide * np.exp(-((across / 0.33) ** 2))
        thickness = np.clip((radius / (0.0085 * view.radius)) ** 0.38, 0.35, 1.25)
        on_top = artery_on_top[rows, columns] == (kind == ARTERY)
        amount = contrast * covered * profile * thickness * unevenness[rows, columns] * np.where(on_top, 1.0, 0.4)
        for channel, density in enumerate(_VESSEL_DENSITY[kind]):
            light[channel, rows, columns] *= np.exp(-density * amount)


def _exposed(light: np.ndarray, view: View, rng: np.random.Generator) -> np.ndarray:
    """Effects of lens and sensor: blur, chromatic aberration, the round aperture, noise."""
    fine = view.radius / 268
    blur = float(rng.choice([0.6, 0.8, 1.3], p=[0.45, 0.4, 0.15])) * rng.uniform(0.85, 1.15) * fine
    colour_error = rng.uniform(-0.0022, 0.0022, 2)
    sideways = rng.uniform(-0.4, 0.4, 4) * fine
    rim = np.clip((view.radius - view.distance(view.centre)) / max(fine, 1.0) + 0.5, 0, 1)
    dark = rng.uniform(0.5, 4.0)
    haze = rng.uniform(0.0, 0.03)
    noise = rng.uniform(1.2, 3.2)
    picture = np.empty((*view.shape, 3), dtype=np.uint8)
    for channel in range(3):
        plane = ndimage.gaussian_filter(light[channel], 1.15 * blur if channel == 2 else blur, truncate=3.0)
        if channel != 1:
            which = channel // 2
            zoom = 1 + colour_error[which]
            offset = [(1 - zoom) * view.centre[axis] + sideways[2 * which + axis] for axis in (0, 1)]
            plane = ndimage.affine_transform(plane, np.diag([zoom, zoom]), offset, order=1, mode="nearest")
        plane = haze + (1 - haze) * plane
        plane = np.where(plane > 0.8, 0.8 + 0.2 * np.tanh((plane - 0.8) / 0.2), plane)
        grain = rng.standard_normal(view.shape, dtype=np.float32)
        grain = 0.5 * grain + 0.9 * ndimage.uniform_filter(grain, 2)
        level = rim * (255 * plane + noise * grain) + (1 - rim) * (dark + 0.8 * grain)
        picture[..., channel] = np.clip(np.rint(level), 0, 255)
    return picture
