"""The way to the network's scale and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import disc, fundus, tensor
from monai.transforms import BorderPad, Compose, CopyItemsd, DeleteItemsd, Invertd, Resize, SpatialCrop
from skimage import measure

from drive_seg.errors import DriveSegError
from drive_seg.scale_to_fov import ScaleToFOVd, resize, shrink_annotation
from drive_seg.transforms import EnsureFOVd, NormalizeInFOVd

BOX = (10, 50, 5, 85)
"""Rows and columns of a field of view of 40×80 pixels in a photograph of 70×100."""


class TestResize:
    @pytest.mark.parametrize("nearest", [True, False])
    def test_the_same_size_is_the_same_picture(self, nearest: bool) -> None:
        image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
        assert torch.equal(resize(image, (7, 9), nearest), image)

    def test_nearest_keeps_class_values(self) -> None:
        label = torch.tensor([[[0, 255], [2, 1]]], dtype=torch.uint8)
        assert resize(label, (4, 2), nearest=True).tolist() == [[[0, 255], [0, 255], [2, 1], [2, 1]]]

    def test_smaller_is_the_mean(self) -> None:
        image = torch.zeros(1, 40, 40)
        image[0, ::4] = 100.0  # every fourth row, which two samples between the rows of the result would miss
        assert resize(image, (10, 10))[0, 2:-2, 2:-2].sub(25).abs().max() < 2

    def test_nearest_takes_the_pixel_in_the_middle(self) -> None:
        label = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
        assert resize(label, (1, 1), nearest=True).item() == 4

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
    def test_type_stays(self, dtype: torch.dtype) -> None:
        assert resize(torch.zeros(3, 5, 6, dtype=dtype), (8, 3)).dtype is dtype
        assert resize(torch.zeros(1, 5, 6, dtype=dtype), (8, 3), nearest=True).shape == (1, 8, 3)


class TestShrinkAnnotation:
    def test_a_thin_vessel_stays_whole_and_a_pixel_wide(self) -> None:
        label = torch.zeros(1, 120, 120, dtype=torch.uint8)
        for step in range(120):
            label[0, step, min(119, step // 2)] = 1  # a quarter of a pixel wide afterwards
        shrunk = shrink_annotation(label, (30, 30))
        assert shrunk.dtype is torch.uint8
        assert resize(label, (30, 30), nearest=True).sum() < 25, "most of it would be lost"
        assert set(np.nonzero(shrunk[0].numpy())[0]) == set(range(30)), "every row that it crosses"
        assert measure.label(shrunk[0].numpy(), connectivity=2).max() == 1
        assert shrunk.sum() <= 45

    def test_a_wide_vessel_keeps_its_width(self) -> None:
        label = torch.zeros(1, 80, 80, dtype=torch.uint8)
        label[0, 20:44] = 1
        expected = torch.zeros(1, 20, 20, dtype=torch.uint8)
        expected[0, 5:11] = 1
        assert torch.equal(shrink_annotation(label, (20, 20)), expected)

    @pytest.mark.parametrize("size", [35, 50, 70, 90])
    def test_a_line_of_one_pixel_stays_at_its_place_and_one_pixel_wide(self, size: int) -> None:
        moved = []
        for column in range(20, 80):
            label = torch.zeros(1, 50, 100, dtype=torch.uint8)
            label[0, :, column] = 1
            shrunk = shrink_annotation(label, (25, size))[0]
            assert (shrunk == shrunk[:1]).all()
            (places,) = np.nonzero(shrunk[0].numpy())
            assert len(places) == 1
            moved.append(places[0] + 0.5 - (column + 0.5) * size / 100)
        assert abs(np.mean(moved)) < 0.05 and np.abs(moved).max() <= 0.5

    def test_classes_and_what_counts_for_nothing_stay(self) -> None:
        label = torch.zeros(1, 80, 80, dtype=torch.uint8)
        label[0, :20] = 255
        label[0, 40] = 1
        label[0, 60:70] = 2
        shrunk = shrink_annotation(label, (20, 20))[0]
        assert (shrunk[:5] == 255).all() and (shrunk[10] == 1).all() and (shrunk[16] == 2).all()
        assert (shrunk[6:10] == 0).all() and (shrunk[11:15] == 0).all()
        assert set(shrunk.unique().tolist()) == {0, 1, 2, 255}

    def test_nothing_drawn(self) -> None:
        assert not shrink_annotation(torch.zeros(1, 50, 40), (7, 9)).any()


def boxed_case() -> dict[str, Any]:
    top, bottom, left, right = BOX
    fov = np.zeros((1, 70, 100), np.uint8)
    fov[0, top:bottom, (left + right) // 2] = 1
    fov[0, (top + bottom) // 2, left:right] = 1
    image = np.random.default_rng(0).integers(1, 256, (3, 70, 100)).astype(np.uint8)
    return {"image": tensor(image, "eye.tif"), "label": tensor(image[:1] % 2), "fov": tensor(fov)}


class TestScaleToFOV:
    @pytest.mark.parametrize(("diameter", "margin", "size"), [
        (None, 2, (44, 84)),
        (None, 0, (40, 80)),
        (80, 2, (44, 84)),
        (160, 2, (84, 164)),  # twice as large
        (160, 3, (86, 166)),
        (20, 2, (14, 24)),  # 40 / 4 + 4, 80 / 4 + 4
        (50, 2, (29, 54)),  # 40 × 50 / 80 = 25
        (1, 0, (1, 1)),  # half a row, of which one is left
    ])  # fmt: skip
    def test_size(self, diameter: int | None, margin: int, size: tuple[int, int]) -> None:
        keys = ["image", "label", "fov"]
        out = ScaleToFOVd(keys, diameter, margin=margin, nearest=[False, True, True])(boxed_case())
        assert [tuple(out[key].shape) for key in keys] == [(3, *size), (1, *size), (1, *size)]
        assert all(out[key].dtype is torch.uint8 for key in keys)
        assert out["image"].meta["filename_or_obj"] == "eye.tif"

    def test_missing(self) -> None:
        case = {key: boxed_case()[key] for key in ("image", "fov")}
        keys, nearest = ["label", "image"], [True, False]
        out = ScaleToFOVd(keys, 60, nearest=nearest, allow_missing_keys=True)(case)
        expected = ScaleToFOVd("image", 60)(case)
        assert out.keys() == case.keys() and torch.equal(out["image"], expected["image"])
        with pytest.raises(KeyError):
            ScaleToFOVd(keys, 60, nearest=nearest)(case)

    def test_inverse_takes_the_keys_that_are_there(self) -> None:
        transform = ScaleToFOVd(["image", "fov"], 60, nearest=[False, True])
        out = transform(boxed_case())
        assert transform.inverse({"image": out["image"]})["image"].shape == boxed_case()["image"].shape

    @pytest.mark.parametrize("margin", [0, 2])
    def test_only_cropped(self, margin: int) -> None:
        case = boxed_case()
        out = ScaleToFOVd(["image", "label"], None, margin=margin)(case)
        top, bottom, left, right = BOX
        for key in ("image", "label"):
            inner = out[key][:, margin : 40 + margin, margin : 80 + margin]
            assert torch.equal(inner.as_tensor(), case[key][:, top:bottom, left:right].as_tensor())
            assert out[key].sum() == inner.sum(), "the margin is black"

    def test_class_values_are_not_mixed(self) -> None:
        case = boxed_case()
        case["label"] = tensor(np.where(case["label"], 255, 1).astype(np.uint8))
        out = ScaleToFOVd(["image", "label"], 130, margin=0, nearest=[False, True])(case)
        assert set(out["label"].unique().tolist()) == {1, 255}
        assert len(out["image"].unique()) > 100

    def test_twice_as_large_repeats_class_values(self) -> None:
        case = boxed_case()
        out = ScaleToFOVd("label", 160, margin=0, nearest=True)(case)["label"]
        box = case["label"].numpy()[:, 10:50, 5:85]
        np.testing.assert_array_equal(out.numpy(), box.repeat(2, axis=1).repeat(2, axis=2))

    def test_an_annotation_is_shrunk_but_not_enlarged_in_its_own_way(self) -> None:
        case = boxed_case()
        box = case["label"].as_tensor()[:, 10:50, 5:85]
        transform = ScaleToFOVd(["label", "fov"], [20, 160], nearest=True, annotation_key="label", margin=2)
        for zoom, size in ((0.5, (20, 40)), (2.0, (80, 160))):
            expected = shrink_annotation(box, size) if zoom < 1 else resize(box, size, nearest=True)
            out = transform({**case, "zoom": zoom})
            assert torch.equal(out["label"][:, 2:-2, 2:-2].as_tensor(), expected)
            fov = resize(case["fov"].as_tensor()[:, 10:50, 5:85], size, nearest=True)
            assert torch.equal(out["fov"][:, 2:-2, 2:-2].as_tensor(), fov)

    def test_the_fov_itself_may_be_among_the_keys(self) -> None:
        case = boxed_case()
        first, last = (ScaleToFOVd(keys, 40)(case) for keys in (["fov", "image"], ["image", "fov"]))
        assert torch.equal(first["image"].as_tensor(), last["image"].as_tensor())

    @pytest.mark.parametrize("margin", [0, 2])
    def test_cropped_and_back_is_exact_in_the_box(self, margin: int) -> None:
        case = boxed_case()
        transform = ScaleToFOVd("image", None, margin=margin)
        back = transform.inverse(transform(case))["image"]
        expected = torch.zeros_like(case["image"].as_tensor())
        expected[:, 10:50, 5:85] = case["image"].as_tensor()[:, 10:50, 5:85]
        assert torch.equal(back.as_tensor(), expected)
        assert not back.applied_operations

    @pytest.mark.parametrize(("diameter", "margin"), [(None, 3), (160, 2), (50, 0), (33, 1)])
    def test_the_affine_is_that_of_monais_transforms(self, diameter: int | None, margin: int) -> None:
        case = boxed_case()
        affine = torch.tensor([[0, 2, 0, 7], [3, 0, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
        case["image"].affine = affine
        transform = ScaleToFOVd("image", diameter, margin=margin)
        out = transform(case)
        top, bottom, left, right = BOX
        size = [side - 2 * margin for side in out["image"].shape[1:]]
        crop = SpatialCrop(roi_start=[top, left], roi_end=[bottom, right])
        expected = Compose([crop, Resize(size), BorderPad(margin)])(case["image"]).affine
        assert not torch.equal(expected, affine)
        torch.testing.assert_close(out["image"].affine, expected)
        assert torch.equal(transform.inverse(out)["image"].affine, affine)
        assert torch.equal(case["image"].affine, affine), "the case that was given stays as it was"

    @pytest.mark.parametrize("diameter", [57, 100, 233])
    @pytest.mark.parametrize("place", [(58, 84), (60, 49), (69, 130)], ids=str)
    def test_scaled_and_back_is_at_the_same_place(self, diameter: int, place: tuple[int, int]) -> None:
        picture = fundus(row=place[0], column=place[1])
        fov = disc(120, 180, *place, 50)
        case = {"image": tensor(picture.transpose(2, 0, 1) / np.float32(255)), "fov": tensor(fov[None])}
        transform = ScaleToFOVd("image", diameter)
        back = transform.inverse(transform(case))["image"].numpy()
        assert back.shape == case["image"].shape
        difference = np.abs(back - case["image"].numpy())[:, fov].mean()
        assert difference < 0.03
        mirrored = (back[:, ::-1], back[:, :, ::-1])
        moved = (np.roll(back, shift, axis) for shift in (-2, 2) for axis in (1, 2))
        for other in (*mirrored, *moved):
            assert np.abs(other - case["image"].numpy())[:, fov].mean() > 1.3 * difference

    def test_the_way_back_interpolates_all_but_class_values(self) -> None:
        """80 columns, rising by 1 each, become 20 and 80 again; a step that is a class value stays one."""
        case = boxed_case()
        case["image"] = tensor(np.broadcast_to(np.arange(100, dtype=np.float32), (1, 70, 100)).copy())
        case["label"] = tensor((np.arange(100) >= 45) * np.ones((1, 70, 1), np.uint8) * 255)
        transform = ScaleToFOVd(["image", "label"], 20, nearest=[False, True])
        back = transform.inverse(transform(case))
        inner = (slice(None), slice(10, 50), slice(9, 81))  # without the ends of the slope, where nothing follows
        torch.testing.assert_close(back["image"][inner].as_tensor(), case["image"][inner].as_tensor(), atol=0.3, rtol=0)
        assert set(back["label"].unique().tolist()) == {0, 255}

    @pytest.mark.parametrize(("diameter", "dice"), [(None, 1.0), (61, 0.75), (230, 0.95)])
    def test_inverted_as_the_bundle_does(self, diameter: int | None, dice: float) -> None:
        preprocessing = Compose([
            EnsureFOVd(),
            CopyItemsd(["image", "fov"], times=1, names=["photograph", "fov_scaled"]),
            ScaleToFOVd(["image", "fov_scaled"], diameter, nearest=[False, True]),
            NormalizeInFOVd("image", fov_key="fov_scaled"),
            DeleteItemsd("fov_scaled"),
        ])  # fmt: skip
        picture = fundus()
        fov = disc(120, 180, 58, 84, 50)
        case = preprocessing({"image": tensor(picture.transpose(2, 0, 1), "eye.tif"), "fov": tensor(fov[None])})
        assert case["photograph"].shape == (3, 120, 180) and case["fov"].shape == (1, 120, 180)
        assert case["image"].shape[1:] != (120, 180)
        dark = (case["image"][:1] < -2.0).float()  # half way from the retina, about 0, to the figure, about -4
        case["pred"] = torch.cat([1 - dark, dark])
        back = Invertd("pred", preprocessing, "image", nearest_interp=False, to_tensor=True)(case)["pred"]
        assert back.shape == (2, 120, 180)
        drawn = picture[..., 0] == 110
        found = back[1].numpy() > 0.5
        assert 2 * (found & drawn).sum() / (found.sum() + drawn.sum()) >= dice, "a stroke is 6 pixels wide"
        outside = np.ones((120, 180), bool)
        outside[8:109, 34:135] = False
        assert not back[:, outside].any()

    @pytest.mark.parametrize("diameter", [0, -5, "640"])
    def test_diameter_must_be_positive(self, diameter: Any) -> None:
        with pytest.raises(DriveSegError, match=rf"^fov_diameter \(diameter\): expected .*, got {diameter!r}$"):
            ScaleToFOVd("image", diameter)

    @pytest.mark.parametrize("limits", [[200, 100], [0, 100], [1, 2, 3], []])
    def test_limits_must_be_two_in_order(self, limits: list[int]) -> None:
        with pytest.raises(DriveSegError, match=r"^fov_diameter \(diameter\): .*, the smallest and the largest"):
            ScaleToFOVd("image", limits)

    @pytest.mark.parametrize(("limits", "width"), [([60, 100], 80), ([100, 200], 100), ([20, 40], 40)])
    def test_only_what_is_outside_the_limits_is_scaled(self, limits: list[int], width: int) -> None:
        case = boxed_case()  # 80 pixels across
        transform = ScaleToFOVd("image", limits, margin=0)
        out = transform(case)
        assert out["image"].shape[2] == width
        assert transform.inverse(out)["image"].shape == case["image"].shape

    def test_a_zoomed_case_is_scaled_once_more(self) -> None:
        case = boxed_case()
        assert ScaleToFOVd("image", [60, 100], margin=0)({**case, "zoom": 0.5})["image"].shape[2] == 40
        assert ScaleToFOVd("image", 100, margin=0)({**case, "zoom": 0.7})["image"].shape[2] == 70

    def test_one_interpolation_for_each_key(self) -> None:
        with pytest.raises(ValueError, match="must have length 3, got 2"):
            ScaleToFOVd(["image", "label", "fov"], 100, nearest=[False, True])


def test_a_margin_that_is_none() -> None:
    with pytest.raises(DriveSegError, match="margin: expected 0 or more pixels, got -3"):
        ScaleToFOVd("image", 20, margin=-3)
