from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from builders import finding_some, small, threads
from PIL import Image

import drive_seg
from drive_seg.configs import config_files
from drive_seg.errors import DriveSegError
from drive_seg.measure_table import rounded
from drive_seg.measures import measure_vessels
from drive_seg.phantom import make_phantom
from drive_seg.segmenter import Segmenter

SMALL = {"base_channels": 4, "depth": 3, "fov_diameter": 128, "precision": "float32", "engine": "torch"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(finding_some(small(base_channels=4, depth=3)).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def segment(weights: Path) -> Segmenter:
    return drive_seg.load(weights, **SMALL)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "eye.png"
    Image.fromarray(make_phantom(0, 150, 141).image).save(path)
    return path


@pytest.mark.parametrize("diameter", [128, 230])
def test_an_array_gives_what_its_file_gives(weights: Path, photograph: Path, diameter: int) -> None:
    segment = drive_seg.load(weights, **{**SMALL, "fov_diameter": diameter})
    from_file = segment(photograph)
    from_array = segment(np.asarray(Image.open(photograph)))
    for name in ("mask", "probability", "fov"):
        assert np.array_equal(getattr(from_file, name), getattr(from_array, name)), name
    assert from_file.mask.shape == (150, 141) and from_file.mask.dtype == np.uint8
    assert from_file.probability.dtype == np.float32 and from_file.probability.min() >= 0
    assert from_file.probability.max() <= 1 and from_file.fov.dtype == bool
    assert np.array_equal(from_file.mask > 0, (from_file.probability >= 0.5) & from_file.fov)
    assert 0 < from_file.mask[from_file.fov].astype(bool).mean() < 1
    assert np.array_equal(from_file.class_probabilities, from_file.probability[None])
    assert from_file.measures is None


def test_several_classes(tmp_path: Path, photograph: Path) -> None:
    torch.save(finding_some(small(base_channels=4, depth=3, num_classes=3)).state_dict(), tmp_path / "model.pt")
    names = ["artery", "vein"]
    result = drive_seg.load(tmp_path / "model.pt", num_classes=3, class_names=names, measure=True, **SMALL)(photograph)
    assert result.class_probabilities.shape == (2, 150, 141) and result.class_probabilities.dtype == np.float32
    np.testing.assert_allclose(result.class_probabilities.sum(axis=0), result.probability, atol=1e-6)
    vessels = result.mask > 0
    assert np.array_equal(result.mask[vessels], result.class_probabilities.argmax(axis=0)[vessels] + 1)
    assert result.measures is not None
    for value, name in enumerate(names, 1):
        share = result.measures[f"vessel_density_share_{name}"]
        assert share == pytest.approx((result.mask == value).sum() / result.fov.sum())
    with pytest.raises(DriveSegError, match="class_names: expected 2 different names"):
        drive_seg.load(tmp_path / "model.pt", num_classes=3, class_names=["artery"], measure=True, **SMALL)


def test_measures_on_request(weights: Path, photograph: Path) -> None:
    found = drive_seg.load(weights, **SMALL, measure=True, camera_angle=45)(photograph)
    assert found.measures is not None
    expected = rounded(measure_vessels(found.mask, found.fov, found.measures["pixel_spacing_mm"]))
    assert expected.items() <= rounded(found.measures).items()
    assert found.measures["quality"].startswith("too small")


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
def test_a_device_by_its_name(weights: Path, photograph: Path, tmp_path: Path, device: str) -> None:
    here = drive_seg.load(weights, **SMALL)(photograph)
    settings = {**SMALL, "engine": "auto", "measure": True, "save": True, "output_dir": str(tmp_path / "out")}
    there = drive_seg.load(weights, device=device, **settings)(photograph)
    np.testing.assert_allclose(there.probability, here.probability, atol=2e-3)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_pictures_of_an_array_have_no_name(weights: Path, photograph: Path, tmp_path: Path) -> None:
    segment = drive_seg.load(weights, save=True, output_dir=str(tmp_path / "out"), **SMALL)
    with pytest.raises(DriveSegError, match="save: expected a photograph from a file"):
        segment(np.asarray(Image.open(photograph)))


def test_nothing_is_written(
    segment: Segmenter, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    segment(photograph)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_given_field_of_view_counts(segment: Segmenter, photograph: Path, tmp_path: Path) -> None:
    left = np.zeros((150, 141), dtype=np.uint8)
    left[:, :70] = 255
    Image.fromarray(left).save(tmp_path / "fov.png")
    from_file = segment(photograph, tmp_path / "fov.png")
    from_array = segment(np.asarray(Image.open(photograph)), left)
    assert np.array_equal(from_file.fov, left > 0)
    assert not from_file.mask[:, 70:].any()
    assert np.array_equal(from_file.probability, from_array.probability)
    for mask in (np.where(left > 0, -1, 0).astype(np.int8), np.where(left > 0, 0.1, np.nan)):
        assert np.array_equal(segment(np.asarray(Image.open(photograph)), mask).fov, left > 0)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((3, 20, 20), dtype=np.uint8), r"image: expected an array \(H, W, 3\), uint8, got one of shape"),
        (np.zeros((20, 20), dtype=np.uint8), "image: expected an array"),
        (np.zeros((20, 20, 3), dtype=np.float32), "uint8, got float32"),
        (np.zeros((60, 60, 3), dtype=np.uint8), "image: no field of view found: the photograph is dark"),
    ],
)
def test_an_array_that_does_not_fit(segment: Segmenter, array: np.ndarray, complaint: str) -> None:
    with pytest.raises(DriveSegError, match=complaint):
        segment(array)


@pytest.mark.parametrize("photograph", [None, b"eye.png", torch.zeros(3, 20, 20)], ids=["nothing", "bytes", "tensor"])
def test_what_is_no_photograph(segment: Segmenter, photograph: Any) -> None:
    with pytest.raises(DriveSegError, match="image: expected a path or an array, got "):
        segment(photograph)


def test_load_refuses_what_it_does_not_know(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DriveSegError, match="flips"):
        drive_seg.load(weights, flip=True)
    with pytest.raises(DriveSegError, match=r"absent\.pt"):
        drive_seg.load(tmp_path / "absent.pt")
    with pytest.raises(DriveSegError, match=r"^threshold: expected a probability from 0 to 1, got 2$"):
        drive_seg.load(weights, **SMALL, threshold=2)
    with pytest.raises(DriveSegError, match="checkpoint: expected one file, got"):
        drive_seg.load([weights, weights])  # type: ignore[arg-type]


def test_each_in_order_with_errors_in_their_place(segment: Segmenter, tmp_path: Path) -> None:
    cases = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.fromarray(make_phantom(number, 150, 141).image).save(path)
        if number in (0, 3, 6):
            path.write_bytes(path.read_bytes()[:200])
        cases.append({"case_id": str(number), "image": str(path)})
    results = list(segment.each(cases))
    assert [case["case_id"] for case, _ in results] == [str(number) for number in range(7)]
    for number, (_, result) in enumerate(results):
        if number in (0, 3, 6):
            assert isinstance(result, DriveSegError) and f"{number}.png" in str(result)
        else:
            assert isinstance(result, dict)
            alone = segment.segment_case(cases[number])
            assert torch.equal(torch.as_tensor(result["pred"]), torch.as_tensor(alone["pred"]))


def test_each_keeps_what_is_wanted_alone(segment: Segmenter, photograph: Path, tmp_path: Path) -> None:
    """What waits for its turn is not the whole result."""
    arrays: list[weakref.ref] = []

    def keep(result: dict[str, Any]) -> int:
        arrays.append(weakref.ref(result["probability"]))
        return int(result["fov"].sum())

    missing = tmp_path / "missing.png"
    results = [found for _, found in segment.each([{"image": str(path)} for path in (photograph, missing)], keep=keep)]
    gc.collect()
    assert results[0] == int(segment.segment_case({"image": str(photograph)})["fov"].sum()) > 0
    assert isinstance(results[1], DriveSegError)
    assert [array() for array in arrays] == [None]


def test_no_more_than_a_few_photographs_wait(segment: Segmenter, photograph: Path) -> None:
    """However long the folder and however slow the writing, what is read ahead stays bounded."""
    begun, finished, waiting = [], [], []
    preprocessing, postprocessing = segment.preprocessing, segment.postprocessing

    def read(case: dict[str, Any], start: int) -> dict[str, Any]:
        begun.append(case)
        waiting.append(len(begun) - len(finished))
        return preprocessing(case, start=start)

    def slowly_written(case: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        result = postprocessing(case)
        finished.append(case)
        return result

    read.transforms = preprocessing.transforms
    segment.preprocessing, segment.postprocessing = read, slowly_written
    assert len(list(segment.each([{"image": str(photograph)}] * 30))) == len(finished) == 30
    assert max(waiting) <= 6


def test_beside_a_gpu_several_are_written_at_once(segment: Segmenter, photograph: Path) -> None:
    together = threading.Barrier(3, timeout=20)

    def written(case: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return case

    segment.device = torch.device("meta")  # to all that is asked here, as good as a GPU
    segment.inferer = lambda image, network: torch.zeros(1, 2, *image.shape[2:])
    segment.postprocessing = written
    with threads(6):
        results = [result for _, result in segment.each([{"image": str(photograph)}] * 6, catch=Exception)]
    assert all(isinstance(result, dict) for result in results) and not together.broken


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_threads_made_afterwards_have_as_many_as_before(
    bundle: Path, weights: Path, photograph: Path, engine: str
) -> None:
    values = {**SMALL, "engine": engine, "checkpoint": str(weights), "save": False}
    segment = Segmenter.from_config(config_files(bundle, "inference"), values, many=True)
    with threads(3), ThreadPoolExecutor(1) as pool:
        assert all(isinstance(result, dict) for _, result in segment.each([{"image": str(photograph)}] * 3))
        assert [torch.get_num_threads(), pool.submit(torch.get_num_threads).result()] == [3, 3]


def test_an_error_of_ours_is_not_hidden(segment: Segmenter, photograph: Path) -> None:
    def broken(case: dict[str, Any]) -> NoReturn:
        raise ZeroDivisionError("a mistake in the program")

    segment.postprocessing = broken
    with pytest.raises(ZeroDivisionError):
        list(segment.each([{"image": str(photograph)}] * 5))


def test_a_photograph_that_is_too_large_keeps_no_memory(segment: Segmenter, photograph: Path) -> None:
    """Its error is kept for a while, and what the network had computed must not be."""
    features: list[weakref.ref] = []
    alive: list[int] = []

    class TooLarge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            alive.append(sum(feature() is not None for feature in features))
            computed = x * 2
            features.append(weakref.ref(computed))
            raise torch.OutOfMemoryError("CUDA out of memory")

    segment.network = TooLarge()
    gc.disable()
    try:
        results = [result for _, result in segment.each([{"image": str(photograph)}] * 6, catch=Exception)]
    finally:
        gc.enable()
    assert all(isinstance(result, torch.OutOfMemoryError) for result in results)
    assert alive == [0] * 6


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch does not tell such errors apart")
def test_a_gpu_that_is_lost_ends_the_run(segment: Segmenter, photograph: Path) -> None:
    class Lost(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.AcceleratorError("unspecified launch failure")

    segment.network = Lost()
    with pytest.raises(torch.AcceleratorError):
        list(segment.each([{"image": str(photograph)}] * 5, catch=Exception))


THREADS = """
import sys
import torch
import drive_seg

segment = drive_seg.load(sys.argv[1], base_channels=4, depth=3, fov_diameter=128, engine="torch")
inferer, seen = segment.inferer, []
segment.inferer = lambda image, network: (seen.append(torch.get_num_threads()), inferer(image, network))[1]
assert all(isinstance(result, dict) for _, result in segment.each([{"image": sys.argv[2]}] * 4))
print(*seen)
"""


def test_the_network_keeps_the_threads_that_it_has_alone(weights: Path, photograph: Path) -> None:
    """Those who read and write beside it have one each, and a network too small to ask for threads before they do
    must not get their number."""
    alone = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    in_folder = [sys.executable, "-c", THREADS, str(weights), str(photograph)]
    expected, seen = (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        for command in (alone, in_folder)
    )
    assert seen.stdout.split() == expected.stdout.split() * 4
    assert "nvimg" not in seen.stderr.lower(), "a codec of MONAI's that is not used here"
