"""Small files, arrays and objects for several test files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from drive_seg.bootstrap import Bootstrap
from drive_seg.configs import bundle_root, config_files
from drive_seg.journal import read_journals
from drive_seg.networks import UNet
from drive_seg.phantom import make_phantom
from drive_seg.quality import QualityCheck
from drive_seg.scores import Scoring

RGB = tuple[int, int, int]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """PyTorch with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """PyTorch with one thread, as in the processes of a test's torchrun: on some CPUs it decides over the last bits."""
    return threads(1)


def save_palette(path: Path, indices: np.ndarray, palette: Mapping[int, RGB]) -> Path:
    """Save the indices (H, W) as a palette image in the format of the path's suffix."""
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for index in range(256) for value in palette.get(index, (0, 0, 0))])
    picture.save(path)
    return path


@cache
def _tiny(suffix: str, mode: str) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (7, 5), 1).save(content, format={"tif": "TIFF", "gif": "GIF"}[suffix])
    return content.getvalue()


def write_drive_layout(
    root: Path,
    training: Iterable[int] = range(21, 41),
    test: Iterable[int] = range(1, 21),
    annotated_test: bool = True,
    second_observer: bool = True,
    masks: bool = True,
) -> Path:
    """Write DRIVE's files with tiny pictures; as in DRIVE, only test cases have a second observer."""
    for section, numbers in (("training", training), ("test", test)):
        annotated = section == "training" or annotated_test
        folders = {
            "images": f"_{section}.tif",
            "1st_manual": "_manual1.gif" if annotated else "",
            "2nd_manual": "_manual2.gif" if section == "test" and annotated and second_observer else "",
            "mask": f"_{section}_mask.gif" if masks else "",
        }
        for folder, ending in folders.items():
            if not ending:
                continue
            (root / section / folder).mkdir(parents=True, exist_ok=True)
            content = _tiny("tif", "RGB") if folder == "images" else _tiny("gif", "P")
            for number in numbers:
                (root / section / folder / f"{number:02d}{ending}").write_bytes(content)
    return root


def tensor(array: np.ndarray | list, file: str | Path | None = None) -> MetaTensor:
    """An array (C, H, W) as the loading transforms return it, with the name of its file."""
    return MetaTensor(torch.as_tensor(np.asarray(array)), meta={"filename_or_obj": str(file)} if file else {})


def disc(height: int, width: int, row: float, column: float, radius: float) -> np.ndarray:
    """The pixels closer to a point than the radius, (H, W), bool."""
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks of one shape, bool."""
    return float((first & second).sum() / (first | second).sum())


def fundus(height: int = 120, width: int = 180, row: int = 58, column: int = 84, radius: int = 50) -> np.ndarray:
    """A lit disc with a dark L, so that all rotations and mirror images differ, (H, W, 3), uint8."""
    picture = np.where(disc(height, width, row, column, radius)[..., None], np.array([200, 120, 60]), 0)
    figure = np.zeros((height, width), dtype=bool)
    figure[row - 30 : row + 10, column - 20 : column - 14] = True
    figure[row + 4 : row + 10, column - 20 : column + 20] = True
    picture[figure] = (110, 40, 20)
    return picture.astype(np.uint8)


def shipped_scoring(**changes: Any) -> Scoring:
    """A ``Scoring`` with the bundle's values."""
    return Scoring(**{**_arguments("evaluate", "scoring"), "num_classes": 2, "class_names": None, **changes})


def shipped_bootstrap(**changes: Any) -> Bootstrap:
    """A ``Bootstrap`` with the bundle's values."""
    return Bootstrap(**{**_arguments("evaluate", "bootstrap"), **changes})


def _arguments(config: str, key: str) -> dict[str, Any]:
    (file,) = config_files(bundle_root(), config)
    part = json.loads(Path(file).read_text())[key]
    return {name: value for name, value in part.items() if not name.startswith("_")}


def shipped_quality_check() -> QualityCheck:
    """A ``QualityCheck`` with the bundle's limits."""
    (file,) = config_files(bundle_root(), "inference")
    steps = json.loads(Path(file).read_text())["postprocessing"]["transforms"]
    (limits,) = (step["quality"] for step in steps if "quality" in step)
    return QualityCheck(**{name: limit for name, limit in limits.items() if not name.startswith("_")})


def touch(*paths: Path) -> None:
    """Make empty files and their folders."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """The case ids, in the order of the cases."""
    return [case["case_id"] for case in cases]


def names(folder: Path) -> list[str]:
    """The sorted names of a folder's contents."""
    return sorted(path.name for path in folder.iterdir())


def small(seed: int = 0, **arguments: Any) -> UNet:
    """A small network whose weights are determined by the seed."""
    torch.manual_seed(seed)
    return UNet(**{"base_channels": 2, "depth": 1, **arguments})


def finding_some(network: UNet) -> UNet:
    """The network for evaluation, shifted so that it finds some vessels: a new one finds none, or nothing else."""
    image = torch.as_tensor(make_phantom(0, 150, 141).image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = network.eval()((image - image.mean()) / image.std()).flatten(2)
        shown = (logits[:, 1:] - logits[:, :1]).amax(dim=1)
        layer = network.output.conv
        layer.weight.mul_(1 / shown.std())
        layer.bias.mul_(1 / shown.std())
        layer.bias[1:] -= shown.quantile(0.9) / shown.std()
    return network


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks of the same kind have equal parameters and buffers."""
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def evaluator_with(best: float = -1.0, best_epoch: int = -1, epoch: int = 0) -> Engine:
    """An evaluator at a given epoch, with its best metric so far and the epoch of that."""
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.best_metric = best
    evaluator.state.best_metric_epoch = best_epoch
    evaluator.state.epoch = epoch
    return evaluator


def evaluator_after(metric: float, epoch: int) -> Engine:
    """An evaluator whose last validation, of this epoch, is its best."""
    evaluator = evaluator_with(metric, epoch, epoch)
    evaluator.state.metrics = {"val_dice": metric}
    evaluator.state.key_metric_name = "val_dice"
    return evaluator


def engine_without_work(losses: list[float]) -> Engine:
    """An engine whose iterations have these losses."""
    values = iter(losses)
    return Engine(lambda engine, batch: {"loss": torch.tensor(next(values))})


def optimizer(rate: float = 0.25) -> torch.optim.SGD:
    """An optimizer of a single weight."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


KINDS = ("vessels.png", "probability.png", "overlay.jpg", "thumbnail.jpg")
"""What the names of a photograph's results end in by default."""


def results(folder: Path) -> dict[str, bytes]:
    """The pictures that photographs were segmented into, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def times(folder: Path) -> dict[str, int]:
    """When these pictures were written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def outcomes(folder: Path) -> list[str]:
    """Case ids of the journals' entries about what came of a photograph."""
    return [entry["case_id"] for entry in read_journals(folder, "progress_*.jsonl") if "begun" not in entry]


def listed(folder: Path, table: str = "vessels.csv") -> list[str]:
    """Names of the photographs in a table of the folder."""
    with (folder / table).open(encoding="utf-8", newline="") as file:
        return [Path(row["photograph"]).name for row in csv.DictReader(file)]


def another(folder: Path, number: int, name: str = "0.png") -> Path:
    """A phantom of a name that there is already, in another folder."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(make_phantom(number, 150, 141).image).save(folder / name)
    return folder / name


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Wait until a process has made something true; fails if it ends before or takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it was over before"
        assert time.monotonic() < until, f"nothing came in {seconds} s"
        time.sleep(0.02)


def predict_command(folder: Path, out: Path, settings: dict[str, object]) -> list[str]:
    """Python's arguments that segment a folder on the command line."""
    overrides = [f"--{key}={value}" for key, value in settings.items()]
    return ["-m", "drive_seg.cli", "predict", str(folder), "--output-dir", str(out), *overrides]
