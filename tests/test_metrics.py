"""Every figure against scikit-learn, MONAI or pencil and paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.calibration import calibration_binning
from sklearn import metrics as sklearn_metrics

from drive_seg.measures import measure_vessels
from drive_seg.metrics import (
    Confusion,
    ProbabilityCounts,
    Vessels,
    betti_numbers,
    calibre_counts,
    cldice,
    confusion,
    shape_scores,
    surface_distances,
)


def drawn(text: str) -> np.ndarray:
    """A mask from rows of # (vessel) and . (background)."""
    return np.array([[character == "#" for character in line] for line in text.split()])


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, annotation and a round field of view, of an odd size."""
    generator = np.random.default_rng(seed)
    label = generator.random((57, 43)) < 0.2
    probability = np.clip(generator.normal(0.35 + 0.3 * label, 0.2), 0, 1).astype(np.float32)
    rows, columns = np.mgrid[:57, :43]
    return probability, label, (rows - 28) ** 2 + (columns - 21) ** 2 < 20**2


@pytest.mark.parametrize("seed", range(4))
def test_counts_give_what_scikit_learn_gives(seed: int) -> None:
    probability, label, counted = random_case(seed)
    pred = probability >= 0.5
    truth, guess = label[counted], pred[counted]
    scores = confusion(pred, label, counted).scores()
    assert scores["dice"] == pytest.approx(sklearn_metrics.f1_score(truth, guess))
    assert scores["iou"] == pytest.approx(sklearn_metrics.jaccard_score(truth, guess))
    assert scores["sensitivity"] == pytest.approx(sklearn_metrics.recall_score(truth, guess))
    assert scores["specificity"] == pytest.approx(sklearn_metrics.recall_score(~truth, ~guess))
    assert scores["precision"] == pytest.approx(sklearn_metrics.precision_score(truth, guess))
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, guess))
    assert scores["mcc"] == pytest.approx(sklearn_metrics.matthews_corrcoef(truth, guess))


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_give_what_scikit_learn_and_monai_give(seed: int) -> None:
    probability, label, counted = random_case(seed)
    truth, guess = label[counted], probability[counted]
    scores = ProbabilityCounts.of(probability, label, counted).scores(bins=15)
    assert scores["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, guess), abs=1e-4)
    assert scores["average_precision"] == pytest.approx(sklearn_metrics.average_precision_score(truth, guess), abs=1e-4)
    mean, share, counts = (
        part[0, 0]
        for part in calibration_binning(
            torch.from_numpy(guess)[None, None], torch.from_numpy(truth.astype(np.float32))[None, None], num_bins=15
        )
    )
    filled = counts > 0
    expected = float((counts[filled] * (mean - share)[filled].abs()).sum() / counts.sum())
    assert scores["ece"] == pytest.approx(expected, abs=1e-4)


def test_probabilities_of_16_bits_are_exact() -> None:
    probability, label, counted = random_case(1)
    probability = np.rint(probability * 65535) / 65535
    scores = ProbabilityCounts.of(probability, label, counted).scores(bins=15)
    truth, guess = label[counted], probability[counted]
    assert scores["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, guess), abs=1e-12)
    expected = sklearn_metrics.average_precision_score(truth, guess)
    assert scores["average_precision"] == pytest.approx(expected, abs=1e-12)


def test_masks_of_any_type() -> None:
    """0 and 1, 0 and 255 or class values, as files and transforms have them."""
    generator = np.random.default_rng(0)
    probability, label, counted = generator.random((20, 30)), generator.random((20, 30)) < 0.3, np.ones((20, 30), bool)
    counted[:, :5] = False
    of_bytes = ProbabilityCounts.of(probability, 2 * label.astype(np.uint8), 255 * counted.astype(np.uint8))
    assert of_bytes.scores(bins=15) == ProbabilityCounts.of(probability, label, counted).scores(bins=15)
    other = np.roll(label, 1, axis=1)
    for values in (1, 2, 255):
        one, two = (values * mask.astype(np.uint8) for mask in (label, other))
        assert shape_scores(Vessels(one), Vessels(two), True) == shape_scores(Vessels(label), Vessels(other), True)
        assert surface_distances(one, two) == surface_distances(label, other)
        assert (Vessels(one).calibres == Vessels(label).calibres).all()


@pytest.mark.parametrize("value", [math.nan, 1.001, -0.1])
def test_what_is_no_probability(value: float) -> None:
    probability, label = np.array([[0.5, value]]), np.array([[True, False]])
    with pytest.raises(ValueError, match="expected probabilities from 0 to 1"):
        ProbabilityCounts.of(probability, label, np.array([[1, 1]]))
    ProbabilityCounts.of(probability, label, np.array([[1, 0]]))


def test_added_counts_are_those_of_all_pixels_together() -> None:
    one, other = random_case(0), random_case(1)
    together = [np.concatenate(pair) for pair in zip(one, other, strict=True)]
    added = ProbabilityCounts.of(*one) + ProbabilityCounts.of(*other)
    assert added.scores(bins=15) == ProbabilityCounts.of(*together).scores(bins=15)


@pytest.mark.parametrize("seed", range(3))
def test_dice_by_threshold(seed: int) -> None:
    probability, label, counted = random_case(seed)
    thresholds = np.array([0.2, 0.5, 0.83])
    dice = ProbabilityCounts.of(probability, label, counted).dice(thresholds)
    for threshold, value in zip(thresholds, dice, strict=True):
        assert value == pytest.approx(confusion(probability >= threshold, label, counted).scores()["dice"], abs=2e-3)


def test_counts_by_hand() -> None:
    pred = drawn("##.. ..#.")
    label = drawn("#..# ..#.")
    counted = drawn("###. ####")  # the annotated pixel top right does not count
    counts = confusion(pred, label, counted)
    assert counts == Confusion(true_positives=2, false_positives=1, false_negatives=0, true_negatives=4)
    assert counts.scores()["dice"] == 4 / 5
    assert counts.scores()["iou"] == 2 / 3
    assert counts.scores()["specificity"] == 4 / 5


@pytest.mark.parametrize(
    ("pred", "label", "undefined", "values"),
    [
        (0, 0, {"dice", "iou", "sensitivity", "precision", "mcc"}, {"specificity": 1, "accuracy": 1}),
        (1, 0, {"dice", "iou", "sensitivity", "mcc"}, {"specificity": 0, "precision": 0, "accuracy": 0}),
        (0, 1, {"specificity", "precision", "mcc"}, {"dice": 0, "iou": 0, "sensitivity": 0}),
        (1, 1, {"specificity", "mcc"}, {"dice": 1, "precision": 1, "sensitivity": 1}),
    ],
)
def test_one_class_alone(pred: int, label: int, undefined: set[str], values: dict[str, float]) -> None:
    size = (3, 4)
    scores = confusion(np.full(size, pred), np.full(size, label), np.ones(size, bool)).scores()
    assert {name for name, value in scores.items() if math.isnan(value)} == undefined
    assert {name: scores[name] for name in values} == values


def test_no_pixel_counts() -> None:
    nothing = np.zeros((3, 3), bool)
    probability, label = np.full((3, 3), 0.5), np.ones((3, 3), bool)
    figures = {
        **confusion(label, label, nothing).scores(),
        **ProbabilityCounts.of(probability, label, nothing).scores(bins=15),
    }
    assert all(math.isnan(value) for value in figures.values())


def test_curves_of_one_class() -> None:
    probability, everywhere = np.array([[0.2, 0.9]]), np.ones((1, 2), bool)
    vessels = ProbabilityCounts.of(probability, everywhere, everywhere).scores(bins=15)
    assert math.isnan(vessels["roc_auc"]) and vessels["average_precision"] == 1
    background = ProbabilityCounts.of(probability, ~everywhere, everywhere).scores(bins=15)
    assert math.isnan(background["roc_auc"]) and math.isnan(background["average_precision"])
    assert background["ece"] == pytest.approx((0.2 + 0.9) / 2, abs=1e-4)


def test_calibration_error_by_hand() -> None:
    # Two bins: 0.25 and 0.25 with one vessel of two: gap 0.25; 1.0 with a vessel: gap 0. (2 · 0.25 + 1 · 0) / 3.
    probability = np.array([[0.25, 0.25, 1.0]])
    label = np.array([[True, False, True]])
    scores = ProbabilityCounts.of(probability, label, np.ones((1, 3), bool)).scores(bins=2)
    assert scores["ece"] == pytest.approx(0.5 / 3, abs=1e-5)


def test_betti_numbers_by_hand() -> None:
    assert betti_numbers(np.zeros((4, 4), bool)) == (0, 0)
    assert betti_numbers(drawn("### #.# ###")) == (1, 1)
    assert betti_numbers(drawn("#.# .#. #.#")) == (1, 0)  # corners touch
    assert betti_numbers(drawn("#..# #..#")) == (2, 0)
    assert betti_numbers(drawn("##### #.#.# #####")) == (1, 2)
    assert betti_numbers(drawn(".#. #.# .#.")) == (1, 1)  # the background does not leak through corners


def test_cldice_by_hand() -> None:
    line = np.zeros((9, 20), bool)
    line[4, 2:18] = True
    assert cldice(Vessels(line), Vessels(line)) == 1
    half = line.copy()
    half[:, 10:] = False
    # All 8 pixels of the half lie on the line, 8 of its 16 in the half: 2 · 1 · 0.5 / 1.5.
    assert cldice(Vessels(half), Vessels(line)) == pytest.approx(2 / 3)
    assert cldice(Vessels(np.roll(line, 2, axis=0)), Vessels(line)) == 0
    assert cldice(Vessels(np.zeros_like(line)), Vessels(line)) == 0
    assert math.isnan(cldice(Vessels(line), Vessels(np.zeros_like(line))))


def test_surface_distances_by_hand() -> None:
    line = np.zeros((12, 30), bool)
    line[3, 5:25] = True
    shifted = np.roll(line, 4, axis=0)
    assert surface_distances(shifted, line) == {"hd95": 4, "asd": 4}
    assert surface_distances(line, line) == {"hd95": 0, "asd": 0}
    for pair in ((line, np.zeros_like(line)), (np.zeros_like(line), line), (np.zeros_like(line),) * 2):
        assert all(math.isnan(value) for value in surface_distances(*pair).values())


@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_are_monais(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pred, label = generator.random((2, 40, 31)) < 0.05
    tensors = [torch.from_numpy(np.pad(mask, 1))[None, None].float() for mask in (pred, label)]
    found = surface_distances(pred, label)
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95)
    assert found["hd95"] == pytest.approx(float(expected))
    expected = compute_average_surface_distance(*tensors, include_background=True, symmetric=True)
    assert found["asd"] == pytest.approx(float(expected))


def test_shapes_without_surfaces() -> None:
    mask = Vessels(drawn("### #.# ###"))
    assert shape_scores(mask, mask, surfaces=False) == {"cldice": 1, "betti0_error": 0, "betti1_error": 0}
    assert set(shape_scores(mask, mask)) == {"cldice", "betti0_error", "betti1_error", "hd95", "asd"}


def test_calibres_of_straight_vessels() -> None:
    vessels = np.zeros((60, 80), bool)
    vessels[10, 5:75] = True
    vessels[20:23, 5:75] = True
    vessels[40:49, 5:75] = True
    widths = Vessels(vessels).calibres
    assert (widths[~vessels] == 0).all()
    assert [widths[row, 40] for row in (10, 20, 21, 22, 44)] == [1.5, 3.5, 3.5, 3.5, 9.5]
    assert not Vessels(np.zeros((5, 5), bool)).calibres.any()


def test_calibres_are_those_that_are_measured() -> None:
    """Of a slanted vessel, over the pixels of its centreline."""
    rows, columns = np.mgrid[:200, :200]
    vessel = (np.abs(rows - 0.4 * columns - 50) / np.hypot(1, 0.4) < 3) & (columns > 20) & (columns < 180)
    vessels = Vessels(vessel)
    measured = measure_vessels(vessel, np.ones_like(vessel))
    assert np.median(vessels.calibres[vessels.skeleton]) == pytest.approx(measured["calibre_p50_px"])
    assert measured["calibre_p50_px"] == pytest.approx(6, abs=0.5)


def test_counts_by_calibre() -> None:
    label = np.zeros((60, 80), bool)
    label[10, 5:75] = True
    label[40:49, 5:75] = True
    pred = label.copy()
    pred[10, 40:] = False
    pred[20, 5:25] = True
    thin, wide = calibre_counts(Vessels(pred), Vessels(label), [5])
    assert thin == Confusion(35, 20, 35, 0)
    assert (wide.true_positives, wide.false_positives, wide.false_negatives) == (9 * 70, 0, 0)
    # At 1.5 and 9.5, what the thin and the wide vessel measure, the next class begins.
    found, all_drawn = calibre_counts(Vessels(pred), Vessels(label), [1.5, 9.5])[1:]
    assert (found, all_drawn) == (thin, wide)
    nothing = Vessels(np.zeros_like(label))
    assert calibre_counts(nothing, nothing, [5]) == [Confusion(0, 0, 0, 0)] * 2
