"""Scores of single cases and summaries of all of them: arrays in, rows of a table out.

A comparison is between a mask and an annotation: the prediction with the reference, the second observer with the
reference, and on request the prediction with the second observer. Each is made in two regions, inside the field of view
and on the whole image. With several vessel classes, figures compare vessel with background, except those that end in
the name of a class, such as ``dice_artery``, which compare this class with everything else, and ``class_accuracy``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from drive_seg.bootstrap import Bootstrap
from drive_seg.classes import in_names, names_of_classes
from drive_seg.errors import DriveSegError
from drive_seg.fov import fov_diameter
from drive_seg.metrics import (
    ClassCounts,
    Confusion,
    ProbabilityCounts,
    Vessels,
    calibre_counts,
    confusion,
    shape_scores,
)
from drive_seg.persons import person

__all__ = [
    "AGAINST_SECOND",
    "COMPARISONS",
    "DIGITS",
    "FOV",
    "PREDICTION",
    "REGIONS",
    "SECOND_OBSERVER",
    "WHOLE",
    "CaseResult",
    "RegionScores",
    "Scoring",
    "case_row",
    "of_fewer",
    "score_case",
    "summarise",
]

PREDICTION, SECOND_OBSERVER, AGAINST_SECOND = "prediction", "second_observer", "prediction_against_second"
COMPARISONS = {
    PREDICTION: "prediction against reference",
    SECOND_OBSERVER: "second observer against reference",
    AGAINST_SECOND: "prediction against second observer",
}
DIGITS = {"betti0_error": 1, "betti1_error": 1, "hd95": 1, "asd": 2}
"""Decimal places to print of figures that are not shares."""

FOV, WHOLE = "fov", "whole"
REGIONS = {FOV: "inside the field of view", WHOLE: "whole image"}


@dataclass(frozen=True)
class Scoring:
    """What to compute for a case.

    Args:
        bins: number of bins of the reliability diagram and the expected calibration error.
        surfaces: whether to measure surface distances, which take longest.
        whole_image: whether to score the whole image, too.
        against_second: whether to score the prediction against the second observer, too.
        calibre_edges: rising upper limits of thin, medium, … vessels, as shares of the field of view's diameter.
        num_classes: 2 for background and vessel; with more, there are also figures of each class.
        class_names: names of the vessel classes, from which those of their figures are made; None: "class 1", ….
    """

    bins: int
    surfaces: bool
    whole_image: bool
    against_second: bool
    calibre_edges: Sequence[float]
    num_classes: int
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise DriveSegError(f"bins: expected at least 1, got {self.bins}")
        for name in ("surfaces", "whole_image", "against_second"):
            if not isinstance(getattr(self, name), bool):  # python -m monai.bundle turns false into text
                raise DriveSegError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if list(self.calibre_edges) != sorted(set(self.calibre_edges)) or min(self.calibre_edges, default=1) <= 0:
            raise DriveSegError(f"calibre_edges: expected rising shares above 0, got {list(self.calibre_edges)}")
        names_of_classes(self.num_classes, self.class_names)


@dataclass(frozen=True)
class RegionScores:
    """One comparison in one region: counts, which can be pooled, and figures of shape, which cannot.

    ``calibres`` has counts from thin to wide inside the field of view; it is empty for the whole image. ``classes`` is
    None if there is only one vessel class.
    """

    counts: Confusion
    shapes: dict[str, float]
    calibres: list[Confusion]
    probabilities: ProbabilityCounts | None = None
    classes: ClassCounts | None = None
    _by_bins: dict[int, dict[str, float]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def figures(self, bins: int) -> dict[str, float]:
        """All figures of a case by name, NaN where undefined."""
        return {**self.counts.scores(), **self._of_probability(bins), **self.shapes, **self._of_classes()}

    def pooled(self, bins: int) -> dict[str, float]:
        """The figures that can be computed from summed counts."""
        return {**self.counts.scores(), **self._of_probability(bins), **self._of_classes()}

    def _of_classes(self) -> dict[str, float]:
        return {} if self.classes is None else self.classes.scores()

    def _of_probability(self, bins: int) -> dict[str, float]:
        if self.probabilities is None:
            return {}
        if bins not in self._by_bins:  # they take long, and a table, a summary and means need them
            self._by_bins[bins] = self.probabilities.scores(bins)
        return self._by_bins[bins]

    def __add__(self, other: RegionScores) -> RegionScores:
        """Summed counts, without the shapes."""
        both = self.probabilities is not None and other.probabilities is not None
        return RegionScores(
            self.counts + other.counts,
            {},
            [mine + others for mine, others in zip(self.calibres, other.calibres, strict=True)],
            self.probabilities + other.probabilities if both else None,  # type: ignore[operator]
            None if self.classes is None or other.classes is None else self.classes + other.classes,
        )


@dataclass
class CaseResult:
    """A scored case.

    Args:
        case_id: id of the case.
        scores: scores by comparison and region.
        diameter: diameter of the field of view, pixels.
        shape: height and width, pixels.
        masks: ``pred``, ``label``, ``fov`` and, if there is one, ``second`` as packed bits, to make pictures. With
            several vessel classes, ``pred_class`` and ``second_class`` are where these and the reference have vessels
            of different classes.
        about: what else is known of the case: its ``section``, the source of its FOV mask, the photograph's path, the
            ``person``.
    """

    case_id: str
    scores: dict[str, dict[str, RegionScores]]
    diameter: int
    shape: tuple[int, int]
    masks: dict[str, np.ndarray]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def person(self) -> str:
        """Whose eye it is."""
        return person({"case_id": self.case_id, **self.about})

    def mask(self, name: str) -> np.ndarray:
        """One of ``masks``, (H, W), bool."""
        height, width = self.shape
        return np.unpackbits(self.masks[name], count=height * width).reshape(height, width).astype(bool)


def score_case(
    case_id: str,
    pred: np.ndarray,
    label: np.ndarray,
    fov: np.ndarray,
    probability: np.ndarray | None = None,
    second: np.ndarray | None = None,
    *,
    scoring: Scoring,
) -> CaseResult:
    """Score one case.

    Nothing is predicted outside the field of view: prediction and probability count as background there, as in the
    masks that ``drive-seg predict`` writes. Annotations are taken as drawn.

    Args:
        case_id: id of the case, to name it in errors.
        pred: (H, W), non-zero where a vessel is predicted, class values if there are several classes.
        label: (H, W), reference annotation, as ``pred``; with several classes, values beyond theirs are vessels of
            unknown class, which have no part in the figures of classes.
        fov: (H, W), non-zero inside the field of view.
        probability: (H, W), float, 0 to 1, probability of vessel; None leaves out the figures that need it.
        second: (H, W), the second observer's annotation, as ``label``; None if there is none.
        scoring: what to compute.

    Raises:
        DriveSegError: if sizes differ, no pixel is inside the field of view, or a probability inside it is not a
            number from 0 to 1.
    """
    arrays = {"prediction": pred, "FOV mask": fov, "probability map": probability, "second annotation": second}
    for name, array in arrays.items():
        if array is not None and array.shape != label.shape:
            raise DriveSegError(
                f"expected the {name} of case {case_id} in its annotation's size, {_sides(label)}, got {_sides(array)}"
            )
    inside = fov != 0
    if not inside.any():
        raise DriveSegError(f"expected a field of view in case {case_id}, got an empty FOV mask")
    drawn = {"pred": pred * inside, "label": label, **({} if second is None else {"second": second})}
    masks = {name: values != 0 for name, values in drawn.items()} | {"fov": inside}
    if probability is not None:
        probability = np.where(inside, probability, 0)

    diameter = int(fov_diameter(inside))
    edges = [share * diameter for share in scoring.calibre_edges]
    comparisons: dict[str, tuple[str, str]] = {PREDICTION: ("pred", "label")}
    if second is not None:
        comparisons[SECOND_OBSERVER] = ("second", "label")
        if scoring.against_second:
            comparisons[AGAINST_SECOND] = ("pred", "second")
    in_fov = {name: Vessels(masks[name] & inside) for name in drawn}
    whole = {name: cut if (cut.mask == masks[name]).all() else Vessels(masks[name]) for name, cut in in_fov.items()}
    everywhere = np.ones_like(inside)
    scores: dict[str, dict[str, RegionScores]] = {}
    for name, (scored, reference) in comparisons.items():
        of_scored = None if name == SECOND_OBSERVER else probability
        pair = in_fov[scored], in_fov[reference]
        calibres, classes = calibre_counts(*pair, edges), _classes(drawn[scored], drawn[reference], inside, scoring)
        scores[name] = {FOV: _score(*pair, inside, of_scored, scoring.surfaces, calibres, classes)}
        if scoring.whole_image:
            nothing_outside = whole[scored] is in_fov[scored] and whole[reference] is in_fov[reference]
            shapes = scores[name][FOV].shapes if nothing_outside else None
            pair = whole[scored], whole[reference]
            classes = _classes(drawn[scored], drawn[reference], everywhere, scoring)
            scores[name][WHOLE] = _score(*pair, everywhere, of_scored, scoring.surfaces, [], classes, shapes)
    if scoring.num_classes > 2:
        known = {name: (values > 0) & (values < scoring.num_classes) for name, values in drawn.items()}
        for name in drawn.keys() - {"label"}:
            masks[f"{name}_class"] = known[name] & known["label"] & (drawn[name] != label)
    packed = {name: np.packbits(mask) for name, mask in masks.items()}
    return CaseResult(case_id, scores, diameter, (label.shape[0], label.shape[1]), packed)


def of_fewer(defined: int, cases: int) -> str:
    """Note to print beside a mean if its figure is not defined in all cases."""
    return "" if defined == cases else f" (in {defined} of {cases})"


def _score(
    scored: Vessels,
    reference: Vessels,
    counted: np.ndarray,
    probability: np.ndarray | None,
    surfaces: bool,
    calibres: list[Confusion],
    classes: ClassCounts | None,
    shapes: dict[str, float] | None = None,
) -> RegionScores:
    return RegionScores(
        confusion(scored.mask, reference.mask, counted),
        shape_scores(scored, reference, surfaces) if shapes is None else shapes,
        calibres,
        None if probability is None else ProbabilityCounts.of(probability, reference.mask, counted),
        classes,
    )


def _classes(scored: np.ndarray, reference: np.ndarray, counted: np.ndarray, scoring: Scoring) -> ClassCounts | None:
    if scoring.num_classes == 2:
        return None
    names = [in_names(name) for name in names_of_classes(scoring.num_classes, scoring.class_names)]
    return ClassCounts.of(scored, reference, counted, names)


def case_row(result: CaseResult, comparison: str, bins: int) -> dict[str, Any]:
    """One row of ``metrics.csv``: figures inside the field of view, then those on the whole image as ``whole_…``."""
    row: dict[str, Any] = {"case_id": result.case_id, "photograph": result.about.get("photograph", "")}
    for region, scores in result.scores[comparison].items():
        prefix = "" if region == FOV else f"{region}_"
        row.update({f"{prefix}{name}": value for name, value in scores.figures(bins).items()})
    return row


def summarise(results: Sequence[CaseResult], scoring: Scoring, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Mean, standard deviation, interval and pooled figures of every comparison in every region.

    Args:
        results: scored cases.
        scoring: as for ``score_case``.
        bootstrap: for the intervals.

    Returns:
        Dictionaries with ``comparison``, ``region``, ``cases`` (their number), ``per_image`` (by figure: ``mean``,
        ``sd`` with n - 1, ``ci`` and ``defined``, the number of cases in which the figure is defined, the only ones
        used), ``pooled`` (by figure, from counts summed over all cases), ``calibres`` (the same for Dice and
        sensitivity by calibre, inside the field of view only) and ``reliability`` (by bin of the pooled pixels, their
        mean probability and annotated share; empty without probabilities). Undefined figures are NaN.
    """
    rows = []
    for comparison in COMPARISONS:
        of_comparison = [result for result in results if comparison in result.scores]
        for region in REGIONS:
            scored = [result for result in of_comparison if region in result.scores[comparison]]
            if not scored:
                continue
            scores = [result.scores[comparison][region] for result in scored]
            persons = [result.person for result in scored]
            figures = [score.figures(scoring.bins) for score in scores]
            pooled = reduce(add, scores)
            rows.append(
                {
                    "comparison": comparison,
                    "region": region,
                    "cases": len(scores),
                    "per_image": {
                        name: _spread([case[name] for case in figures], persons, bootstrap) for name in figures[0]
                    },
                    "pooled": pooled.pooled(scoring.bins),
                    "calibres": _by_calibre(scores, persons, pooled, scoring.calibre_edges, bootstrap),
                    "reliability": _reliability(pooled.probabilities, scoring.bins),
                }
            )
    return rows


def _reliability(probabilities: ProbabilityCounts | None, bins: int) -> list[dict[str, float]]:
    if probabilities is None:
        return []
    edges, pixels, probability, share = (values.tolist() for values in probabilities.reliability(bins))
    names = ("from", "to", "pixels", "mean_probability", "annotated_share")
    rows = zip(edges[:-1], edges[1:], pixels, probability, share, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _by_calibre(
    scores: Sequence[RegionScores],
    persons: Sequence[str],
    pooled: RegionScores,
    edges: Sequence[float],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    limits = [0.0, *map(float, edges), math.inf]
    rows = []
    for i, counts in enumerate(pooled.calibres):
        of_cases = [score.calibres[i].scores() for score in scores]
        rows.append(
            {
                "from": limits[i],
                "to": limits[i + 1],
                **{
                    name: _spread([case[name] for case in of_cases], persons, bootstrap)
                    for name in ("dice", "sensitivity")
                },
                "pooled": {name: counts.scores()[name] for name in ("dice", "sensitivity")},
                "annotated_pixels": counts.true_positives + counts.false_negatives,
            }
        )
    return rows


def _spread(values: Sequence[float], persons: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    there = ~np.isnan(values)
    defined = np.asarray(values)[there]
    return {
        "mean": float(defined.mean()) if len(defined) else math.nan,
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
        "ci": list(bootstrap.interval(defined, np.asarray(persons)[there])),
        "defined": len(defined),
    }


def _sides(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape[::-1]))
