"""Which photographs weights come from, and what an evaluation on them says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from test_training import overrides, train

import drive_seg
from drive_seg.data import load_datalist
from drive_seg.learnt_cases import LearntCases, another_scale, case_described, learnt_cases, learnt_scale
from drive_seg.networks import UNet
from drive_seg.workflows import evaluate_weights


def test_cases_that_differ(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    paths = [tmp_path / "21.png", tmp_path / "there" / "21.png"]
    for path, content in zip(paths, (b"one", b"other"), strict=True):
        path.write_bytes(content)
    case = {"case_id": "21", "image": str(paths[0])}
    assert case_described(case) == "21.png, 3 bytes", "wherever it lies"
    assert case_described({**case, "image": paths[1]}) == "21.png, 5 bytes"
    assert case_described({**case, "zoom": 0.5}) == "21.png, 3 bytes, zoom 0.5"
    assert case_described({"case_id": "a", "image": np.zeros((2, 2))}) == "a"


def test_what_weights_have_learnt(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    cases = [{"case_id": "1", "image": str(tmp_path / "1.png"), "zoom": zoom} for zoom in (1, 0.5)]
    for name, role in (("a", (cases, [])), ("b", ([], cases))):
        engine = Engine(lambda engine, batch: None)
        LearntCases(str(tmp_path / f"{name}.pt"), *role).attach(engine)
        engine.run([0])
    assert learnt_cases([tmp_path / "a.pt"]) == {"training": {"1.png, 3 bytes"}, "validation": set()}
    both = {"training": {"1.png, 3 bytes"}, "validation": {"1.png, 3 bytes"}}
    assert learnt_cases([tmp_path / "a.pt", tmp_path / "b.pt"]) == both
    begins = Engine(lambda engine, batch: None)
    LearntCases(str(tmp_path / "e.pt"), [], cases, pretrained=str(tmp_path / "a.pt"))(begins)
    assert learnt_cases([tmp_path / "e.pt"]) == both, "what it starts from has learnt some, too"
    LearntCases(str(tmp_path / "e.pt"), [], cases, pretrained=str(tmp_path / "unknown.pt"))(begins)
    assert learnt_cases([tmp_path / "e.pt"]) == {"training": set(), "validation": {"1.png, 3 bytes"}}
    assert engine.state.epoch == 1
    LearntCases(str(tmp_path / "b.pt"), cases, [])(engine)
    assert learnt_cases([tmp_path / "b.pt"]) == both, "a training that goes on has forgotten nothing"
    for content in ("", "[]", '{"training": 3}'):
        (tmp_path / "c.json").write_text(content)
        assert learnt_cases([tmp_path / "a.pt", tmp_path / "c.pt"]) is None
    LearntCases(str(tmp_path / "d.pt"), [], [], writes=False)(engine)
    assert learnt_cases([tmp_path / "d.pt"]) is None


def test_the_scale_that_weights_have_learnt(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    a, b, unknown = (tmp_path / f"{name}.pt" for name in ("a", "b", "unknown"))
    LearntCases(str(a), [], [], fov_diameter=[640, 1280])(engine)
    LearntCases(str(b), [], [], fov_diameter=180)(engine)
    LearntCases(str(unknown), [], [])(engine)
    assert learnt_scale([a]) == [640, 1280] and learnt_scale([a, a]) == [640, 1280]
    assert learnt_scale([unknown]) is learnt_scale([a, b]) is learnt_scale([]) is None
    assert learnt_cases([a]) == {"training": set(), "validation": set()}
    for fits in (640, 1280, [640], [700, 900], [640, 1280], None):
        assert another_scale([a], fits) is None
        assert another_scale([unknown], fits) is None
    said = another_scale([b], [640, 1280])
    assert said is not None and said == another_scale([a, b], [640, 1280])
    assert said.startswith('weights trained with --fov_diameter 180 are used with "[640,1280]"; at another scale')
    for nonsense in ("[]", '"wide"', "[null]"):
        unknown.with_suffix(".json").write_text(f'{{"fov_diameter": {nonsense}}}')
        assert another_scale([unknown], 640) is None
    assert another_scale([a], []) is None
    assert another_scale([a], [450, 1280]) is not None and another_scale([a], 1281) is not None


def test_photographs_segmented_at_another_scale(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(UNet(base_channels=4, depth=2).state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"fov_diameter": 180, "training": [], "validation": []}')
    for diameter, told in ((180, False), (640, True)):
        caplog.clear()
        drive_seg.load(tmp_path / "model.pt", base_channels=4, depth=2, fov_diameter=diameter)
        assert (
            f"{tmp_path / 'model.pt'}: weights trained with --fov_diameter 180 are used with 640" in caplog.text
        ) is told


def test_shipped_weights_know_their_scale(bundle: Path) -> None:
    config = json.loads((bundle / "configs" / "train.json").read_text())
    assert learnt_scale([bundle / "models" / "model.pt"]) == config["fov_diameter"]


def test_an_evaluation_says_what_it_knows(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    values = overrides(five_phantoms, tmp_path, max_epochs=1)
    train(bundle, values)
    listed = json.loads((tmp_path / "model.json").read_text())
    assert (len(listed["training"]), len(listed["validation"])) == (4, 1)
    of_network = {key: values[key] for key in ("base_channels", "depth", "fov_diameter")}
    said = {}
    for section in ("training", "validation", "test"):
        scored = {"dataset_dir": str(five_phantoms), "checkpoint": str(tmp_path / "model.pt"), "section": section}
        scores = evaluate_weights(bundle, {**scored, **of_network, "output_dir": str(tmp_path / section)})
        said[section] = scores.summary["protocol"]["warnings"]
    assert said["training"] == ["these figures are optimistic: the network was trained on 4 of 4 scored cases"]
    assert said["validation"] == ["these figures are optimistic: the weights were chosen on 1 of 1 scored cases"]
    assert said["test"] == []
    of_network["fov_diameter"] = 2 * values["fov_diameter"]
    scores = evaluate_weights(bundle, {**scored, **of_network, "output_dir": str(tmp_path / "larger")})
    (warning,) = scores.summary["protocol"]["warnings"]
    assert warning.startswith(f"weights trained with --fov_diameter {values['fov_diameter']} are used with")


def test_a_threshold_chosen_on_cases_that_trained_the_network_says_so(
    bundle: Path, five_phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = overrides(five_phantoms, tmp_path)
    of_network = {key: values[key] for key in ("base_channels", "depth", "fov_diameter")}
    torch.save(UNet(base_channels=values["base_channels"], depth=values["depth"]).state_dict(), tmp_path / "model.pt")
    (held_out,) = load_datalist(five_phantoms, "validation")
    chosen = {"dataset_dir": str(five_phantoms), "checkpoint": str(tmp_path / "model.pt"), **of_network}
    for trained_on, told in (([held_out], True), ([], False)):
        LearntCases(str(tmp_path / "model.pt"), trained_on, [])(Engine(lambda engine, batch: None))
        caplog.clear()
        scores = evaluate_weights(bundle, {**chosen, "output_dir": str(tmp_path / str(told))}, threshold="auto")
        said = "the network was trained on 1 of the cases that chose it"
        assert (said in caplog.text) is (said in scores.summary["protocol"]["threshold_source"]) is told
        listed = json.loads((tmp_path / str(told) / "threshold.json").read_text())["trained_on"]
        assert listed == ([held_out["case_id"]] if told else [])
