"""The field of view in a case, labels, and normalisation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import disc, fundus, tensor
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from drive_seg.arrays import without_metadata
from drive_seg.augmentation import RandJPEGd
from drive_seg.errors import ArgumentError, DriveSegError, user_error
from drive_seg.scale_to_fov import ScaleToFOVd, resize
from drive_seg.transforms import (
    EnsureFOVd,
    EnsureLabeld,
    IgnoreOutsideFOVd,
    NormalizeInFOVd,
    normalize_in_fov,
)


def image_of(height: int = 2, width: int = 3, file: str = "eye.tif") -> MetaTensor:
    return tensor(np.full((3, height, width), 100, np.uint8), file)


def test_arrays_do_as_tensors_do() -> None:
    """As MONAI's transforms take them."""
    circle = disc(80, 80, 40, 40, 30).astype(np.uint8)[None]
    case = {"image": np.repeat(circle * np.uint8(100), 3, axis=0), "label": np.eye(80, dtype=np.uint8)[None]}
    every = Compose([EnsureFOVd(), EnsureLabeld("label", 2), IgnoreOutsideFOVd("label"), NormalizeInFOVd("image")])
    for given in (case, {**case, "fov": circle}):
        one, other = every(given), every({key: torch.from_numpy(array) for key, array in given.items()})
        assert all(
            torch.equal(without_metadata(one[key]), without_metadata(other[key])) for key in ("image", "label", "fov")
        )


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

    def test_a_photograph_is_no_mask(self) -> None:
        height, width = 20, 30
        image = image_of(height, width)
        grey = np.linspace(0, 255, height * width).reshape(1, height, width).astype(np.uint8)
        with pytest.raises(
            DriveSegError,
            match=r"^eye\.jpg: fov: expected a mask, black and white, got 60% of grey, ",
        ):
            EnsureFOVd()({"image": image, "fov": tensor(grey, "eye.jpg")})
        soft = np.full((1, height, width), 200, np.uint8)
        soft[:, :, : width // 2] = 0
        soft[:, :, width // 2 - 4 : width // 2 + 4] = 100
        fov = EnsureFOVd()({"image": image, "fov": tensor(soft, "mask.jpg")})["fov"]
        assert fov[0, 0].tolist() == [0] * (width // 2 + 4) + [1] * (width - width // 2 - 4)

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

    def test_vessels_of_unknown_class(self) -> None:
        label = tensor(np.array([[[0, 1, 255]]], np.uint8), "av.png")
        case = {"image": image_of(1, 3), "label": label}
        assert EnsureLabeld("label", 3, ignore_index=255)(case)["label"].tolist() == [[[0, 1, 255]]]
        with pytest.raises(DriveSegError, match=r"0 to 2, 254 where some vessel's is unknown, got 0, 1, 255$"):
            EnsureLabeld("label", 3, ignore_index=254)(case)
        two = {"image": image_of(1, 2), "label": label[..., ::2]}
        with pytest.raises(DriveSegError, match=r"0 to 2, 255 where some vessel's is unknown, got 0, 255$"):
            EnsureLabeld("label", 3, ignore_index=255)(two)
        assert EnsureLabeld("label", 2, ignore_index=255)(two)["label"].tolist() == [[[0, 1]]], "the class is known"

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
        assert called and not {name for name in called if "sqrt" in name}

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

    @pytest.mark.parametrize("constant", [117.0, 0.1])  # the mean of the latter is rounded
    def test_a_constant_channel_becomes_0(self, constant: float) -> None:
        image = torch.stack([torch.full((5, 5), constant), torch.arange(25.0).reshape(5, 5)])
        fov = torch.ones(1, 5, 5)
        fov[0, 0, 0] = 0
        image[0, 0, 0] = 3
        out = normalize_in_fov(image, fov)
        assert not out[0].any() and out[1].abs().max() > 1

    def test_a_batch_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match=r"^image: expected \(C, H, W\), got \(2, 3, 4, 5\)$"):
            normalize_in_fov(torch.rand(2, 3, 4, 5), torch.ones(2, 1, 4, 5))

    def test_missing(self) -> None:
        case = {"fov": torch.ones(1, 2, 2)}
        assert NormalizeInFOVd("image", allow_missing_keys=True)(case).keys() == {"fov"}
        with pytest.raises(KeyError):
            NormalizeInFOVd("image")(case)

    def test_wrapper_keeps_what_is_known_of_the_file(self) -> None:
        image = tensor(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), "eye.tif")
        case = {"image": image, "fov": torch.ones(1, 2, 2)}
        out = NormalizeInFOVd("image")(case)["image"]
        assert isinstance(out, MetaTensor) and out.meta["filename_or_obj"] == "eye.tif"
        torch.testing.assert_close(out.as_tensor(), normalize_in_fov(image.as_tensor(), case["fov"]))
        plain = NormalizeInFOVd("image")({**case, "image": image.as_tensor()})["image"]
        assert not isinstance(plain, MetaTensor)


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float64, ">f4", ">u2"])
def test_numbers_of_every_type(kind: Any) -> None:
    """Also of the other byte order, mirrored and read-only, as NumPy has them and PyTorch does not."""
    circle = disc(40, 50, 20, 25, 18)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_as_on_a_cpu() -> None:
    image = torch.from_numpy(fundus().transpose(2, 0, 1).copy())
    case = {"image": image, "label": (image[:1] == 110).to(torch.uint8)}
    every = Compose([
        EnsureFOVd(), EnsureLabeld("label", 2), ScaleToFOVd(["image", "label", "fov"], 70, nearest=[False, True, True]),
        NormalizeInFOVd("image"), IgnoreOutsideFOVd("label"), RandJPEGd("image", [80, 80], prob=1.0),
    ])  # fmt: skip
    there, here = every({key: values.cuda() for key, values in case.items()}), every(case)
    for key, values in here.items():
        assert there[key].is_cuda
        assert (without_metadata(there[key]).cpu().float() - without_metadata(values).float()).abs().mean() < 0.05


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


def test_the_file_is_named_through_a_compose(tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    from drive_seg.readers import PhotographReader

    Image.new("RGB", (80, 60)).save(tmp_path / "black.png")
    transform = Compose([LoadImaged("image", PhotographReader(), ensure_channel_first=True), EnsureFOVd()])
    with pytest.raises(RuntimeError) as raised:
        transform({"image": str(tmp_path / "black.png")})
    assert str(user_error(raised.value)).startswith(f"{tmp_path / 'black.png'}: image: no field of view found")
