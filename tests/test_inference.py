"""Inferers: precision, whole images and windows, mirror images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SimpleInferer
from torch import nn

from drive_seg.errors import DriveSegError
from drive_seg.inference import FlipInferer, LargeImageInferer, PrecisionInferer
from drive_seg.networks import UNet


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


class Recording(nn.Module):
    """Runs a network and keeps the inputs it saw."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[torch.Tensor] = []
        self.given: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        self.given.append(self.network(x))
        return self.given[-1]


def pointwise() -> nn.Module:
    return nn.Conv2d(3, 2, kernel_size=1).eval()


def unet() -> UNet:
    return UNet(base_channels=4, depth=2).eval()


class TestPrecisionInferer:
    def test_images_of_a_batch_keep_what_is_known_of_each(self) -> None:
        images = [
            MetaTensor(torch.rand(3, 8, 8), meta={"filename_or_obj": name, "original_channel_dim": 0}) for name in "ab"
        ]
        logits = PrecisionInferer()(list_data_collate(images), pointwise())
        assert [one.meta["filename_or_obj"] for one in decollate_batch(logits)] == ["a", "b"]

    @pytest.mark.parametrize(("precision", "dtype"), [
        ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
    ])  # fmt: skip
    def test_runs_in_the_precision_and_returns_float32(self, precision: str, dtype: torch.dtype) -> None:
        network = Recording(pointwise())
        logits = PrecisionInferer(precision=precision)(torch.randn(1, 3, 8, 9), network)
        assert network.given[0].dtype is dtype
        assert logits.dtype is torch.float32 and logits.shape == (1, 2, 8, 9)

    def test_bfloat16_is_close_to_float32(self) -> None:
        network, image = unet(), torch.randn(1, 3, 33, 40)
        exact = PrecisionInferer(precision="float32")(image, network)
        near = PrecisionInferer(precision="bfloat16")(image, network)
        torch.testing.assert_close(exact, network(image))
        assert not torch.equal(near, exact)
        assert (near - exact).abs().max() < 0.05 * exact.std()

    def test_auto_asks_the_hardware(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for capabilities, dtype in (({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
            network = Recording(pointwise())
            PrecisionInferer()(torch.randn(1, 3, 4, 4), network)
            assert network.given[0].dtype is dtype

    def test_the_network_gets_a_plain_channels_last_tensor(self) -> None:
        network = Recording(pointwise())
        PrecisionInferer(precision="float32")(MetaTensor(torch.randn(2, 3, 8, 9)), network)
        assert type(network.seen[0]) is torch.Tensor
        assert network.seen[0].is_contiguous(memory_format=torch.channels_last)

    def test_the_network_may_want_another_memory_format(self) -> None:
        network = Recording(pointwise())
        network.memory_format = torch.contiguous_format
        PrecisionInferer(precision="float32")(torch.randn(2, 3, 8, 9).to(memory_format=torch.channels_last), network)
        assert network.seen[0].is_contiguous()

    def test_metadata_are_kept(self) -> None:
        image = MetaTensor(torch.randn(1, 3, 8, 9), meta={"filename_or_obj": ["eye.tif"]})
        logits = PrecisionInferer(precision="bfloat16")(image, pointwise())
        assert isinstance(logits, MetaTensor) and logits.meta["filename_or_obj"] == ["eye.tif"]
        assert logits.dtype is torch.float32
        assert not isinstance(PrecisionInferer()(image.as_tensor(), pointwise()), MetaTensor)

    def test_volumes(self) -> None:
        network = UNet(base_channels=2, depth=1, spatial_dims=3).eval()
        volume = torch.randn(1, 3, 4, 5, 6)
        torch.testing.assert_close(PrecisionInferer(precision="float32")(volume, network), network(volume))

    def test_arguments_go_through(self) -> None:
        def network(x: torch.Tensor, factor: float, *, shift: float) -> torch.Tensor:
            return x * factor + shift

        image = torch.randn(1, 3, 4, 4)
        out = PrecisionInferer(precision="float32")(image, network, 2.0, shift=1.0)
        torch.testing.assert_close(out, image * 2 + 1)

    def test_several_outputs(self) -> None:
        def network(x: torch.Tensor) -> list[torch.Tensor | dict[str, Any]]:
            x = x.bfloat16()
            return [x, {"half": x[..., ::2], "none": None}]

        image = MetaTensor(torch.randn(1, 3, 4, 6), meta={"filename_or_obj": ["eye.tif"]})
        for given in (image, image.as_tensor()):
            whole, others = PrecisionInferer(FlipInferer(SimpleInferer(), flips=False))(given, network)
            assert whole.dtype == others["half"].dtype == torch.float32 and others["none"] is None
            assert (whole.shape, others["half"].shape) == ((1, 3, 4, 6), (1, 3, 4, 3))
            assert isinstance(whole, MetaTensor) == isinstance(others["half"], MetaTensor) == (given is image)
        with pytest.raises(ValueError, match=r"^flips: expected a network with one output, got a list$"):
            FlipInferer(SimpleInferer())(image, network)

    def test_unknown_precision_is_refused_at_once(self) -> None:
        with pytest.raises(DriveSegError, match=r"^precision: expected auto, float32, .*, got 'double'$"):
            PrecisionInferer(precision="double")


class TestLargeImageInferer:
    @pytest.mark.parametrize("roi_size", [64, (64, 64), [30, 41], (None, 41), (-1, 0)], ids=str)
    def test_whole_where_it_fits(self, roi_size: Any) -> None:
        network, image = Recording(unet()), torch.randn(1, 3, 30, 41)
        logits = LargeImageInferer(roi_size)(image, network)
        assert len(network.seen) == 1 and network.seen[0].shape == image.shape, "neither padded nor cut"
        assert torch.equal(logits, network.network(image))

    @pytest.mark.parametrize(("roi_size", "size", "window"), [
        ((32, 32), (50, 70), (32, 32)),
        (32, (33, 32), (32, 32)),
        ((64, 32), (30, 41), (30, 32)),  # one side fits, the other does not
        (64, (100, 40), (64, 40)),
        ((None, 32), (30, 41), (30, 32)),
    ])  # fmt: skip
    def test_windows_where_it_does_not(self, roi_size: Any, size: tuple[int, int], window: tuple[int, int]) -> None:
        network, image = Recording(pointwise()), torch.randn(1, 3, *size)
        logits = LargeImageInferer(roi_size, overlap=0.25, mode="gaussian")(image, network)
        assert all(seen.shape[2:] == window for seen in network.seen), "nothing is padded"
        assert sum(len(seen) for seen in network.seen) > 1
        torch.testing.assert_close(logits, network.network(image))

    def test_cached_weights_are_for_windows_of_their_size(self) -> None:
        network, inferer = pointwise(), LargeImageInferer((64, 32), mode="gaussian", cache_roi_weight_map=True)
        for size in ((30, 41), (70, 41)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(inferer(image, network), network(image))

    def test_windows_are_nearly_the_whole(self) -> None:
        network, image = unet(), torch.rand(1, 3, 96, 120)
        whole = network(image)
        windows = LargeImageInferer((64, 64), overlap=0.5, mode="gaussian")(image, network)
        assert (windows - whole).abs().mean() < 0.1 * whole.std()

    def test_several_images(self) -> None:
        network, images = pointwise(), torch.randn(3, 3, 20, 50)
        torch.testing.assert_close(LargeImageInferer((32, 32), sw_batch_size=2)(images, network), network(images))

    def test_arguments_that_windows_do_not_have_are_refused_at_once(self) -> None:
        with pytest.raises(TypeError, match="overlapping"):
            LargeImageInferer((32, 32), overlapping=0.25)


class TestFlipInferer:
    def test_mean_of_four(self) -> None:
        network, image = unet(), torch.randn(2, 3, 17, 22)
        mirrored = [
            network(image),
            network(image.flip(3)).flip(3),
            network(image.flip(2)).flip(2),
            network(image.flip(2, 3)).flip(2, 3),
        ]
        logits = FlipInferer(SimpleInferer())(image, network)
        torch.testing.assert_close(logits, sum(mirrored) / 4)
        assert not torch.allclose(logits, mirrored[0])

    def test_a_pointwise_network_does_not_see_the_flips(self) -> None:
        network, image = pointwise(), torch.randn(1, 3, 6, 9)
        torch.testing.assert_close(FlipInferer(SimpleInferer())(image, network), network(image))

    def test_neither_the_image_nor_what_the_network_gave_is_changed(self) -> None:
        image = torch.randn(1, 3, 6, 9)
        before = image.clone()
        torch.testing.assert_close(FlipInferer(SimpleInferer())(image, nn.Identity()), before)
        assert torch.equal(image, before)

    def test_all_eight_symmetries(self) -> None:
        network = nn.Conv2d(3, 2, 3, padding=1)
        image = torch.randn(2, 3, 6, 9)
        views = [image.rot90(turns, (2, 3)) for turns in range(4)]
        turned = [network(view).rot90(-turns, (2, 3)) for turns, view in enumerate(views)]
        mirrored = [network(view.flip(3)).flip(3).rot90(-turns, (2, 3)) for turns, view in enumerate(views)]
        inferer = FlipInferer(SimpleInferer(), flips=8)
        torch.testing.assert_close(inferer(image, network), torch.stack(turned + mirrored).mean(dim=0))
        transposed = inferer(image.transpose(2, 3), network)
        torch.testing.assert_close(transposed.transpose(2, 3), inferer(image, network))

    @pytest.mark.parametrize("flips", [0, 2, 16, "all", None])
    def test_numbers_of_mirror_images_that_there_are_not(self, flips: object) -> None:
        with pytest.raises(DriveSegError, match="flips: expected true, false, 1, 4 or 8"):
            FlipInferer(SimpleInferer(), flips)  # type: ignore[arg-type]

    def test_a_number_as_other_programs_write_it(self) -> None:
        assert len(FlipInferer(SimpleInferer(), flips=8.0).mirrorings) == 8  # type: ignore[arg-type]

    def test_without_flips(self) -> None:
        network, image = Recording(unet()), torch.randn(1, 3, 17, 22)
        assert torch.equal(FlipInferer(SimpleInferer(), flips=False)(image, network), network.given[0])
        assert len(network.seen) == 1

    def test_float32_whatever_the_network_gives(self) -> None:
        def network(x: torch.Tensor) -> torch.Tensor:
            return x.bfloat16()

        for flips in (True, False):
            assert FlipInferer(SimpleInferer(), flips)(torch.randn(1, 3, 4, 5), network).dtype is torch.float32

    def test_as_nested_in_the_bundle(self) -> None:
        inferer = PrecisionInferer(FlipInferer(LargeImageInferer((16, 16), overlap=0.25)), precision="float32")
        network = Recording(pointwise())
        image = MetaTensor(torch.randn(1, 3, 20, 30), meta={"filename_or_obj": ["eye.tif"]})
        logits = inferer(image, network)
        torch.testing.assert_close(logits.as_tensor(), network.network(image.as_tensor()))
        assert logits.meta["filename_or_obj"] == ["eye.tif"]
