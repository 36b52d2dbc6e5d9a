"""Finds the field of view of a fundus photograph, its box and its diameter.

A fundus camera lights a circle of retina. Photographs differ in how much of it fits on the sensor: the whole
circle, one with its top and bottom cut off (by the picture's edge, or straight cuts with black beyond), or only
the inside. Masks are boolean arrays (H, W), True on the retina; positions are (row, column) in pixels, where
(0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, spatial, special

from drive_seg.rim import Rim, brightest, fit_rim, sharp_share, sharpen

__all__ = ["estimate_fov", "fov_box", "fov_diameter"]

_SEARCH_SIZE = 256
"""Longer side, in pixels, that the small copy on which the circle is searched for has at most."""

_BLUR = 1.0
"""Standard deviation, in pixels of that copy, of the smoothing before the search."""

_NARROWEST = 20
"""Ratio of longer to shorter side above which too little is left to search on the small copy."""

_DARK = 0.08
"""Share of full brightness below which no part of a lit retina lies entirely."""

_BLACK = 0.15
"""Share of full brightness above which a border is not black but dim retina."""


def estimate_fov(image: np.ndarray) -> np.ndarray:
    """Estimate the circle of retina in a fundus photograph.

    A circle bridges dim crescents, lesions at the rim and dark maculas, where a threshold alone would take bites out
    of the mask. It is searched for on a small copy and then moved to the steepest place in the photograph itself;
    8 Mpixel take about 0.02 s. If no circle explains the rim, the convex hull of the lit region is returned.

    Args:
        image: (H, W, 3), (H, W, 1) or (H, W), any unsigned integer or float type. Full brightness is 1 for floats that
            do not exceed it, otherwise the next power of two (256 or more), so that 12-bit data in 16-bit files are
            understood.

    Returns:
        (H, W), bool. All True if nothing at the picture's edge is black.

    Raises:
        ValueError: if the array does not have a photograph's shape or type, or if what is lit is too dark, too small
            or too scattered.
    """
    image = _as_photograph(image)
    small, factor, shift = _shrink(image)
    full_scale = _full_scale(image)
    small = ndimage.gaussian_filter(_despeckle(small), _BLUR)
    lit = float(np.quantile(small, 0.99))
    if lit < _DARK * full_scale:
        raise ValueError(
            f"no field of view found: the photograph is dark ({lit / full_scale:.0%} of white where brightest)"
        )
    black, noise = _black_level(small)
    typical = float(np.median(small[small >= (black + lit) / 2]))
    if black > _BLACK * full_scale or black > 0.4 * typical:
        return np.ones(image.shape[:2], dtype=bool)

    step = typical - black
    # The darkest patch may be retina with a black corner; its spread is not noise.
    floor = black + min(max(4 * noise, 0.02 * full_scale), 0.3 * step)
    levels = np.unique([max(floor, black + share * step) for share in (0.08, 0.12, 0.18, 0.25, 0.35, 0.5)])
    regions: list[tuple[np.ndarray, float]] = []
    found: list[tuple[Rim, np.ndarray, float]] = []
    for level in levels:
        region = _lit_region(small > level)
        if region is None:
            continue
        beyond = _beyond_hull((level - black) / step)
        regions.append((region, beyond))
        shape = fit_rim(region)
        if shape is not None:
            found.append((shape, region, beyond))
            if shape.explained > 0.95:
                break
    if not regions:
        raise ValueError("no field of view found: what is lit is too small or too scattered to be one")

    for shape, region, beyond in sorted(found, key=lambda triple: -triple[0].explained):
        drawn = shape.draw(small.shape)
        if not drawn.all() and (small[~drawn] < floor + 0.15 * step).mean() < 0.7:
            continue  # something round on the retina, such as the optic disc
        sharp = sharpen(shape.scaled(factor, shift), image, step, 2 * factor)
        support = 0.0 if sharp is None else sharp.explained
        # Dim in part, or no circle at all? The rim of a dim crescent is not sharp where the threshold puts it.
        if support < 0.8:
            hull = _draw_hull(region, 1, 0, small.shape)
            differ = (drawn & hull).sum() < 0.97 * (drawn | hull).sum()
            if differ and sharp_share(hull, image, step, factor, shift) > 0.85:
                return _draw_hull(region, factor, shift, image.shape[:2], beyond)
        if sharp is not None:
            return sharp.draw(image.shape[:2])
    if black > _DARK * full_scale:
        return np.ones(image.shape[:2], dtype=bool)
    region, beyond = regions[len(regions) // 2]
    return _draw_hull(region, factor, shift, image.shape[:2], beyond)


def fov_box(fov: np.ndarray) -> tuple[slice, slice]:
    """The smallest (rows, columns) slices that hold the whole FOV, for ``image[fov_box(fov)]``.

    Raises:
        ValueError: if no pixel of ``fov`` is set.
    """
    rows, columns = np.flatnonzero(fov.any(axis=1)), np.flatnonzero(fov.any(axis=0))
    if len(rows) == 0:
        raise ValueError(f"the field of view is empty, expected at least one pixel in {fov.shape}")
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def fov_diameter(fov: np.ndarray) -> float:
    """Diameter of the circle of retina in pixels, the unit that makes vessel widths comparable between cameras.

    It is the longer side of the box, which stays correct if top and bottom are cut off.

    Raises:
        ValueError: if no pixel of ``fov`` is set.
    """
    rows, columns = fov_box(fov)
    return float(max(rows.stop - rows.start, columns.stop - columns.start))


def _as_photograph(image: np.ndarray) -> np.ndarray:
    """(H, W, C) with C of 1 or 3."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or min(image.shape[:2]) < 8:
        raise ValueError(f"expected a photograph of shape (H, W, 3) or (H, W) of 8 pixels or more, got {image.shape}")
    if max(image.shape[:2]) > _NARROWEST * min(image.shape[:2]):
        raise ValueError(
            f"no field of view found: the photograph is too narrow for one, {image.shape[1]}×{image.shape[0]} pixels"
        )
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

    Brightness is the strongest channel: red on the retina, whatever the camera makes of colours elsewhere.
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
    total = np.zeros_like(parts[0], np.float32)  # in the photograph's memory order
    for part in parts:  # into one array: stacking them first takes longer
        total += part
    small = brightest(total / len(parts))
    return np.nan_to_num(small), factor, float(np.mean(offsets))


def _despeckle(small: np.ndarray) -> np.ndarray:
    """The median of three pixels in a column, then of three in a row.

    It removes single bright or dark pixels, as does the median of 3×3, which takes fifteen times as long.
    """
    for axis in (0, 1):
        lines = np.moveaxis(
            np.pad(small, [(1, 1) if axis == side else (0, 0) for side in (0, 1)], mode="edge"), axis, 0
        )
        before, here, after = lines[:-2], lines[1:-1], lines[2:]
        median = np.maximum(np.minimum(before, here), np.minimum(np.maximum(before, here), after))
        small = np.moveaxis(median, 0, axis)
    return small


def _black_level(small: np.ndarray) -> tuple[float, float]:
    """Median and spread of the darkest patch at the picture's edge, which any black border reaches."""
    side = max(4, min(small.shape) // 25)
    frame = np.concatenate([small[:side].T, small[-side:].T, small[:, :side], small[:, -side:]])
    patches = frame[: len(frame) // side * side].reshape(-1, side * side)
    darkest = patches[(patches.mean(axis=1) + patches.std(axis=1)).argmin()]  # the spread avoids text on black
    return float(np.median(darkest)), float(darkest.std())


def _lit_region(lit: np.ndarray) -> np.ndarray | None:
    """The largest connected part, without holes or thin attachments, or None if too small for a retina."""
    radius = max(2, min(lit.shape) // 60)
    margin = 2 * radius
    # Repeating the edge keeps a retina that reaches the picture's edge from being rounded off there.
    padded = _fill_holes(np.pad(lit, margin, mode="edge"))
    # A square takes a seventh of a disc's time, and a circle of retina has room for either.
    side = 2 * radius + 1
    opened = ndimage.maximum_filter(ndimage.minimum_filter(padded, side), side)
    labels, count = ndimage.label(opened[margin:-margin, margin:-margin])
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    region = labels == 1 + int(sizes.argmax())
    return region if region.mean() >= 0.05 else None


def _fill_holes(region: np.ndarray) -> np.ndarray:
    """``ndimage.binary_fill_holes`` in a third of the time: a dark part that reaches no edge is a hole."""
    labels, count = ndimage.label(~region)
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False  # the region itself
    return ~outside[labels]


def _beyond_hull(level: float) -> float:
    """Distance from a border pixel's centre to the rim, in pixels of the small copy.

    The rim passes half a pixel outside the centres of the last pixels, and smoothing has moved the place where
    brightness reaches ``level``, a share of the step at the rim, away from it.
    """
    return 0.5 - _BLUR * float(special.ndtri(1 - min(max(level, 0.01), 0.99)))


def _draw_hull(region: np.ndarray, factor: int, shift: float, size: tuple[int, int], beyond: float = 0.0) -> np.ndarray:
    """The convex hull of a region of the small copy, drawn at full size row by row: left end to right end.

    It ends ``beyond`` pixels of the copy outside the border pixels' centres.
    """
    padded = np.pad(region, 1, mode="edge")  # so that a retina at the picture's edge reaches it after scaling
    filled = np.flatnonzero(padded.any(axis=1))
    outermost = padded[filled].argmax(axis=1), padded.shape[1] - 1 - padded[filled, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([filled, columns], axis=1) for columns in outermost]) - 1
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
