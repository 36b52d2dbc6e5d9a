"""The threshold that validation cases choose."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from running import SMALL_NETWORK, save_weights

from drive_seg.errors import DriveSegError, user_error
from drive_seg.metrics import ProbabilityCounts
from drive_seg.splits import cases_to_score
from drive_seg.thresholds import ThresholdChoice, best_threshold
from drive_seg.workflows import evaluate_weights, run_workflow


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return save_weights(tmp_path / "model.pt")


def test_threshold_is_chosen_on_validation_cases(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": [weights],
        "output_dir": str(tmp_path / "scores"),
        **SMALL_NETWORK,
    }
    scores = evaluate_weights(bundle, values, threshold="auto")
    chosen = json.loads((tmp_path / "scores" / "threshold.json").read_text())
    protocol = scores.summary["protocol"]
    held_out = {case["case_id"] for case in cases_to_score(phantoms, "validation")}
    assert protocol["threshold"] == chosen["threshold"] and "1 validation cases" in protocol["threshold_source"]
    assert set(chosen["cases"]) == held_out and chosen["photographs"] == protocol["threshold_photographs"]
    assert not held_out & {case["case_id"] for case in scores.summary["cases"]}
    assert [path.name for path in tmp_path.glob("*")] == ["model.pt", "scores"], "nothing beside the weights"

    evaluate_weights(bundle, values)
    assert not (tmp_path / "scores" / "threshold.json").exists(), "which is not of this evaluation"

    values["section"] = "validation"
    warned = evaluate_weights(bundle, values, threshold="auto").summary["protocol"]["warnings"]
    assert len(warned) == 2 and warned[1].endswith("the threshold was chosen on 1 of the scored cases")


def test_a_fold_has_no_cases_apart_to_choose_on(phantoms: Path, bundle: Path, weights: str) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "fold": "1/3", **SMALL_NETWORK}
    with pytest.raises(DriveSegError, match="threshold: auto needs validation cases apart"):
        evaluate_weights(bundle, values, threshold="auto")


def test_test_cases_may_not_choose(bundle: Path, phantoms: Path, weights: str) -> None:
    output = Path(weights).parent / "scores"
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": weights,
        "section": "test",
        "output_dir": str(output),
        **SMALL_NETWORK,
    }
    with pytest.raises(Exception, match="evaluator") as error:
        run_workflow(bundle, ["train", "evaluate", "choose_threshold"], "choosing", values)
    assert "may not be chosen on test cases" in str(user_error(error.value))
    assert not (output / "threshold.json").exists()


@pytest.mark.parametrize("threshold", ["often", "1.5"])
def test_what_is_no_threshold(bundle: Path, phantoms: Path, weights: str, threshold: str) -> None:
    with pytest.raises((DriveSegError, RuntimeError)) as error:
        evaluate_weights(bundle, {"dataset_dir": str(phantoms), "checkpoint": weights, **SMALL_NETWORK}, threshold)
    assert "threshold: expected a probability from 0 to 1" in str(user_error(error.value))


def test_thresholds_to_choose_among(tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="steps: expected at least 2, got 1"):
        ThresholdChoice(str(tmp_path / "threshold.json"), "data", "validation", "model.pt", steps=1)


def test_no_threshold_is_chosen_by_what_is_no_probability(tmp_path: Path) -> None:
    choice = ThresholdChoice(str(tmp_path / "threshold.json"), "data", "validation", "model.pt", steps=10)
    engine = Engine(lambda engine, batch: None)
    plane = torch.ones(1, 4, 4)
    engine.state.batch = [{"case_id": "21", "section": "validation", "reference": plane, "fov": plane}]
    engine.state.output = [{"probability": torch.full((1, 4, 4), math.nan)}]
    with pytest.raises(DriveSegError, match="expected probabilities from 0 to 1, got nan"):
        choice.collect(engine)


def test_the_threshold_is_chosen_inside_the_field_of_view(tmp_path: Path) -> None:
    """Inside, any threshold from 0.11 to 0.6 is right; outside, 0.9 is the only one."""
    choice = ThresholdChoice(str(tmp_path / "threshold.json"), "data", "validation", [], steps=10)
    engine = Engine(lambda engine, batch: None)
    fov, label = torch.zeros(1, 1, 40), torch.zeros(1, 1, 40)
    fov[..., :2], label[..., 0], label[..., 2] = 1, 1, 1
    probability = torch.full((1, 1, 40), 0.85)
    probability[..., 0], probability[..., 1], probability[..., 2] = 0.6, 0.1, 0.95
    engine.state.batch = [{"case_id": "21", "section": "validation", "reference": label, "fov": fov}]
    engine.state.output = [{"probability": probability}]
    choice.collect(engine)
    choice.finish(engine)
    assert 0.1 < choice.choice["threshold"] <= 0.6 and choice.choice["dice"] == 1


def test_an_artery_or_a_vein_is_above_the_threshold_as_a_vessel(tmp_path: Path) -> None:
    """The vessel, 0.3 + 0.3, and the background, 0.4 + 0.1, are told apart by any threshold from 0.51 to 0.6."""
    choice = ThresholdChoice(str(tmp_path / "threshold.json"), "data", "validation", [], steps=100)
    engine = Engine(lambda engine, batch: None)
    label, fov = torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2)
    engine.state.batch = [{"case_id": "21", "section": "validation", "reference": label, "fov": fov}]
    engine.state.output = [{"probability": torch.tensor([[[0.3, 0.4]], [[0.3, 0.1]]])}]
    choice.collect(engine)
    choice.finish(engine)
    assert 0.5 < choice.choice["threshold"] <= 0.6 and choice.choice["dice"] == 1


def test_best_threshold_by_hand() -> None:
    # Vessels at 0.7 and 0.6, background at 0.65 and 0.1: from 0.11 to 0.60 Dice is 4 / 5, above at most 2 / 3.
    probability, label = np.array([[0.7, 0.6, 0.65, 0.1]]), np.array([[True, True, False, False]])
    counts = ProbabilityCounts.of(probability, label, np.ones((1, 4), bool))
    threshold, dice = best_threshold([counts], steps=100)
    assert threshold == 0.36 and dice == pytest.approx(4 / 5), "the middle of equally good ones"
    # Of another case alone, only thresholds above 0.6 find its vessel; four times its weight moves the mean's maximum.
    other = ProbabilityCounts.of(np.array([[0.9, 0.6]]), np.array([[True, False]]), np.ones((1, 2), bool))
    threshold, dice = best_threshold([counts, *[other] * 4], steps=100)
    assert threshold > 0.6 and dice == pytest.approx((2 / 4 + 4) / 5, abs=0.1)
    with pytest.raises(DriveSegError, match="with vessels"):
        best_threshold([ProbabilityCounts.of(probability, np.zeros((1, 4), bool), np.ones((1, 4), bool))], steps=100)
