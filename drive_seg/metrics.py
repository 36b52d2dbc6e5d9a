"""Figures of merit for vessel masks, over the pixels that count.

Which pixels count is said by a boolean array, the field of view or the whole image. Counts are exact; where a figure
is undefined it is NaN, and means over cases leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

__all__ = ["Confusion", "confusion", "mean_scores", "roc_auc"]


@dataclass(frozen=True)
class Confusion:
    """Numbers of pixels: true and false positives (vessel), false and true negatives (background)."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    def __add__(self, other: Confusion) -> Confusion:
        """Counts of both together, for pooled figures: counts are summed first, then divided."""
        return Confusion(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.true_negatives + other.true_negatives,
        )

    def scores(self) -> dict[str, float]:
        """The figures these counts give, 0 to 1 (MCC: -1 to 1).

        Undefined, hence NaN: Dice, IoU and sensitivity without a vessel in the annotation; precision without one
        in the prediction; specificity without background; MCC if a whole row or column is empty; accuracy
        without a pixel.
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
        counted: (H, W), True where a pixel counts.
    """
    code = (label[counted] != 0).astype(np.int64) * 2 + (pred[counted] != 0)
    tn, fp, fn, tp = (int(count) for count in np.bincount(code, minlength=4))
    return Confusion(tp, fp, fn, tn)


def roc_auc(probability: np.ndarray, label: np.ndarray, counted: np.ndarray) -> float:
    """Area under the ROC curve, from scikit-learn; NaN if the pixels that count are all of one class.

    Args:
        probability: (H, W), float, of vessel.
        label: (H, W), non-zero where a vessel is annotated.
        counted: (H, W), True where a pixel counts.
    """
    truth = label[counted] != 0
    if truth.size == 0 or truth.all() or not truth.any():
        return math.nan
    return float(roc_auc_score(truth, probability[counted]))


def mean_scores(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per-image mean of every figure, over the cases in which it is defined."""
    names = list(cases[0]) if cases else []
    return {name: _mean([case[name] for case in cases]) for name in names}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
