"""Which photographs weights come from, and what an evaluation on them says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ignite.engine import Engine
from test_training import overrides, train

from drive_seg.learnt_cases import LearntCases, case_described, learnt_cases
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
