"""Evaluations from the shipped configs: what they record, bad cases, folds and ensembles."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import shipped_bootstrap, shipped_scoring, touch
from ignite.engine import Engine
from monai.networks.nets import BasicUNet
from PIL import Image
from running import SMALL_NETWORK, another_in_the_second_process, refused, run_bundle, save_weights, table

from drive_seg.checkpoints import WeightsCheckpointLoader
from drive_seg.compare import read_summary
from drive_seg.devices import fast_dtype
from drive_seg.ensemble import Ensemble
from drive_seg.errors import DriveSegError, user_error
from drive_seg.evaluation import CaseScores
from drive_seg.networks import UNet
from drive_seg.splits import cases_to_score, fold_cases
from drive_seg.workflows import evaluate_weights


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return save_weights(tmp_path / "model.pt")


def figures(summary: dict[str, Any]) -> Any:
    return [(case["case_id"], case["scores"]) for case in summary["cases"]], summary["rows"]


def test_command_and_bundle_give_the_same_figures(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path / "a"), **SMALL_NETWORK}
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
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL_NETWORK}
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
        values = {
            "dataset_dir": str(phantoms),
            "checkpoint": str(tmp_path / "model.pt"),
            **SMALL_NETWORK,
            "adaptation": 0.5,
        }
        values |= {"output_dir": str(tmp_path), "network_def": {**network, "dropout": dropout}}
        summary = evaluate_weights(bundle, values).summary
        assert summary["settings"]["network"].startswith("BasicUNet, ") and summary["settings"]["adaptation"] == 0
        hashes.add(summary["config_sha256"])
    assert len(hashes) == 2
    save_weights(tmp_path / "model.pt")
    del values["network_def"]
    settings = evaluate_weights(bundle, values).summary["settings"]
    assert settings["adaptation"] == 0.5 and settings["network"].startswith("UNet, base_channels 4, depth 3, ")


def test_an_evaluation_that_fails_leaves_the_earlier_one(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path / "out"), **SMALL_NETWORK}
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


def test_two_evaluations_do_not_share_a_folder(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(out), **SMALL_NETWORK}
    touch(out / ".metrics.0123abcd.csv")
    collect = CaseScores.collect

    def once_more(scores: CaseScores, engine: Engine) -> None:
        with pytest.raises(RuntimeError) as raised:
            evaluate_weights(bundle, values)
        assert "out: another run is writing into this folder, " in str(user_error(raised.value))
        collect(scores, engine)

    monkeypatch.setattr(CaseScores, "collect", once_more)
    evaluate_weights(bundle, values)
    assert not (out / ".metrics.0123abcd.csv").exists(), "what a killed evaluation had left"
    monkeypatch.undo()
    evaluate_weights(bundle, values)


def test_one_case_at_a_time(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL_NETWORK}
    with pytest.raises((DriveSegError, RuntimeError)) as raised:
        evaluate_weights(bundle, {**values, "validate#dataloader#batch_size": 2})
    assert "batch_size: expected 1, because photographs differ in size, got 2" in str(user_error(raised.value))


def test_a_second_annotation_that_is_nowhere(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL_NETWORK}
    with pytest.raises(Exception) as raised:
        evaluate_weights(bundle, {**values, "second_annotation": "2nd_manuel"})
    assert "has no '2nd_manuel', expected one of 1st_manual, 2nd_manual" in str(user_error(raised.value))


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
    arguments += ["--bundle-root", str(bundle), *(f"--{key}={value}" for key, value in SMALL_NETWORK.items())]
    assert refused(arguments, capsys).startswith("drive-seg: 4 of 6 cases could not be scored")
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
    assert len(table(output / "metrics.csv")) == 2


def test_equal_ids_are_not_equal_photographs(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    """Test cases are often numbered as those for training are."""
    cases = {section: cases_to_score(phantoms, section)[:1] for section in ("validation", "test")}
    sections = {
        section: [{"case_id": "1", **{key: case[key] for key in ("image", "label", "fov")}}]
        for section, (case,) in cases.items()
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], **sections}))
    values = {
        "dataset_dir": str(tmp_path),
        "checkpoint": weights,
        "output_dir": str(tmp_path / "scores"),
        **SMALL_NETWORK,
    }
    assert evaluate_weights(bundle, values, threshold="auto").summary["protocol"]["warnings"] == []


def test_an_observer_is_not_scored_against_himself(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": weights,
        "output_dir": str(tmp_path / "scores"),
        **SMALL_NETWORK,
    }
    summary = evaluate_weights(bundle, {**values, "second_annotation": "1st_manual"}).summary
    assert {row["comparison"] for row in summary["rows"]} == {"prediction"}
    assert not (tmp_path / "scores" / "second_observer.csv").exists()


def test_several_classes_are_scored_one_by_one(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "model.pt", num_classes=3)
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "annotation": "av", **SMALL_NETWORK}
    summary = evaluate_weights(bundle, {**values, "num_classes": 3, "output_dir": str(tmp_path / "scores")}).summary
    assert {"dice", "dice_class_1", "dice_class_2"} <= summary["rows"][0]["per_image"].keys()
    assert "named after a class" in summary["protocol"]["classes"]
    assert {case["case_id"] for case in summary["cases"] if "second_observer" in case["scores"]} == {"01", "02"}
    assert "Dice, class 2" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")


def test_evaluation_of_a_fold(bundle: Path, phantoms: Path, weights: str, tmp_path: Path) -> None:
    values = {
        "dataset_dir": str(phantoms),
        "checkpoint": weights,
        "output_dir": str(tmp_path),
        "fold": "3/3",
        **SMALL_NETWORK,
    }
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
        **SMALL_NETWORK,
    }
    summary = evaluate_weights(bundle, {**values, "flips": True, "scoring::surfaces": False}).summary
    assert [checkpoint["path"] for checkpoint in summary["checkpoints"]] == checkpoints
    assert summary["settings"]["flips"] is True and "hd95" not in summary["rows"][0]["per_image"]
    alone = evaluate_weights(bundle, {**values, "checkpoint": checkpoints[0]}).summary
    assert alone["cases"][0]["scores"] != summary["cases"][0]["scores"]


@pytest.mark.parametrize("differing", ["SHA-256 of the weights", "precision"])
def test_processes_that_would_score_otherwise(
    bundle: Path, phantoms: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differing: str
) -> None:
    """Their figures would be mixed with those of the first process."""

    another_in_the_second_process(differing, monkeypatch)
    values = {"dataset_dir": str(phantoms), "checkpoint": weights, "output_dir": str(tmp_path), **SMALL_NETWORK}
    with pytest.raises((DriveSegError, RuntimeError)) as raised:
        evaluate_weights(bundle, values)
    message = str(user_error(raised.value))
    assert (
        message.startswith(f"{differing}: expected the same in all processes, got ")
        and "another in process 1" in message
    )


def test_a_bad_case_leaves_the_others_scored(tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "model.pt")
    scores = CaseScores(str(tmp_path), shipped_scoring(), shipped_bootstrap(), {}, {})
    engine: Any = Engine(lambda *_: None)
    engine.state = SimpleNamespace(metrics={}, loaded_weights=[weights])
    scores.reset(engine)
    label, fov = torch.zeros(1, 20, 30), torch.ones(1, 20, 30)
    label[:, 8:11] = 1
    for number in range(3):
        probability = 0.2 + 0.6 * label
        probability[:, :, 4] = torch.nan if number == 1 else 0.9
        about = {"section": "test", "fov_source": "estimated", "photograph": "none.tif", "case_id": f"case{number}"}
        engine.state.batch = [{**about, "reference": label, "second": label.roll(1, dims=1), "fov": fov}]
        engine.state.output = [{"pred": probability > 0.5, "probability": probability}]
        scores.collect(engine)
    scores.finish(engine)
    summary = read_summary(tmp_path)
    assert [case["case_id"] for case in summary["cases"]] == ["case0", "case2"]
    assert [case["case_id"] for case in summary["unscored"]] == ["case1"]
    assert "from 0 to 1, got nan" in summary["unscored"][0]["reason"]
    # Of 90 annotated pixels all are found, and a column has 17 more.
    assert engine.state.metrics["dice"] == summary["rows"][0]["per_image"]["dice"]["mean"] == 180 / 197
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert len((tmp_path / "second_observer.csv").read_text().splitlines()) == 3
    with pytest.raises(DriveSegError, match=r"1 of 3 cases could not be scored \(case1\)"):
        scores.raise_if_incomplete()


def evaluated(tmp_path: Path, cases: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Summary of cases that are scored without a network."""
    scoring = shipped_scoring(surfaces=False, whole_image=False, **changes)
    scores = CaseScores(str(tmp_path), scoring, shipped_bootstrap(samples=10), {}, {})
    engine: Any = SimpleNamespace(state=SimpleNamespace(metrics={}))
    about = {"section": "test", "fov_source": "estimated", "photograph": "none.tif"}
    for case in cases:
        engine.state.batch = [{**about, **case}]
        engine.state.output = [{key: case[key] for key in ("pred", "probability")}]
        scores.collect(engine)
    scores.finish(engine)
    return scores.summary


def test_an_artery_or_a_vein_is_a_vessel(tmp_path: Path) -> None:
    """0.3 + 0.3 is more than the background's 0.4 + 0.1, although no class is likelier than 0.3."""
    vessels = torch.tensor([[[1, 2, 0, 0]]])
    probability = torch.tensor([[[0.3, 0.3, 0.4, 0.4]], [[0.3, 0.3, 0.1, 0.1]]])
    case = {"case_id": "a", "reference": vessels, "fov": torch.ones(1, 1, 4), "pred": vessels}
    summary = evaluated(tmp_path, [{**case, "probability": probability}], num_classes=3)
    figures = summary["rows"][0]["per_image"]
    assert figures["roc_auc"]["mean"] == figures["average_precision"]["mean"] == 1
    # Half of the pixels have 0.6 and are all vessels, half have 0.5 and none is.
    assert figures["ece"]["mean"] == pytest.approx((0.4 + 0.5) / 2, abs=1e-4)


@pytest.mark.parametrize(("ids", "told"), [
    ([f"{number:02d}" for number in range(20)], False),
    ([f"{number:02d}{side}" for number in range(10) for side in "LR"], True),
])  # fmt: skip
def test_few_persons_make_the_interval_too_narrow_however_many_photographs(
    tmp_path: Path, ids: list[str], told: bool
) -> None:
    plane = torch.eye(4)[None]
    case = {"reference": plane, "fov": torch.ones(1, 4, 4), "pred": plane, "probability": plane}
    protocol = evaluated(tmp_path, [{**case, "case_id": case_id} for case_id in ids])["protocol"]
    assert (protocol["cases"], protocol["persons"]) == (20, 10 if told else 20)
    assert protocol["interval"].endswith("with so few persons it is too narrow") is told
