"""Training states that are resumed, locked and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import evaluator_with, names, small
from filelock import FileLock
from ignite.engine import Engine, Events
from running import another_in_the_second_process

from drive_seg import __version__, training_state
from drive_seg.checkpoints import load_checkpoint, save_checkpoint
from drive_seg.errors import CommonError, DriveSegError
from drive_seg.history import History
from drive_seg.learnt_cases import learnt_cases, write_learnt_cases
from drive_seg.training_state import TrainingState, restarted


class Training:
    """A network whose output bias counts the steps, with momentum, and its state on disk."""

    def __init__(self, path: Path, epochs: int = 4, fail_at: int | None = None, **arguments: Any) -> None:
        self.network = small()
        self.optimizer = torch.optim.SGD([self.network.output.conv.bias], lr=1.0, momentum=0.5)
        self.evaluator = evaluator_with()
        self.epochs = epochs
        self.fail_at = fail_at
        self.engine = Engine(self.step)
        parts = {"network": self.network, "optimizer": self.optimizer, "left_out": None}
        self.state = TrainingState(str(path), parts, self.evaluator, **arguments)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        self.state.attach(self.engine)

    def step(self, engine: Engine, batch: int) -> None:
        if engine.state.iteration == self.fail_at:
            raise ZeroDivisionError
        self.optimizer.zero_grad()
        (-self.network.output.conv.bias).sum().backward()
        self.optimizer.step()

    def validate(self, engine: Engine) -> None:
        self.evaluator.state.best_metric = 0.25 * engine.state.epoch
        self.evaluator.state.best_metric_epoch = engine.state.epoch

    def run(self) -> Training:
        self.engine.run([0, 1], max_epochs=self.epochs)
        return self

    @property
    def bias(self) -> float:
        return self.network.output.conv.bias[0].item()


def test_a_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole" / "last.pt").run()
    path = tmp_path / "parts" / "last.pt"
    with pytest.raises(ZeroDivisionError):
        Training(path, fail_at=6).run()  # in the third epoch of two iterations
    assert load_checkpoint(path)["progress"] == {
        "epoch": 2,
        "iteration": 4,
        "best_metric": 0.5,
        "best_metric_epoch": 2,
    }
    resumed = Training(path, resume=True)
    first: list[tuple[int, int, float, int]] = []
    resumed.engine.add_event_handler(
        Events.EPOCH_STARTED(once=1) | Events.EPOCH_STARTED(once=3),
        lambda engine: first.append((
            engine.state.epoch, engine.state.iteration,
            resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch,
        )),
    )  # fmt: skip
    resumed.run()
    assert first == [(3, 4, 0.5, 2)]
    assert resumed.bias == whole.bias
    assert resumed.engine.state.iteration == whole.engine.state.iteration == 8


def test_resuming_where_there_is_nothing_starts_from_the_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resumed = Training(tmp_path / "last.pt", resume=True).run()
    assert "nothing to resume from yet" in caplog.text
    assert resumed.engine.state.iteration == 8 and (tmp_path / "last.pt").is_file()


def test_an_earlier_training_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    Training(path, epochs=1).run()
    before = path.read_bytes()
    second = Training(path)
    with pytest.raises(DriveSegError, match=r"last\.pt: belongs to an earlier training, resume it \(--resume\)"):
        second.run()
    assert path.read_bytes() == before and second.bias == small().output.conv.bias[0]
    Training(path, resume=True).run()


def test_another_process_loads_but_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    Training(path, epochs=2).run()
    before = path.read_bytes()
    with FileLock(tmp_path / ".last.pt.lock"):
        reader = Training(path, resume=True, writes=False)
        reader.run()
    assert reader.engine.state.iteration == 8 and path.read_bytes() == before
    Training(tmp_path / "none" / "last.pt", writes=False).run()
    assert not (tmp_path / "none").exists()


def test_the_folder_is_locked_while_a_training_runs(tmp_path: Path) -> None:
    training = Training(tmp_path / "last.pt", epochs=1)
    tried: list[str] = []

    def try_another(engine: Engine) -> None:
        with pytest.raises(DriveSegError) as raised:
            Training(tmp_path / "last.pt").run()
        tried.append(str(raised.value))

    training.engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), try_another)
    training.run()
    assert len(tried) == 1 and tried[0].startswith(f"{tmp_path}: another run is writing into this folder")
    FileLock(tmp_path / ".last.pt.lock").acquire(blocking=False)


@pytest.mark.parametrize("fail_at", [1, 3])
def test_a_training_that_fails_frees_the_folder(tmp_path: Path, fail_at: int) -> None:
    failed = Training(tmp_path / "last.pt", fail_at=fail_at)
    with pytest.raises(ZeroDivisionError):
        failed.run()
    assert Training(tmp_path / "last.pt", resume=True).run().engine.state.iteration == 8


def test_a_trainer_that_is_run_for_more_epochs_goes_on_as_it_is(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole" / "last.pt").run()
    rounds = Training(tmp_path / "rounds" / "last.pt", epochs=2).run()
    rounds.network.output.conv.bias.data += 0.5  # what a federation has made of the weights is not undone
    rounds.epochs = 4
    rounds.run()
    assert rounds.bias == pytest.approx(whole.bias + 0.5)
    assert load_checkpoint(tmp_path / "rounds" / "last.pt")["progress"]["epoch"] == 4
    FileLock(tmp_path / "rounds" / ".last.pt.lock").acquire(blocking=False)


def test_a_training_that_is_refused_frees_the_folder(tmp_path: Path) -> None:
    Training(tmp_path / "last.pt", epochs=1).run()
    refused = Training(tmp_path / "last.pt")
    with pytest.raises(DriveSegError):
        refused.run()
    FileLock(tmp_path / ".last.pt.lock").acquire(blocking=False)


def test_processes_that_would_train_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_in_the_second_process("validation_cases", monkeypatch)
    with pytest.raises(
        CommonError, match=r"^validation_cases: expected the same in all processes, got \['21'\] in proc"
    ):
        Training(tmp_path / "last.pt", settings={"seed": 0, "validation_cases": ["21"]}).run()
    Training(tmp_path / "last.pt", settings={"seed": 0}).run()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DriveSegError, match="file: cannot be written to \\("):
        Training(tmp_path / "file" / "last.pt").run()


@pytest.mark.parametrize("spoil", [
    lambda content: content.pop("optimizer"),
    lambda content: content.pop("progress"),
    lambda content: content["progress"].pop("epoch"),
    lambda content: content.update(progress=3),
    lambda content: content.update(network=small(base_channels=4).state_dict()),
    lambda content: content["optimizer"].update(param_groups=[]),
], ids=["optimizer", "progress", "epoch", "number", "network", "groups"])  # fmt: skip
def test_a_state_of_other_settings_is_refused(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "last.pt"
    Training(path, epochs=1).run()
    content = load_checkpoint(path)
    spoil(content)
    save_checkpoint(content, path)
    with pytest.raises(DriveSegError, match=r"last\.pt: cannot be resumed from, it is not the state of a training"):
        Training(path, resume=True).run()


SETTINGS = {"max_epochs": 4, "learning_rate": 1.0, "training_cases": ["21", "22"]}


@pytest.mark.parametrize(("name", "value", "told"), [
    ("max_epochs", 8, "max_epochs: expected 4, with which the training was begun, got 8"),
    ("learning_rate", 0.5, "learning_rate: expected 1.0, .* got 0.5"),
    ("training_cases", [str(case) for case in range(1000)], r"training_cases: expected \['21', '22'\], .* got .* …;"),
])  # fmt: skip
def test_a_training_is_resumed_as_it_was_begun(tmp_path: Path, name: str, value: Any, told: str) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(ZeroDivisionError):
        Training(path, fail_at=6, settings=SETTINGS).run()
    before = path.read_bytes()
    with pytest.raises(DriveSegError, match=told) as raised:
        Training(path, resume=True, settings={**SETTINGS, name: value}).run()
    assert len(str(raised.value).removeprefix(str(path))) < 300 and path.read_bytes() == before
    assert Training(path, resume=True, settings=SETTINGS).run().engine.state.iteration == 8


def test_a_training_from_before_a_setting_was_kept_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    Training(path, epochs=1).run()
    assert Training(path, resume=True, settings=SETTINGS).run().engine.state.iteration == 8


@pytest.mark.parametrize(("version", "told"), [
    ("0.0.9", f"; the state was written by drive-seg 0.0.9, this is {__version__}"),
    (None, f"; the state was written by drive-seg of another version, this is {__version__}"),
    (__version__, ""),
])  # fmt: skip
def test_a_refused_state_of_another_version_says_so(tmp_path: Path, version: str | None, told: str) -> None:
    path = tmp_path / "last.pt"
    settings = {"loss": "DiceCELoss(lambda_dice=1.0)"}
    Training(path, epochs=1, settings=settings).run()
    content = {**load_checkpoint(path), "version": version}
    if version is None:
        del content["version"]
    save_checkpoint(content, path)
    lacking = Training(path, resume=True, settings=settings)
    lacking.state.parts["history"] = History(str(tmp_path / "history.csv"))
    with pytest.raises(DriveSegError) as raised:
        lacking.run()
    assert str(raised.value).endswith(f"it is not the state of a training with these settings ('history'){told}")
    with pytest.raises(DriveSegError) as raised:
        Training(path, resume=True, settings={"loss": "DiceCELoss(include_background=True)"}).run()
    assert str(raised.value).endswith(f"(--pretrained starts it from these weights){told}")
    resumed = Training(path, resume=True, settings=settings).run()
    assert resumed.engine.state.iteration == 8, "another version alone is no reason"
    assert load_checkpoint(path)["version"] == __version__


def test_the_folder_of_the_other_files_is_locked_too(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    first = Training(tmp_path / "a" / "last.pt", epochs=1, output_dir=str(logs))
    tried: list[str] = []

    def try_another(engine: Engine) -> None:
        with pytest.raises(DriveSegError) as raised:
            Training(tmp_path / "b" / "last.pt", output_dir=str(logs)).run()
        tried.append(str(raised.value))
        FileLock(tmp_path / "b" / ".last.pt.lock").acquire(blocking=False)

    first.engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), try_another)
    first.run()
    assert len(tried) == 1 and tried[0].startswith(f"{logs}: another run is writing into this folder")
    FileLock(logs / ".last.pt.lock").acquire(blocking=False)


def test_one_folder_under_two_names_is_locked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Training(tmp_path / "run" / "last.pt", epochs=1, output_dir="run/../run").run()
    assert (tmp_path / "run" / "last.pt").is_file()


def test_leftovers_of_a_killed_training_go_and_nothing_else_does(tmp_path: Path) -> None:
    gone = [".last.0a1b2c3d.pt", ".model.00000000.pt", ".history.ffffffff.csv", ".curves.12345678.png"]
    stay = ["last_0a1b2c3d.pt", ".other.0a1b2c3d.pt", ".last.best.pt", "notes.txt"]
    for name in (*gone, *stay):
        (tmp_path / name).touch()
    Training(tmp_path / "last.pt", epochs=1).run()
    assert names(tmp_path) == sorted([*stay, ".last.pt.lock", "last.pt"])


def test_weights_from_before_are_kept_under_another_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = tmp_path / "model.pt"
    save_checkpoint(small(seed=5).state_dict(), best)
    write_learnt_cases(best, {"training": ["0123456789abcdef"], "validation": []})
    earlier = best.read_bytes()
    with pytest.raises(ZeroDivisionError):
        Training(tmp_path / "last.pt", fail_at=6, best=str(best)).run()
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.read_bytes() == earlier and f"kept as {kept.name}" in caplog.text
    best.write_bytes(b"what the training found")
    Training(tmp_path / "last.pt", resume=True, best=str(best)).run()
    its_cases = kept.with_suffix(".json").name
    expected = [".last.pt.lock", "last.pt", "model.json", "model.pt", kept.name, its_cases]
    assert names(tmp_path) == sorted(expected), "its own is not kept"
    assert learnt_cases([kept]) == {"training": {"0123456789abcdef"}, "validation": set()}


def test_the_list_of_earlier_weights_is_kept_before_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = tmp_path / "model.pt"
    save_checkpoint(small(seed=5).state_dict(), best)
    write_learnt_cases(best, {"training": ["0123456789abcdef"], "validation": []})
    copied: list[str] = []

    def copy_or_be_killed(source: Path, copy: Path) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append(source.suffix)
        copy.write_bytes(source.read_bytes())

    monkeypatch.setattr("drive_seg.files.shutil.copyfile", copy_or_be_killed)
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path / "last.pt", best=str(best)).run()
    assert copied == [".json"]
    monkeypatch.undo()
    Training(tmp_path / "last.pt", best=str(best)).run()
    (kept,) = tmp_path.glob("model_*.pt")
    assert learnt_cases([kept]) == {"training": {"0123456789abcdef"}, "validation": set()}


def test_what_a_training_starts_from_is_saved_before_it_is_replaced(tmp_path: Path) -> None:
    best, path = tmp_path / "model.pt", tmp_path / "last.pt"
    save_checkpoint(small(seed=5).state_dict(), best)
    with pytest.raises(ZeroDivisionError):
        Training(path, fail_at=1, best=str(best)).run()
    begun = load_checkpoint(path)
    assert begun["progress"]["epoch"] == 0 and begun["progress"]["best_metric_epoch"] == -1
    assert Training(path, resume=True, best=str(best)).run().bias == Training(tmp_path / "whole" / "last.pt").run().bias


def test_a_training_that_did_not_finish_an_epoch_may_begin_anew(tmp_path: Path) -> None:
    best, path = tmp_path / "model.pt", tmp_path / "last.pt"
    save_checkpoint(small(seed=5).state_dict(), best)
    for settings in ({"batch_size": 64}, {"batch_size": 2}):
        with pytest.raises(ZeroDivisionError):
            Training(path, fail_at=1, best=str(best), settings=settings).run()
    assert load_checkpoint(path)["settings"] == {"batch_size": 2}
    Training(path, epochs=1, resume=True, best=str(best)).run()
    with pytest.raises(DriveSegError, match="belongs to an earlier training"):
        Training(path, best=str(best)).run()


def test_torchrun_goes_on_with_a_training_of_its_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not restarted(path), "killed before the first state"
    with pytest.raises(ZeroDivisionError):
        Training(path, fail_at=6).run()
    assert restarted(path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not restarted(path), "the first start is asked to by nobody"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not restarted(path), "of an earlier run"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert not restarted(path), "without torchrun"


@pytest.mark.parametrize(("of_the_others", "answer"), [
    ([(True, True), (False, False)], True),
    ([(False, True), (True, False)], True),
    ([(True, False), (True, True)], False),
    ([(False, True), (False, True)], False),
], ids=["not told", "the first is not told", "only another has a state", "a first start"])  # fmt: skip
def test_all_processes_agree_whether_they_were_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_others: list[tuple[bool, bool]], answer: bool
) -> None:
    """torchrun counts the restarts of each machine, and that of another one's failure is none."""
    monkeypatch.setattr(training_state, "gather", lambda mine: of_the_others)
    assert restarted(tmp_path / "last.pt") is answer


@pytest.mark.parametrize(("epochs", "told"), [([2, None], "2, none"), ([2, 1], "2, 1")])
def test_a_state_that_not_all_processes_find_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: list[int | None], told: str
) -> None:
    Training(tmp_path / "last.pt", epochs=2).run()
    monkeypatch.setattr(training_state, "gather", lambda mine: [mine, *epochs[1:]])
    with pytest.raises(DriveSegError, match=rf"last\.pt: expected one folder for all processes, .*\({told}\)"):
        Training(tmp_path / "last.pt", resume=True).run()
