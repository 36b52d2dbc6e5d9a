"""Centrelines of a vessel mask as branches between branch points.

Strategy: the skeleton is a graph of pixels. Pixels are linked to their four neighbours, and diagonally only where no
third pixel links them, so that corners are not mistaken for branchings. Touching pixels with three or more links form
one branch point at their centre of mass; the rest are chains. All chains are ordered at once, by the distance from one
end, and smoothed before they are measured: counting steps from pixel to pixel would make a straight vessel up to 8 %
longer, depending on its angle, and tortuosity differs by no more than that between people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from skimage.morphology import skeletonize

from drive_seg.calibre import calibres

__all__ = ["Centrelines", "centrelines"]

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class Centrelines:
    """A skeleton as branches between branch points.

    Attributes:
        skeleton: (H, W), bool.
        pixels: (2, n), row and column of every skeleton pixel.
        branch: (n,), the branch that each pixel belongs to, -1 at branch points.
        lengths: (branches,), arc length, pixels.
        chords: (branches,), distance between the ends, pixels.
        ends: (branches, 2), number of the branch point at either end, -1 at a free end.
        places: (branch points, 2), centres of mass, row and column.
        end_points: number of free ends; a branch of a single pixel counts once.
    """

    skeleton: np.ndarray
    pixels: np.ndarray
    branch: np.ndarray
    lengths: np.ndarray
    chords: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    end_points: int


def centrelines(vessels: np.ndarray, background: np.ndarray, half_width: int) -> Centrelines:
    """The centrelines of a mask (Zhang & Suen, 1984) without those that are only roughness of a vessel's border.

    These are branches with a free end that are shorter than the calibre at the point where they leave their vessel.
    They are removed, repeatedly until none is left.

    Args:
        vessels: (H, W), bool, without pixels at the border.
        background: (2, H, W), as for ``drive_seg.calibre.calibres``.
        half_width: half width of the moving average along each branch, pixels.
    """
    skeleton = skeletonize(vessels)
    while True:
        lines = _trace(skeleton, half_width)
        spurs = _spurs(lines, background)
        if not spurs.any():
            return lines
        rows, columns = lines.pixels[:, spurs[lines.branch] & (lines.branch >= 0)]
        skeleton[rows, columns] = False


def _trace(skeleton: np.ndarray, half_width: int) -> Centrelines:
    """Split a skeleton into branches.

    Args:
        skeleton: (H, W), bool, without pixels at the border.
        half_width: half width of the moving average along each branch, pixels.
    """
    pixels = np.stack(np.nonzero(skeleton))
    count = pixels.shape[1]
    first, second = _links(skeleton, pixels)
    degree = np.bincount(np.concatenate([first, second]), minlength=count)

    blocks = skeleton[:-1, :-1] & skeleton[1:, :-1] & skeleton[:-1, 1:] & skeleton[1:, 1:]
    at_block = np.zeros_like(skeleton)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at_block[down : down + blocks.shape[0], right : right + blocks.shape[1]] |= blocks
    junction = (degree >= 3) | at_block[tuple(pixels)]
    junction |= _one_of_each_ring(first, second, junction, degree)

    at_junction = np.zeros_like(skeleton)
    at_junction[tuple(pixels[:, junction])] = True
    labels, clusters = ndimage.label(at_junction, _EIGHT_NEIGHBOURS)
    cluster = labels[tuple(pixels)] - 1
    members = np.bincount(cluster[junction], minlength=clusters)
    places = np.stack(
        [np.bincount(cluster[junction], line[junction], clusters) / np.maximum(members, 1) for line in pixels], axis=1
    )

    # Nodes: the branches' own pixels, and one for each of their links to a branch point, placed at that point.
    inner = ~junction[first] & ~junction[second]
    crossing = junction[first] != junction[second]
    own = np.where(junction[first], second, first)[crossing]
    reached = cluster[np.where(junction[first], first, second)[crossing]]
    nodes = np.concatenate([pixels.T.astype(float), places[reached]])
    at_cluster = np.concatenate([np.full(count, -1), reached])
    used = np.concatenate([~junction, np.ones(len(reached), bool)])
    links = np.concatenate([first[inner], own]), np.concatenate([second[inner], count + np.arange(len(reached))])

    number = np.cumsum(used) - 1
    nodes, at_cluster = nodes[used], at_cluster[used]
    branch, lengths, chords, ends = _measure_chains(nodes, number[links[0]], number[links[1]], half_width)
    of_pixel = np.full(count, -1)
    of_pixel[~junction] = branch[: np.count_nonzero(~junction)]
    free = np.unique(ends[at_cluster[ends] < 0])
    return Centrelines(skeleton, pixels, of_pixel, lengths, chords, at_cluster[ends], places, len(free))


def _links(skeleton: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring pixels: side by side, or diagonal with no third pixel beside both."""
    numbers = np.full(skeleton.shape, -1)
    numbers[tuple(pixels)] = np.arange(pixels.shape[1])
    row, column = pixels
    pairs = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        linked = skeleton[row + down, column + right]
        if down and right:
            linked = linked & ~skeleton[row + down, column] & ~skeleton[row, column + right]
        pairs.append((np.flatnonzero(linked), numbers[row + down, column + right][linked]))
    return np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])


def _one_of_each_ring(first: np.ndarray, second: np.ndarray, junction: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """One pixel of every ring without branches, (n,), bool: cut there, the ring is a chain like the others."""
    inner = ~junction[first] & ~junction[second]
    within = np.bincount(np.concatenate([first[inner], second[inner]]), minlength=len(degree))
    parts, part = csgraph.connected_components(_graph(first[inner], second[inner], len(degree)), directed=False)
    open_parts = np.zeros(parts, bool)
    open_parts[part[within < 2]] = True
    chosen = np.zeros(len(degree), bool)
    chosen[np.unique(part, return_index=True)[1][~open_parts]] = True
    return chosen


def _measure_chains(
    nodes: np.ndarray, first: np.ndarray, second: np.ndarray, half_width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Order, smooth and measure chains.

    Args:
        nodes: (n, 2), positions.
        first, second: links; every node has at most two, and there are no rings.
        half_width: half width of the moving average, which narrows towards the ends, so that these stay in place.

    Returns:
        (n,) chain of each node; (chains,) arc length; (chains,) chord; (chains, 2) nodes at the ends.
    """
    count = len(nodes)
    if not count:
        return np.zeros(0, int), np.zeros(0), np.zeros(0), np.zeros((0, 2), int)
    graph = _graph(first, second, count)
    chains, chain = csgraph.connected_components(graph, directed=False)
    tips = np.flatnonzero(np.bincount(np.concatenate([first, second]), minlength=count) < 2)
    starts = tips[np.unique(chain[tips], return_index=True)[1]]
    steps = csgraph.dijkstra(graph, directed=False, indices=starts, unweighted=True, min_only=True)
    order = np.lexsort((steps, chain))

    sizes = np.bincount(chain, minlength=chains)
    begins = np.cumsum(sizes) - sizes
    place = np.arange(count) - begins[chain[order]]
    reach = np.minimum(half_width, np.minimum(place, sizes[chain[order]] - 1 - place))
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(nodes[order], axis=0)])
    here = np.arange(count)
    smooth = (sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1)[:, None]

    same = chain[order][1:] == chain[order][:-1]
    arcs = np.hypot(*np.diff(smooth, axis=0).T) * same
    lengths = np.bincount(chain[order][1:], arcs, chains)
    ends = np.stack([order[begins], order[begins + sizes - 1]], axis=1)
    return chain, lengths, np.hypot(*(nodes[ends[:, 1]] - nodes[ends[:, 0]]).T), ends


def _spurs(lines: Centrelines, background: np.ndarray) -> np.ndarray:
    """Which branches with a free end are shorter than the calibre of the vessel they leave, (branches,), bool."""
    free = lines.ends < 0
    leaving = free.sum(axis=1) == 1
    calibre = np.full(len(lines.ends), -math.inf)
    calibre[leaving] = calibres(np.rint(lines.places[lines.ends.max(axis=1)[leaving]]).astype(int).T, background)
    return lines.lengths < calibre


def _graph(first: np.ndarray, second: np.ndarray, count: int) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
