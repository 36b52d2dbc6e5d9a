"""The command line: what it says, and what it refuses in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_bundle import small_overrides

from drive_seg.cli import _expanded, _with_flags, main
from drive_seg.networks import UNet


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes into the working directory is not to stay."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return the one sentence it gives."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code)
    assert message.startswith("drive-seg: ") and "\n" not in message, message
    assert "Traceback" not in capsys.readouterr().err
    return message


def test_a_closed_stream_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert sys.stderr is not None and sys.stderr.write("progress") == len("progress")
    sys.stderr.close()


def test_help_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys\nsys.argv = ['drive-seg', '--help']\nfrom drive_seg.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("train", "evaluate", "predict", "demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from drive_seg import __version__

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(("given", "meant"), [
    (["train", "--resume"], ["train", "--resume"]),
    (["train", "--resume", "true", "--seed", "1"], ["train", "--resume", "--seed", "1"]),
    (["train", "--resume=True"], ["train", "--resume"]),
    (["train", "--resume", "false"], ["train"]),
    (["train", "--flips", "true"], ["train", "--flips", "true"]),
])  # fmt: skip
def test_resume_as_monais_command_spells_it(given: list[str], meant: list[str]) -> None:
    assert _with_flags(given) == meant


def test_patterns_that_the_shell_has_left(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "c.png"):
        (tmp_path / name).touch()
    given = ["predict", f"{tmp_path}/*.jpg", f"{tmp_path}/?.png", "nothing*.jpg", "--network_def", "$@x[0] * 2"]
    found = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.png")]
    assert _expanded(given) == ["predict", *found, *given[3:]]
    photograph = tmp_path / "[2026] clinic" / "a[1].jpg"
    photograph.parent.mkdir()
    photograph.touch()
    assert _expanded([f"{photograph.parent}/a[1]*"]) == [str(photograph)], "brackets are only themselves on Windows"


def test_a_path_that_the_encoding_of_a_log_file_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr("drive_seg.predict.segment_photographs", lambda *_, **__: [])
    with pytest.raises(SystemExit) as stop:
        main(["predict", "eye.png", "--output-dir", "\u017bó\u0142w"])
    log.flush()
    assert not stop.value.code and log.buffer.getvalue().split() == [b"results:", b"\\u017b\xf3\\u0142w"]


def test_train_evaluate_predict(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--dataset-dir", str(phantoms), "--output-dir", str(run), *small_overrides()])
    assert not stop.value.code
    assert f"best weights: {run / 'model.pt'}\nhistory: {run / 'history.csv'}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(
            ["evaluate", "--dataset_dir", str(phantoms), "--output-dir", str(tmp_path / "scores")]
            + ["--checkpoint", str(run / "model.pt"), *small_overrides()]
        )
    assert not stop.value.code
    assert "01" in capsys.readouterr().out

    good = phantoms / "test" / "images" / "01_test.tif"
    bad = tmp_path / "notes.tif"
    bad.write_text("not an image")
    output = tmp_path / "masks"
    small = ["--base_channels", "4", "--depth=3", "--fov_diameter", "128"]
    with pytest.raises(SystemExit) as stop:
        main(
            ["predict", str(bad), *small, str(good), "--output-dir", str(output)]
            + ["--checkpoint", str(run / "model.pt")]
        )
    assert stop.value.code == 1
    assert (output / "01_test_vessels.png").is_file(), "one bad photograph must not stop the others"
    with (output / "failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["photograph"] for row in rows] == [str(bad)]
    assert rows[0]["reason"].startswith("is not an image")
    with (output / "vessels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["photograph"], row["width_px"], row["height_px"]) for row in rows] == [(str(good), "141", "150")]
    with Image.open(output / "01_test_vessels.png") as mask, Image.open(phantoms / "test/mask/01_test_mask.gif") as fov:
        vessels, inside = np.asarray(mask) > 0, np.asarray(fov) > 0
    assert float(rows[0]["vessel_density_share"]) == pytest.approx(vessels.sum() / inside.sum(), rel=0.05)
    assert "quality" in rows[0] and not any(name.endswith("_mm") for name in rows[0])

    for option, measured in ((["--pixel_spacing_mm", "0.02"], True), (["--measure", "false"], False)):
        with pytest.raises(SystemExit) as stop:
            main(
                ["predict", str(good), *small, *option, "--output-dir", str(output)]
                + ["--checkpoint", str(run / "model.pt")]
            )
        assert not stop.value.code
        assert (output / "vessels.csv").is_file() is measured, "nothing of an earlier run stays"
        if measured:
            header = (output / "vessels.csv").read_text().splitlines()[0]
            assert "skeleton_length_mm" in header and not (output / "failed.csv").exists()
    arguments = ["predict", str(good), *small, "--pixel_spacing_mm", "-1", "--output-dir", str(output)]
    assert "pixel_spacing_mm: expected" in refused([*arguments, "--checkpoint", str(run / "model.pt")], capsys)


def test_a_fold_is_trained_and_scored(phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "fold"
    short = [*small_overrides(), "--max_epochs", "1"]
    for arguments in (
        ["train", "--dataset-dir", str(phantoms), "--output-dir", str(run), "--fold", "2/3", *short],
        ["evaluate", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "scores"), "--fold", "2/3", *short]
        + ["--checkpoint", str(run / "model.pt")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
    with (tmp_path / "scores" / "metrics.csv").open() as file:
        cases = [row["case_id"] for row in csv.DictReader(file)]
    assert cases and all(int(case) > 20 for case in cases), "training cases only, never test cases"


def test_names_with_signs_that_mean_something_in_configs(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_tree(phantoms, tmp_path / "$da#ta@2")
    torch.save(UNet(base_channels=4, depth=3).state_dict(), "@weights#1.pt")
    small = ["--checkpoint", "@weights#1.pt", "--base_channels", "4", "--depth=3", "--fov_diameter", "128"]
    for command, output, table in (
        (["evaluate", "--dataset-dir", "$da#ta@2", "--threshold", "auto"], "%scores#1", "metrics.csv"),
        (["predict", "$da#ta@2/test/images", "--engine", "torch"], "$masks#1", "vessels.csv"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command, *small, "--output-dir", output])
        assert not stop.value.code
        assert (tmp_path / output / table).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"$da#ta@2", "@weights#1.pt", "%scores#1", "$masks#1"}
    summary = json.loads((tmp_path / "%scores#1" / "summary.json").read_text())
    assert summary["protocol"]["dataset_dir"] == "./$da#ta@2"


def test_an_evaluation_says_what_it_is_of(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(UNet(base_channels=4, depth=3).state_dict(), tmp_path / "model.pt")
    small = ["--checkpoint", str(tmp_path / "model.pt"), *small_overrides(), "--output-dir", str(tmp_path / "scores")]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--dataset-dir", str(phantoms), "--section", "validation", "--threshold", "0.4", *small])
    assert not stop.value.code
    said = capsys.readouterr()
    assert "over 1 cases (validation)" in " ".join(said.out.split()) and "threshold 0.4" in said.out
    assert "warning: cases that are not test cases" in said.err

    twice = ["evaluate", "--dataset-dir", str(phantoms), "--dataset-dir", str(phantoms), *small]
    assert "expected one folder, datasets are scored one at a time" in refused(twice, capsys)


def test_unknown_key_suggests_the_nearest(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["train", "--dataset-dir", str(phantoms), "--learning_rat", "0.1"], capsys)
    assert "learning_rat" in message and "did you mean learning_rate?" in message


def test_unknown_nested_key(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["train", "--dataset-dir", str(phantoms), "--optimizer#momentun", "0.1"], capsys)
    assert "did you mean optimizer::momentum?" in message


def test_missing_checkpoint(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = str(phantoms / "test" / "images" / "01_test.tif")
    message = refused(["predict", photograph, "--checkpoint", str(tmp_path / "none.pt")], capsys)
    assert "none.pt: there is no such checkpoint" in message


def test_empty_and_missing_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "DRIVE layout" in refused(["train", "--dataset-dir", str(tmp_path)], capsys)
    assert "nowhere" in refused(["train", "--dataset-dir", str(tmp_path / "nowhere")], capsys)
    assert "holds no photograph" in refused(["predict", str(tmp_path)], capsys)


def test_values_that_a_component_refuses(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "run")]
    assert "base_channels: expected a whole number" in refused([*common, "--base_channels", "0"], capsys)
    assert "precision: expected auto" in refused([*common, "--precision", "half"], capsys)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("max_epochs", "many", "max_epochs: expected a number, such as 350 in the config, got 'many'"),
    ("max_epochs", "0", "max_epochs: "),
    ("val_interval", "0", "val_interval: expected a whole number from 1"),
    ("learning_rate", "nan", "learning_rate: expected a number, such as 0.05 in the config, got 'nan'"),
    ("learning_rate", "NaN", "learning_rate: expected a number, such as 0.05 in the config, got nan"),
    ("optimizer", '{"_target_": "torch.optim.Addam"}', "torch.optim.Addam"),
    ("device", "cuda:99", "device: there is no cuda:99 here, expected cpu"),
    ("device", "meta", "device: there is no meta here, expected cpu"),
    ("device", "gpu", "device: expected cpu, cuda, cuda:1 or another of torch's, got 'gpu'"),
    ("patch_size", "[384, null]", "patch_size: expected numbers, such as [384, 384] in the config, got [384, None]"),
    ("patch_size", "[64, 64, 64]", "patch_size: expected height and width, or one number for both, got [64, 64, 64]"),
    ("patch_size", "0", "patch_size: expected height and width, or one number for both, got 0"),
    ("patch_size", "4", "UNet: expected every side to have at least"),
    ("seed", "-1", "seed: expected a whole number from 0, got -1"),
    ("ignore_index", "1", "ignore_index: expected a whole number from 2, the number of classes, to 255, got 1"),
    ("adaptation", "2", "adaptation: expected a number from 0 to 1, got 2"),
    ("num_classes", "1", "num_classes: expected 2 or more, background and vessel, got 1"),
    ("base_channels", "0", "base_channels: expected a whole number of at least 1, got 0"),
    ("fov_diameter", "abc", "fov_diameter: expected numbers, such as [640, 1280] in the config, got 'abc'"),
    ("loss#lambda_dice", "much", "loss::lambda_dice: expected a number, such as 1.0 in the config, got 'much'"),
])  # fmt: skip
def test_values_that_make_no_sense(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, said: str
) -> None:
    command = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path / "run"), *small_overrides()]
    assert said in refused([*command, f"--{key}={value}"], capsys)


def test_a_config_that_is_no_json(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "train.json").write_text('{"seed": 0,,}')
    command = ["train", "--dataset-dir", str(phantoms), "--bundle-root", str(tmp_path / "bundle")]
    assert "configs/train.json: cannot be read as JSON" in refused(command, capsys)


def test_a_demo_leaves_a_training_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").write_bytes(b"of many hours")
    message = refused(["demo", "--output-dir", str(tmp_path)], capsys)
    assert "last.pt: is of a training that is not a demo's" in message
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_interrupted(phantoms: Path, tmp_path: Path) -> None:
    # What is started in a shell's background ignores Ctrl-C, and hands that down.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from drive_seg.cli import main; main()"
    command = [sys.executable, "-c", program, "train", "--dataset-dir", str(phantoms)]
    command += ["--output-dir", str(tmp_path), *small_overrides(), "--max_epochs=10000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "last.pt").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, -signal.SIGINT), "which a shell calls 130, too"
    assert said.rstrip().endswith("drive-seg: stopped") and "Traceback" not in said


def test_the_commands_under_torchrun(phantoms: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    common = ["--dataset-dir", str(phantoms), *small_overrides(), "--output-dir"]
    commands = (
        ["train", *common, str(tmp_path / "run"), "--batch_size", "2"],
        [
            "evaluate",
            *common,
            str(tmp_path / "two"),
            "--checkpoint",
            str(tmp_path / "run/model.pt"),
            "--threshold=auto",
        ],
    )
    for command in commands:
        done = subprocess.run(
            [*torchrun, "drive_seg.cli", *command], capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert sum(done.stdout.count(words) for words in ("best weights:", "all figures:")) == 1, "one speaks for all"
    with pytest.raises(SystemExit):
        main([*commands[1], "--output-dir", str(tmp_path / "one")])
    for name in ("metrics.csv", "threshold.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_folders_that_cannot_be_written_to(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    output = ["--output-dir", str(tmp_path / "file" / "run")]
    assert "cannot be written to" in refused(["train", "--dataset-dir", str(phantoms), *output], capsys)
    photograph = str(phantoms / "test" / "images" / "01_test.tif")
    assert "cannot be written to" in refused(["predict", photograph, *output], capsys)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("truncate", "21_training.tif"),
        ("text", "21_training.tif"),
        ("resize", "21_manual1"),
        ("grey", "21_manual1"),
        ("black", "21_training.tif"),
    ],
)
def test_bad_cases_end_the_training_with_the_file_named(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str, expected: str
) -> None:
    dataset = tmp_path / "dataset"
    copy_tree(phantoms, dataset)
    photograph = dataset / "training" / "images" / "21_training.tif"
    annotation = dataset / "training" / "1st_manual" / "21_manual1.gif"
    if spoil == "truncate":
        photograph.write_bytes(photograph.read_bytes()[:2000])
    elif spoil == "text":
        photograph.write_text("these are not pixels")
    elif spoil == "resize":
        with Image.open(annotation) as image:
            smaller = image.resize((100, 100))
        smaller.save(annotation)
    elif spoil == "grey":
        ramp = np.tile(np.linspace(0, 255, 141).astype(np.uint8), (150, 1))
        Image.fromarray(ramp).save(annotation)
    elif spoil == "black":
        Image.fromarray(np.zeros((150, 141, 3), np.uint8)).save(photograph)
        (dataset / "training" / "mask" / "21_training_mask.gif").unlink()
        for mask in (dataset / "training" / "mask").iterdir():
            mask.unlink()
    arguments = ["train", "--dataset-dir", str(dataset), "--output-dir", str(tmp_path / "run"), *small_overrides()]
    assert expected in refused(arguments, capsys)


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
