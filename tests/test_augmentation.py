"""JPEG artefacts and affine maps for training."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import RandAffined

from drive_seg.augmentation import RandAffineFloat32d, RandJPEGd, compress
from drive_seg.errors import DriveSegError


@pytest.fixture
def image() -> torch.Tensor:
    """A red edge on grey, in the range that normalised photographs have."""
    picture = torch.zeros(3, 48, 64)
    picture[0, :, 30:] = 3.0
    picture[:, 10:18] -= 2.0
    return picture


def test_the_better_the_quality_the_closer(image: torch.Tensor) -> None:
    errors = [(compress(image, quality) - image).abs().mean().item() for quality in (5, 40, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < 0.1


def test_range_and_type_stay(image: torch.Tensor) -> None:
    out = compress(image, 30)
    assert out.shape == image.shape and out.dtype == torch.float32
    assert image.min() <= out.min() and out.max() <= image.max()


def test_axes_are_not_swapped(image: torch.Tensor) -> None:
    for other in (image.flip(1), image.flip(2), image.flip(0)):
        assert (compress(image, 80) - image).abs().mean() < (compress(image, 80) - other).abs().mean()


def test_a_constant_image_is_left_alone() -> None:
    flat = torch.full((3, 16, 16), 0.5)
    assert torch.equal(compress(flat, 10), flat)


def test_random_but_repeatable(image: torch.Tensor) -> None:
    transform = RandJPEGd("image", quality=[10, 80], prob=0.5)

    def some(seed: int) -> list[torch.Tensor]:
        transform.set_random_state(seed)
        return [transform({"image": image})["image"] for _ in range(40)]

    first, again, other = some(1), some(1), some(2)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    untouched = sum(torch.equal(one, image) for one in first)
    assert 8 <= untouched <= 32, "half of 40, give or take"
    assert len({round(one.double().sum().item(), 6) for one in first}) > 5, "qualities differ"


def test_the_worst_and_the_best_quality_are_drawn_too(image: torch.Tensor) -> None:
    transform = RandJPEGd("image", quality=[20, 21], prob=1.0).set_random_state(0)
    drawn = [transform({"image": image})["image"] for _ in range(20)]
    of_each = [sum(torch.equal(one, compress(image, quality)) for one in drawn) for quality in (20, 21)]
    assert min(of_each) > 0 and sum(of_each) == 20


@pytest.mark.parametrize("quality", [[0, 50], [50, 20], [20, 100], [20]])
def test_quality(quality: list[int]) -> None:
    with pytest.raises(DriveSegError, match="quality: expected the worst and the best"):
        RandJPEGd("image", quality=quality)


def test_other_images_and_none(image: torch.Tensor) -> None:
    with pytest.raises(DriveSegError, match=r"^image: expected the three channels of a JPEG file, got 1$"):
        RandJPEGd("image", quality=[20, 80], prob=0.0)({"image": image[:1]})
    assert RandJPEGd("image", quality=[20, 80], allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError):
        RandJPEGd("image", quality=[20, 80])({})


def test_in_float32_as_monai_does_it(image: torch.Tensor) -> None:
    settings = {"prob": 1.0, "rotate_range": 0.8, "scale_range": [0.2, 0.2], "spatial_size": [40, 40]}
    case = {"image": image, "label": (image[:1] > 1).to(torch.uint8)}
    results = []
    for kind in (RandAffined, RandAffineFloat32d):
        transform = kind(["image", "label"], mode=["bilinear", "nearest"], padding_mode="border", **settings)
        results.append(transform.set_random_state(0)(case))
    assert torch.allclose(results[0]["image"], results[1]["image"], atol=1e-4)
    assert (results[0]["label"] != results[1]["label"]).float().mean() < 0.01
    assert results[1]["image"].dtype == torch.float32
