"""The field of view of a fundus photograph: find it, its box, its diameter.

A fundus camera lights a circle of retina. Photographs differ in how much of it fits on the sensor: the whole
circle, one with its top and bottom cut off (by the picture's edge, or straight cuts with black beyond), or only
the inside. Masks are boolean arrays (H, W), True on the retina; positions are (row, column) in pixels, where
(0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage, optimize, spatial, special

_SEARCH_SIZE = 256
"""Longer side, in pixels, of the copy on which the circle is searched for, at most."""

_BLUR = 1.0
"""Standard deviation, in pixels of that copy, of the smoothing before anything is looked for."""

_NARROWEST = 20
"""Longer by shorter side at which nothing is left to search on the small copy."""

_TOLERANCE = 1.5
"""Distance, in pixels of that copy, within which a point counts as lying on a circle or a line."""

_DARK = 0.08
"""Share of full brightness that no part of a lit retina stays below as a whole."""

_BLACK = 0.15
"""Share of full brightness above which a border is no longer black, only dim retina."""

_CONTRAST = 0.2
"""Share of the step from black to typical retina that an edge must rise by to count as the rim."""


def estimate_fov(image: np.ndarray) -> np.ndarray:
    """The circle of retina in a fundus photograph.

    A circle fits through dim crescents, lesions at the rim and dark maculas, where a threshold alone would
    take bites out of the mask. It is searched for on a small copy and then moved to the steepest place in the
    photograph itself; 8 Mpixel take about 0.03 s. Where no circle explains the rim, the convex hull of what is lit is
    returned.

    Args:
        image: (H, W, 3), (H, W, 1) or (H, W), any unsigned integer or float type. Brightness is judged against
            1 for floats that do not exceed it and against the next power of two (256 or more) otherwise, so
            that 12-bit data in 16-bit files are understood.

    Returns:
        (H, W), bool. All True where nothing at the picture's edge is black.

    Raises:
        ValueError: if the array is no photograph by its shape or type, or if nothing in it is lit.
    """
    image = _as_photograph(image)
    small, factor, shift = _shrink(image)
    full_scale = _full_scale(image)
    small = ndimage.gaussian_filter(np.asarray(Image.fromarray(small).filter(ImageFilter.MedianFilter(3))), _BLUR)
    lit = float(np.percentile(small, 99))
    if lit < _DARK * full_scale:
        raise ValueError(
            f"no field of view found: the photograph is dark ({lit:.3g} of {full_scale:g} where brightest)"
        )
    black, noise = _black_level(small)
    typical = float(np.median(small[small >= (black + lit) / 2]))
    if black > _BLACK * full_scale or black > 0.4 * typical:
        return np.ones(image.shape[:2], dtype=bool)

    step = typical - black
    floor = black + max(4 * noise, 0.02 * full_scale)
    levels = np.unique([max(floor, black + share * step) for share in (0.08, 0.12, 0.18, 0.25, 0.35, 0.5)])
    regions: list[tuple[np.ndarray, float]] = []
    found: list[tuple[_Shape, np.ndarray, float]] = []
    for level in levels:
        region = _lit_region(small > level)
        if region is None:
            continue
        beyond = _beyond_hull((level - black) / step)
        regions.append((region, beyond))
        shape = _fit_shape(region)
        if shape is not None:
            found.append((shape, region, beyond))
            if shape.explained > 0.95:
                break
    if not regions:
        raise ValueError("no field of view found: what is lit is too small or too scattered to be one")

    for shape, region, beyond in sorted(found, key=lambda triple: -triple[0].explained):
        drawn = shape.draw(small.shape)
        if not drawn.all() and (small[~drawn] < floor + 0.15 * step).mean() < 0.7:
            continue  # a round thing on the retina, such as the optic disc
        sharp = _sharpen(shape.scaled(factor, shift), image, step, 2 * factor)
        support = 0.0 if sharp is None else sharp.explained
        hull = _draw_hull(region, 1, 0, small.shape)
        if (drawn & hull).sum() < 0.97 * (drawn | hull).sum():
            # Dim in part, or no circle at all? The rim of a dim crescent is not sharp where the threshold puts it.
            sharp_share = _sharp_share(hull, image, step, factor, shift)
            if support < 0.8 and sharp_share > 0.85:
                return _draw_hull(region, factor, shift, image.shape[:2], beyond)
        if sharp is not None:
            return sharp.draw(image.shape[:2])
    if black > _DARK * full_scale:
        return np.ones(image.shape[:2], dtype=bool)
    region, beyond = regions[len(regions) // 2]
    return _draw_hull(region, factor, shift, image.shape[:2], beyond)


def fov_box(fov: np.ndarray) -> tuple[slice, slice]:
    """The smallest (rows, columns) that hold the whole FOV, for ``image[fov_box(fov)]``.

    Raises:
        ValueError: if no pixel of ``fov`` is set.
    """
    rows, columns = np.flatnonzero(fov.any(axis=1)), np.flatnonzero(fov.any(axis=0))
    if len(rows) == 0:
        raise ValueError(f"the field of view is empty, expected at least one pixel in {fov.shape}")
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def fov_diameter(fov: np.ndarray) -> float:
    """Diameter of the circle of retina in pixels, the unit in which vessel widths compare between cameras.

    It is the longer side of the box, which stays right where top and bottom are cut off.

    Raises:
        ValueError: if no pixel of ``fov`` is set.
    """
    rows, columns = fov_box(fov)
    return float(max(rows.stop - rows.start, columns.stop - columns.start))


@dataclass(frozen=True)
class _Shape:
    """A disc, less what lies beyond straight cuts.

    ``cuts`` are (n, 5): a point on the line, its unit normal away from the retina, and half the length over which
    it was seen. ``explained`` is how much of it is borne out: of the points where the lit region
    ends, the share that lie on it; once moved to the steepest place, the share of the circle that is a sharp edge.
    """

    centre: np.ndarray
    radius: float
    cuts: np.ndarray
    explained: float

    def scaled(self, factor: int, shift: float) -> _Shape:
        cuts = self.cuts.copy()
        cuts[:, :2] = cuts[:, :2] * factor + shift
        cuts[:, 4] *= factor
        return _Shape(self.centre * factor + shift, self.radius * factor, cuts, self.explained)

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        rows = np.arange(size[0], dtype=np.float32)[:, None]
        columns = np.arange(size[1], dtype=np.float32)[None]
        half_width = np.sqrt(np.maximum(self.radius**2 - (rows - self.centre[0]) ** 2, 0))
        inside = (np.abs(columns - self.centre[1]) <= half_width) & (half_width > 0)
        for row, column, down, right, _ in self.cuts:
            inside &= (rows - row) * down + (columns - column) * right <= 0
        return inside


def _as_photograph(image: np.ndarray) -> np.ndarray:
    """(H, W, C) with C of 1 or 3."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or min(image.shape[:2]) < 8:
        raise ValueError(f"expected a photograph of shape (H, W, 3) or (H, W) of 8 pixels or more, got {image.shape}")
    if max(image.shape[:2]) > _NARROWEST * min(image.shape[:2]):
        raise ValueError(f"no field of view found: the photograph is too narrow for one, {image.shape[:2]} pixels")
    if image.dtype.kind not in "uf":
        raise ValueError(f"expected a photograph of an unsigned integer or float type, got {image.dtype}")
    return image


def _full_scale(image: np.ndarray) -> float:
    brightest = float(np.nanmax(image) if image.dtype.kind == "f" else image.max())
    if image.dtype.kind == "f" and brightest <= 1:
        return 1.0
    return float(max(256, 2 ** np.ceil(np.log2(max(brightest, 1)))))


def _shrink(image: np.ndarray) -> tuple[np.ndarray, int, float]:
    """Brightness on a small copy, and how its positions map back: ``full = small * factor + shift``.

    Brightness is the strongest channel: red on the retina, whatever the camera made of the colours elsewhere.
    Averaging four pixels of each block, not all, keeps 8 Mpixel cheap.
    """
    factor = -(-max(image.shape[:2]) // _SEARCH_SIZE)
    height, width = image.shape[0] // factor, image.shape[1] // factor
    offsets = sorted({factor // 4, factor - 1 - factor // 4})
    parts = [
        image[row : row + factor * (height - 1) + 1 : factor, column : column + factor * (width - 1) + 1 : factor]
        for row in offsets
        for column in offsets
    ]
    small = _brightest(np.asarray(np.mean(parts, axis=0, dtype=np.float32)))
    return np.nan_to_num(small), factor, float(np.mean(offsets))


def _brightest(image: np.ndarray) -> np.ndarray:
    """The strongest channel; a maximum over an axis as short as this one takes ten times as long."""
    return image[..., 0] if image.shape[2] == 1 else np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _black_level(small: np.ndarray) -> tuple[float, float]:
    """Median and spread of the darkest patch at the picture's edge, where some of every black border is."""
    side = max(4, min(small.shape) // 25)
    frame = np.concatenate([small[:side].T, small[-side:].T, small[:, :side], small[:, -side:]])
    patches = frame[: len(frame) // side * side].reshape(-1, side * side)
    darkest = patches[(patches.mean(axis=1) + patches.std(axis=1)).argmin()]  # the spread passes over text on black
    return float(np.median(darkest)), float(darkest.std())


def _lit_region(lit: np.ndarray) -> np.ndarray | None:
    """The largest connected part without holes and without thin attachments, or None if too small for a retina."""
    radius = max(2, min(lit.shape) // 60)
    margin = 2 * radius
    # Repeating the edge keeps a retina that reaches the picture's edge from being rounded off there.
    padded = ndimage.binary_fill_holes(np.pad(lit, margin, mode="edge"))
    eroded = ndimage.distance_transform_edt(padded) > radius
    opened = ndimage.distance_transform_edt(~eroded) <= radius
    labels, count = ndimage.label(opened[margin:-margin, margin:-margin])
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    region = ndimage.binary_fill_holes(labels == 1 + int(sizes.argmax()))
    return region if region.mean() >= 0.05 else None


def _rim_points(region: np.ndarray) -> np.ndarray:
    """(n, 2) positions where the region ends inside the picture."""
    rim = region & ~ndimage.binary_erosion(region, border_value=1)
    margin = 3
    rim[:margin] = rim[-margin:] = rim[:, :margin] = rim[:, -margin:] = False
    return np.argwhere(rim).astype(float)


def _fit_shape(region: np.ndarray) -> _Shape | None:
    """A circle, then lines, through the rim; None where most of the rim lies on neither.

    Strategy: consensus of random samples (RANSAC). Up to half of the rim may be dim, cut or overprinted, so a
    least squares fit comes only after the points that agree with each other are known.
    """
    points = _rim_points(region)
    if len(points) < 20:
        everything = _Shape((np.array(region.shape) - 1) / 2, float(np.hypot(*region.shape)), np.zeros((0, 5)), 1.0)
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
    shape = _Shape(centre, radius, np.array(cuts).reshape(-1, 5), explained / len(points))
    drawn = shape.draw(region.shape)
    if explained < 0.5 * len(points) or (drawn & region).sum() < 0.6 * (drawn | region).sum():
        return None
    return shape


def _beyond_circle(points: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Distance from the circle, positive outside."""
    return np.hypot(*(points - centre).T) - radius


def _consensus_circle(
    points: np.ndarray, size: tuple[int, ...], random: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """The circle that most points lie on and few lie outside of."""
    a, b, c = points[random.integers(len(points), size=(3, 600))]
    # Centre from the two perpendicular bisectors: (b - a) · x = (|b|² - |a|²) / 2, and the same for c.
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
    squared = [(points[:, axis] - centres[:, axis, None]) ** 2 for axis in (0, 1)]
    beyond = np.sqrt(squared[0] + squared[1]) - radii[:, None]
    score = (np.abs(beyond) <= _TOLERANCE).sum(axis=1) - 0.5 * (beyond > 2 * _TOLERANCE).sum(axis=1)
    best = int(score.argmax())
    agreeing = points[np.abs(beyond[best]) <= 2 * _TOLERANCE]
    return _circle_through(agreeing, centres[best], float(radii[best])) if len(agreeing) >= 10 else None


def _circle_through(points: np.ndarray, centre: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Robust geometric least squares from a good start."""
    fit = optimize.least_squares(
        lambda circle: _beyond_circle(points, circle[:2], circle[2]),
        [*centre, radius],
        jac=lambda circle: _growth(points, circle[:2]),
        loss="soft_l1",
        f_scale=max(0.5, radius / 1000),
        xtol=1e-5,  # of the circle's size: a small part of a pixel
    )
    return fit.x[:2], float(fit.x[2])


def _growth(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """How the distance from the circle changes with the centre's row and column and the radius, (n, 3)."""
    outward = (points - centre) / np.maximum(np.hypot(*(points - centre).T), 1e-9)[:, None]
    return np.concatenate([-outward, -np.ones((len(points), 1))], axis=1)


def _consensus_line(
    points: np.ndarray, centre: np.ndarray, radius: float, random: np.random.Generator
) -> np.ndarray | None:
    """A cut (row, column, normal, half length) that many points lie on and none of the rim lies beyond."""
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
    # A chance alignment on a round, dim rim is short or has gaps.
    if score[best] < 10 or np.ptp(along) < 0.3 * radius or np.diff(np.sort(along)).max() > 0.1 * radius:
        return None
    middle, normal = _line_through(on_line, normals[best])
    return np.array([*middle, *normal, np.ptp(along) / 2])


def _line_through(points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = points.mean(axis=0)
    fitted = np.linalg.svd(points - middle, full_matrices=False)[2][1]
    return middle, fitted if fitted @ normal > 0 else -fitted


def _sharpen(shape: _Shape, image: np.ndarray, step: float, uncertainty: float) -> _Shape | None:
    """Move the shape to the steepest rise of brightness in the full photograph; None where there is hardly any.

    Args:
        shape: in pixels of ``image``, right to within ``uncertainty`` pixels.
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
        if seen.mean() >= 0.6:  # otherwise a dim crescent, which belongs to the circle
            typical = np.median((found[seen] - cut[:2]) @ cut[2:4])
            seen &= np.abs((found - cut[:2]) @ cut[2:4] - typical) < reach / 2
            middle, normal = _line_through(found[seen], cut[2:4])
            cuts.append(np.array([*middle, *normal, cut[4]]))
    cuts_found = np.array(cuts).reshape(-1, 5)

    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    normals = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    points = shape.centre + shape.radius * normals
    visible = ((points > 2) & (points < np.array(image.shape[:2]) - 3)).all(axis=1)
    for cut in cuts_found:
        visible &= (points - cut[:2]) @ cut[2:4] < -2 * reach
    if visible.sum() < 10:
        return _Shape(shape.centre, shape.radius, cuts_found, 1.0)
    found, rise = _steepest(image, points[visible], normals[visible], reach)
    seen = rise > _CONTRAST * step
    if seen.mean() < 0.4:
        return None
    centre, radius = shape.centre, shape.radius
    kept = found[seen]
    for limit in (reach, max(1.5, reach / 4)):
        near = np.abs(_beyond_circle(kept, centre, radius)) <= limit
        if near.sum() < 10:
            return None
        centre, radius = _circle_through(kept[near], centre, radius)
    borne_out = seen & (np.abs(_beyond_circle(found, centre, radius)) <= max(1.5, 0.008 * radius))
    return _Shape(centre, radius, cuts_found, float(borne_out.mean()))


def _beyond_hull(level: float) -> float:
    """From a border pixel's centre to the rim, in pixels of the small copy.

    The rim passes half a pixel outside the centres of the last pixels, and smoothing has moved the place where
    brightness reaches ``level``, a share of the step at the rim, away from it.
    """
    return 0.5 - _BLUR * float(special.ndtri(1 - min(max(level, 0.01), 0.99)))


def _sharp_share(region: np.ndarray, image: np.ndarray, step: float, factor: int, shift: float) -> float:
    """How much of the rim of a region of the small copy is a sharp edge in the photograph, 0 to 1."""
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
    """Where brightness falls to half on the way out along each normal, (n, 2), and by how much it falls, (n,)."""
    offsets = np.linspace(-2 * reach, 2 * reach, 81)
    positions = points[:, None] + offsets[None, :, None] * normals[:, None]
    last = np.array(image.shape[:2]) - 1
    rows, columns = np.clip(np.rint(positions), 0, last).astype(int).transpose(2, 0, 1)
    profiles = _brightest(np.nan_to_num(image[rows, columns].astype(np.float32)))
    outside_picture = ((positions < -0.5) | (positions > last + 0.5)).any(axis=2)
    profiles = ndimage.uniform_filter(profiles, size=(5, 3), mode="nearest")
    inner = np.median(profiles[:, :27], axis=1)
    outer = np.median(profiles[:, -27:], axis=1)
    # The last crossing of the half level seen from the retina's side, because vessels cross it, too.
    above = profiles > ((inner + outer) / 2)[:, None]
    crossing = above.shape[1] - 1 - above[:, ::-1].argmax(axis=1)
    rise = np.where(outside_picture.any(axis=1) | ~above.any(axis=1), 0.0, inner - outer)
    return points + (offsets[crossing] + reach / 40)[:, None] * normals, rise


def _draw_hull(region: np.ndarray, factor: int, shift: float, size: tuple[int, int], beyond: float = 0.0) -> np.ndarray:
    """The convex hull of a region of the small copy, drawn at full size row by row: left end to right end.

    ``beyond`` is how far outside the border pixels' centres it ends, in pixels of the copy.
    """
    padded = np.pad(region, 1, mode="edge")  # so that a retina at the picture's edge reaches it after scaling
    points = np.argwhere(padded & ~ndimage.binary_erosion(padded)) - 1
    corners = points[spatial.ConvexHull(points).vertices].astype(float)
    outward = corners - corners.mean(axis=0)
    corners += beyond * outward / np.maximum(np.hypot(*outward.T), 1)[:, None]
    corners = corners * factor + shift
    corners = np.roll(corners, -int(corners[:, 0].argmin()), axis=0)
    bottom = int(corners[:, 0].argmax())
    rows, columns = np.arange(size[0]), np.arange(size[1])
    chains = [corners[: bottom + 1], np.concatenate([corners[bottom:], corners[:1]])[::-1]]
    ends = np.sort([np.interp(rows, chain[:, 0], chain[:, 1]) for chain in chains], axis=0)
    inside = (columns >= ends[0][:, None]) & (columns <= ends[1][:, None])
    return inside & (rows >= corners[0, 0])[:, None] & (rows <= corners[bottom, 0])[:, None]
