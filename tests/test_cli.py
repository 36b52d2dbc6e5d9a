"""The command line: what its commands and options do, and what they say."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import finding_some, small, wait_for
from PIL import Image
from running import refused, small_overrides, succeeds, table

from drive_seg import __version__
from drive_seg.cli import main
from drive_seg.compare import compare, read_summary
from drive_seg.errors import DriveSegError
from drive_seg.phantom import make_phantom

pytestmark = pytest.mark.usefixtures("elsewhere")

SMALL = ["--base_channels", "4", "--depth=3", "--fov_diameter", "128", "--precision", "float32"]
"""Of ``weights``."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(finding_some(small(base_channels=4, depth=3)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scores(phantoms: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluations, with thresholds of 0.5 and 0.4."""
    folder = tmp_path_factory.mktemp("scores")
    for threshold in ("0.5", "0.4"):
        succeeds(
            ["evaluate", "--dataset-dir", str(phantoms), "--checkpoint", str(weights), *SMALL]
            + ["--output-dir", str(folder / threshold), "--threshold", threshold]
        )
    return folder / "0.5", folder / "0.4"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training or a segmentation, which is not run, is asked for."""
    asked: dict[str, Any] = {}

    def train(root: Path, names: list[str], run_id: str, overrides: dict[str, Any]) -> None:
        asked.update(overrides)
        raise DriveSegError("not run")

    def segment(root: Path, files: list[str], output_dir: Path, overrides: dict[str, Any], **others: Any) -> list:
        asked.update(overrides, files=files)
        return []

    monkeypatch.setattr("drive_seg.workflows.run_workflow", train)
    monkeypatch.setattr("drive_seg.predict.segment_photographs", segment)
    return asked


def test_a_closed_stream_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    succeeds(["--version"])
    assert sys.stderr is not None and sys.stderr.write("progress") == len("progress")
    sys.stderr.close()


def test_help_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys\nsys.argv = ['drive-seg', '--help']\nfrom drive_seg.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("train", "evaluate", "predict", "demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    succeeds(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("arguments", [["--debug", "predict", "none.png"], ["predict", "none.png", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DriveSegError, match=r"none\.png") as raised:
        main(arguments)
    without = [argument for argument in arguments if argument != "--debug"]
    assert refused(without, capsys) == f"drive-seg: {raised.value}"


def test_what_may_not_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "summary.json"))

    monkeypatch.setattr("drive_seg.compare.read_summary", refuse)
    message = refused(["compare", "locked", "other"], capsys)
    assert message == f"drive-seg: {Path('locked') / 'summary.json'}: cannot be read or written (Permission denied)"


@pytest.mark.parametrize(("given", "meant"), [
    (["--resume"], {"resume": True}),
    (["--resume", "true", "--seed", "1"], {"resume": True, "seed": 1}),
    (["--resume=True"], {"resume": True}),
    (["--resume", "false"], {}),
    (["--flips", "true"], {"flips": True}),
])  # fmt: skip
def test_resume_as_monais_command_spells_it(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], given: list[str], meant: dict[str, Any]
) -> None:
    refused(["train", "--dataset-dir", "data", "--output-dir", "run", *given], capsys)
    assert asked == {"dataset_dir": "data", "output_dir": "run", "ckpt_dir": "run", **meant}


def test_patterns_that_the_shell_has_left(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows' does, where brackets are only themselves."""
    others = ["b.jpg", "c.png", "[2026] clinic/a[1].jpg"]
    for name in ("a.jpg", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = ["*.jpg", "?.png", "[2026] clinic/a[1]*", "nothing*.jpg"]
    command = ["predict", *(f"{tmp_path}/{pattern}" for pattern in patterns), "--network_def", "$@x[0] * 2"]
    monkeypatch.setattr(sys, "argv", ["drive-seg", *command])
    monkeypatch.setattr("drive_seg.cli.os", SimpleNamespace(name="nt"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    expected = [str(tmp_path / name) for name in ("a.jpg", *others, "nothing*.jpg")]
    assert asked == {"files": expected, "network_def": "$@x[0] * 2"}


def test_a_path_that_the_encoding_of_a_log_file_lacks(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", log)
    succeeds(["predict", "eye.png", "--output-dir", "\u017bó\u0142w"])
    log.flush()
    assert log.buffer.getvalue().split() == [b"results:", b"\\u017b\xf3\\u0142w"]


def test_train_and_evaluate(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    succeeds(["train", "--dataset-dir", str(phantoms), "--output-dir", str(run), *small_overrides()])
    assert f"best weights: {run / 'model.pt'}\nhistory: {run / 'history.csv'}\n" in capsys.readouterr().out
    succeeds(
        ["evaluate", "--dataset_dir", str(phantoms), "--output-dir", str(tmp_path / "scores")]
        + ["--checkpoint", str(run / "model.pt"), *small_overrides()]
    )
    assert "01" in capsys.readouterr().out


def test_predict(phantoms: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = phantoms / "test" / "images" / "01_test.tif"
    bad = tmp_path / "notes.tif"
    bad.write_text("not an image")
    output = tmp_path / "masks"
    command = ["predict", str(good), *SMALL, "--checkpoint", str(weights), "--output-dir", str(output)]
    with pytest.raises(SystemExit) as stop:
        main([*command[:2], *SMALL, str(bad), *command[2 + len(SMALL) :]])
    assert stop.value.code == 1
    assert (output / "01_test_vessels.png").is_file(), "one bad photograph must not stop the others"
    (row,) = table(output / "failed.csv")
    assert row["photograph"] == str(bad) and row["reason"].startswith("is not an image")
    (row,) = table(output / "vessels.csv")
    assert (row["photograph"], row["width_px"], row["height_px"]) == (str(good), "141", "150")
    with Image.open(output / "01_test_vessels.png") as mask, Image.open(phantoms / "test/mask/01_test_mask.gif") as fov:
        vessels, inside = np.asarray(mask) > 0, np.asarray(fov) > 0
    assert 0.01 < vessels.sum() / inside.sum() < 0.5
    assert float(row["vessel_density_share"]) == pytest.approx(vessels.sum() / inside.sum(), rel=0.05)
    assert "quality" in row and not any(name.endswith("_mm") for name in row)

    for option, measured in ((["--pixel_spacing_mm", "0.02"], True), (["--measure", "false"], False)):
        succeeds([*command, *option])
        assert (output / "vessels.csv").is_file() is measured, "nothing of an earlier run stays"
        if measured:
            assert "skeleton_length_mm" in table(output / "vessels.csv")[0] and not (output / "failed.csv").exists()
    assert "pixel_spacing_mm: expected" in refused([*command, "--pixel_spacing_mm", "-1"], capsys)


def test_predict_with_masks_of_the_field_of_view(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = tmp_path / "eye.png"
    Image.fromarray(make_phantom(0, 150, 141).image).save(photograph)
    command = ["predict", str(photograph), *SMALL, "--checkpoint", str(weights), "--pictures", "['vessels','fov']"]
    found, given, masks = (tmp_path / name for name in ("found", "given", "masks"))
    succeeds([*command, "--output-dir", str(found)])
    mask = np.asarray(Image.open(found / "eye_fov.png")).copy()
    mask[75:] = 0
    masks.mkdir()
    Image.fromarray(mask).save(masks / "eye_mask.png")
    succeeds([*command, "--output-dir", str(given), "--fov-dir", str(masks)])
    assert np.array_equal(np.asarray(Image.open(given / "eye_fov.png")), mask)
    vessels = [np.asarray(Image.open(folder / "eye_vessels.png")) > 0 for folder in (found, given)]
    assert vessels[0][75:].any() and vessels[1][:75].any() and not vessels[1][75:].any()
    assert "nowhere" in refused([*command, "--fov-dir", str(tmp_path / "nowhere")], capsys)


def test_a_fold_is_trained_and_scored(phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "fold"
    common = ["--dataset-dir", str(phantoms), "--fold", "2/3", *small_overrides(), "--max_epochs", "1"]
    succeeds(["train", *common, "--output-dir", str(run)])
    succeeds(["evaluate", *common, "--output-dir", str(tmp_path / "scores"), "--checkpoint", str(run / "model.pt")])
    cases = [row["case_id"] for row in table(tmp_path / "scores" / "metrics.csv")]
    assert cases and all(int(case) > 20 for case in cases), "training cases only, never test cases"


def test_names_with_signs_that_mean_something_in_configs(
    phantoms: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantoms, "$da#ta@2")
    shutil.copy(weights, "@weights#1.pt")
    for command, output, name in (
        (["evaluate", "--dataset-dir", "$da#ta@2", "--threshold", "auto"], "%scores#1", "metrics.csv"),
        (["predict", "$da#ta@2/test/images", "--engine", "torch"], "$masks#1", "vessels.csv"),
    ):
        succeeds([*command, *SMALL, "--checkpoint", "@weights#1.pt", "--output-dir", output])
        assert (tmp_path / output / name).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"$da#ta@2", "@weights#1.pt", "%scores#1", "$masks#1"}
    summary = json.loads((tmp_path / "%scores#1" / "summary.json").read_text())
    assert summary["protocol"]["dataset_dir"] == "./$da#ta@2"


def test_an_evaluation_says_what_it_is_of(
    phantoms: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--checkpoint", str(weights), *SMALL, "--output-dir", str(tmp_path / "scores")]
    succeeds(["evaluate", "--dataset-dir", str(phantoms), "--section", "validation", "--threshold", "0.4", *common])
    said = capsys.readouterr()
    assert "over 1 cases (validation)" in " ".join(said.out.split()) and "threshold 0.4" in said.out
    assert "warning: cases that are not test cases" in said.err

    twice = ["evaluate", "--dataset-dir", str(phantoms), "--dataset-dir", str(phantoms), *common]
    assert "expected one folder, datasets are scored one at a time" in refused(twice, capsys)


@pytest.mark.parametrize(
    ("option", "region"), [([], "fov"), (["--region", "fov"], "fov"), (["--region=whole"], "whole")]
)
def test_evaluations_are_compared_in_a_region(
    scores: tuple[Path, Path], tmp_path: Path, option: list[str], region: str
) -> None:
    differences = tmp_path / "differences.csv"
    succeeds(["compare", *map(str, scores), *option, "--output", str(differences)])
    expected = {of: compare(*map(read_summary, scores), region=of)["cases"] for of in ("fov", "whole")}
    assert expected["fov"] != expected["whole"]
    rows = table(differences)
    assert len(rows) == 2
    for row, case in zip(rows, expected[region], strict=True):
        assert row["case_id"] == case["case_id"] and float(row["dice"]) == pytest.approx(case["dice"], abs=1e-5)


def test_a_region_that_there_is_not(scores: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["compare", *map(str, scores), "--region", "disc"], capsys)
    assert said == "drive-seg: region: expected fov or whole, got 'disc'"


@pytest.mark.slow
def test_interrupted_and_resumed(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dataset-dir", str(phantoms), "--output-dir", str(tmp_path)]
    command += [*small_overrides(), "--max_epochs=8", "--val_interval=4"]
    # What is started in a shell's background ignores Ctrl-C, and hands that down.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from drive_seg.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.PIPE, text=True)
    try:
        wait_for((tmp_path / "last.pt").exists, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, -signal.SIGINT), "which a shell calls 130, too"
    assert said.rstrip().endswith("drive-seg: stopped") and "Traceback" not in said
    before = (tmp_path / "history.csv").read_text()
    assert 1 <= before.count("\n") - 1 < 8

    assert "last.pt: belongs to an earlier training, resume it (--resume)" in refused(command, capsys)
    succeeds([*command, "--resume"])
    assert (tmp_path / "history.csv").read_text().startswith(before)
    assert [row["epoch"] for row in table(tmp_path / "history.csv")] == [str(epoch + 1) for epoch in range(8)]


@pytest.mark.slow
def test_the_commands_under_torchrun(phantoms: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    common = ["--dataset-dir", str(phantoms), *small_overrides(), "--output-dir"]
    weights = ["--checkpoint", str(tmp_path / "run" / "model.pt"), "--threshold=auto"]
    for command in (
        ["train", *common, str(tmp_path / "run"), "--batch_size", "2"],
        ["evaluate", *common, str(tmp_path / "two"), *weights],
    ):
        done = subprocess.run(
            [*torchrun, "drive_seg.cli", *command], capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert sum(done.stdout.count(words) for words in ("best weights:", "all figures:")) == 1, "one speaks for all"
    succeeds(["evaluate", *common, str(tmp_path / "one"), *weights])
    for name in ("metrics.csv", "threshold.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
