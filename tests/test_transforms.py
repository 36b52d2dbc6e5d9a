"""The field of view in transforms, by hand and against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from drive_seg.errors import DriveSegError
from drive_seg.transforms import (
    EnsureFOVd,
    EnsureLabeld,
    IgnoreOutsideFOVd,
    NormalizeInFOVd,
    ScaleToFOVd,
    VesselMaskd,
    normalize_in_fov,
    resize,
    vessel_mask,
)


def named(array: np.ndarray, name: str) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), meta={"filename_or_obj": name})


def disc(height: int = 60, width: int = 80, centre: tuple[int, int] = (30, 35), radius: int = 25) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def case(fov: np.ndarray | None = None) -> dict[str, Any]:
    inside = disc() if fov is None else fov
    image = np.random.default_rng(0).integers(60, 200, (3, *inside.shape), dtype=np.uint8) * inside
    return {"image": named(image.astype(np.uint8), "eye.tif"), "fov": named(inside[None].astype(np.uint8), "mask.gif")}


def test_normalising_is_numpy_inside_and_zero_outside() -> None:
    one = case()
    inside = disc()
    pixels = np.asarray(one["image"])[:, inside].astype(np.float64)
    expected = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    normalised = normalize_in_fov(one["image"].as_tensor(), one["fov"].as_tensor())
    np.testing.assert_allclose(np.asarray(normalised)[:, inside], expected, atol=1e-5)
    assert (np.asarray(normalised)[:, ~inside] == 0).all()


def test_pixels_outside_change_nothing() -> None:
    one, other = case(), case()
    other["image"][:, torch.from_numpy(~disc())] = 255
    transform = Compose([NormalizeInFOVd("image"), ScaleToFOVd(["image"], diameter=70)])
    assert torch.equal(transform(one)["image"].as_tensor(), transform(other)["image"].as_tensor())


def test_a_constant_channel_becomes_zero() -> None:
    image = torch.full((3, 4, 4), 9)
    assert torch.equal(normalize_in_fov(image, torch.ones(1, 4, 4)), torch.zeros(3, 4, 4))


def test_fov_is_found_where_there_is_no_mask() -> None:
    one = case(disc(300, 320, (150, 160), 130))
    given = one.pop("fov")
    found = EnsureFOVd()(one)["fov"]
    assert found.shape == (1, 300, 320) and found.dtype is torch.uint8
    overlap = ((found > 0) & (given > 0)).sum() / ((found > 0) | (given > 0)).sum()
    assert overlap > 0.97


def test_unfitting_masks_are_named() -> None:
    one = case()
    one["fov"] = named(np.ones((1, 60, 70), np.uint8), "mask.gif")
    with pytest.raises(DriveSegError, match=r"mask\.gif: fov: expected the size of eye\.tif, 80×60, got 70×60"):
        EnsureFOVd()(one)
    one["fov"] = named(np.zeros((1, 60, 80), np.uint8), "mask.gif")
    with pytest.raises(DriveSegError, match=r"mask\.gif: fov: expected a field of view, got an empty mask"):
        EnsureFOVd()(one)
    black = {"image": named(np.zeros((3, 60, 80), np.uint8), "dark.jpg")}
    with pytest.raises(DriveSegError, match=r"dark\.jpg: image: no field of view found"):
        EnsureFOVd()(black)


@pytest.mark.parametrize("vessel", [1, 255])
def test_binary_annotations_become_zero_and_one(vessel: int) -> None:
    label = np.zeros((1, 60, 80), np.uint8)
    label[0, 10:20] = vessel
    result = EnsureLabeld("label", num_classes=2)({**case(), "label": named(label, "a.gif")})["label"]
    assert result.dtype is torch.uint8
    assert np.array_equal(np.asarray(result), (label > 0).astype(np.uint8))


def test_an_annotation_without_vessels_is_one() -> None:
    empty = named(np.zeros((1, 60, 80), np.uint8), "a.gif")
    assert EnsureLabeld("label", 2)({**case(), "label": empty})["label"].sum() == 0


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        (np.arange(4800, dtype=np.uint8).reshape(1, 60, 80), 2, r"a\.gif: label: expected a binary annotation"),
        (np.full((1, 60, 80), 255, np.uint8), 2, "0 and one other value, got 255"),
        (np.zeros((1, 60, 81), np.uint8), 2, r"a\.gif: label: expected the size of eye\.tif, 80×60, got 81×60"),
        (np.full((1, 60, 80), 3, np.uint8), 3, "class values 0 to 2, got 3"),
    ],
)
def test_unfitting_annotations_are_named(label: np.ndarray, classes: int, message: str) -> None:
    with pytest.raises(DriveSegError, match=message):
        EnsureLabeld("label", classes)({**case(), "label": named(label, "a.gif")})


def test_labels_outside_are_ignored() -> None:
    label = named(np.ones((1, 60, 80), np.uint8), "a.gif")
    result = np.asarray(IgnoreOutsideFOVd("label")({**case(), "label": label})["label"])[0]
    assert np.array_equal(result, np.where(disc(), 1, 255))


@pytest.mark.parametrize(("diameter", "longer"), [(None, 51), (100, 100), (20, 20)])
def test_scaling_makes_the_field_of_view_as_large_as_wanted(diameter: int | None, longer: int) -> None:
    scaled = ScaleToFOVd(["image", "fov"], diameter=diameter, margin=3, nearest=[False, True])(case())
    assert scaled["image"].shape == (3, longer + 6, longer + 6) and scaled["fov"].shape == (1, longer + 6, longer + 6)
    assert scaled["image"].dtype is torch.uint8
    assert scaled["fov"][0, :3].sum() == 0, "a margin outside the field of view"


@pytest.mark.parametrize("margin", [0, 2])
def test_without_a_diameter_going_back_is_exact(margin: int) -> None:
    one = case()
    one["image"][0, 20, 30] = 17
    transform = Compose([ScaleToFOVd(["image"], diameter=None, margin=margin)])
    scaled = transform(one)
    assert torch.equal(transform.inverse({"image": scaled["image"]})["image"].as_tensor(), one["image"].as_tensor())


@pytest.mark.parametrize("diameter", [30, 51, 140])
def test_a_prediction_comes_back_to_its_place(diameter: int) -> None:
    figure = np.zeros((60, 80), bool)
    figure[15:45, 25:30] = True
    figure[40:45, 25:50] = True
    one = case()
    one["image"] = named(np.where(figure, 200, 0)[None].repeat(3, 0).astype(np.uint8), "eye.tif")
    preprocessing = Compose([ScaleToFOVd(["image"], diameter=diameter)])
    prepared = preprocessing(one)
    prepared["pred"] = MetaTensor(prepared["image"].as_tensor()[:1].float() / 200)
    back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)(prepared)["pred"]
    assert back.shape == (1, 60, 80)
    found = np.asarray(back)[0] > 0.5
    assert 2 * (found & figure).sum() / (found.sum() + figure.sum()) > 0.9


def test_resizing_averages_and_keeps_classes() -> None:
    checkers = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert resize(checkers[None].float(), (4, 4)).sub(0.5).abs().max() < 0.15
    classes = resize(checkers[None].to(torch.uint8) * 2, (5, 7), nearest=True)
    assert classes.shape == (1, 5, 7) and set(classes.unique().tolist()) == {0, 2}


def test_vessel_mask_thresholds_all_vessel_classes_together() -> None:
    # Four pixels; the vessel classes together have 0.6, 0.5, 0.4 and 0.9.
    probabilities = torch.tensor([[0.4, 0.5, 0.6, 0.1], [0.35, 0.2, 0.4, 0.2], [0.25, 0.3, 0.0, 0.7]])[:, None]
    assert vessel_mask(probabilities, 0.5).tolist() == [[[1, 2, 0, 2]]]
    assert vessel_mask(probabilities, 0.4).tolist() == [[[1, 2, 1, 2]]]
    assert vessel_mask(probabilities, 0.5, fov=torch.tensor([[[1, 1, 1, 0]]])).tolist() == [[[1, 2, 0, 0]]]


def test_vessel_mask_of_two_classes_is_the_likelier_one() -> None:
    probabilities = torch.rand(2, 9, 9).softmax(0)
    assert torch.equal(vessel_mask(probabilities, 0.5)[0].long(), probabilities.argmax(0))


def test_masks_of_a_case_keep_their_probabilities() -> None:
    probabilities = torch.rand(2, 60, 80).softmax(0)
    result = VesselMaskd("pred", threshold=0.6, fov_key="fov")({**case(), "pred": probabilities})
    assert torch.equal(result["probability"], probabilities)
    assert torch.equal(result["pred"], vessel_mask(probabilities, 0.6, torch.from_numpy(disc())[None]))


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(DriveSegError, match="probability from 0 to 1"):
        VesselMaskd("pred", threshold=threshold)
