"""Evaluations from the shipped configs: bad cases, the threshold, folds and ensembles."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_drive_layout
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks.nets import BasicUNet
from PIL import Image
from test_bundle import components, run_bundle

from drive_seg import distributed
from drive_seg.checkpoints import WeightsCheckpointLoader
from drive_seg.cli import main
from drive_seg.configs import config_files
from drive_seg.engines import fast_dtype
from drive_seg.ensemble import Ensemble
from drive_seg.errors import DriveSegError, user_error
from drive_seg.evaluation import CaseScores
from drive_seg.metrics import ProbabilityCounts
from drive_seg.networks import UNet
from drive_seg.scores import of_fewer
from drive_seg.splits import cases_to_score, fold_cases, parse_fold
from drive_seg.thresholds import ThresholdChoice, best_threshold
from drive_seg.workflows import evaluate_weights, run_workflow

SMALL = {"base_channels": 4, "depth": 3, "fov_diameter": 128, "precision": "float32"}
OVERLAYS = ("fold", "ensemble", "choose_threshold")


def save_weights(path: Path, seed: int) -> str:
    """Weights of a network that has learnt nothing, but thinks some pixels vessels."""
    torch.manual_seed(seed)
    torch.save(UNet(base_channels=4, depth=3).state_dict(), path)
    return str(path)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return save_weights(tmp_path / "model.pt", 0)


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def figures(summary: dict[str, Any]) -> Any:
    return [(case["case_id"], case["scores"]) for case in summary["cases"]], summary["rows"]


def test_command_and_bundle_give_the_same_figures(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path / "a"), **SMALL}
    evaluate_weights(bundle, values)
    values["output_dir"] = str(tmp_path / "b")
    overrides = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    run_bundle("evaluating", bundle, ["train", "evaluate"], *overrides)
    one, other = read_summary(tmp_path / "a"), read_summary(tmp_path / "b")
    assert figures(one) == figures(other)
    assert one["config_sha256"] == other["config_sha256"]
    for name in ("metrics.csv", "second_observer.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert one["protocol"]["scored"] == ["test"] and one["protocol"]["fov_source"] == {"published mask": 2}
    assert one["checkpoints"][0]["path"] == weights and len(one["checkpoints"][0]["sha256"]) == 64
    assert {"drive-seg", "torch", "monai", "scikit-learn", "python"} <= one["versions"].keys()
    assert one["protocol"]["warnings"] == []


def test_the_record_names_the_number_type(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    """What auto means depends on the machine."""
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL}
    expected = str(fast_dtype(torch.device("cpu"))).removeprefix("torch.")
    summary = evaluate_weights(bundle, {**values, "precision": "auto", "device": "cpu"}).summary
    assert summary["settings"]["precision"] == expected


def test_the_record_names_the_network_itself(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """An overlay may have replaced it."""
    network = {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 3, "features": [4, 4, 8, 8, 8, 4]}
    hashes = set()
    for dropout in (0.0, 0.1):
        made = BasicUNet(2, 3, features=network["features"], dropout=dropout)
        torch.save(made.state_dict(), tmp_path / "model.pt")
        values = {"dataset_dir": str(phantoms), "checkpoint": str(tmp_path / "model.pt"), **SMALL, "adaptation": 0.5}
        values |= {"output_dir": str(tmp_path), "network_def": {**network, "dropout": dropout}}
        summary = evaluate_weights(bundle, values).summary
        assert summary["settings"]["network"].startswith("BasicUNet, ") and summary["settings"]["adaptation"] == 0
        hashes.add(summary["config_sha256"])
    assert len(hashes) == 2
    torch.save(UNet(base_channels=4, depth=3).state_dict(), tmp_path / "model.pt")
    del values["network_def"]
    settings = evaluate_weights(bundle, values).summary["settings"]
    assert settings["adaptation"] == 0.5 and settings["network"].startswith("UNet, base_channels 4, depth 3, ")


def test_an_evaluation_that_fails_leaves_the_earlier_one(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path / "out"), **SMALL}
    evaluate_weights(bundle, values)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"metrics.csv", "second_observer.csv", "summary.json", "report.html"} <= before.keys()

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CaseScores, "collect", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_weights(bundle, values)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    monkeypatch.undo()
    evaluate_weights(bundle, {**values, "section": "training"})
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == before.keys() - {"second_observer.csv", "prediction_against_second.csv"}, "of these, none has one"


def test_one_case_at_a_time(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL}
    with pytest.raises((DriveSegError, RuntimeError)) as raised:
        evaluate_weights(bundle, {**values, "validate#dataloader#batch_size": 2})
    assert "batch_size: expected 1, because photographs differ in size, got 2" in str(user_error(raised.value))


def test_a_second_annotation_that_is_nowhere(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL}
    with pytest.raises(Exception) as raised:
        evaluate_weights(bundle, {**values, "second_annotation": "2nd_manuel"})
    assert "has no '2nd_manuel', expected one of 1st_manual, 2nd_manual" in str(user_error(raised.value))


def test_a_mean_says_over_how_many_cases() -> None:
    assert of_fewer(20, 20) == "" and of_fewer(19, 20) == " (in 19 of 20)"


def test_bad_cases_are_named_and_the_others_scored(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "dataset"
    cases = []
    for case in fold_cases(phantoms, "1/2", "training") + fold_cases(phantoms, "1/2", "validation"):
        folder = dataset / case["case_id"]
        folder.mkdir(parents=True)
        paths = {}
        for key in ("image", "label", "fov"):
            copy = folder / f"{key}{Path(case[key]).suffix}"
            copy.write_bytes(Path(case[key]).read_bytes())
            paths[key] = str(copy.relative_to(dataset))
        cases.append({"case_id": case["case_id"], **paths})
    unannotated, without_fov, truncated, wrong_size, *good = cases
    del unannotated["label"], without_fov["fov"]
    Image.new("RGB", (141, 150)).save(dataset / without_fov["image"])
    damaged = dataset / truncated["image"]
    damaged.write_bytes(damaged.read_bytes()[:500])
    Image.new("L", (20, 30)).save(dataset / wrong_size["label"])
    (dataset / "dataset.json").write_text(json.dumps({"training": [], "validation": [], "test": cases}))

    output = tmp_path / "scores"
    arguments = ["evaluate", "--dataset-dir", str(dataset), "--checkpoint", weights, "--output-dir", str(output)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--bundle-root", str(bundle), *(f"--{key}={value}" for key, value in SMALL.items())])
    assert str(stop.value.code).startswith("drive-seg: 4 of 6 cases could not be scored")
    summary = read_summary(output)
    assert [case["case_id"] for case in summary["cases"]] == sorted(case["case_id"] for case in good)
    reasons = {case["case_id"]: case["reason"] for case in summary["unscored"]}
    expected = {
        unannotated["case_id"]: "no annotation",
        without_fov["case_id"]: "field of view",
        truncated["case_id"]: "damaged",
        wrong_size["case_id"]: "20×30",
    }
    assert reasons.keys() == expected.keys()
    for case_id, words in expected.items():
        assert words in reasons[case_id] and "\n" not in reasons[case_id], reasons[case_id]
    with (output / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_threshold_is_chosen_on_validation_cases(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": [weights], "output_dir": str(tmp_path / "scores"), **SMALL}
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


def test_equal_ids_are_not_equal_photographs(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    """Test cases are often numbered as those for training are."""
    cases = {section: cases_to_score(phantoms, section)[:1] for section in ("validation", "test")}
    sections = {
        section: [{"case_id": "1", **{key: case[key] for key in ("image", "label", "fov")}}]
        for section, (case,) in cases.items()
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], **sections}))
    values = {"dataset_dir": str(tmp_path), "checkpoint": weights, "output_dir": str(tmp_path / "scores"), **SMALL}
    assert evaluate_weights(bundle, values, threshold="auto").summary["protocol"]["warnings"] == []


def test_an_estimated_field_of_view_is_told_of(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    cases = [{"image": f"{name}.png", "label": f"{name}.png", "mask": f"{name}.png"} for name in "ab"]
    (tmp_path / "dataset.json").write_text(json.dumps({"test": cases, "estimatedFov": ["a"]}))
    assert [case["fov_source"] for case in cases_to_score(tmp_path)] == ["estimated", "published mask"]


def test_a_fold_has_no_cases_apart_to_choose_on(phantoms: Path, bundle: Path, weights: str) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "fold": "1/3", **SMALL}
    with pytest.raises(DriveSegError, match="threshold: auto needs validation cases apart"):
        evaluate_weights(bundle, values, threshold="auto")


def test_test_cases_may_not_choose(bundle: Path, phantoms: Path, weights: str) -> None:
    output = Path(weights).parent / "scores"
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": weights,
        "section": "test",
        "output_dir": str(output),
        **SMALL,
    }
    with pytest.raises(Exception, match="evaluator") as error:
        run_workflow(bundle, ["train", "evaluate", "choose_threshold"], "choosing", values)
    assert "may not be chosen on test cases" in str(user_error(error.value))
    assert not (output / "threshold.json").exists()


@pytest.mark.parametrize("threshold", ["often", "1.5"])
def test_what_is_no_threshold(bundle: Path, phantoms: Path, weights: str, threshold: str) -> None:
    with pytest.raises((DriveSegError, RuntimeError)) as error:
        evaluate_weights(bundle, {"dataset_dir": str(phantoms), "checkpoint": weights, **SMALL}, threshold)
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
    with pytest.raises(DriveSegError, match="case 21, got 16 pixels NaN or infinite"):
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


def test_folds_are_apart_and_complete(phantoms: Path) -> None:
    test = {case["case_id"] for case in cases_to_score(phantoms, "test")}
    seen: list[str] = []
    for number in (1, 2, 3):
        held_out = {case["case_id"] for case in fold_cases(phantoms, f"{number}/3", "validation")}
        trained_on = {case["case_id"] for case in fold_cases(phantoms, f"{number}/3", "training")}
        assert held_out and not held_out & trained_on and len(held_out | trained_on) == 6
        assert not (held_out | trained_on) & test
        seen += held_out
    assert len(seen) == len(set(seen)) == 6


def test_both_eyes_of_a_person_are_in_one_fold(tmp_path: Path) -> None:
    ids = [f"Image_{person:02}{side}" for person in range(1, 6) for side in "LR"]
    for case_id in ids:
        (tmp_path / f"{case_id}.png").touch()
    listed = [{"case_id": i, "image": f"{i}.png", "label": f"{i}.png"} for i in ids]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed[:8], "validation": listed[8:], "test": []}))
    folds = [[case["case_id"] for case in fold_cases(tmp_path, f"{number}/4", "validation")] for number in range(1, 5)]
    assert sorted(case_id for fold in folds for case_id in fold) == ids
    for fold in folds:
        assert fold == [f"{person}{side}" for person in sorted({case_id[:-1] for case_id in fold}) for side in "LR"]
    with pytest.raises(DriveSegError, match="at least 6 persons"):
        fold_cases(tmp_path, "1/6", "training")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed[:2], "test": listed[2:]}))
    with pytest.raises(DriveSegError, match="at least 2 persons for 2 folds, got 1"):
        fold_cases(tmp_path, "1/2", "training")


def test_folds_do_not_follow_the_order_of_ids(tmp_path: Path) -> None:
    """HRF names its images 01_dr, 01_g, 01_h, 02_dr, …: every third one shows the same disease."""
    ids = [f"{number:02}_{disease}" for number in range(1, 10) for disease in ("dr", "g", "h")]
    listed = [{"image": f"{i}.png", "case_id": i, "label": f"{i}.png"} for i in ids]
    for case_id in ids:
        (tmp_path / f"{case_id}.png").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
    for fold in ("1/3", "2/3", "3/3"):
        held_out = [case["case_id"].rpartition("_")[2] for case in fold_cases(tmp_path, fold, "validation")]
        assert len(held_out) == 9 and set(held_out) == {"dr", "g", "h"}


def test_folds_need_ids_that_differ(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    cases = [{"image": f"{name}.png", "label": f"{name}.png", "case_id": "01"} for name in "ab"]
    cases.append({"image": "c.png", "label": "c.png", "case_id": "02"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases[1:], "validation": cases[:1]}))
    with pytest.raises(DriveSegError, match=r"training and validation cases of different ids .* got twice: 01 "):
        fold_cases(tmp_path, "1/2", "training")


def test_folds_of_several_datasets_are_those_of_each(tmp_path: Path) -> None:
    """What a network has been trained on by one of two datasets is not held out where that one is scored."""
    folders = [tmp_path / name for name in ("seven", "ten")]
    for folder, count in zip(folders, (7, 10), strict=True):
        write_drive_layout(folder, training=range(21, 21 + count))
    for fold in ("1/3", "2/3", "3/4"):
        trained_on = [case["image"] for case in fold_cases(folders, fold, "training")]
        for folder in folders:
            held_out = [case["image"] for case in fold_cases(folder, fold, "validation")]
            assert held_out and not set(held_out) & set(trained_on)
            assert {case["image"] for case in fold_cases(folders, fold, "validation")} >= set(held_out)
    with pytest.raises(DriveSegError, match="at least 8 persons"):
        fold_cases(folders, "1/8", "training")


def test_folds_of_several_datasets_share_no_image(tmp_path: Path) -> None:
    """The same photograph under two ids is held out by one dataset and trained on by the other."""
    write_drive_layout(tmp_path / "one", training=range(21, 25))
    images = sorted((tmp_path / "one" / "training" / "images").iterdir())
    annotations = sorted((tmp_path / "one" / "training" / "1st_manual").iterdir())
    renamed = [
        {"case_id": name, "image": f"../{image.relative_to(tmp_path)}", "label": f"../{label.relative_to(tmp_path)}"}
        for name, image, label in zip("abcd", images, annotations, strict=True)
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset.json").write_text(json.dumps({"training": renamed}))
    for section in ("training", "validation"):
        with pytest.raises(DriveSegError, match=r"one, .*other: .*_training\.tif is in training and in validation"):
            fold_cases([tmp_path / "one", tmp_path / "other"], "1/2", section)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", "a/b", None])
def test_what_is_no_fold(fold: Any) -> None:
    with pytest.raises(DriveSegError, match="k/n"):
        parse_fold(fold)


def test_fold_config_trains_without_the_cases_it_holds_out(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=config_files(bundle, "train", "fold"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(phantoms),
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
        fold="2/3",
    )
    workflow.initialize()
    ids = {
        part: {case["case_id"] for case in workflow.parser.get_parsed_content(f"{part}#dataset#data")}
        for part in ("train", "validate")
    }
    assert len(ids["train"]) == 4 and len(ids["validate"]) == 2 and not ids["train"] & ids["validate"]


def test_an_observer_is_not_scored_against_himself(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path / "scores"), **SMALL}
    summary = evaluate_weights(bundle, {**values, "second_annotation": "1st_manual"}).summary
    assert {row["comparison"] for row in summary["rows"]} == {"prediction"}
    assert not (tmp_path / "scores" / "second_observer.csv").exists()


def test_several_classes_are_scored_one_by_one(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(UNet(base_channels=4, depth=3, num_classes=3).state_dict(), tmp_path / "model.pt")
    values = {"dataset_dir": str(phantoms), "checkpoint": str(tmp_path / "model.pt"), "annotation": "av", **SMALL}
    summary = evaluate_weights(bundle, {**values, "num_classes": 3, "output_dir": str(tmp_path / "scores")}).summary
    assert {"dice", "dice_class_1", "dice_class_2"} <= summary["rows"][0]["per_image"].keys()
    assert "named after a class" in summary["protocol"]["classes"]
    assert {case["case_id"] for case in summary["cases"] if "second_observer" in case["scores"]} == {"01", "02"}
    assert "Dice, class 2" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")


def test_evaluation_of_a_fold(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), "fold": "3/3", **SMALL}
    summary = evaluate_weights(bundle, values).summary
    held_out = [case["case_id"] for case in fold_cases(phantoms, "3/3", "validation")]
    assert [case["case_id"] for case in summary["cases"]] == held_out
    assert summary["protocol"]["scored"] == ["fold 3/3"] and summary["protocol"]["warnings"]
    assert summary["protocol"]["section"] is None, "it is of none"


def test_ensemble_averages_probabilities() -> None:
    networks = [UNet(base_channels=4, depth=2) for _ in range(3)]
    ensemble = Ensemble(networks[0], 3)
    for member, network in zip(ensemble.members, networks, strict=True):
        member.load_state_dict(network.state_dict())
    image = torch.randn(2, 3, 21, 34)
    with torch.inference_mode():
        mean = torch.stack([network.eval()(image).softmax(dim=1) for network in networks]).mean(dim=0)
        assert torch.allclose(ensemble.eval()(image).softmax(dim=1), mean, atol=1e-6)


def test_ensemble_wants_weights_for_every_member(tmp_path: Path) -> None:
    ensemble = Ensemble(UNet(base_channels=4, depth=3), 2)
    with pytest.raises(DriveSegError, match="weights for 2 networks, got 1"):
        WeightsCheckpointLoader(ensemble, ["one.pt"])(None)  # type: ignore[arg-type]


def test_ensemble_with_flips_is_scored(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    checkpoints = [save_weights(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": checkpoints,
        "output_dir": str(tmp_path / "ensemble"),
        **SMALL,
    }
    summary = evaluate_weights(bundle, {**values, "flips": True, "scoring::surfaces": False}).summary
    assert [checkpoint["path"] for checkpoint in summary["checkpoints"]] == checkpoints
    assert summary["settings"]["flips"] is True and "hd95" not in summary["rows"][0]["per_image"]
    alone = evaluate_weights(bundle, {**values, "checkpoint": checkpoints[0]}).summary
    assert alone["cases"][0]["scores"] != summary["cases"][0]["scores"]


def test_without_test_annotations_the_validation_cases_are_scored(phantoms: Path, tmp_path: Path) -> None:
    listed = [{"case_id": case["case_id"], "image": case["image"]} for case in cases_to_score(phantoms, "test")]
    held_out = [
        {key: case[key] for key in ("case_id", "image", "label")} for case in cases_to_score(phantoms, "validation")
    ]
    content = {"training": [], "validation": held_out, "test": listed, "estimatedFov": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = cases_to_score(tmp_path, "test")
    assert [case["case_id"] for case in cases] == [case["case_id"] for case in held_out]
    assert {case["section"] for case in cases} == {"validation"}
    assert {case["fov_source"] for case in cases} == {"estimated"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_value_of_an_overlay_says_why(bundle: Path, name: str) -> None:
    config = json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    for where, component in components(config):
        assert len(component.get("_desc_", "")) > 8, where
    plain = [key for key, value in config.items() if not isinstance(value, (dict, list)) and key != "_desc_"]
    assert set(plain) - {"choosing"} <= config["_desc_"].keys()
    assert not [text for text in config["_desc_"].values() if re.match(r"[$%]", text) or set("#@") & set(text)]


@pytest.mark.parametrize("names", [["train", "fold", "any_camera"], ["train", "any_camera", "fold"]])
def test_a_fold_and_another_overlay_go_together_in_any_order(bundle: Path, phantoms: Path, names: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, *names))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(phantoms), "fold": "1/3"})
    training = parser.get_parsed_content("train::dataset::data")
    held_out = {case["case_id"] for case in parser.get_parsed_content("validate::dataset::data")}
    zooms = parser.get_parsed_content("zooms")
    assert held_out and not held_out & {case["case_id"] for case in training}
    assert sorted({case["zoom"] for case in training}) == sorted(zooms)
    assert len(training) == len(zooms) * (6 - len(held_out))


@pytest.mark.parametrize("differing", ["SHA-256 of the weights", "precision"])
def test_processes_that_would_score_otherwise(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differing: str
) -> None:
    """Their figures would be mixed with those of the first process."""

    def gather(part: tuple[str, dict[str, str]]) -> list[tuple[str, dict[str, str]]]:
        host, values = part
        return [part, (host, {**values, **({differing: "another"} if differing in values else {})})]

    monkeypatch.setattr(distributed, "gather", gather)
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL}
    with pytest.raises((DriveSegError, RuntimeError)) as raised:
        evaluate_weights(bundle, values)
    message = str(user_error(raised.value))
    assert (
        message.startswith(f"{differing}: expected the same in all processes, got ")
        and "another in process 1" in message
    )
