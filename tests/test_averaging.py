"""Means of the weights of a training's steps, and of several trainings with batch norm's statistics taken anew."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import small
from ignite.engine import Engine, Events
from running import overrides, run_bundle, same_content, small_overrides, train

from drive_seg.averaging import AverageEveryStep, MovingAverage, average_weights
from drive_seg.checkpoints import load_checkpoint, load_weights, save_checkpoint
from drive_seg.errors import DriveSegError
from drive_seg.learnt_cases import learnt_cases, write_learnt_cases

tiny = partial(small, base_channels=4, depth=3)


class Course:
    """A network whose one weight and statistics become given values, step by step, and their average."""

    def __init__(self, decay: float) -> None:
        self.network = torch.nn.BatchNorm1d(1)
        self.average = MovingAverage(self.network, decay)
        self.engine = Engine(self.step)
        AverageEveryStep(self.average).attach(self.engine)

    def step(self, engine: Engine, value: float) -> None:
        for tensor in (self.network.weight.data, self.network.running_mean):
            tensor.fill_(value)
        self.network.num_batches_tracked += 1

    def run(self, values: list[float]) -> list[float]:
        self.engine.run(values, max_epochs=1)
        averaged = self.average.network
        assert averaged is not self.network and self.network.weight.item() == values[-1]
        assert averaged.num_batches_tracked == self.network.num_batches_tracked, "counted, not averaged"
        return [averaged.weight.item(), averaged.running_mean.item()]


@pytest.mark.parametrize(("decay", "expected"), [
    (0.95, (1.0 * 2 / 11 + 2.0 * 9 / 11) * 3 / 12 + 6.0 * 9 / 12),  # of the steps so far rather than of the first
    (0.1, (1.0 * 0.1 + 2.0 * 0.9) * 0.1 + 6.0 * 0.9),
    (0, 6.0),
])  # fmt: skip
def test_the_average_of_a_trainings_steps(decay: float, expected: float) -> None:
    course = Course(decay)
    assert course.run([1.0, 2.0, 6.0]) == pytest.approx([expected] * 2)
    assert course.run([5.0]) == [5.0, 5.0], "another training has nothing of the one before"


def test_what_stays_of_the_average_grows_to_the_decay() -> None:
    course = Course(0.95)
    for steps, stays in ((9, 10 / 19), (400, 0.95)):
        course.run([0.0] * steps)
        course.network.weight.data.fill_(1.0)
        course.average.update()
        assert course.average.network.weight.item() == pytest.approx(1 - stays)


def test_an_average_that_is_gone_on_with_is_the_same() -> None:
    whole = Course(0.5).run([1.0, 2.0, 6.0, 7.0])
    first, second = Course(0.5), Course(0.5)
    first.run([1.0, 2.0])
    state = first.average.state_dict()
    second.engine.add_event_handler(Events.STARTED, lambda engine: second.average.load_state_dict(state))
    assert second.run([6.0, 7.0]) == whole


def test_iterations_whose_gradients_are_summed_up_are_one_step() -> None:
    """Of 5 iterations in groups of 2 the second, the fourth and the last."""
    course, each = Course(0.95), Course(0.95)
    course.engine.accumulation_steps = 2
    assert course.run([1.0, 1.0, 2.0, 2.0, 6.0]) != each.run([1.0, 1.0, 2.0, 2.0, 6.0])
    assert course.run([1.0, 1.0, 2.0, 2.0, 6.0]) == each.run([1.0, 2.0, 6.0])


@pytest.mark.parametrize("decay", [-0.1, 1, 2.0])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(DriveSegError, match=f"decay: expected 0 or more and less than 1, got {decay}"):
        MovingAverage(torch.nn.Linear(1, 1), decay)


def test_the_average_is_validated_and_saved(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """Of a training whose weights move a lot, the last validation sees the average; without one, the weights."""
    scores = {}
    for decay in (0.95, 0.0):
        folder = tmp_path / f"{decay}"
        train(bundle, overrides(phantoms, folder, max_epochs=10, val_interval=10, **{"moving_average#decay": decay}))
        state, best = load_checkpoint(folder / "last.pt"), load_checkpoint(folder / "model.pt")
        assert same_content(best, state["moving_average"]["network"])
        assert same_content(best, state["network"]) == (decay == 0)
        scores[decay] = state["progress"]["best_metric"]
    assert scores[0.95] != scores[0.0]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_checkpoint(tiny(seed).state_dict(), path)
    return paths


def test_every_parameter_is_the_mean(files: list[Path], tmp_path: Path) -> None:
    average_weights(tiny(9), files, [torch.randn(2, 3, 32, 32)], tmp_path / "out" / "model.pt")
    mean = load_checkpoint(tmp_path / "out" / "model.pt")
    for name, _ in tiny(9).named_parameters():
        each = torch.stack([load_checkpoint(path)[name] for path in files])
        torch.testing.assert_close(mean[name], each.mean(dim=0))


def test_the_mean_has_learnt_what_each_has(files: list[Path], tmp_path: Path) -> None:
    images = [torch.randn(1, 3, 32, 32)]
    for number, path in enumerate(files):
        write_learnt_cases(path, {"training": [f"{number}.png, 3 bytes"], "validation": ["v.png, 3 bytes"]})
    average_weights(tiny(9), files, images, tmp_path / "all" / "model.pt")
    expected = {f"{number}.png, 3 bytes" for number in range(len(files))}
    assert learnt_cases([tmp_path / "all" / "model.pt"]) == {"training": expected, "validation": {"v.png, 3 bytes"}}
    files[1].with_suffix(".json").unlink()
    write_learnt_cases(tmp_path / "unknown" / "model.pt", {"training": ["of others"], "validation": []})
    average_weights(tiny(9), files, images, tmp_path / "unknown" / "model.pt")
    assert learnt_cases([tmp_path / "unknown" / "model.pt"]) is None


def test_statistics_of_batch_norm_are_those_of_the_images(files: list[Path], tmp_path: Path) -> None:
    """In training mode the network normalises by the batch; with statistics of that one batch it does so, too."""
    images = torch.randn(4, 3, 64, 64) * 3 + 1
    average_weights(tiny(9), files, [images], tmp_path / "model.pt")
    network = load_weights(tiny(9), tmp_path / "model.pt")
    with torch.inference_mode():
        by_batch, by_statistics = network.train()(images), load_weights(tiny(9), tmp_path / "model.pt").eval()(images)
    assert (by_batch - by_statistics).abs().max() < 0.2 * by_batch.std()
    seen = load_checkpoint(tmp_path / "model.pt")
    first = next(name for name in seen if name.endswith("running_mean"))
    assert not torch.allclose(seen[first], torch.zeros_like(seen[first]), atol=1e-3)


def test_what_cannot_be_averaged(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [torch.randn(1, 3, 32, 32)]
    with pytest.raises(DriveSegError, match="weights: expected two or more files"):
        average_weights(tiny(9), files[:1], images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="weights: expected two or more files"):
        average_weights(tiny(9), str(files[0]), images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="do not fit the network"):
        average_weights(small(base_channels=8, depth=3), files, images, tmp_path / "model.pt")
    with pytest.raises(DriveSegError, match="is there already"):
        average_weights(tiny(9), files, images, files[0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DriveSegError, match="averaging: expected one process"):
        average_weights(tiny(9), files, images, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_the_bundle_averages(bundle: Path, phantoms: Path, files: list[Path], tmp_path: Path) -> None:
    run_bundle(
        "averaging", bundle, ["train", "any_camera", "average"], "--dataset_dir", str(phantoms),
        "--ckpt_dir", str(tmp_path / "mean"), "--output_dir", str(tmp_path / "mean"), "--zooms", "[1.0]",
        "--weights", json.dumps([str(path) for path in files[:2]]),
        *small_overrides(),
    )  # fmt: skip
    mean = load_checkpoint(tmp_path / "mean" / "model.pt")
    pair = [load_checkpoint(path)["output.conv.weight"] for path in files[:2]]
    torch.testing.assert_close(mean["output.conv.weight"], (pair[0] + pair[1]) / 2)
