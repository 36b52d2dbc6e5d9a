"""Which photographs weights come from, and what an evaluation on them says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from realdata import real_data
from running import overrides, save_weights, train

import drive_seg
from drive_seg import checkpoints
from drive_seg.data import load_datalist
from drive_seg.engines import TrainingStep
from drive_seg.learnt_cases import (
    LearntCases,
    another_scale,
    case_described,
    learnt_cases,
    learnt_scale,
    listed,
    photograph_id,
    write_learnt_cases,
)
from drive_seg.workflows import evaluate_weights


def id_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def test_cases_that_differ(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    paths = [tmp_path / "21.tif", tmp_path / "there" / "21.tif"]
    for path, content in zip(paths, (b"one", b"two"), strict=True):
        path.write_bytes(content)
    ids = [photograph_id({"case_id": "21", "image": str(path)}) for path in paths]
    assert ids == [id_of(b"one"), id_of(b"two")], "of the same name and size"
    (tmp_path / "copy.tif").write_bytes(b"one")
    assert photograph_id({"case_id": "copy", "image": tmp_path / "copy.tif"}) == ids[0], "whatever it is called"
    assert photograph_id({"image": np.zeros((2, 2)), "photograph": str(paths[0])}) == ids[0], "after loading"
    assert photograph_id({"case_id": "a", "image": np.zeros((2, 2))}) == "a"
    paths[0].write_bytes(b"changed")
    case = {"case_id": "21", "image": str(paths[0])}
    assert case_described(case) == f"21 ({id_of(b'changed')})"
    assert case_described({**case, "zoom": 0.5}) == f"21 ({id_of(b'changed')}), zoom 0.5"


def started(learnt: LearntCases, training: list[dict[str, Any]], epoch: int = 0) -> None:
    trainer = Engine(lambda engine, batch: None)
    trainer.data_loader = DataLoader(Dataset(training))
    learnt.attach(trainer)
    trainer.load_state_dict({"epoch": epoch, "max_epochs": epoch + 1, "epoch_length": 1})
    trainer.run([0])


def trained(path: Path, training: list[dict[str, Any]], *arguments: Any, **keywords: Any) -> LearntCases:
    """What a training has noted that has just written its weights."""
    learnt = LearntCases(*arguments, **keywords)
    started(learnt, training)
    write(path, learnt)
    return learnt


def write(path: Path, learnt: LearntCases) -> None:
    with listed(path, learnt.photographs, learnt.fov_diameter):
        pass


def test_what_weights_have_learnt(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    cases = [{"case_id": "1", "image": str(tmp_path / "1.png"), "zoom": zoom} for zoom in (1, 0.5)]
    a, b, c, e = (tmp_path / f"{name}.pt" for name in "abce")
    trained(a, cases, [])
    trained(b, [], cases)
    one = id_of(b"one")
    assert learnt_cases([a]) == {"training": {one}, "validation": set()}
    both = {"training": {one}, "validation": {one}}
    assert learnt_cases([a, b]) == both
    begun = trained(e, [], cases, pretrained=str(a))
    assert learnt_cases([e]) == both, "what it starts from has learnt some, too"
    resumed = LearntCases(cases)
    resumed.load_state_dict(begun.state_dict())
    write(e, resumed)
    assert learnt_cases([e]) == both, "a training that goes on has forgotten nothing"
    trained(e, [], cases, pretrained="unknown.pt", fov_diameter=640)
    assert learnt_cases([e]) is None and learnt_scale([e]) == 640, "nobody knows what it has learnt before"
    trained(e, [], cases, pretrained="unknown.pt")
    assert not e.with_suffix(".json").exists()
    for content in ("", "[]", '{"training_sha256": 3}'):
        c.with_suffix(".json").write_text(content)
        assert learnt_cases([a, c]) is None


def test_a_copy_of_a_training_photograph_among_those_for_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [{"case_id": name, "image": str(tmp_path / f"{name}.png")} for name in ("1", "2", "3")]
    for case, content in zip(cases, (b"one", b"two", b"one"), strict=True):
        Path(case["image"]).write_bytes(content)
    told = "1 photographs for validation are copies of ones that are trained on"
    trained(tmp_path / "a.pt", cases[:1], cases[1:2])
    assert told not in caplog.text
    trained(tmp_path / "b.pt", cases[:1], cases[1:])
    assert told in caplog.text


def test_photographs_that_vanish_in_the_course_of_a_training(tmp_path: Path) -> None:
    photograph, earlier, weights = tmp_path / "Jane.png", tmp_path / "earlier.pt", tmp_path / "model.pt"
    photograph.write_bytes(b"one")
    write_learnt_cases(earlier, {"training": ["0123456789abcdef"], "validation": []})
    learnt = LearntCases([], str(earlier))
    started(learnt, [{"case_id": "Jane", "image": str(photograph)}])
    photograph.unlink()
    earlier.with_suffix(".json").unlink()
    write(weights, learnt)
    assert learnt_cases([weights]) == {"training": {"0123456789abcdef", id_of(b"one")}, "validation": set()}


def test_weights_from_elsewhere_are_not_known(tmp_path: Path) -> None:
    """A site of a federated training evaluates its server's weights, and trains from them in every round."""
    photograph, weights = tmp_path / "1.png", tmp_path / "model.pt"
    photograph.write_bytes(b"one")
    learnt = LearntCases([], fov_diameter=640)
    for begin, known in ((None, False), (0, True), (1, False)):
        if begin is not None:
            started(learnt, [{"image": str(photograph)}], begin)
        write(weights, learnt)
        assert (learnt_cases([weights]) is not None) is known
        assert learnt_scale([weights]) == 640


def test_earlier_weights_keep_their_list_until_they_are_replaced(
    bundle: Path, five_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, cases = tmp_path / "model.pt", tmp_path / "model.json"
    values = overrides(five_phantoms, tmp_path, max_epochs=2, val_interval=2)
    save_weights(weights)
    write_learnt_cases(weights, {"training": ["0123456789abcdef"], "validation": []})
    before = weights.read_bytes(), cases.read_bytes()
    monkeypatch.setattr(TrainingStep, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        train(bundle, values)
    assert (weights.read_bytes(), cases.read_bytes()) == before
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda content, path: seen.append(cases.exists()))
    train(bundle, {**values, "pretrained": str(weights)})
    assert seen and not any(seen), "a kill while the weights are written leaves none with the list of others"
    learnt = learnt_cases([weights])
    assert learnt is not None and "0123456789abcdef" in learnt["training"] and len(learnt["training"]) == 5


def stop(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_the_scale_that_weights_have_learnt(tmp_path: Path) -> None:
    a, b, unknown = (tmp_path / f"{name}.pt" for name in ("a", "b", "unknown"))
    trained(a, [], [], fov_diameter=[640, 1280])
    trained(b, [], [], fov_diameter=180)
    trained(unknown, [], [])
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
    save_weights(tmp_path / "model.pt", depth=2)
    (tmp_path / "model.json").write_text('{"fov_diameter": 180}')
    for diameter, told in ((180, False), (640, True)):
        caplog.clear()
        drive_seg.load(tmp_path / "model.pt", base_channels=4, depth=2, fov_diameter=diameter, engine="torch")
        assert (
            f"{tmp_path / 'model.pt'}: weights trained with --fov_diameter 180 are used with 640" in caplog.text
        ) is told


def test_shipped_weights_know_their_scale_and_photographs(bundle: Path) -> None:
    config = json.loads((bundle / "configs" / "train.json").read_text())
    weights = bundle / "models" / "model.pt"
    assert learnt_scale([weights]) == config["fov_diameter"]
    learnt = learnt_cases([weights])
    assert learnt is not None and (len(learnt["training"]), len(learnt["validation"])) == (16 + 21, 4 + 6)
    photographs = {path.stem: photograph_id({"image": path}) for path in real_data("CHASE_DB1").glob("*.jpg")}
    of_chase = {role: {name for name, found in photographs.items() if found in learnt[role]} for role in learnt}
    assert len(of_chase["training"]) == 16 and of_chase["validation"] == {
        f"Image_{n}{s}" for n in ("05", "10") for s in "LR"
    }


def test_an_evaluation_says_what_it_knows(bundle: Path, five_phantoms: Path, tmp_path: Path) -> None:
    values = overrides(five_phantoms, tmp_path, max_epochs=1)
    train(bundle, values)
    learnt = learnt_cases([tmp_path / "model.pt"])
    assert learnt is not None and (len(learnt["training"]), len(learnt["validation"])) == (4, 1)
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
    save_weights(tmp_path / "model.pt")
    (held_out,) = load_datalist(five_phantoms, "validation")
    chosen = {"dataset_dir": str(five_phantoms), "checkpoint": str(tmp_path / "model.pt"), **of_network}
    for trained_on, told in (([held_out], True), ([], False)):
        trained(tmp_path / "model.pt", trained_on, [])
        caplog.clear()
        scores = evaluate_weights(bundle, {**chosen, "output_dir": str(tmp_path / str(told))}, threshold="auto")
        said = "the network was trained on 1 of the cases that chose it"
        assert (said in caplog.text) is (said in scores.summary["protocol"]["threshold_source"]) is told
        chosen_on = json.loads((tmp_path / str(told) / "threshold.json").read_text())["trained_on"]
        assert chosen_on == ([held_out["case_id"]] if told else [])
