"""``report.html``: an evaluation to look at, one file that opens from disk without a network.

It needs jinja2 and matplotlib, which come with the extra ``report``.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from drive_seg.charts import calibre_chart, calibre_name, precision_recall_chart, reliability_chart, roc_chart
from drive_seg.evaluation import CaseScores
from drive_seg.files import remove, write_text
from drive_seg.pages import render
from drive_seg.pictures import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, WRONG_CLASS
from drive_seg.readers import read_image
from drive_seg.scores import COMPARISONS, DIGITS, FOV, PREDICTION, REGIONS, SECOND_OBSERVER, CaseResult

__all__ = ["FIGURES", "Report", "write_report"]

FIGURES = {
    "dice": ("Dice", "2·TP / (2·TP + FP + FN)"),
    "iou": ("IoU", "TP / (TP + FP + FN)"),
    "sensitivity": ("Sensitivity", "TP / (TP + FN)"),
    "specificity": ("Specificity", "TN / (TN + FP)"),
    "precision": ("Precision", "TP / (TP + FP)"),
    "accuracy": ("Accuracy", "(TP + TN) / all pixels"),
    "mcc": ("MCC", "Matthews correlation coefficient, −1 to 1"),
    "roc_auc": ("ROC AUC", "area under the ROC curve"),
    "average_precision": ("Avg. precision", "mean of precision over rising recall"),
    "ece": ("ECE", "expected calibration error of the probability of vessel; less is better"),
    "cldice": ("clDice", "Dice of the centrelines"),
    "betti0_error": ("Betti-0 error", "difference in the number of connected pieces; less is better"),
    "betti1_error": ("Betti-1 error", "difference in the number of holes; less is better"),
    "hd95": ("HD95 / px", "95 % Hausdorff distance in pixels; less is better"),
    "asd": ("ASD / px", "average symmetric surface distance in pixels; less is better"),
    "class_accuracy": ("Class accuracy", "share with the right class of the pixels that are vessel in both masks"),
}
LARGEST_SIDE = 2000

_logger = logging.getLogger(__name__)


class Report:
    """Writes ``report.html`` after an evaluation; if jinja2 or matplotlib is missing, says what to install.

    Args:
        scores: the scores to report; attach them to the evaluator first.
        path: the file.
    """

    def __init__(self, scores: CaseScores, path: str) -> None:
        self.scores = scores
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.reset)
        engine.add_event_handler(Events.COMPLETED, self)

    def reset(self, engine: Engine) -> None:
        """Remove the report of an earlier evaluation, once its tables are replaced."""
        remove(self.path)

    def __call__(self, engine: Engine) -> None:
        """Write the report."""
        if not self.scores.results:
            return
        try:
            write_report(self.scores.results, self.scores.summary, self.path)
        except ModuleNotFoundError as error:
            if error.name not in ("jinja2", "matplotlib"):
                raise
            _logger.warning("%s is not written, it needs %s: install drive-seg[report]", self.path.name, error.name)


def write_report(results: Sequence[CaseResult], summary: Mapping[str, Any], path: str | Path) -> None:
    """Write the report on scored cases.

    Args:
        results: at least one, with probabilities.
        summary: summary of them by ``CaseScores``.
        path: HTML file.

    Raises:
        ModuleNotFoundError: without jinja2 or matplotlib, which the extra ``report`` installs.
    """
    columns = {f"{row['comparison']} {row['region']}": row for row in summary["rows"]}
    page = render(
        "report.html",
        summary=summary,
        protocol=summary["protocol"],
        columns=columns,
        comparisons=COMPARISONS,
        regions=REGIONS,
        figures=_figures(summary["rows"][0]["per_image"]),
        cases=summary["cases"],
        headline=columns[f"{PREDICTION} {FOV}"]["per_image"]["dice"],
        observer=columns.get(f"{SECOND_OBSERVER} {FOV}", {}).get("per_image", {}).get("dice"),
        charts=_charts(results, summary),
        calibres=[(calibre_name(row), row["annotated_pixels"]) for row in columns[f"{PREDICTION} {FOV}"]["calibres"]],
        pictures=[_picture(role, result) for role, result in _best_median_worst(results)],
        colours={
            "both (true positive)": _css(TRUE_POSITIVE),
            "predicted alone (false positive)": _css(FALSE_POSITIVE),
            "annotated alone (false negative)": _css(FALSE_NEGATIVE),
            **({"both, of different classes": _css(WRONG_CLASS)} if summary["scoring"]["num_classes"] > 2 else {}),
        },
        number=_printed,
        spread=_printed_spread,
    )
    write_text(path, page)


def _figures(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Title and explanation of each figure, in the order of ``FIGURES``, with those of single classes at the end."""
    known = {name: about for name, about in FIGURES.items() if name in names}
    classes = {name: name.partition("_") for name in names if name not in FIGURES}
    return known | {
        name: (f"{FIGURES[figure][0]}, {of.replace('_', ' ')}", f"of this class alone: {FIGURES[figure][1]}")
        for name, (figure, _, of) in classes.items()
    }


def _charts(results: Sequence[CaseResult], summary: Mapping[str, Any]) -> list[dict[str, str]]:
    charts = []
    counts = [result.scores[PREDICTION][FOV].probabilities for result in results]
    both = any(c is not None and c.positives.any() and c.negatives.any() for c in counts)
    if both:
        bins = summary["scoring"]["bins"]
        charts = [
            {"name": "ROC curves inside the field of view", "svg": roc_chart(results)},
            {"name": "Precision-recall curves inside the field of view", "svg": precision_recall_chart(results)},
            {"name": "Reliability diagram inside the field of view", "svg": reliability_chart(results, bins)},
        ]
    charts.append({"name": "Dice by vessel calibre inside the field of view", "svg": calibre_chart(summary["rows"])})
    return [{"name": c["name"], "source": _data_uri(c["svg"].encode(), "image/svg+xml")} for c in charts]


def _best_median_worst(results: Sequence[CaseResult]) -> list[tuple[str, CaseResult]]:
    """By Dice inside the field of view; two cases have no median, and one is only the best."""

    def dice(result: CaseResult) -> float:
        return result.scores[PREDICTION][FOV].counts.scores()["dice"]

    ranked = sorted((result for result in results if not math.isnan(dice(result))), key=dice, reverse=True)
    chosen: dict[str, tuple[str, CaseResult]] = {}
    for role, place in (("best", 0), ("worst", len(ranked) - 1), ("median", (len(ranked) - 1) // 2)):
        if ranked:
            chosen.setdefault(ranked[place].case_id, (role, ranked[place]))
    return sorted(chosen.values(), key=lambda item: ("best", "median", "worst").index(item[0]))


def _picture(role: str, result: CaseResult) -> dict[str, Any]:
    photograph = Image.fromarray(read_image(result.about["photograph"]))
    photograph.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    photograph.save(jpeg, "JPEG", quality=88)
    panels = [{"name": COMPARISONS[PREDICTION], "source": _agreement(result, "pred", photograph.size)}]
    if "second" in result.masks:
        panels.append({"name": COMPARISONS[SECOND_OBSERVER], "source": _agreement(result, "second", photograph.size)})
    dice = {name: regions[FOV].counts.scores()["dice"] for name, regions in result.scores.items()}
    return {
        "role": role,
        "case_id": result.case_id,
        "width": photograph.width,
        "height": photograph.height,
        "dice": dice[PREDICTION],
        "observer": dice.get(SECOND_OBSERVER),
        "photograph": _data_uri(jpeg.getvalue(), "image/jpeg"),
        "panels": panels,
    }


def _agreement(result: CaseResult, name: str, size: tuple[int, int]) -> str:
    """True and false positives and false negatives in colour, transparent elsewhere, to lay over the photograph.

    With several vessel classes, vessels in both masks have a colour of their own where the classes differ.
    """
    inside = result.mask("fov")
    scored, annotated = result.mask(name) & inside, result.mask("label") & inside
    values, colours = (scored + 2 * annotated).astype(np.uint8), [FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_POSITIVE]
    if f"{name}_class" in result.masks:
        values[result.mask(f"{name}_class") & inside] = 4
        colours.append(WRONG_CLASS)
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([0, 0, 0, *chain.from_iterable(colours)])
    png = io.BytesIO()
    bits = 2 if len(colours) < 4 else 4
    picture.resize(size, Image.Resampling.NEAREST).save(png, "PNG", transparency=0, bits=bits, optimize=True)
    return _data_uri(png.getvalue(), "image/png")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _css(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _printed(value: float | None, name: str = "dice") -> str:
    """A figure as printed."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{DIGITS.get(name, 3)}f}"


def _printed_spread(spread: Mapping[str, Any] | None, name: str) -> str:
    if spread is None or spread["mean"] is None:
        return "–"
    return _printed(spread["mean"], name) + ("" if spread["sd"] is None else f" ± {_printed(spread['sd'], name)}")
