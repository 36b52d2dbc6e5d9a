"""Scoring of cases and what is said of all of them."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from builders import shipped_bootstrap, shipped_scoring
from realdata import real_data

from drive_seg.errors import DriveSegError
from drive_seg.readers import read_image
from drive_seg.scores import (
    AGAINST_SECOND,
    FOV,
    PREDICTION,
    SECOND_OBSERVER,
    WHOLE,
    CaseResult,
    Scoring,
    case_row,
    of_fewer,
    score_case,
    summarise,
)

SIZE = (61, 54)


def scored(*arguments: Any, scoring: Scoring | None = None, **arrays: Any) -> CaseResult:
    """As the bundle scores, unless told otherwise."""
    return score_case(*arguments, **arrays, scoring=scoring or shipped_scoring())


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A case of odd size with vessels as lines, a noisy prediction and a round field of view."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    label = (np.abs(rows - columns) < 2) | (np.abs(rows - 30) < 1) | (np.abs(columns - 12) < 3)
    probability = np.clip(generator.normal(0.2 + 0.6 * label, 0.2), 0, 1).astype(np.float32)
    return {
        "pred": probability >= 0.5,
        "label": label,
        "fov": (rows - 30) ** 2 + (columns - 27) ** 2 < 24**2,
        "probability": probability,
        "second": np.roll(label, 1, axis=0),
    }


def test_nothing_outside_the_field_of_view_changes_a_figure_inside() -> None:
    case = arrays()
    before = scored("1", **case, scoring=shipped_scoring(against_second=True))
    outside = ~case["fov"]
    generator = np.random.default_rng(5)
    for name in ("pred", "label", "second"):
        case[name] = np.where(outside, generator.random(SIZE) < 0.5, case[name])
    case["probability"] = np.where(outside, generator.random(SIZE), case["probability"])
    after = scored("1", **case, scoring=shipped_scoring(against_second=True))
    for comparison in (PREDICTION, SECOND_OBSERVER, AGAINST_SECOND):
        one, other = before.scores[comparison][FOV], after.scores[comparison][FOV]
        assert one.figures(15) == other.figures(15)
        assert one.calibres == other.calibres
    assert before.scores[PREDICTION][WHOLE].figures(15) != after.scores[PREDICTION][WHOLE].figures(15)


def test_whole_image_counts_all_pixels_and_predicts_nothing_outside() -> None:
    case = arrays()
    scores = scored("1", **case).scores
    pred = case["pred"] & case["fov"]
    expected = 2 * (pred & case["label"]).sum() / (pred.sum() + case["label"].sum())
    assert scores[PREDICTION][WHOLE].figures(15)["dice"] == pytest.approx(expected)
    confident = case | {"probability": np.where(case["fov"], case["probability"], 1)}
    assert scored("1", **confident).scores[PREDICTION][WHOLE].figures(15) == scores[PREDICTION][WHOLE].figures(15)
    counts = scores[PREDICTION][WHOLE].counts
    assert counts.true_positives + counts.false_positives + counts.false_negatives + counts.true_negatives == 61 * 54
    second = case["second"]
    expected = 2 * (second & case["label"]).sum() / (second.sum() + case["label"].sum())
    assert scores[SECOND_OBSERVER][WHOLE].figures(15)["dice"] == pytest.approx(expected)


def test_the_prediction_against_the_second_observer_by_hand() -> None:
    probability = np.array([[0.9, 0.7, 0.6, 0.1, 0.2]])
    pred, second = probability >= 0.5, np.array([[1, 0, 0, 0, 1]])
    scoring = shipped_scoring(surfaces=False, against_second=True)
    scores = scored("1", pred, pred, np.ones_like(pred), probability, second, scoring=scoring).scores
    figures = scores[AGAINST_SECOND][FOV].figures(15)
    # One of three predicted pixels is the observer's, one of the observer's two is predicted.
    assert (figures["precision"], figures["sensitivity"]) == (1 / 3, 1 / 2)
    # The observer's pixel at 0.9 is above all three others, the one at 0.2 above one.
    assert figures["roc_auc"] == pytest.approx(4 / 6) and "roc_auc" not in scores[SECOND_OBSERVER][FOV].figures(15)


def test_a_vessel_beyond_the_field_of_view_is_missing_on_the_whole_image() -> None:
    label, fov = np.array([[1, 1, 0, 1]]), np.array([[1, 1, 1, 0]])
    scores = scored("1", label, label, fov, scoring=shipped_scoring(surfaces=False)).scores[PREDICTION]
    assert [scores[region].figures(15)["betti0_error"] for region in (FOV, WHOLE)] == [0, 1]


def test_calibres_are_shares_of_the_field_of_view_and_not_of_the_picture() -> None:
    """A tenth is 2 of 20 pixels, less than the vessel's 3, and not 10 of 100."""
    fov, vessel = np.zeros((2, 100, 100), bool)
    fov[40:60, 40:60] = vessel[48:51] = True
    result = scored("1", vessel, vessel, fov, scoring=shipped_scoring(surfaces=False, calibre_edges=[0.1]))
    assert [counts.true_positives for counts in result.scores[PREDICTION][FOV].calibres] == [0, 3 * 20]


def test_what_is_left_out_on_request() -> None:
    case = arrays()
    scores = scored("1", **case, scoring=shipped_scoring(surfaces=False, whole_image=False)).scores
    assert set(scores) == {PREDICTION, SECOND_OBSERVER}
    assert set(scores[PREDICTION]) == {FOV}
    assert "hd95" not in scores[PREDICTION][FOV].figures(15)
    del case["probability"], case["second"]
    scores = scored("1", **case).scores
    assert set(scores) == {PREDICTION}
    assert "roc_auc" not in scores[PREDICTION][FOV].figures(15)


def test_empty_annotation_is_undefined_and_not_counted() -> None:
    empty = arrays()
    empty["label"] = np.zeros(SIZE, bool)
    results = [scored("0", **empty), scored("1", **arrays())]
    figures = results[0].scores[PREDICTION][FOV].figures(15)
    for name in ("dice", "iou", "sensitivity", "mcc", "roc_auc", "average_precision", "cldice", "hd95", "asd"):
        assert math.isnan(figures[name]), name
    row = summarise(results, shipped_scoring(), shipped_bootstrap())[0]
    spread = row["per_image"]["dice"]
    assert spread["defined"] == 1 and math.isnan(spread["sd"]) and all(map(math.isnan, spread["ci"]))
    assert spread["mean"] == results[1].scores[PREDICTION][FOV].figures(15)["dice"]
    assert row["per_image"]["specificity"]["defined"] == 2


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({"pred": np.zeros((61, 53))}, "the prediction of case 7 in its annotation's size, 54×61, got 53×61"),
        ({"second": np.zeros((54, 61))}, "the second annotation of case 7"),
        ({"fov": np.zeros(SIZE)}, "a field of view in case 7, got an empty FOV mask"),
        ({"probability": np.full(SIZE, np.nan)}, "expected probabilities from 0 to 1, got nan"),
        ({"probability": np.full(SIZE, 1.5)}, "expected probabilities from 0 to 1, got 1.5 to 1.5"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_sentence(spoil: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(DriveSegError) as error:
        scored("7", **{**arrays(), **spoil})
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_each_of_several_classes_by_hand() -> None:
    pred = np.array([[1, 1, 2, 0, 2]])
    label = np.array([[1, 2, 2, 0, 1]])
    fov = np.array([[1, 1, 1, 1, 0]])
    scoring = shipped_scoring(surfaces=False, num_classes=4, class_names=["artery", "small vein", "c"])
    result = scored("a", pred, label, fov, scoring=scoring)
    inside = result.scores[PREDICTION][FOV].figures(15)
    # Artery: 1 hit, 1 too much; vein: 1 hit, 1 missed, and outside the field of view nothing counts.
    assert inside["dice_artery"] == inside["dice_small_vein"] == pytest.approx(2 / 3) and inside["dice"] == 1
    assert (inside["sensitivity_artery"], inside["precision_artery"]) == (1, 1 / 2)
    assert (inside["sensitivity_small_vein"], inside["precision_small_vein"]) == (1 / 2, 1)
    assert inside["class_accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(inside["dice_c"]) and math.isnan(inside["precision_c"]), "nobody has drawn or found it"
    whole = result.scores[PREDICTION][WHOLE].figures(15)
    # Nothing is predicted outside, where an artery was missed: 2·1 / (2·1 + 1 + 1).
    assert whole["dice_artery"] == pytest.approx(1 / 2) and whole["dice_small_vein"] == pytest.approx(2 / 3)
    assert whole["class_accuracy"] == pytest.approx(2 / 3), "vessels that were missed have no part in it"
    assert result.mask("pred_class").tolist() == [[False, True, False, False, False]]
    one_class = scored("a", pred, label, fov, scoring=shipped_scoring(surfaces=False))
    assert one_class.scores[PREDICTION][FOV].figures(15).keys() < inside.keys() and "pred_class" not in one_class.masks


def test_names_of_classes_that_have_none() -> None:
    scoring = shipped_scoring(surfaces=False, num_classes=3)
    figures = scored("a", *np.ones((3, 2, 2), np.uint8), scoring=scoring).scores[PREDICTION][FOV].figures(15)
    assert {"dice_class_1", "sensitivity_class_2", "precision_class_2", "class_accuracy"} < figures.keys()
    with pytest.raises(DriveSegError, match="class_names"):
        shipped_scoring(num_classes=3, class_names=["artery"])


def test_vessels_of_unknown_class_are_vessels_only() -> None:
    pred = np.array([[1, 2, 1, 0, 2, 2]], np.uint8)
    label = np.array([[1, 255, 255, 255, 2, 1]], np.uint8)
    scoring = shipped_scoring(surfaces=False, num_classes=3)
    result = scored("a", pred, label, np.ones_like(label), scoring=scoring)
    figures = result.scores[PREDICTION][FOV].figures(15)
    assert figures["dice"] == pytest.approx(2 * 5 / (5 + 6)) and figures["class_accuracy"] == pytest.approx(2 / 3)
    assert figures["precision_class_1"] == 1 and figures["precision_class_2"] == 1 / 2
    assert np.flatnonzero(result.mask("pred_class")).tolist() == [5]
    # A reference without any known class says nothing of classes, not even beside its vessels.
    label = np.array([[255, 255, 255, 0, 255, 0]], np.uint8)
    unknown = scored("a", pred, label, np.ones_like(label), scoring=scoring)
    figures = unknown.scores[PREDICTION][FOV].figures(15)
    assert figures["dice"] == pytest.approx(2 * 4 / (5 + 4)) and math.isnan(figures["precision_class_2"])


def test_figures_of_classes_of_a_second_observer_and_pooled() -> None:
    scoring = shipped_scoring(surfaces=False, num_classes=3, against_second=True)
    label, fov = np.array([[1, 1, 2, 0]], np.uint8), np.ones((1, 4), np.uint8)
    with_classes = scored("a", label, label, fov, second=np.array([[1, 2, 2, 0]], np.uint8), scoring=scoring)
    without = scored("b", label, label, fov, second=np.array([[255, 255, 0, 0]], np.uint8), scoring=scoring)
    rows = summarise([with_classes, without], scoring, shipped_bootstrap(samples=10))
    of_second = {row["comparison"]: row for row in rows if row["region"] == FOV}
    for comparison in (SECOND_OBSERVER, AGAINST_SECOND):
        accuracy = of_second[comparison]["per_image"]["class_accuracy"]
        assert accuracy["mean"] == pytest.approx(2 / 3) and accuracy["defined"] == 1
        assert of_second[comparison]["pooled"]["class_accuracy"] == pytest.approx(2 / 3)
    assert of_second[SECOND_OBSERVER]["per_image"]["sensitivity"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert of_second[PREDICTION]["pooled"]["dice_class_1"] == 1


def test_summary_by_hand() -> None:
    scoring, bootstrap = shipped_scoring(surfaces=False), shipped_bootstrap(samples=500, seed=3)
    results = [scored(str(seed), **arrays(seed)) for seed in range(5)]
    rows = summarise(results, scoring, bootstrap)
    assert [(row["comparison"], row["region"]) for row in rows] == [
        (PREDICTION, FOV), (PREDICTION, WHOLE), (SECOND_OBSERVER, FOV), (SECOND_OBSERVER, WHOLE),
    ]  # fmt: skip
    dice = np.array([result.scores[PREDICTION][FOV].figures(15)["dice"] for result in results])
    spread = rows[0]["per_image"]["dice"]
    assert spread["mean"] == pytest.approx(dice.mean())
    assert spread["sd"] == pytest.approx(np.sqrt(((dice - dice.mean()) ** 2).sum() / 4))
    low, high = spread["ci"]
    assert dice.min() <= low < dice.mean() < high <= dice.max()
    assert rows == summarise(results, scoring, bootstrap), "seeded"

    counts = [result.scores[PREDICTION][FOV].counts for result in results]
    tp = sum(count.true_positives for count in counts)
    wrong = sum(count.false_positives + count.false_negatives for count in counts)
    assert rows[0]["pooled"]["dice"] == pytest.approx(2 * tp / (2 * tp + wrong))
    assert "cldice" not in rows[0]["pooled"]
    assert sum(calibre["annotated_pixels"] for calibre in rows[0]["calibres"]) == tp + sum(
        count.false_negatives for count in counts
    )


def test_both_eyes_of_a_person_are_one_in_the_interval() -> None:
    case = arrays()
    results = [scored(name, **case) for name in ("01L", "01R")]
    row = summarise(results, shipped_scoring(), shipped_bootstrap())[0]
    assert row["cases"] == 2 and all(map(math.isnan, row["per_image"]["dice"]["ci"]))
    for calibre in row["calibres"]:
        assert all(math.isnan(end) for name in ("dice", "sensitivity") for end in calibre[name]["ci"])
    results.append(scored("02L", **case))
    row = summarise(results, shipped_scoring(), shipped_bootstrap())[0]
    assert row["per_image"]["dice"]["ci"] == pytest.approx([row["per_image"]["dice"]["mean"]] * 2)


def test_a_case_without_a_figure_leaves_the_others_their_persons() -> None:
    results = [scored(name, **arrays(seed)) for seed, name in enumerate(("01L", "01R", "02L"))]
    results[0] = scored("01L", **{**arrays(), "label": np.zeros(SIZE, bool)})
    spread = summarise(results, shipped_scoring(), shipped_bootstrap())[0]["per_image"]["dice"]
    dice = sorted(result.scores[PREDICTION][FOV].figures(15)["dice"] for result in results[1:])
    assert spread["defined"] == 2 and spread["ci"] == pytest.approx(dice), "of two persons, either may be drawn twice"


def test_a_mean_says_over_how_many_cases() -> None:
    assert of_fewer(20, 20) == "" and of_fewer(19, 20) == " (in 19 of 20)"


def test_a_row_names_the_whole_image() -> None:
    row = case_row(scored("12", **arrays()), PREDICTION, 15)
    assert row["case_id"] == "12"
    assert {"dice", "whole_dice", "roc_auc", "whole_roc_auc", "hd95", "whole_asd"} <= set(row)


def test_reliability_is_told_by_bin() -> None:
    """Of 8 pixels at 0.25 two are vessels, of 4 at 0.9 three."""
    probability = np.array([[0.25] * 8 + [0.9] * 4])
    label = np.array([[1, 1] + [0] * 6 + [1, 1, 1, 0]])
    scoring = shipped_scoring(bins=2, surfaces=False)
    result = scored("1", label, label, np.ones_like(label), probability, label, scoring=scoring)
    rows = {row["comparison"]: row for row in summarise([result], scoring, shipped_bootstrap()) if row["region"] == FOV}
    low, high = rows["prediction"]["reliability"]
    assert (low["from"], low["to"], low["pixels"], low["annotated_share"]) == (0, 0.5, 8, 0.25)
    assert (high["from"], high["to"], high["pixels"], high["annotated_share"]) == (0.5, 1, 4, 0.75)
    assert (low["mean_probability"], high["mean_probability"]) == pytest.approx((0.25, 0.9), abs=1e-5)
    assert rows["second_observer"]["reliability"] == []


def test_the_calibration_error_is_of_the_bins_that_are_asked_for() -> None:
    scores = scored("1", **arrays(), scoring=shipped_scoring(whole_image=False)).scores[PREDICTION][FOV]
    first = scores.figures(15)
    assert scores.figures(3)["ece"] != first["ece"] and scores.figures(15) == first


def test_masks_are_kept_as_they_were() -> None:
    case = arrays()
    result = scored("1", **case)
    assert (result.mask("label") == case["label"]).all()
    assert (result.mask("pred") == (case["pred"] & case["fov"])).all()


@pytest.mark.parametrize(
    "wrong", [{"bins": 0}, {"calibre_edges": [0.2, 0.1]}, {"calibre_edges": [0]}, {"surfaces": "false"}]
)
def test_settings_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(DriveSegError, match=next(iter(wrong))):
        shipped_scoring(**wrong)


def chase_case(folder, name: str) -> dict[str, np.ndarray]:
    first, second = (read_image(folder / f"{name}_{order}HO.png", "binary") > 0 for order in ("1st", "2nd"))
    return {"label": first, "second": second, "fov": read_image(folder / f"{name}.jpg").max(axis=2) > 20}


def test_second_observer_of_chase_db1() -> None:
    """The published agreement of the observers: Dice 0.7765 over whole images, mean of 28; and the time it takes."""
    folder = real_data("CHASE_DB1")
    names = sorted(path.stem for path in folder.glob("*.jpg"))
    assert len(names) == 28
    results: list[CaseResult] = []
    generator = np.random.default_rng(0)
    elapsed = 0.0
    for name in names:
        case = chase_case(folder, name)
        noise = generator.random(case["label"].shape, np.float32) * np.float32(0.45)
        probability = np.where(case["second"], 1 - noise, noise)
        started = time.process_time()
        scoring = shipped_scoring(surfaces=False)
        results.append(scored(name, probability >= 0.5, **case, probability=probability, scoring=scoring))
        elapsed += time.process_time() - started
    started = time.process_time()
    rows = {
        (row["comparison"], row["region"]): row for row in summarise(results, shipped_scoring(), shipped_bootstrap())
    }
    elapsed += time.process_time() - started
    observers = rows[SECOND_OBSERVER, WHOLE]["per_image"]["dice"]
    assert observers["defined"] == 28
    assert observers["mean"] == pytest.approx(0.7765, abs=5e-5)
    assert elapsed < 15 * 3, "far over the 15 s of one core that it may take"
