"""Figures of merit for vessel masks and probability maps, over the pixels that count.

A boolean array, the field of view or the whole image, says which pixels count. Masks are cut to it before anything is
computed, so other pixels have no influence. Undefined figures are NaN; each function says when. Arrays are rows first,
(H, W).

Strategy: pixel counts are exact integers. Probabilities are counted in 65536 levels, the precision of a 16-bit
probability map, so that an image of 8 megapixels takes a megabyte and images are pooled by adding their counts.
scikit-learn computes the curves from the counts; areas differ by less than 1e-4 from those of the unrounded values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import euler_number
from skimage.morphology import skeletonize
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from drive_seg.calibre import calibres
from drive_seg.errors import ArgumentError
from drive_seg.fov import fov_box

__all__ = [
    "ClassCounts",
    "Confusion",
    "ProbabilityCounts",
    "Vessels",
    "betti_numbers",
    "calibre_counts",
    "cldice",
    "confusion",
    "shape_scores",
    "surface_distances",
]

LEVELS = 65536
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Confusion:
    """Numbers of pixels: true and false positives (vessel), false and true negatives (background)."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    def __add__(self, other: Confusion) -> Confusion:
        """Summed counts, for pooled figures: counts are summed first, then divided."""
        return Confusion(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.true_negatives + other.true_negatives,
        )

    def scores(self) -> dict[str, float]:
        """The figures computed from these counts, 0 to 1 (MCC: -1 to 1).

        NaN where undefined: Dice, IoU and sensitivity without vessels in the annotation; precision without vessels in
        the prediction; specificity without background; MCC if a row or column is all zero; accuracy without pixels.
        With vessels in the annotation but none in the prediction, Dice, IoU and sensitivity are 0.
        """
        tp, fp, fn, tn = self.true_positives, self.false_positives, self.false_negatives, self.true_negatives
        annotated = tp + fn
        return {
            "dice": _ratio(2 * tp, 2 * tp + fp + fn) if annotated else math.nan,
            "iou": _ratio(tp, tp + fp + fn) if annotated else math.nan,
            "sensitivity": _ratio(tp, annotated),
            "specificity": _ratio(tn, tn + fp),
            "precision": _ratio(tp, tp + fp),
            "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
            "mcc": _ratio(
                tp * tn - fp * fn, math.sqrt(tp + fp) * math.sqrt(annotated) * math.sqrt(tn + fp) * math.sqrt(tn + fn)
            ),
        }


def confusion(pred: np.ndarray, label: np.ndarray, counted: np.ndarray) -> Confusion:
    """Count agreement over the pixels that count.

    Args:
        pred: (H, W), non-zero where a vessel is predicted.
        label: (H, W), non-zero where one is annotated.
        counted: (H, W), non-zero where a pixel counts.
    """
    counted = counted != 0
    predicted, annotated = (pred != 0) & counted, (label != 0) & counted
    both = int(np.count_nonzero(predicted & annotated))
    one, other = int(np.count_nonzero(predicted)) - both, int(np.count_nonzero(annotated)) - both
    return Confusion(both, one, other, int(np.count_nonzero(counted)) - both - one - other)


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Numbers of pixels by vessel class; pixels whose class either mask leaves open do not count.

    Args:
        names: of the vessel classes, in the order of their values, for those of the figures.
        counts: (num_classes, num_classes), int64; rows by class in the reference, columns by class in what is scored.
    """

    names: Sequence[str]
    counts: np.ndarray

    @classmethod
    def of(cls, pred: np.ndarray, label: np.ndarray, counted: np.ndarray, names: Sequence[str]) -> ClassCounts:
        """Count the pixels that count.

        Args:
            pred, label: (H, W), class values, 0 for background; those without a name are vessels of unknown class. If
                this is so of all vessels of either mask, nothing is counted, because it has no classes.
            counted: (H, W), bool, True where a pixel counts.
            names: of the vessel classes.
        """
        size = len(names) + 1
        counts = np.zeros((size, size), np.int64)
        if not any((mask >= size).any() and not ((mask > 0) & (mask < size)).any() for mask in (pred, label)):
            known = counted & (pred < size) & (label < size)
            pairs = label[known].astype(np.int64) * size + pred[known]
            counts += np.bincount(pairs, minlength=size**2).reshape(size, size)
        return cls(names, counts)

    def __add__(self, other: ClassCounts) -> ClassCounts:
        """Summed counts."""
        return ClassCounts(self.names, self.counts + other.counts)

    def scores(self) -> dict[str, float]:
        """Dice, sensitivity and precision of each class, as ``dice_<name>``, …, and ``class_accuracy``, 0 to 1.

        A class is compared with everything else; its figures are undefined as in ``Confusion.scores``.
        ``class_accuracy`` is the share of pixels with the right class among those that are vessel in both masks, so
        that it says nothing of vessels that were missed; NaN without such pixels.
        """
        figures = {}
        for value, name in enumerate(self.names, 1):
            both, scored, annotated = self.counts[value, value], self.counts[:, value].sum(), self.counts[value].sum()
            of_class = Confusion(int(both), int(scored - both), int(annotated - both), 0).scores()
            figures.update({f"{figure}_{name}": of_class[figure] for figure in ("dice", "sensitivity", "precision")})
        vessels = self.counts[1:, 1:]
        return {**figures, "class_accuracy": _ratio(int(np.trace(vessels)), int(vessels.sum()))}


@dataclass(frozen=True, eq=False)
class ProbabilityCounts:
    """Numbers of background and vessel pixels by their probability of vessel.

    Args:
        negatives, positives: (65536,), int64; index i stands for the probability i / 65535.
    """

    negatives: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, probability: np.ndarray, label: np.ndarray, counted: np.ndarray) -> ProbabilityCounts:
        """Count an image.

        Args:
            probability: (H, W), float, 0 to 1, probability of vessel.
            label: (H, W), non-zero where a vessel is annotated.
            counted: (H, W), True or non-zero where a pixel counts.

        Raises:
            ArgumentError: if a probability that counts is NaN or not from 0 to 1.
        """
        counted = np.asarray(counted) != 0
        counting = probability[counted]
        if not ((counting >= 0) & (counting <= 1 + 1e-6)).all():
            raise ArgumentError(f"expected probabilities from 0 to 1, got {counting.min():.4g} to {counting.max():.4g}")
        levels = np.rint(counting * np.float32(LEVELS - 1)).astype(np.uint16)
        annotated = label[counted] != 0
        return cls(
            np.bincount(levels[~annotated], minlength=LEVELS),
            np.bincount(levels[annotated], minlength=LEVELS),
        )

    def __add__(self, other: ProbabilityCounts) -> ProbabilityCounts:
        """Summed counts."""
        return ProbabilityCounts(self.negatives + other.negatives, self.positives + other.positives)

    def scores(self, bins: int) -> dict[str, float]:
        """Area under the ROC curve, average precision and expected calibration error, 0 to 1.

        NaN where undefined: ROC AUC if all pixels are of one class, average precision without vessel pixels, the
        calibration error without any pixels.

        Args:
            bins: number of bins of equal width for the calibration error (Guo et al., ICML 2017, eq. 3, for the
                probability of vessel rather than of the likelier class).
        """
        annotated, probability, weights = self._samples()
        one_class = not self.positives.any() or not self.negatives.any()
        _, counts, mean, share = self.reliability(bins)
        filled = counts > 0
        gaps = counts[filled] * np.abs(mean[filled] - share[filled])
        return {
            "roc_auc": math.nan if one_class else float(roc_auc_score(annotated, probability, sample_weight=weights)),
            "average_precision": float(average_precision_score(annotated, probability, sample_weight=weights))
            if self.positives.any()
            else math.nan,
            "ece": float(gaps.sum() / counts.sum()) if filled.any() else math.nan,
        }

    def reliability(self, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The reliability diagram: bin edges (bins + 1,); pixels, mean probability and vessel share, (bins,) each.

        Mean and share of an empty bin are NaN. A bin includes its lower edge, the last one its upper edge, too.
        """
        total = self.negatives + self.positives
        levels = np.arange(LEVELS)
        of_bin = np.minimum(levels * bins // (LEVELS - 1), bins - 1)
        counts = np.bincount(of_bin, total, bins)
        divisor = np.where(counts > 0, counts, np.nan)
        mean = np.bincount(of_bin, total * (levels / (LEVELS - 1)), bins) / divisor
        share = np.bincount(of_bin, self.positives, bins) / divisor
        return np.linspace(0, 1, bins + 1), counts, mean, share

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates, both rising from 0 to 1; there must be pixels of both classes."""
        annotated, probability, weights = self._samples()
        false_rate, true_rate, _ = roc_curve(annotated, probability, sample_weight=weights)
        return false_rate, true_rate

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and sensitivity for rising thresholds; there must be a vessel pixel."""
        annotated, probability, weights = self._samples()
        precision, recall, _ = precision_recall_curve(annotated, probability, sample_weight=weights)
        return precision, recall

    def dice(self, thresholds: np.ndarray) -> np.ndarray:
        """Dice of the mask at each threshold, (n,); NaN without vessel pixels."""
        if not self.positives.any():
            return np.full(len(thresholds), np.nan)
        first = np.ceil(np.asarray(thresholds) * (LEVELS - 1) - 0.5).astype(int).clip(0, LEVELS - 1)
        true = self.positives[::-1].cumsum()[::-1][first]
        false = self.negatives[::-1].cumsum()[::-1][first]
        return 2 * true / (true + false + self.positives.sum())

    def _samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights = np.concatenate([self.negatives, self.positives])
        there = weights > 0
        probability = np.tile(np.arange(LEVELS) / (LEVELS - 1), 2)[there]
        return np.repeat([False, True], LEVELS)[there], probability, weights[there]


class Vessels:
    """A mask and descriptions of its shape, each computed once, on first use.

    Args:
        mask: (H, W), non-zero on vessels, cut to the pixels that count.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.asarray(mask) != 0

    @cached_property
    def skeleton(self) -> np.ndarray:
        """Centrelines one pixel wide (Zhang & Suen, 1984), (H, W), bool."""
        return skeletonize(self.mask)

    @cached_property
    def betti(self) -> tuple[int, int]:
        """See ``betti_numbers``."""
        return betti_numbers(self.mask)

    @cached_property
    def calibres(self) -> np.ndarray:
        """The calibre of the vessel that each mask pixel belongs to, in pixels; (H, W), float32, 0 outside the mask.

        It is the calibre at the nearest point of the skeleton, see ``drive_seg.calibre``.
        """
        widths = np.zeros(self.mask.shape, np.float32)
        box = _box(self.mask)
        if box is None:
            return widths
        inside, skeleton = np.pad(self.mask[box], 1), np.pad(self.skeleton[box], 1)
        background = ndimage.distance_transform_edt(inside, return_distances=False, return_indices=True)
        points = np.argwhere(skeleton)
        _, nearest = KDTree(points).query(np.argwhere(inside))
        widths[self.mask] = calibres(points.T, background)[nearest]
        return widths


def cldice(pred: Vessels, label: Vessels) -> float:
    """Centreline Dice: harmonic mean of the shares of each skeleton that lie within the other mask, 0 to 1.

    Shit et al., CVPR 2021, doi:10.1109/CVPR46437.2021.01629, eq. 1 and 2, with scikit-image's skeleton.

    Returns:
        The score; NaN without vessels in the annotation, 0 if only the prediction has none.
    """
    if not label.mask.any():
        return math.nan
    if not pred.mask.any():
        return 0.0
    precision = np.count_nonzero(pred.skeleton & label.mask) / np.count_nonzero(pred.skeleton)
    sensitivity = np.count_nonzero(label.skeleton & pred.mask) / np.count_nonzero(label.skeleton)
    return _ratio(2 * precision * sensitivity, precision + sensitivity) if precision + sensitivity else 0.0


def betti_numbers(vessels: np.ndarray) -> tuple[int, int]:
    """Betti-0, the number of connected pieces, and Betti-1, the number of holes.

    Vessel pixels are connected to all eight neighbours, background pixels to four. Always defined: (0, 0) for an empty
    mask. The reported errors are absolute differences over all pixels that count, not means over patches.

    Args:
        vessels: (H, W), bool, cut to the pixels that count.
    """
    box = _box(vessels)
    if box is None:
        return 0, 0
    pieces = int(ndimage.label(vessels[box], _EIGHT_NEIGHBOURS)[1])
    return pieces, pieces - int(euler_number(vessels[box], connectivity=2))


def surface_distances(pred: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """``hd95`` and ``asd``: 95 % Hausdorff distance and average symmetric surface distance, in pixels.

    The surface consists of the outermost pixels of a mask; distances are MONAI's. ``hd95`` is the larger of the two
    directions' 95th percentiles, ``asd`` the mean over all distances of both directions.

    Args:
        pred, label: (H, W), non-zero on vessels, cut to the pixels that count.

    Returns:
        Both figures; NaN if either mask is empty, because there is nothing to measure a distance to.
    """
    pred, label = pred != 0, label != 0
    box = _box(pred | label)
    if box is None or not pred.any() or not label.any():
        return {"hd95": math.nan, "asd": math.nan}
    _, distances, _ = get_edge_surface_distance(
        torch.from_numpy(np.pad(pred[box], 1)), torch.from_numpy(np.pad(label[box], 1)), symmetric=True
    )
    there, back = (side.double().numpy() for side in distances)
    return {
        "hd95": float(max(np.quantile(there, 0.95), np.quantile(back, 0.95))),
        "asd": float(np.concatenate([there, back]).mean()),
    }


def shape_scores(pred: Vessels, label: Vessels, surfaces: bool = True) -> dict[str, float]:
    """``cldice``, ``betti0_error``, ``betti1_error`` and, if ``surfaces``, ``hd95`` and ``asd``; see the functions.

    Args:
        pred, label: cut to the pixels that count.
        surfaces: False leaves out the surface distances, which take longest.
    """
    return {
        "cldice": cldice(pred, label),
        "betti0_error": float(abs(pred.betti[0] - label.betti[0])),
        "betti1_error": float(abs(pred.betti[1] - label.betti[1])),
        **(surface_distances(pred.mask, label.mask) if surfaces else {}),
    }


def calibre_counts(pred: Vessels, label: Vessels, edges: Sequence[float]) -> list[Confusion]:
    """Counts by vessel calibre, from thin to wide.

    An annotated pixel counts towards the calibre of the annotated vessel, a false positive towards that of the
    predicted vessel, so that every positive is counted once. True negatives have no calibre and are 0.

    Args:
        pred, label: cut to the pixels that count.
        edges: rising calibres in pixels at which one class ends and the next begins.

    Returns:
        The counts of each class, one class more than there are edges.
    """
    of_label = np.digitize(label.calibres[label.mask], edges)
    of_false = np.digitize(pred.calibres[pred.mask & ~label.mask], edges)
    found = pred.mask[label.mask]
    classes = len(edges) + 1
    tp, fn = np.bincount(of_label[found], minlength=classes), np.bincount(of_label[~found], minlength=classes)
    fp = np.bincount(of_false, minlength=classes)
    return [Confusion(int(tp[i]), int(fp[i]), int(fn[i]), 0) for i in range(classes)]


def _box(inside: np.ndarray) -> tuple[slice, slice] | None:
    return fov_box(inside) if inside.any() else None


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
