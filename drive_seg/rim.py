"""The rim of a field of view: the circle and the straight cuts that explain where the retina ends.

Positions are (row, column) in pixels, where (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

__all__ = ["Rim", "brightest", "fit_rim", "sharp_share", "sharpen"]

_TOLERANCE = 1.5
"""Distance, in pixels of the searched copy, within which a point counts as lying on a circle or line."""

_CONTRAST = 0.2
"""Smallest rise of an edge that counts as the rim, as a share of the step from black to typical retina."""


@dataclass(frozen=True)
class Rim:
    """A disc without the parts beyond straight cuts.

    ``cuts`` are (n, 5): a point on the line, its unit normal pointing away from the retina, and half the length over
    which it was seen. ``explained`` says how far the rim is confirmed: from ``fit_rim``, of the points where the lit
    region ends, the share that lies on the rim; from ``sharpen``, the share of the circle that is a sharp edge.
    """

    centre: np.ndarray
    radius: float
    cuts: np.ndarray
    explained: float

    def scaled(self, factor: int, shift: float) -> Rim:
        """The same rim on a grid where each position is ``factor`` times that here plus ``shift`` pixels."""
        cuts = self.cuts.copy()
        cuts[:, :2] = cuts[:, :2] * factor + shift
        cuts[:, 4] *= factor
        return Rim(self.centre * factor + shift, self.radius * factor, cuts, self.explained)

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """The inside, for a picture of this height and width, (H, W), bool."""
        rows = np.arange(size[0], dtype=np.float32)[:, None]
        columns = np.arange(size[1], dtype=np.float32)[None]
        half_width = np.sqrt(np.maximum(self.radius**2 - (rows - self.centre[0]) ** 2, 0))
        inside = (np.abs(columns - self.centre[1]) <= half_width) & (half_width > 0)
        for row, column, down, right, _ in self.cuts:
            inside &= (rows - row) * down + (columns - column) * right <= 0
        return inside


def _rim_points(region: np.ndarray) -> np.ndarray:
    """Positions, (n, 2), where the region ends inside the picture, three or more pixels from its edge."""
    inner = region[3:-3, 3:-3]
    surrounded = region[2:-4, 3:-3] & region[4:-2, 3:-3] & region[3:-3, 2:-4] & region[3:-3, 4:-2]
    return np.argwhere(inner & ~surrounded).astype(float) + 3


def fit_rim(region: np.ndarray) -> Rim | None:
    """Fit a circle, then lines, to the rim; None if most of the rim lies on neither.

    Strategy: consensus of random samples (RANSAC). Up to half of the rim may be dim, cut off or overprinted, so a least
    squares fit follows only once the points that agree with each other are known.
    """
    points = _rim_points(region)
    if len(points) < 20:
        everything = Rim((np.array(region.shape) - 1) / 2, float(np.hypot(*region.shape)), np.zeros((0, 5)), 1.0)
        return everything if region.mean() > 0.98 else None
    random = np.random.default_rng(0)
    sample = points[random.permutation(len(points))[:200]]
    circle = _consensus_circle(sample, region.shape, random)
    if circle is None:
        return None
    centre, radius = circle
    on_circle = np.abs(_beyond_circle(points, centre, radius)) <= _TOLERANCE
    rest = points[_beyond_circle(points, centre, radius) < -_TOLERANCE]
    cuts: list[np.ndarray] = []
    explained = int(on_circle.sum())
    while len(cuts) < 4 and len(rest) >= 10:
        line = _consensus_line(rest, centre, radius, random)
        if line is None:
            break
        distances = (rest - line[:2]) @ line[2:4]
        explained += int((np.abs(distances) <= _TOLERANCE).sum())
        rest = rest[np.abs(distances) > 2 * _TOLERANCE]
        cuts.append(line)
    shape = Rim(centre, radius, np.array(cuts).reshape(-1, 5), explained / len(points))
    drawn = shape.draw(region.shape)
    if explained < 0.5 * len(points) or (drawn & region).sum() < 0.6 * (drawn | region).sum():
        return None
    return shape


def _beyond_circle(points: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Distance from the circle, positive outside."""
    return np.hypot(*(points - centre).T) - radius


def _within(points: np.ndarray, centre: np.ndarray, radius: float, limit: float) -> np.ndarray:
    """The points at most ``limit`` from the circle."""
    return points[np.abs(_beyond_circle(points, centre, radius)) <= limit]


def _consensus_circle(
    points: np.ndarray, size: tuple[int, ...], random: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """The circle with the most points on it and few outside."""
    a, b, c = points[random.integers(len(points), size=(3, 600))]
    # Centre from two perpendicular bisectors: (b - a) · x = (|b|² - |a|²) / 2, and the same for c.
    ab, ac = b - a, c - a
    twice_area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    usable = np.abs(twice_area) > 10
    a, ab, ac, twice_area = a[usable], ab[usable], ac[usable], twice_area[usable]
    ab_squared, ac_squared = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
    rows = (ac[:, 1] * ab_squared - ab[:, 1] * ac_squared) / (2 * twice_area)
    columns = (ab[:, 0] * ac_squared - ac[:, 0] * ab_squared) / (2 * twice_area)
    centres, radii = a + np.stack([rows, columns], axis=1), np.hypot(rows, columns)
    usable = (radii > 0.2 * min(size)) & (radii < 3 * max(size))
    centres, radii = centres[usable], radii[usable]
    if len(radii) == 0:
        return None
    # Squared distances are compared, |p - c|² = |p|² - 2 p · c + |c|², which takes one matrix product.
    squared = centres @ (-2 * points.T)
    squared += (points**2).sum(axis=1)
    squared += (centres**2).sum(axis=1)[:, None]
    inner, outer, far = (radii[:, None] + steps * _TOLERANCE for steps in (-1, 1, 2))
    on_circle = (squared >= np.maximum(inner, 0) ** 2) & (squared <= outer**2)
    score = np.count_nonzero(on_circle, axis=1) - 0.5 * np.count_nonzero(squared > far**2, axis=1)
    best = int(score.argmax())
    agreeing = _within(points, centres[best], radii[best], 2 * _TOLERANCE)
    return _circle_near(agreeing) if len(agreeing) >= 10 else None


def _circle_near(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Algebraic least squares, ``|x|² = 2 c · x + r² - |c|²`` (Kåsa, IEEE Trans. Instrum. Meas. 25:8, 1976).

    Solved directly, in a thirtieth of the time of the geometric fit, for which it is the start.
    """
    middle = points.mean(axis=0)
    x = points - middle
    matrix = np.concatenate([2 * x, np.ones((len(x), 1))], axis=1)
    down, right, rest = np.linalg.lstsq(matrix, (x**2).sum(axis=1), rcond=None)[0]
    return middle + (down, right), float(np.sqrt(rest + down**2 + right**2))


def _circle_through(points: np.ndarray, centre: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Robust geometric least squares from a good start."""
    fit = optimize.least_squares(
        lambda circle: _beyond_circle(points, circle[:2], circle[2]),
        [*centre, radius],
        jac=lambda circle: _growth(points, circle[:2]),
        loss="soft_l1",
        f_scale=max(0.5, radius / 1000),
        xtol=1e-5,  # relative to the circle's size: a small part of a pixel
    )
    return fit.x[:2], float(fit.x[2])


def _growth(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Derivatives of the distance from the circle by the centre's row and column and the radius, (n, 3)."""
    outward = (points - centre) / np.maximum(np.hypot(*(points - centre).T), 1e-9)[:, None]
    return np.concatenate([-outward, -np.ones((len(points), 1))], axis=1)


def _consensus_line(
    points: np.ndarray, centre: np.ndarray, radius: float, random: np.random.Generator
) -> np.ndarray | None:
    """A cut (row, column, normal, half length) with many points on it and little of the rim beyond."""
    a, b = points[random.integers(len(points), size=(2, 300))]
    length = np.hypot(*(b - a).T)
    a, b, length = a[length > 0.15 * radius], b[length > 0.15 * radius], length[length > 0.15 * radius]
    if len(length) == 0:
        return None
    normals = np.stack([(b - a)[:, 1], -(b - a)[:, 0]], axis=1) / length[:, None]
    outward = np.sign(((a - centre) * normals).sum(axis=1))
    normals *= np.where(outward == 0, 1, outward)[:, None]
    distances = points @ normals.T - (a * normals).sum(axis=1)
    score = (np.abs(distances) <= _TOLERANCE).sum(axis=0) - (distances > 2 * _TOLERANCE).sum(axis=0)
    best = int(score.argmax())
    on_line = points[np.abs(distances[:, best]) <= _TOLERANCE]
    along = on_line @ np.array([-normals[best, 1], normals[best, 0]])
    # Chance alignments on a round, dim rim are short or have gaps.
    if score[best] < 10 or np.ptp(along) < 0.3 * radius or np.diff(np.sort(along)).max() > 0.1 * radius:
        return None
    middle, normal = _line_through(on_line, normals[best])
    return np.array([*middle, *normal, np.ptp(along) / 2])


def _line_through(points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = points.mean(axis=0)
    fitted = np.linalg.svd(points - middle, full_matrices=False)[2][1]
    return middle, fitted if fitted @ normal > 0 else -fitted


def sharpen(shape: Rim, image: np.ndarray, step: float, uncertainty: float) -> Rim | None:
    """Move the shape to the steepest rise of brightness in the full photograph; None if there is hardly any.

    Args:
        shape: in pixels of ``image``, accurate to ``uncertainty`` pixels.
        image: (H, W, C).
        step: brightness of typical retina above black.
        uncertainty: how far to look, in pixels.
    """
    reach = max(4.0, uncertainty, 0.012 * shape.radius)
    cuts = []
    for cut in shape.cuts:
        along = np.linspace(-0.9, 0.9, 200)[:, None] * cut[4] * np.array([-cut[3], cut[2]])
        found, rise = _steepest(image, cut[:2] + along, np.tile(cut[2:4], (200, 1)), reach)
        seen = rise > _CONTRAST * step
        if seen.mean() >= 0.6:  # otherwise a dim crescent that belongs to the circle
            typical = np.median((found[seen] - cut[:2]) @ cut[2:4])
            seen &= np.abs((found - cut[:2]) @ cut[2:4] - typical) < reach / 2
            middle, normal = _line_through(found[seen], cut[2:4])
            cuts.append(np.array([*middle, *normal, cut[4]]))
    cuts_found = np.array(cuts).reshape(-1, 5)

    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)  # twice as many find no better circle
    normals = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    points = shape.centre + shape.radius * normals
    visible = ((points > 2) & (points < np.array(image.shape[:2]) - 3)).all(axis=1)
    for cut in cuts_found:
        visible &= (points - cut[:2]) @ cut[2:4] < -2 * reach
    if visible.sum() < 10:
        return Rim(shape.centre, shape.radius, cuts_found, 1.0)
    found, rise = _steepest(image, points[visible], normals[visible], reach)
    seen = rise > _CONTRAST * step
    if seen.mean() < 0.4:
        return None
    kept = _within(found[seen], shape.centre, shape.radius, reach)
    if len(kept) < 10:
        return None
    centre, radius = _circle_near(kept)
    kept = _within(kept, centre, radius, max(1.5, reach / 4))
    if len(kept) < 10:
        return None
    centre, radius = _circle_through(kept, centre, radius)
    borne_out = seen & (np.abs(_beyond_circle(found, centre, radius)) <= max(1.5, 0.008 * radius))
    return Rim(centre, radius, cuts_found, float(borne_out.mean()))


def sharp_share(region: np.ndarray, image: np.ndarray, step: float, factor: int, shift: float) -> float:
    """Share of a region's rim, found on the small copy, that is a sharp edge in the photograph, 0 to 1."""
    points = _rim_points(region)
    if len(points) == 0:
        return 0.0
    slope = np.stack(np.gradient(ndimage.gaussian_filter(region.astype(float), 3)), axis=-1)
    normals = -slope[tuple(points.astype(int).T)]
    normals /= np.maximum(np.hypot(*normals.T), 1e-6)[:, None]
    _, rise = _steepest(image, points * factor + shift, normals, max(4.0, 2 * factor))
    return float((rise > _CONTRAST * step).mean())


def _steepest(
    image: np.ndarray, points: np.ndarray, normals: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where brightness falls below half-way on the way out along each normal, (n, 2), and its fall, (n,)."""
    offsets = np.linspace(-2 * reach, 2 * reach, 81)
    last = np.array(image.shape[:2]) - 1
    ends = points + offsets[[0, -1], None, None] * normals
    leaves_picture = ((ends < -0.5) | (ends > last + 0.5)).any(axis=(0, 2))
    rows, columns = (
        np.clip(np.rint(points[:, axis, None] + offsets * normals[:, axis, None]), 0, last[axis]).astype(int)
        for axis in (0, 1)
    )
    profiles = brightest(np.nan_to_num(image[rows, columns])).astype(np.float32)
    profiles = ndimage.uniform_filter(profiles, size=(5, 3), mode="nearest")
    inner, outer = (np.median(end, axis=1) for end in (profiles[:, :27], profiles[:, -27:]))
    # The last crossing of the half level as seen from the retina, because vessels cross it, too.
    above = profiles > ((inner + outer) / 2)[:, None]
    crossing = above.shape[1] - 1 - above[:, ::-1].argmax(axis=1)
    rise = np.where(leaves_picture | ~above.any(axis=1), 0.0, inner - outer)
    return points + (offsets[crossing] + reach / 40)[:, None] * normals, rise


def brightest(image: np.ndarray) -> np.ndarray:
    """The strongest channel at each pixel; a maximum over so short an axis would take ten times as long."""
    return image[..., 0] if image.shape[2] == 1 else np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
