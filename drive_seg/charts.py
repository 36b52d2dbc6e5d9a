"""Figures of the report, drawn with matplotlib as SVG that needs no fonts and no network.

The prediction is always blue and the second observer vermillion, which colour-blind readers can tell apart
(Okabe & Ito, 2008); marker and line style also differ, for print without colour.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_seg.metrics import Confusion, ProbabilityCounts
from drive_seg.scores import FOV, PREDICTION, SECOND_OBSERVER, CaseResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibre_chart", "precision_recall_chart", "reliability_chart", "roc_chart"]

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#9A9A9A"
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_POINTS = 300


def roc_chart(results: Sequence[CaseResult]) -> str:
    """ROC curves inside the field of view, pooled and of every case, and the second observer's points. SVG."""
    pooled, cases = _probabilities(results)

    def draw(axes: Axes) -> None:
        for counts in cases:
            axes.plot(*_thinned(*counts.roc()), color=GREY, linewidth=0.6, alpha=0.6)
        axes.plot(*_thinned(*pooled.roc()), color=BLUE, linewidth=2, label="prediction, pooled")
        axes.plot([], [], color=GREY, linewidth=0.8, label="prediction, each case")
        _points(axes, results, lambda counts: (1 - counts["specificity"], counts["sensitivity"]))
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005), title="ROC")
        axes.legend(loc="lower right", frameon=False)
        corner = axes.inset_axes((0.36, 0.36, 0.6, 0.5))
        corner.plot(*_thinned(*pooled.roc()), color=BLUE, linewidth=2)
        _points(corner, results, lambda counts: (1 - counts["specificity"], counts["sensitivity"]))
        corner.set(xlim=(0, 0.1), ylim=(0.6, 1))
        corner.tick_params(labelsize=6)
        corner.set_title("upper left corner", fontsize=7)

    return _svg(draw)


def precision_recall_chart(results: Sequence[CaseResult]) -> str:
    """Precision-recall curves, like ``roc_chart``, over lines of equal Dice. SVG."""
    pooled, cases = _probabilities(results)

    def draw(axes: Axes) -> None:
        recall = np.linspace(0.01, 1, 200)
        for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
            precision = dice * recall / np.maximum(2 * recall - dice, 1e-9)
            shown = (2 * recall > dice) & (precision <= 1)
            axes.plot(recall[shown], precision[shown], color="#D0D0D0", linewidth=0.6, linestyle=":")
            axes.text(1.01, dice / (2 - dice), f"Dice {dice}", fontsize=6.5, color="#767676", va="center")
        for counts in cases:
            axes.plot(*_thinned(*counts.precision_recall()[::-1]), color=GREY, linewidth=0.6, alpha=0.6)
        axes.plot(*_thinned(*pooled.precision_recall()[::-1]), color=BLUE, linewidth=2)
        _points(axes, results, lambda counts: (counts["sensitivity"], counts["precision"]))
        axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(0, 1), ylim=(0, 1.005))
        axes.set_title("Precision and recall")
        axes.legend(loc="lower left", frameon=False)

    return _svg(draw)


def reliability_chart(results: Sequence[CaseResult], bins: int) -> str:
    """Reliability diagram of all pixels inside the field of view, with the number of pixels in each bin. SVG."""
    edges, counts, mean, share = _probabilities(results)[0].reliability(bins)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
        axes.plot(mean, share, color=BLUE, marker="o", markersize=4, linewidth=1.5, label="prediction, pooled")
        axes.set(xlabel="predicted probability of vessel", ylabel="share of vessel pixels", title="Reliability")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
        pixels = axes.inset_axes((0.64, 0.09, 0.33, 0.22))
        pixels.bar(edges[:-1], np.maximum(counts, 1), width=np.diff(edges), align="edge", color=BLUE, alpha=0.5)
        pixels.set_yscale("log")
        pixels.tick_params(labelsize=6)
        pixels.set_title("pixels", fontsize=7)

    return _svg(draw)


def calibre_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dice by vessel calibre, mean and standard deviation over cases, inside the field of view. SVG.

    Args:
        rows: ``rows`` of the summary.
    """
    found = {row["comparison"]: row["calibres"] for row in rows if row["region"] == FOV}
    shown = {
        name: (found[key], colour, hatch)
        for key, name, colour, hatch in (
            (PREDICTION, "prediction", BLUE, ""),
            (SECOND_OBSERVER, "second observer", VERMILLION, "///"),
        )
        if key in found
    }
    names = [calibre_name(row) for row in found[PREDICTION]]

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        width = 0.8 / len(shown)
        for i, (name, (calibres, colour, hatch)) in enumerate(shown.items()):
            means = [_or_nan(row["dice"]["mean"]) for row in calibres]
            deviations = [np.nan_to_num(_or_nan(row["dice"]["sd"])) for row in calibres]
            left = places - 0.4 + (i + 0.5) * width
            axes.bar(
                left, means, width * 0.92, yerr=deviations, capsize=3, label=name,
                color=colour, alpha=0.85, hatch=hatch, edgecolor="white",
            )  # fmt: skip
            for x, value in zip(left, means, strict=True):
                if np.isfinite(value):
                    axes.text(x, 0.03, f"{value:.2f}", ha="center", fontsize=8, bbox=_LABEL)
        axes.set_xticks(places, names)
        axes.set(ylim=(0, 1), ylabel="Dice, mean ± sd", title="Dice by vessel calibre")
        axes.set_xlabel("calibre, in % of the diameter of the field of view")
        axes.legend(loc="upper left", frameon=False)

    return _svg(draw)


def calibre_name(row: Mapping[str, Any]) -> str:
    """A calibre range in percent of the field of view's diameter, such as ``0.5–1``."""
    low, high = row["from"], row["to"]
    if high is None or not np.isfinite(high):
        return f"> {100 * low:g}"
    return f"{100 * low:g}–{100 * high:g}" if low else f"< {100 * high:g}"


def _probabilities(results: Sequence[CaseResult]) -> tuple[ProbabilityCounts, list[ProbabilityCounts]]:
    cases = [counts for result in results if (counts := result.scores[PREDICTION][FOV].probabilities) is not None]
    return reduce(add, cases), [counts for counts in cases if counts.positives.any() and counts.negatives.any()]


def _points(
    axes: Axes, results: Sequence[CaseResult], place: Callable[[Mapping[str, float]], tuple[float, float]]
) -> None:
    """Operating points of the masks: the second observer's in every case, and the prediction's pooled."""
    observed = [result.scores[SECOND_OBSERVER][FOV].counts for result in results if SECOND_OBSERVER in result.scores]
    if observed:
        x, y = zip(*(place(counts.scores()) for counts in observed), strict=True)
        axes.plot(x, y, "x", color=VERMILLION, markersize=5, label="second observer, each case")
    total = reduce(add, (result.scores[PREDICTION][FOV].counts for result in results), Confusion(0, 0, 0, 0))
    x_total, y_total = place(total.scores())
    axes.plot([x_total], [y_total], "o", color=BLUE, markersize=6, markeredgecolor="white", label="at the threshold")


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_POINTS`` points of a curve, evenly spaced along its length."""
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    chosen = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _POINTS)).clip(0, len(x) - 1))
    return x[chosen], y[chosen]


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _svg(draw: Callable[[Axes], None]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "path",
        "svg.hashsalt": "drive-seg",
        "font.size": 8.5,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.fontsize": 7.5,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 4.1), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
