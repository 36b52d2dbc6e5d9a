"""The field of view in a case, labels, the way to the network's scale and back, and vessel masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import disc, fundus, tensor
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd, DeleteItemsd, Invertd
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from drive_seg.arrays import plain
from drive_seg.errors import DriveSegError, user_error
from drive_seg.transforms import (
    EnsureFOVd,
    EnsureLabeld,
    IgnoreOutsideFOVd,
    NormalizeInFOVd,
    ScaleToFOVd,
    normalize_in_fov,
    resize,
)


def image_of(height: int = 2, width: int = 3, file: str = "eye.tif") -> MetaTensor:
    return tensor(np.full((3, height, width), 100, np.uint8), file)


def test_arrays_do_as_tensors_do() -> None:
    """As MONAI's transforms take them."""
    rows, columns = np.ogrid[:80, :80]
    circle = ((rows - 40) ** 2 + (columns - 40) ** 2 < 30**2).astype(np.uint8)[None]
    case = {"image": np.repeat(circle * np.uint8(100), 3, axis=0), "label": np.eye(80, dtype=np.uint8)[None]}
    every = Compose([EnsureFOVd(), EnsureLabeld("label", 2), IgnoreOutsideFOVd("label"), NormalizeInFOVd("image")])
    for given in (case, {**case, "fov": circle}):
        one, other = every(given), every({key: torch.from_numpy(array) for key, array in given.items()})
        assert all(torch.equal(plain(one[key]), plain(other[key])) for key in ("image", "label", "fov"))


class TestEnsureFOV:
    @pytest.mark.parametrize("inside", [1, 255, 7])
    def test_a_mask_becomes_0_and_1(self, inside: int) -> None:
        fov = tensor(np.array([[[0, inside, inside], [0, 0, inside]]], np.uint8), "mask.gif")
        case = {"image": image_of(), "fov": fov}
        out = EnsureFOVd()(case)["fov"]
        assert out.dtype is torch.uint8
        assert out.tolist() == [[[0, 1, 1], [0, 0, 1]]]
        assert fov.max() == inside, "the case that was given stays as it was"

    def test_specks_of_jpeg_are_outside(self) -> None:
        fov = tensor(np.array([[[0, 9, 127], [128, 250, 255]]], np.uint8), "mask.jpg")
        assert EnsureFOVd()({"image": image_of(), "fov": fov})["fov"].tolist() == [[[0, 0, 0], [1, 1, 1]]]

    def test_without_a_mask_it_is_estimated(self) -> None:
        picture = fundus()
        out = EnsureFOVd()({"image": tensor(picture.transpose(2, 0, 1))})["fov"]
        assert isinstance(out, MetaTensor) and out.dtype is torch.uint8 and out.shape == (1, 120, 180)
        drawn = disc(120, 180, 58, 84, 50)
        assert (out.numpy()[0].astype(bool) != drawn).sum() < 0.02 * drawn.sum()

    def test_plain_tensors(self) -> None:
        out = EnsureFOVd()({"image": torch.from_numpy(fundus().transpose(2, 0, 1).copy())})
        assert out["fov"].any()

    def test_other_keys(self) -> None:
        out = EnsureFOVd("photograph", "circle")({"photograph": image_of(), "circle": torch.ones(1, 2, 3)})
        assert out["circle"].dtype is torch.uint8

    def test_wrong_size(self) -> None:
        case = {"image": image_of(584, 565), "fov": tensor(np.ones((1, 565, 584), np.uint8), "mask.gif")}
        with pytest.raises(
            DriveSegError, match=r"^mask\.gif: fov: expected the size of eye\.tif, 565×584, got 584×565$"
        ):
            EnsureFOVd()(case)

    def test_empty_mask(self) -> None:
        case = {"image": image_of(), "fov": tensor(np.zeros((1, 2, 3), np.uint8), "mask.gif")}
        with pytest.raises(DriveSegError, match=r"^mask\.gif: fov: expected a field of view, got an empty mask$"):
            EnsureFOVd()(case)

    def test_black_photograph(self) -> None:
        with pytest.raises(DriveSegError, match=r"^black\.tif: image: no field of view found"):
            EnsureFOVd()({"image": tensor(np.zeros((3, 60, 80), np.uint8), "black.tif")})

    def test_black_array_without_a_file(self) -> None:
        with pytest.raises(DriveSegError, match=r"^the array that was given: image: no field of view found"):
            EnsureFOVd()({"image": torch.zeros(3, 60, 80, dtype=torch.uint8)})


class TestEnsureLabel:
    @pytest.mark.parametrize(("values", "expected"), [
        ([0, 255, 0, 255], [0, 1, 0, 1]),
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ([0, 200, 200, 200], [0, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ])  # fmt: skip
    @pytest.mark.parametrize("plain", [True, False])
    def test_binary(self, values: list[int], expected: list[int], plain: bool) -> None:
        label = tensor(np.array(values, np.uint8).reshape(1, 2, 2), "drawn.gif")
        case = {"image": image_of(2, 2), "label": label.as_tensor() if plain else label}
        out = EnsureLabeld("label", num_classes=2)(case)["label"]
        assert out.dtype is torch.uint8
        assert out.flatten().tolist() == expected

    @pytest.mark.parametrize(("values", "got"), [
        ([255, 255, 255, 255], "255"),
        ([255, 0, 128, 0], "0, 128, 255"),
        ([1, 2, 1, 2], "1, 2"),
        ([*range(9)], "0, 1, 2, 3, 4, 5, … (9 values)"),
    ])  # fmt: skip
    def test_not_binary(self, values: list[int], got: str) -> None:
        label = tensor(np.array(values, np.uint8).reshape(1, 1, -1), "drawn.gif")
        with pytest.raises(DriveSegError) as raised:
            EnsureLabeld("label", num_classes=2)({"image": image_of(1, len(values)), "label": label})
        assert str(raised.value) == (
            f"drawn.gif: label: expected a binary annotation, 0 and one other value, got {got}"
        )

    @pytest.mark.parametrize("num_classes", [3, 4])
    def test_class_values(self, num_classes: int) -> None:
        label = tensor(np.array([[[0, 2, num_classes - 1]]], np.uint8), "av.png")
        out = EnsureLabeld("label", num_classes)({"image": image_of(1, 3), "label": label})["label"]
        assert out.tolist() == [[[0, 2, num_classes - 1]]]

    def test_class_values_out_of_range(self) -> None:
        label = tensor(np.array([[[0, 1, 3]]], np.uint8), "av.png")
        with pytest.raises(DriveSegError, match=r"^av\.png: label: expected class values 0 to 2, got 0, 1, 3$"):
            EnsureLabeld("label", 3)({"image": image_of(1, 3), "label": label})

    @pytest.mark.parametrize("num_classes", [2, 3])
    def test_wrong_size(self, num_classes: int) -> None:
        label = tensor(np.zeros((1, 3, 2), np.uint8), "drawn.gif")
        with pytest.raises(DriveSegError, match=r"^drawn\.gif: label: expected the size of eye\.tif, 3×2, got 2×3$"):
            EnsureLabeld("label", num_classes)({"image": image_of(), "label": label})

    @pytest.mark.parametrize(("values", "told"), [
        ([0, 0, 0, 0, 0, 0], "0 %"), ([1, 1, 1, 0, 0, 0], "75 %"), ([1, 1, 0, 0, 1, 1], ""),
    ], ids=["none", "inverted", "some"])  # fmt: skip
    def test_a_share_that_cannot_be(self, caplog: pytest.LogCaptureFixture, values: list[int], told: str) -> None:
        label = tensor(np.array([[values]], np.uint8), "drawn.gif")
        fov = torch.tensor([[[1, 1, 1, 1, 0, 0]]])
        EnsureLabeld("label", 2)({"image": image_of(1, 6), "label": label, "fov": fov})
        expected = f"drawn.gif: label: {told} of the field of view are vessels, please check it"
        assert [record.message for record in caplog.records] == ([expected] if told else [])

    def test_missing(self) -> None:
        case = {"image": image_of()}
        assert EnsureLabeld("label", 2, allow_missing_keys=True)(case).keys() == {"image"}
        with pytest.raises(KeyError):
            EnsureLabeld("label", 2)(case)


class TestIgnoreOutsideFOV:
    @pytest.mark.parametrize("ignore_index", [0, 2, -1, 256, 7.5])
    def test_a_value_that_is_a_class_or_no_byte(self, ignore_index: Any) -> None:
        with pytest.raises(ValueError, match=f"ignore_index: expected a whole number from 3, .*, got {ignore_index}"):
            IgnoreOutsideFOVd("label", ignore_index=ignore_index, num_classes=3)

    @pytest.mark.parametrize("ignore_index", [255, 9])
    def test_labels_outside_become_the_ignored_value(self, ignore_index: int) -> None:
        label = tensor(np.array([[[0, 1], [1, 0]]], np.uint8))
        case = {"label": label, "fov": tensor(np.array([[[0, 1], [0, 7]]], np.uint8))}
        out = IgnoreOutsideFOVd("label", ignore_index=ignore_index)(case)["label"]
        assert out.dtype is torch.uint8
        assert out.tolist() == [[[ignore_index, 1], [ignore_index, 0]]]
        assert label.tolist() == [[[0, 1], [1, 0]]]

    def test_missing(self) -> None:
        case = {"fov": torch.ones(1, 2, 2)}
        assert IgnoreOutsideFOVd("label", allow_missing_keys=True)(case).keys() == {"fov"}
        with pytest.raises(KeyError):
            IgnoreOutsideFOVd("label")(case)


class TestNormalize:
    def test_by_hand(self) -> None:
        image = torch.tensor([[[1, 3, 90]], [[10, 30, 0]]], dtype=torch.uint8)
        fov = torch.tensor([[[1, 1, 0]]], dtype=torch.uint8)
        # means 2 and 20, deviations 1 and 10
        assert normalize_in_fov(image, fov).tolist() == [[[-1.0, 1.0, 0.0]], [[-1.0, 1.0, 0.0]]]

    def test_no_root_is_taken_by_pytorch(self) -> None:
        """MKL's first ones of a process are now and then inaccurate, if two threads take them at once."""
        called: set[str] = set()

        class Record(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                called.add(func.overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        image, fov = torch.full((3, 8, 9), 7, dtype=torch.uint8), torch.ones(1, 8, 9, dtype=torch.uint8)
        with Record():
            normalize_in_fov(image, fov)
        assert "linalg_vector_norm" in called and not {name for name in called if "sqrt" in name}

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
    def test_against_numpy(self, dtype: type) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (3, 21, 30)).astype(dtype)
        inside = disc(21, 30, 9, 14, 9)
        before = image.copy()
        out = normalize_in_fov(torch.from_numpy(image), torch.from_numpy(inside[None].astype(np.uint8)))
        pixels = image[:, inside].astype(np.float64)
        expected = (image - pixels.mean(1)[:, None, None]) / pixels.std(1)[:, None, None]
        assert out.dtype is torch.float32
        np.testing.assert_allclose(out.numpy(), np.where(inside, expected, 0), atol=2e-5)
        np.testing.assert_array_equal(image, before)

    def test_what_is_outside_does_not_matter(self) -> None:
        inside = torch.from_numpy(disc(40, 50, 20, 20, 15))[None]
        image = torch.randint(0, 256, (3, 40, 50), generator=torch.manual_seed(0)).to(torch.uint8)
        other = torch.where(inside, image, 255 - image)
        assert not torch.equal(image, other)
        assert torch.equal(normalize_in_fov(image, inside), normalize_in_fov(other, inside))

    def test_a_constant_channel_becomes_0(self) -> None:
        image = torch.stack([torch.full((5, 5), 117.0), torch.arange(25.0).reshape(5, 5)])
        fov = torch.ones(1, 5, 5)
        fov[0, 0, 0] = 0
        image[0, 0, 0] = 3
        out = normalize_in_fov(image, fov)
        assert not out[0].any() and out[1].abs().max() > 1

    def test_wrapper_keeps_what_is_known_of_the_file(self) -> None:
        image = tensor(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), "eye.tif")
        case = {"image": image, "fov": torch.ones(1, 2, 2)}
        out = NormalizeInFOVd("image")(case)["image"]
        assert isinstance(out, MetaTensor) and out.meta["filename_or_obj"] == "eye.tif"
        torch.testing.assert_close(out.as_tensor(), normalize_in_fov(image.as_tensor(), case["fov"]))
        plain = NormalizeInFOVd("image")({**case, "image": image.as_tensor()})["image"]
        assert not isinstance(plain, MetaTensor)


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


BOX = (10, 50, 5, 85)
"""Rows and columns of a field of view of 40×80 pixels in a photograph of 70×100."""


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

    @pytest.mark.parametrize("diameter", [0, -5])
    def test_diameter_must_be_positive(self, diameter: int) -> None:
        with pytest.raises(DriveSegError, match=f"^diameter: expected a positive number .*, got {diameter}$"):
            ScaleToFOVd("image", diameter)

    @pytest.mark.parametrize("limits", [[200, 100], [0, 100], [1, 2, 3], []])
    def test_limits_must_be_two_in_order(self, limits: list[int]) -> None:
        with pytest.raises(DriveSegError, match=r"^diameter: expected .*, the smallest and the largest"):
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


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float64, ">f4", ">u2"])
def test_numbers_of_every_type(kind: Any) -> None:
    """Also of the other byte order, mirrored and read-only, as NumPy has them and PyTorch does not."""
    rows, columns = np.ogrid[:40, :50]
    circle = (rows - 20) ** 2 + (columns - 25) ** 2 < 18**2
    image, mask, label = np.full((3, 40, 50), 100, np.uint8), circle[None].astype(kind), np.zeros((1, 40, 50), kind)
    label[0, 18:23, 15:35] = 1
    mask, label = mask[..., ::-1], label[..., ::-1]
    label.flags.writeable = False
    every = Compose([EnsureFOVd(), EnsureLabeld("label", 3), ScaleToFOVd(["label", "fov"], 20, nearest=True)])
    scaled = every({"image": image, "fov": mask, "label": label})
    expected = every({"image": image, "fov": mask.astype(np.uint8), "label": label.astype(np.uint8)})
    assert (scaled["label"].dtype, scaled["fov"].dtype) == (torch.uint8, torch.uint8)
    assert scaled["label"].any() and (scaled["label"] == expected["label"]).all()
    assert (scaled["fov"] == expected["fov"]).all()
    pixels = torch.as_tensor(np.array(mask, dtype=np.dtype(kind).newbyteorder("=")))
    for nearest in (False, True):
        assert resize(pixels, (20, 25), nearest).dtype == pixels.dtype


def test_values_that_no_annotation_has() -> None:
    case = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}
    for value in (0.5, -1, 256.0, math.nan):
        with pytest.raises(DriveSegError, match="label: expected whole numbers from 0 to 255"):
            EnsureLabeld("label", 2)({**case, "label": torch.full((1, 4, 4), value)})


def test_labels_that_hold_the_ignored_value() -> None:
    fov = torch.zeros(1, 2, 2)
    fov[..., 0] = 1
    ignored = IgnoreOutsideFOVd("label")({"label": torch.ones(1, 2, 2, dtype=torch.bool), "fov": fov})["label"]
    assert ignored.tolist() == [[[1, 255], [1, 255]]]
    with pytest.raises(DriveSegError, match=r"label: cannot hold 255, got torch\.int8"):
        IgnoreOutsideFOVd("label")({"label": torch.ones(1, 2, 2, dtype=torch.int8), "fov": fov})


def test_an_image_without_a_field_of_view_becomes_0() -> None:
    assert not normalize_in_fov(torch.rand(3, 8, 8), torch.zeros(1, 8, 8)).any()


def test_a_margin_that_is_none() -> None:
    with pytest.raises(DriveSegError, match="margin: expected 0 or more pixels, got -3"):
        ScaleToFOVd("image", 20, margin=-3)


def test_the_file_is_named_through_a_compose(tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    from drive_seg.readers import PhotographReader

    Image.new("RGB", (80, 60)).save(tmp_path / "black.png")
    transform = Compose([LoadImaged("image", PhotographReader(), ensure_channel_first=True), EnsureFOVd()])
    with pytest.raises(RuntimeError) as raised:
        transform({"image": str(tmp_path / "black.png")})
    assert str(user_error(raised.value)).startswith(f"{tmp_path / 'black.png'}: image: no field of view found")
